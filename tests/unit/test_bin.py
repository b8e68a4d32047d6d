"""The static programs Wherry ships: hello-world and the init of `--init`."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
from pathlib import Path

import pytest

BIN = Path(__file__).parents[2] / "guest_agent" / "bin"
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]


@pytest.fixture(scope="module", params=["shipped", "rebuilt"])
def programs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the programs: those in the repository, and the same built now from their source."""
    if request.param == "shipped":
        return BIN
    out = tmp_path_factory.mktemp("bin")
    subprocess.run(
        [BIN / "src" / "build.sh"], check=True, env={**os.environ, "OUT": str(out), "ARCHES": ARCH}
    )
    return out


def run_init(programs: Path, *command: str, **kwargs: str) -> subprocess.CompletedProcess[str]:
    command = (str(programs / f"init-{ARCH}"), "--", *command)
    return subprocess.run(command, capture_output=True, text=True, timeout=10, env=kwargs or None)


def test_hello_tells_what_happened(programs: Path) -> None:
    done = subprocess.run([programs / f"hello-{ARCH}"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Hello from Wherry!" in done.stdout
    assert platform.release() in done.stdout


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)]
)
def test_init_ends_with_the_commands_code(programs: Path, script: str, code: int) -> None:
    assert run_init(programs, "sh", "-c", script).returncode == code


def test_init_says_what_cannot_be_started(programs: Path, tmp_path: Path) -> None:
    missing = run_init(programs, "no-such-command")
    assert (missing.returncode, "no-such-command failed: No such file" in missing.stderr) == (127, True)
    plain = tmp_path / "plain"
    plain.write_text("")
    refused = run_init(programs, "plain", PATH=f"{tmp_path}")
    assert (refused.returncode, "Permission denied" in refused.stderr) == (126, True)


def test_init_searches_path_in_order(programs: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which-one").write_text(f"#!/bin/sh\necho {name}\n")
        (tmp_path / name / "which-one").chmod(0o755)
    done = run_init(programs, "which-one", PATH=f"/nonexistent:{tmp_path}/b:{tmp_path}/a")
    assert done.stdout == "b\n"


def test_init_passes_signals_on_and_reaps_orphans(programs: Path) -> None:
    script = "trap 'echo got; exit 5' USR1; (sleep 0.01 &) ; echo ready; while :; do sleep 0.01; done"
    process = subprocess.Popen(
        [programs / f"init-{ARCH}", "--", "sh", "-c", script], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.read() == "got\n"
    assert process.wait(10) == 5
