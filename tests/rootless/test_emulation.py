"""Builds for another processor, with an emulator that is registered for this engine's user namespace alone.

binfmt_misc is one of a user namespace's own since Linux 6.7, so that the machine's is left as it is.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from guest_agent.images import platforms
from tests.support.cli import Cli, buildx_directory, emulator
from tests.support.programs import program
from tests.support.rootless import RootlessEngine

pytestmark = pytest.mark.root

HERE = platforms.host().architecture
OTHER, MACHINE, NUMBER = ("arm64", "aarch64", rb"\xb7") if HERE == "amd64" else ("amd64", "x86_64", rb"\x3e")
# The ELF header of its programs, of which the ABI, and whether they are position-independent, may differ.
_HEADER = rb"\x7fELF\x02\x01\x01" + rb"\x00" * 9 + rb"\x02\x00" + NUMBER + rb"\x00"
_MASK = rb"\xff" * 7 + rb"\x00" + rb"\xff" * 8 + rb"\xfe\xff\xff\xff"
DOCKERFILE = """FROM scratch
ARG TARGETARCH
COPY --chmod=755 program.$TARGETARCH /program
RUN ["/program"]
CMD ["/program"]
"""


def register(engine: RootlessEngine) -> None:
    """Registers the emulator, which the kernel keeps open (F): it is found in any container."""
    assert engine.process is not None
    program = engine.root / "qemu"  # where the user may read it
    program.write_bytes(emulator(MACHINE).read_bytes())
    program.chmod(0o755)
    rule = b":qemu-other:M::" + _HEADER + b":" + _MASK + b":" + bytes(program) + b":F"
    script = "mount -t binfmt_misc none /proc/sys/fs/binfmt_misc && cat > /proc/sys/fs/binfmt_misc/register"
    inside = ["nsenter", "--target", str(engine.process.pid), "--user", "--mount", "sh", "-c", script]
    subprocess.run(inside, input=rule, check=True)


def test_two_platforms_with_run(start_rootless: Callable[..., RootlessEngine], tmp_path: Path) -> None:
    engine = start_rootless()
    register(engine)
    assert not Path("/proc/sys/fs/binfmt_misc/qemu-other").exists()
    config = tmp_path / "config"
    config.mkdir()
    (config / "config.json").write_text(json.dumps({"cliPluginsExtraDirs": [str(buildx_directory())]}))
    buildx = Cli(engine.docker.command, engine.host, config)
    assert f"linux/{OTHER}" in buildx.ok("buildx", "inspect")
    for architecture in ("amd64", "arm64"):
        (tmp_path / f"program.{architecture}").write_bytes(program(architecture))
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    both = ("--platform", f"linux/{HERE},linux/{OTHER}")
    result = buildx("build", *both, "-t", "emulated", "--progress=plain", str(tmp_path), timeout=120)
    assert result.code == 0, result.err
    assert engine.docker.ok("run", "--rm", "emulated") == HERE
    assert engine.docker.ok("run", "--rm", "--platform", f"linux/{OTHER}", "emulated") == OTHER
    out = tmp_path / "out"
    buildx.ok("build", *both, "-o", f"type=local,dest={out}", str(tmp_path), timeout=120)
    for architecture in ("amd64", "arm64"):
        assert (out / f"linux_{architecture}" / "made").read_text() == f"{architecture}\n"
