"""The installed `wherry`: a shell script that is Python, found by any name, started without `site`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from host_client import VERSION
from tests.support.cli import REPOSITORY

LAUNCHER = REPOSITORY / "host_client" / "bin" / "wherry"
PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A virtual environment as pip leaves it, with links to this interpreter and this checkout."""
    home = tmp_path / "a place"
    (home / "bin").mkdir(parents=True)
    packages = home / "lib" / PYTHON / "site-packages"
    packages.mkdir(parents=True)
    (packages / "host_client").symlink_to(REPOSITORY / "host_client")
    (home / "bin" / "python3").symlink_to(sys.executable)
    shutil.copy2(LAUNCHER, home / "bin" / "wherry")
    return home


def run(*words: str | Path, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=30, **settings)  # type: ignore[call-overload,no-any-return]


def test_starts(prefix: Path) -> None:
    done = run(prefix / "bin" / "wherry", "version", "--client")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Version:           {VERSION}" in done.stdout


def test_through_links_path_and_from_elsewhere(prefix: Path, tmp_path: Path) -> None:
    other = tmp_path / "bin"
    other.mkdir()
    (other / "wherry").symlink_to(prefix / "bin" / "wherry")
    (other / "w").symlink_to("wherry")
    for words, settings in (
        ([other / "w"], {}),
        (["wherry"], {"env": {"PATH": f"{other}:{os.environ['PATH']}"}}),
        (["./wherry"], {"cwd": prefix / "bin"}),
        (["sh", prefix / "bin" / "wherry"], {}),
    ):
        done = run(*words, "--version", **settings)
        assert done.stdout == f"Wherry version {VERSION}\n", done.stderr


def test_arguments_arrive_as_they_are(prefix: Path) -> None:
    done = run(prefix / "bin" / "wherry", "no such\ncommand $x")
    assert done.stderr.startswith("error: unknown command: wherry no such\ncommand $x\n")
    assert done.returncode == 1


def test_the_environment_of_python_does_not_get_in(prefix: Path, tmp_path: Path) -> None:
    (tmp_path / "host_client.py").write_text("raise SystemExit('hijacked')")
    done = run(
        prefix / "bin" / "wherry",
        "--version",
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)},
    )
    assert done.stdout == f"Wherry version {VERSION}\n", done.stderr


def test_site_is_not_loaded(prefix: Path) -> None:
    done = run("sh", "-x", prefix / "bin" / "wherry", "--version")
    assert f"{prefix / 'bin' / 'python3'} -I -S " in done.stderr


def test_shell_part_is_sound(tmp_path: Path) -> None:
    shell, _, python = LAUNCHER.read_text().partition("\n'''\n")
    assert shell.splitlines()[-1].startswith("exec ")
    (tmp_path / "part.sh").write_text(f"{shell}\n")
    done = run("shellcheck", tmp_path / "part.sh")
    assert done.returncode == 0, done.stdout
    compile(python, "wherry", "exec")


def test_version_is_the_distributions() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert project["project"]["version"] == VERSION
    launchers = [LAUNCHER, LAUNCHER.with_suffix(".cmd")]
    listed = project["tool"]["setuptools"]["script-files"]
    assert listed == [str(path.relative_to(REPOSITORY)) for path in launchers]
    assert os.access(LAUNCHER, os.X_OK)


def test_windows_has_a_launcher_of_its_own() -> None:
    """Windows' shells take `wherry` for `wherry.cmd`, and read lines that end as DOS had them."""
    lines = LAUNCHER.with_suffix(".cmd").read_bytes().split(b"\r\n")
    assert b'@"%python%" -I -m host_client %*' in lines
    assert all(line.startswith(b"@") and b"\n" not in line for line in lines[:-1]), "nothing is echoed"


@pytest.mark.parametrize("words", [("--version",), ("--help",), ("run", "--help"), ("completion", "bash")])
def test_output_that_cannot_be_written(words: tuple[str, ...]) -> None:
    """A full disk is an error in a sentence, a reader that has gone ends it as SIGPIPE would, and a standard stream
    that was closed is as if it were /dev/null.
    """
    command = [sys.executable, "-m", "host_client", *words]
    written: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True, "timeout": 30, "cwd": REPOSITORY}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, **written)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "cannot write to standard output: No space left on device" in done.stderr
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as broken:
        done = subprocess.run(command, stdout=broken, **written)
    assert (done.returncode, done.stderr) == (141, "")
    for closed in ("0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"):
        done = run("sh", "-c", f'exec "$@" {closed}', "sh", *command, cwd=REPOSITORY)
        assert (done.returncode, done.stderr) == (0, ""), closed


def test_a_closed_stream_is_not_taken_for_a_connection() -> None:
    """The first descriptor that is opened gets the number of a closed one: the engine's socket would be written to."""
    code = "import sys, os; sys.path.append(sys.argv[1]); from host_client.cli import output; output.open_missing(); "
    code += "print(os.open('/dev/zero', 0), file=sys.__stderr__)"
    done = run("sh", "-c", 'exec "$@" 0<&- 1>&-', "sh", sys.executable, "-c", code, str(REPOSITORY))
    assert int(done.stderr) > 2
