"""Running the real docker CLI, and our own, the way a person or a script would."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pexpect

REPOSITORY = Path(__file__).parents[2]
OLDEST_DOCKER_CLI = (28, 0)
# As it was when the tests began: users of a test's own have caches of their own.
CACHE = Path(
    os.environ.get("WHERRY_TEST_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "wherry-tests")
)
T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """What a finished command left behind."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class CommandFailed(AssertionError):
    """A command that a test needs to succeed did not."""


class Cli:
    """A command line bound to one engine: `cli("run", "--rm", image)` is a `Result`, whatever the code."""

    def __init__(self, command: Sequence[str], host: str, config: Path) -> None:
        """`command`: argv prefix. `host`: DOCKER_HOST's value. `config`: a DOCKER_CONFIG directory."""
        self.command = list(command)
        self.host = host
        self.config = config
        self.env = {
            name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "WHERRY_"))
        } | {"DOCKER_HOST": host, "DOCKER_CONFIG": str(config), "DOCKER_CLI_HINTS": "0"}

    def __call__(
        self,
        *args: str | Path,
        input: str | bytes | None = None,
        timeout: float = 60,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Result:
        """Run to the end. Without `input` the command's standard input is /dev/null."""
        done = subprocess.run(
            [*self.command, *map(str, args)],
            input=input.encode() if isinstance(input, str) else input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            timeout=timeout,
            env=self.env | (env or {}),
            cwd=cwd or REPOSITORY,
        )
        return Result(
            done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )

    def ok(self, *args: str | Path, input: str | bytes | None = None, timeout: float = 60) -> str:
        """Run a command that must succeed; its output without the last newline."""
        result = self(*args, input=input, timeout=timeout)
        if result.code != 0:
            raise CommandFailed(f"{self.command[-1]} {' '.join(map(str, args))}: {result}")
        return result.out.removesuffix("\n")

    def spawn(self, *args: str | Path, **pipes: int) -> subprocess.Popen[bytes]:
        """Start and leave running, streams as pipes unless said otherwise. The caller ends it."""
        streams: dict[str, Any] = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
        command = [*self.command, *map(str, args)]
        return subprocess.Popen(command, env=self.env, cwd=REPOSITORY, **(streams | pipes))

    def terminal(
        self, *args: str | Path, rows: int = 24, columns: int = 80, timeout: float = 20
    ) -> pexpect.spawn[bytes]:
        """Start it on a terminal of its own, as a person at a keyboard has it."""
        return pexpect.spawn(
            self.command[0],
            [*self.command[1:], *map(str, args)],
            env=self.env | {"TERM": "xterm"},
            cwd=str(REPOSITORY),
            dimensions=(rows, columns),
            timeout=timeout,
        )


@cache
def docker_binary() -> str:
    """The docker CLI in use: WHERRY_TEST_DOCKER, else the one ./run-tests fetched, else PATH's.

    Raises RuntimeError when there is none or it is too old to speak the API versions the suite asks for.
    """
    fetched = cache_directory() / "docker" / "usr" / "bin" / "docker"
    found = os.environ.get("WHERRY_TEST_DOCKER") or (
        str(fetched) if fetched.exists() else shutil.which("docker")
    )
    if not found:
        raise RuntimeError("no docker CLI on PATH: ./run-tests --setup-only installs it")
    if not new_enough(found):
        raise RuntimeError(f"{found} is too old: ./run-tests --setup-only gets a newer docker CLI")
    return found


def new_enough(docker: str) -> bool:
    """Whether a docker CLI knows the commands and API versions the suite uses."""
    text = subprocess.run([docker, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"version (\d+)\.(\d+)", text)
    return version is not None and tuple(map(int, version.groups())) >= OLDEST_DOCKER_CLI


def compose_binary(version: int) -> Path:
    """Docker Compose 1 or 2, which ./run-tests fetched; the present one is run by `wherry compose`.

    Raises RuntimeError when there is none.
    """
    found = cache_directory() / "compose" / f"v{version}" / "bin" / "docker-compose"
    if not found.exists():
        raise RuntimeError(f"no Docker Compose {version}: ./run-tests --setup-only gets it")
    return found


def buildx_directory() -> Path:
    """The directory of the docker CLI's buildx plugin, which ./run-tests fetched.

    Raises RuntimeError when there is none.
    """
    found = cache_directory() / "docker" / "usr" / "libexec" / "docker" / "cli-plugins"
    if not (found / "docker-buildx").exists():
        raise RuntimeError("no buildx plugin: ./run-tests --setup-only gets it")
    return found


def emulator(machine: str) -> Path:
    """A static program that runs those of `aarch64` or `x86_64`, which ./run-tests fetched.

    RuntimeError without it.
    """
    found = cache_directory() / "emulators" / f"qemu-{machine}-static"
    if not found.exists():
        raise RuntimeError(f"no {found.name}: ./run-tests --setup-only gets it")
    return found


def wherry_command() -> list[str]:
    """Our own CLI from this checkout."""
    return [sys.executable, "-m", "host_client"]


def cache_directory() -> Path:
    """Where what is slow to make (images, tools) is kept from one run of the suite to the next."""
    CACHE.mkdir(parents=True, exist_ok=True)
    return CACHE


def eventually(check: Callable[[], T], seconds: float = 10, every: float = 0.05, what: str = "") -> T:
    """Call `check` until it returns something true, and return that. AssertionError when time is up."""
    deadline = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or check}, last {value!r}")
        time.sleep(every)
