"""What the agent has from the machine's image and its host: BuildKit's protocol, signatures, the way out."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.support import cosign
from tests.support.cli import Cli, buildx_directory
from tests.support.images import image as container_image
from tests.support.machine import MachineEngine, mounted
from tests.support.registry import TlsRegistry

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def engine(
    image: Path, tls_registry: TlsRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MachineEngine]:
    """A machine that trusts the registry's authority and has a policy: images of `signed` need a signature."""
    made = MachineEngine(image)
    made.config.mkdir()
    key = tmp_path_factory.mktemp("keys") / "team.pub"
    key.write_bytes(cosign.public(KEY))
    demand = {"type": "sigstoreSigned", "keyPath": str(key), "signedIdentity": {"type": "matchRepository"}}
    accept = {"type": "insecureAcceptAnything"}
    (made.config / "policy.json").write_text(
        json.dumps(
            {
                "default": [{"type": "reject"}],
                "transports": {
                    "docker": {
                        f"{tls_registry.address}/busybox": [accept],
                        f"{tls_registry.address}/signed": [demand],
                    }
                },
            }
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(tls_registry.authority.path))
        try:
            made.start()
            archive = container_image("busybox:latest").archive()
            made.docker.ok("load", "--quiet", "--input", archive)
            yield made
        finally:
            made.close()


KEY = cosign.generate()


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "Dockerfile").write_text(
        "FROM busybox\nRUN --mount=type=cache,target=/c echo built > /f\nCOPY a /a\nCMD cat /f /a\n"
    )
    (tmp_path / "a").write_text("copied\n")
    return tmp_path


def test_the_classic_builder(engine: MachineEngine, context: Path) -> None:
    cli = Cli(engine.docker.command, engine.docker.host, engine.home)
    cli.env["DOCKER_BUILDKIT"] = "0"
    cli.ok("build", "-t", "classic", context, timeout=120)
    assert cli.ok("run", "--rm", "classic") == "built\ncopied"


