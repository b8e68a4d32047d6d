"""The tools that watch over the code, as tests, so that one command runs everything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import REPOSITORY

BIN = Path(sys.executable).parent


def check(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        pytest.fail(f"{done.stdout}{done.stderr}", pytrace=False)


def test_ruff() -> None:
    check(BIN / "ruff", "check", "--quiet", "--output-format=concise", ".")


def test_formatting() -> None:
    check(BIN / "ruff", "format", "--quiet", "--diff", ".")


@pytest.mark.timeout(300)
def test_types() -> None:
    check(BIN / "mypy", "--no-error-summary")


def test_layers() -> None:
    check(BIN / "lint-imports")


def test_shell_scripts() -> None:
    scripts = ("install.sh", "run-tests", ".ci/run", "packaging/environment.sh")
    check("shellcheck", "--external-sources", *scripts)
