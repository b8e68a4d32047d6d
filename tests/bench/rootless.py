"""Without root: run, exec and pull of an ordinary user, against rootless podman of the same user in the same run."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.bench.measure import Command, pairs, wall
from tests.support.images import image
from tests.support.registry import plain
from tests.support.rootless import RootlessEngine, User

IMAGE = "busybox"
Figures = tuple[str, float, float, str]
"""What, our milliseconds, podman's, and podman's command."""

LAUNCHER = """#!{python} -IS
import sys

sys.path[:0] = {paths!r}
from host_client.cli.main import run_and_quit

run_and_quit()
"""


class Pair:
    """One user's engine of ours, and this user's podman with overlay as its storage, both warm."""

    def __init__(self, stack: ExitStack) -> None:
        self.user = User()
        stack.callback(self.user.close)
        self.engine = RootlessEngine(self.user).start()
        stack.callback(self.engine.close)
        settings = self.user.home / ".config" / "containers"
        settings.mkdir(parents=True)
        # Debian's podman takes plain copies where nobody says otherwise.
        (settings / "storage.conf").write_text('[storage]\ndriver = "overlay"\n')
        self.launcher = self.user.home / "wherry"
        python, paths = self.user.interpreter, [str(path) for path in self.user.paths]
        self.launcher.write_text(LAUNCHER.format(python=python, paths=paths))
        self.launcher.chmod(0o755)
        subprocess.run(
            ["chown", "-R", f"{self.user.uid}:{self.user.gid}", self.user.home / ".config"], check=True
        )
        stack.callback(self.podman, "system", "reset", "--force", check=False)
        self.version = self.podman("version", "--format", "{{.Client.Version}}")
        archive = self.user.home / "image.tar"
        archive.write_bytes(Path(image("busybox:latest").archive()).read_bytes())
        archive.chmod(0o644)
        self.engine.docker.ok("load", "--quiet", "--input", str(archive))
        self.podman("load", "--quiet", "--input", str(archive))

    def podman(self, *words: str, check: bool = True) -> str:
        done = self.user.run("podman", *words, timeout=300)
        if check and done.returncode:
            raise RuntimeError(f"podman {' '.join(words)}: {done.stderr}")
        return done.stdout.strip()

    def ours(self, *words: str) -> Command:
        env = {**self.user.environment(), "DOCKER_HOST": self.engine.host}
        return self.user.command(str(self.launcher), *words), env

    def theirs(self, *words: str) -> Command:
        return self.user.command("podman", *words), self.user.environment()


def figures(stack: ExitStack, rounds: int) -> list[Figures]:
    """The medians of pairs in turn."""
    pair = Pair(stack)
    name = f"rootless podman {pair.version}"
    found: list[Figures] = []

    def add(what: str, ours: Command, theirs: Command) -> None:
        first, second = pairs(ours, theirs, rounds)
        found.append((what, first * 1000, second * 1000, name))

    flags = ("run", "--rm", IMAGE, "true")
    add("wherry run, no root", pair.ours(*flags), pair.theirs(*flags))
    for start in (pair.engine.docker.ok, pair.podman):
        start("run", "-d", "--name", "bench", IMAGE, "sleep", "3600")
    add("wherry exec, no root", pair.ours("exec", "bench", "true"), pair.theirs("exec", "bench", "true"))
    pair.engine.docker.ok("rm", "-f", "bench")
    pair.podman("rm", "--force", "--time", "0", "bench")
    found.append((*_pull(pair, stack), name))
    return found


def _pull(pair: Pair, stack: ExitStack) -> tuple[str, float, float]:
    registry = plain(Path(stack.enter_context(tempfile.TemporaryDirectory())))
    stack.callback(registry.close)
    registry.push(image("debian:stable"))
    name = f"{registry.address}/debian:stable"
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(4):
        for taken, command in zip(
            times,
            (pair.ours("pull", "-q", name), pair.theirs("pull", "-q", "--tls-verify=false", name)),
            strict=True,
        ):
            seconds = wall(command)
            if number:
                taken.append(seconds)
        pair.engine.docker.ok("rmi", "-f", name)
        pair.podman("rmi", "--force", name)
    ours, theirs = (statistics.median(each) * 1000 for each in times)
    return "wherry pull, 40 MB, no root", ours, theirs
