"""The part of the conformance suite that every run takes through a machine; `--machine` takes all of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.cli import REPOSITORY

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

# One or a few of each of what goes a way of its own through a machine: streams, terminals, archives, published ports,
# folders, builds, events, limits of the guest's kernel.
PART = (
    "test_run.py",
    "test_exec.py",
    "test_copy.py",
    "test_volumes.py",
    "test_build.py",
    "test_cli_session.py",
)


def test_through_a_machine() -> None:
    suite = REPOSITORY / "tests" / "conformance"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--machine",
        "-q",
        "-rf",
        "--tb=short",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*command, *(str(suite / name) for name in PART)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTEST_ADDOPTS": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