def test_buildx(engine: MachineEngine, context: Path, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.mkdir()
    (config / "config.json").write_text(json.dumps({"cliPluginsExtraDirs": [str(buildx_directory())]}))
    cli = Cli(engine.docker.command, engine.docker.host, config)
    built = cli("build", "--progress", "plain", "-t", "bx", context, timeout=120)
    assert re.search(r"^#\d+ \[3/3\] COPY a /a", built.err, re.MULTILINE), built
    assert cli.ok("run", "--rm", "bx") == "built\ncopied"
    again = cli("build", "--progress", "plain", context, timeout=120)
    assert len(re.findall(r"^#\d+ CACHED$", again.err, re.MULTILINE)) == 2, again


def test_programs_of_another_architecture(
    engine: MachineEngine, image: Path, arm_image: Path, tmp_path: Path
) -> None:
    """The shells and tools of the image's busybox, which goes by the name it is called with."""
    context = tmp_path / "context"
    context.mkdir()
    for architecture, folder in (("amd64", image), ("arm64", arm_image)):
        with mounted(folder, tmp_path / architecture) as root:
            shutil.copy(root / "usr/bin/busybox", context / architecture)
    (context / "Dockerfile").write_text(
        "FROM scratch\nARG TARGETARCH\nCOPY --chmod=755 $TARGETARCH /bin/busybox\n"
        'RUN ["/bin/busybox", "ln", "-s", "busybox", "/bin/sh"]\n'
        "RUN for each in ln uname id cat; do /bin/busybox ln -s busybox /bin/$each; done; uname -m > /made\n"
    )
    config = tmp_path / "config"
    config.mkdir()
    (config / "config.json").write_text(json.dumps({"cliPluginsExtraDirs": [str(buildx_directory())]}))
    cli = Cli(engine.docker.command, engine.docker.host, config)
    assert "linux/arm64" in cli.ok("buildx", "inspect")
    platforms = ("--platform", "linux/amd64,linux/arm64")
    built = cli("buildx", "build", *platforms, "--progress=plain", "-t", "both", context, timeout=200)
    assert built.code == 0, built.err
    for architecture, machine in (("amd64", "x86_64"), ("arm64", "aarch64")):
        run = ("run", "--rm", "--user", "1000", "--platform", f"linux/{architecture}", "both")
        script = "cat /made; uname -m; echo $0 $(id -u)"
        assert cli.ok(*run, "sh", "-c", script, timeout=60).split() == [machine, machine, "sh", "1000"]
    privileged = ("run", "--rm", "--privileged", "busybox", "sh", "-c")
    mount = "cd /proc/sys/fs && mount -t binfmt_misc none binfmt_misc && cat binfmt_misc/qemu-aarch64"
    assert "flags: POCF" in engine.docker.ok(*privileged, mount)
    cli.ok("rmi", "both")


def test_git_is_missed_by_name(engine: MachineEngine) -> None:
    with pytest.raises(docker.errors.APIError) as caught:
        engine.client.images.build(path="https://git.invalid/repository.git")
    assert "cannot fetch a git repository: git is not installed" in str(caught.value)


@pytest.mark.parametrize(
    ("driver", "options", "first", "route"),
    [
        ("macvlan", (), "10.136.0.2", "default via 10.136.0.1 dev eth0"),
        ("ipvlan", (), "10.136.0.2", "default via 10.136.0.1 dev eth0"),
        ("ipvlan", ("-o", "ipvlan_mode=l3"), "10.136.0.1", "default dev eth0 scope link"),
        ("ipvlan", ("-o", "ipvlan_mode=l3s"), "10.136.0.1", "default dev eth0 scope link"),
    ],
)
def test_networks_on_a_link_of_the_host(
    engine: MachineEngine, driver: str, options: tuple[str, ...], first: str, route: str
) -> None:
    """The machine's kernel has ipvlan, and like many a host an eth0, whose name containers take, too."""
    docker = engine.docker
    ip = ("run", "--rm", "--privileged", "--network", "host", "busybox", "ip", "link")
    docker.ok(*ip, "add", "leads", "type", "dummy")
    try:
        docker.ok(*ip, "set", "leads", "up")
        subnet = ("--subnet", "10.136.0.0/24", "-o", "parent=leads")
        docker.ok("network", "create", "-d", driver, *subnet, *options, "lan")
        docker.ok("run", "-d", "--name", "one", "--network", "lan", "busybox", "sleep", "100")
        assert docker.ok("run", "--rm", "--network", "lan", "busybox", "ping", "-c1", "-W5", "one")
        assert f" {first}/24 " in docker.ok("exec", "one", "ip", "address", "show", "eth0")
        assert route in docker.ok("exec", "one", "ip", "route")
    finally:
        docker("rm", "-f", "one")
        docker("network", "rm", "lan")
        docker.ok(*ip, "delete", "leads")


def test_the_hosts_signature_policy(engine: MachineEngine, tls_registry: TlsRegistry) -> None:
    refused = engine.docker("pull", tls_registry.push(container_image("busybox:latest"), "other:1"))
    assert "is rejected by policy" in refused.err
    engine.docker.ok("pull", "--quiet", f"{tls_registry.address}/busybox:latest")
    reference = tls_registry.push(container_image("busybox:latest"), "signed/busybox:1")
    unsigned = engine.docker("pull", reference)
    assert "A signature was required, but no signature exists" in unsigned.err
    digest = engine.docker.ok("inspect", "-f", "{{index .RepoDigests 0}}", f"{tls_registry.address}/busybox")
    of = digest.rpartition("@")[2]
    document = cosign.payload(f"{tls_registry.address}/signed/busybox", of)
    pair = (document, cosign.signed(KEY, document))
    cosign.attach(tls_registry.address, "signed/busybox", of, [pair], tls_registry.authority.path)
    engine.docker.ok("pull", "--quiet", reference)
