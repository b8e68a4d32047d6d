"""Nothing on the host's side needs a POSIX-only module to be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
POSIX_ONLY = (
    "fcntl",
    "grp",
    "pty",
    "pwd",
    "resource",
    "syslog",
    "termios",
    "tty",
    "_posixsubprocess",
    "_posixshmem",
)

# Modules of the interpreter's own that import such a module where it exists keep working without it, as on Windows.
PROGRAM = """
import importlib, pkgutil, sys
import asyncio, subprocess, tempfile, shutil, getpass, multiprocessing.connection  # the library's own may use them
for name in {hidden!r}:
    sys.modules[name] = None
import host_client.machine
for module in pkgutil.iter_modules(host_client.machine.__path__):
    importlib.import_module(f"host_client.machine.{{module.name}}")
import host_client.machine.file_server
for module in pkgutil.iter_modules(host_client.machine.file_server.__path__):
    importlib.import_module(f"host_client.machine.file_server.{{module.name}}")
import host_client.vm, host_client.doctor
for module in pkgutil.iter_modules(host_client.doctor.__path__):
    importlib.import_module(f"host_client.doctor.{{module.name}}")
from host_client.cli.main import main
sys.exit(main(["machine", "list"]))
"""


def test_machines_work_without_posix_only_modules(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(hidden=POSIX_ONLY)],
        cwd=REPOSITORY,
        env={"XDG_DATA_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("NAME")
