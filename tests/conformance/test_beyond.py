"""What our engine does where dockerd cannot be compared: it needs files of its host, or does less."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import registry
from tests.support.cli import REPOSITORY, eventually
from tests.support.engine import OurEngine
from tests.support.images import Image

pytestmark = [pytest.mark.root, pytest.mark.ours]


def test_load_an_oci_layout(own_engine: OurEngine, image: Callable[[str], Image], tmp_path: Path) -> None:
    layout = image("capabilities:latest").layout
    with tarfile.open(tmp_path / "layout.tar", "w") as tar:
        tar.add(layout, ".")
    assert own_engine.docker.ok("load", "-i", tmp_path / "layout.tar") == "Loaded image: capabilities:latest"


def test_sparse_files_stay_sparse(own_engine: OurEngine, image: Callable[[str], Image]) -> None:
    own_engine.docker.ok("load", "-q", "-i", image("oddities:latest").archive())
    size, blocks = own_engine.docker.ok(
        "run", "--rm", "oddities", "stat", "-c", "%s %b", "/odd/sparse"
    ).split()
    assert int(size) == 64 << 20
    assert int(blocks) < 1000


@pytest.fixture
def certificates(tls_registry: registry.TlsRegistry) -> Iterator[Path]:
    """Where the engine looks for the authority of the registry; empty."""
    directory = Path("/etc/wherry/certs.d", tls_registry.address)
    directory.mkdir(parents=True)
    yield directory
    for each in (directory, directory.parent, directory.parent.parent):
        for file in each.glob("*.crt"):
            file.unlink()
        if not any(each.iterdir()):
            each.rmdir()


def test_certificate_authority(
    own_engine: OurEngine, tls_registry: registry.TlsRegistry, certificates: Path
) -> None:
    """A registry whose certificate nobody vouches for is refused; with its authority in certs.d it is trusted."""
    reference = f"{tls_registry.address}/busybox"
    engine = own_engine
    result = engine.docker("pull", reference)
    assert result.code == 1
    assert "certificate" in result.err
    assert engine.docker.ok("images", "--format", "{{.Repository}}") == "busybox"
    (certificates / "ca.crt").write_bytes(tls_registry.authority.path.read_bytes())
    engine.docker.ok("pull", "-q", reference)
    assert engine.docker.ok("run", "--rm", reference, "echo", "trusted") == "trusted"


def test_mirror(
    start_engine: Callable[..., OurEngine],
    mirror_registry: registry.Registry,
    plain_registry: registry.Registry,
) -> None:
    """A mirror is asked first, for any registry, and the image keeps the name it was asked for by."""
    name = f"{plain_registry.address}/busybox"
    engine = start_engine("--registry-mirror", f"{plain_registry.address}=http://{mirror_registry.address}")
    engine.docker.ok("pull", "-q", name)
    assert engine.docker.ok("images", "--format", "{{.Repository}}") == name
    assert any("GET /v2/busybox/manifests/latest" in line for line in mirror_registry.log)


def test_engines_side_by_side(start_engine: Callable[..., OurEngine], image: Callable[[str], Image]) -> None:
    """Each has its own containers, images, volumes, addresses and ports, and the end of one leaves the other alone."""
    engines = [start_engine() for _ in range(3)]
    for engine in engines:
        engine.docker.ok("load", "-q", "-i", image("busybox:latest").archive())
        serve = ("httpd", "-f", "-p", "80", "-h", "/etc")
        engine.docker.ok(
            "run", "-d", "--name", "web", "-h", engine.root.name, "-p", "80", "-v", "v:/v", "busybox", *serve
        )

    def answer(engine: OurEngine) -> str:
        address = engine.docker.ok("port", "web", "80").splitlines()[0].replace("0.0.0.0", "127.0.0.1")
        result = engine.docker(
            "run", "--rm", "--network", "host", "busybox", "wget", "-qO-", f"http://{address}/hostname"
        )
        return result.out.strip()

    for engine in engines:
        eventually(lambda engine=engine: answer(engine) == engine.root.name)  # type: ignore[misc]
        assert len(engine.docker.ok("ps", "-q").split()) == 1
    engines[0].docker.ok("rm", "-f", "web")
    engines[0].stop()
    assert answer(engines[1]) == engines[1].root.name
    engines[0].start()
    assert answer(engines[2]) == engines[2].root.name


def test_one_engine_for_one_root(own_engine: OurEngine) -> None:
    """A second engine on the same root says so and ends."""
    roots = ("--data-root", str(own_engine.data), "--exec-root", str(own_engine.root / "other"))
    serve = [sys.executable, "-m", "guest_agent", "serve", "--host", f"unix://{own_engine.root}/other.sock"]
    second = subprocess.run([*serve, *roots], cwd=REPOSITORY, capture_output=True, text=True, timeout=30)
    assert second.returncode == 1
    assert f"is using the data root {own_engine.data}" in second.stderr


def test_roots_are_closed_to_others(own_engine: OurEngine) -> None:
    """The engine's own state is nobody's business (CVE-2021-41091)."""
    assert own_engine.data.stat().st_mode & 0o777 == 0o710
    assert own_engine.run.stat().st_mode & 0o777 == 0o710
    assert Path(own_engine.socket).stat().st_mode & 0o777 == 0o600
