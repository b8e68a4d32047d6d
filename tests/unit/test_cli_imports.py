"""What a command imports: little on the hot path, nothing of one operating system on another, help only when asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.cli import REPOSITORY
from tests.support.recorder import CONTAINER, recorder

# Each costs more than a request to the engine.
HEAVY = {
    "argparse", "asyncio", "collections", "contextlib", "dataclasses", "datetime", "enum", "functools", "inspect", "json",
    "logging", "pathlib", "platformdirs", "re", "requests", "rich", "shutil", "socket", "ssl", "subprocess", "tempfile",
    "threading", "typer", "typing", "urllib",
}  # fmt: skip
POSIX_ONLY = ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty")

RUN = """
import sys
sys.path.append({root!r})
from host_client.cli import output
from host_client.cli.main import main
status = main({argv!r})
output.err("\\n" + " ".join(sorted(sys.modules)) + "\\n")
output.quit_now(status)
"""


def modules(*argv: str, host: str) -> set[str]:
    """The modules that a command line has imported when it is done."""
    code = RUN.format(root=str(REPOSITORY), argv=list(argv))
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        capture_output=True,
        text=True,
        env={"DOCKER_HOST": host, "HOME": "/proc", "PATH": os.environ["PATH"]},
        stdin=subprocess.DEVNULL,
        timeout=30,
    )
    return set(done.stderr.strip().split("\n")[-1].split())


@pytest.mark.parametrize(
    "line",
    [
        "--version", "version --client", "version", "ps", "ps -aq", "images", "inspect x", "run -d image", "rm -f x",
        "run --rm -v /a:/b -p 80:80 -e A=b --name x --network n --mount type=tmpfs,dst=/t -m 1g image sh -c true",
        "start x", "stop x", "kill x", "logs x", "exec x true", "create image", "volume ls", "network ls", "port x",
    ],
)  # fmt: skip
def test_hot_path_is_light(line: str) -> None:
    with tempfile.TemporaryDirectory(prefix="wi-") as directory, recorder(Path(directory)) as server:
        server.answers.update(
            {
                "/containers/json": (200, []),
                "/images/json": (200, []),
                "/networks": (200, []),
                "/volumes": (200, {"Volumes": []}),
                f"/containers/{CONTAINER}/start": (204, None),
                "/version": (200, {"Version": "1", "ApiVersion": "1.51", "Components": []}),
            }
        )
        loaded = modules(*line.split(), host=server.host)
    assert "host_client.cli.main" in loaded
    assert {name.partition(".")[0] for name in loaded} & HEAVY == set()


def test_help_is_what_brings_typer() -> None:
    code = f"import sys; sys.path[:0] = [{str(REPOSITORY)!r}]\nfrom host_client.cli.main import main\nmain(['ps', '--help'])\nprint('typer' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip().endswith("True")


ELSEWHERE = """
# The interpreter's own modules as they are here; what is imported after them is ours.
import ctypes, difflib, http, importlib, json, ipaddress, pkgutil, platform, socket, ssl, subprocess, sys, tarfile, tempfile
import threading, traceback, _signal, _socket, os, select, signal, shutil, hashlib, urllib.request, logging, asyncio
system, missing = {system!r}, {missing!r}
for name in missing:
    sys.modules[name] = None
sys.platform = system
for module, names in {lacks!r}:
    for name in names:
        if hasattr(sys.modules[module], name):
            delattr(sys.modules[module], name)
sys.path.append({root!r})
import host_client
failed = []
for module in pkgutil.walk_packages(host_client.__path__, "host_client."):
    if module.name.endswith(("terminal_posix", "__main__", "cli.app", "cli.pretty")):
        continue
    try:
        importlib.import_module(module.name)
    except Exception as error:
        failed.append(f"{{module.name}}: {{error!r}}")
from host_client.cli.main import main
statuses = [main(words) for words in ({argvs!r})]
print(json.dumps([failed, statuses]))
"""


LACKS = {
    "win32": [("_socket", ["AF_UNIX", "SO_PEERCRED"]), ("os", ["geteuid", "getuid", "pidfd_open", "uname"])],
    "darwin": [("_socket", ["SO_PEERCRED"]), ("os", ["pidfd_open"])],
}


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_runs_on_other_systems(system: str) -> None:
    """The client without the modules that the other system lacks; the machine module has its own tests."""
    argvs = [
        ["version", "--client"],
        ["--version"],
        ["-H", "tcp://127.0.0.1:1", "ps"],
        ["engine", "status"],
        ["run", "--foo", "x"],
        ["nope"],
    ]
    missing = POSIX_ONLY if system == "win32" else ()
    code = ELSEWHERE.format(
        root=str(REPOSITORY), system=system, missing=missing, argvs=argvs, lacks=LACKS[system]
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        capture_output=True,
        text=True,
        env={"HOME": "/proc", "PATH": os.environ["PATH"], "PROCESSOR_ARCHITECTURE": "AMD64"},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    failed, statuses = json.loads(done.stdout.strip().split("\n")[-1])
    assert failed == []
    assert statuses == [0, 0, 1, 1, 125, 1], done.stderr
    assert "there is no native engine on this system" in done.stderr
    assert "cannot connect to the engine at 127.0.0.1:1" in done.stderr
