"""The budgets of the design, measured: each as a ratio to a peer on the same machine in the same run.

    ./run-tests --bench [--rounds N] [--dockerd PROGRAM] [--megabytes N]

Prints a table and exits with 0 whatever the figures are: machines are noisy, so a person judges.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.bench import rootless, throughput
from tests.bench.builds import builds
from tests.bench.measure import Command, family, pairs, processor_time, proportional, resident, wall
from tests.bench.peers import Dockerd, Runc, docker_cli
from tests.bench.transfers import transfers
from tests.support.cli import REPOSITORY, Cli
from tests.support.engine import OurEngine
from tests.support.images import image
from tests.support.registry import Registry, plain
from tests.support.rootless import RootlessEngine, User

IMAGE = "busybox"
MEGABYTE = 1_000_000
_MANY = 100  # containers


@dataclass
class Row:
    """One line of the table: our figure, the peer's, and the budget for their ratio or for ours alone."""

    what: str
    ours: float
    peer: float | None
    unit: str
    limit: float
    of_ratio: bool
    peer_name: str = ""

    def cells(self) -> list[str]:
        value = self.ours / self.peer if self.of_ratio and self.peer else self.ours

        def amount(figure: float) -> str:
            return f"{figure:.{1 if figure >= 1 else 2}f} {self.unit}"

        ratio = f"{self.ours / self.peer:.2f}" if self.peer else ""
        budget = f"≤ {self.limit:g} ×" if self.of_ratio else f"≤ {self.limit:g} {self.unit}"
        peer = amount(self.peer) if self.peer is not None else ""
        return [
            *(self.what, amount(self.ours), peer, self.peer_name),
            *(ratio, budget, "yes" if value <= self.limit else "NO"),
        ]


class Bench:
    """Both engines, warm and with the same image."""

    def __init__(self, stack: ExitStack, rounds: int, dockerd: str, megabytes: int) -> None:
        self.stack, self.rounds, self.megabytes = stack, rounds, megabytes
        self.rows: list[Row] = []
        self.home = installed(stack)
        self.ours = self.engine()
        stack.callback(self.ours.close)
        self.peer = Dockerd(stack, dockerd)
        self.runc = Runc(stack)
        for engine in (self.ours, self.peer):
            engine.docker.command = [docker_cli()]
            engine.docker.ok("load", "--quiet", "--input", image("busybox:latest").archive())
        self.wherry = Cli([str(self.home / "bin" / "wherry")], self.ours.host, self.ours.home)

    def engine(self) -> OurEngine:
        """A fresh engine of ours, the way an installed `wherry` starts it."""
        python = str(self.home / "lib" / "wherry" / "bin" / "python")
        return OurEngine(agent=(python, "-I", "-m", "guest_agent")).start()

    def command(self, cli: Cli, *arguments: str) -> Command:
        return [*cli.command, *arguments], cli.env

    def add(
        self, what: str, ours: Command, theirs: Command, limit: float, peer: str, rounds: int = 0
    ) -> None:
        first, second = pairs(ours, theirs, rounds or self.rounds)
        self.rows.append(Row(what, first * 1000, second * 1000, "ms", limit, True, peer))

    def run(self) -> None:
        flags = ("run", "--rm", IMAGE, "true")
        ours, peer, wherry = self.ours.docker, self.peer.docker, self.wherry
        theirs = self.command(peer, *flags)
        bare = self.runc.command(), dict(os.environ)
        self.add("docker run", self.command(ours, *flags), theirs, 0.25, "docker run, dockerd")
        self.add("wherry run", self.command(wherry, *flags), theirs, 0.20, "docker run, dockerd")
        self.add("wherry run", self.command(wherry, *flags), bare, 1.0, "runc run")
        none = ("run", "--rm", "--network", "none", IMAGE, "true")
        self.add(
            "docker run, no network",
            self.command(ours, *none),
            self.command(peer, *none),
            0.25,
            "the same, dockerd",
        )

    def exec(self) -> None:
        for engine in (self.ours, self.peer):
            engine.docker.ok("run", "-d", "--name", "bench", IMAGE, "sleep", "3600")
        flags = ("exec", "bench", "true")
        theirs = self.command(self.peer.docker, *flags)
        self.add("docker exec", self.command(self.ours.docker, *flags), theirs, 0.25, "docker exec, dockerd")
        self.add("wherry exec", self.command(self.wherry, *flags), theirs, 0.25, "docker exec, dockerd")
        for engine in (self.ours, self.peer):
            engine.docker.ok("rm", "-f", "bench")

    def many_on_one_network(self) -> None:
        """A hundred containers are started one after the other on one network, and removed."""
        flags = ("run", "-d", "--network", "many", IMAGE, "sleep", "3600")
        taken: list[tuple[float, float]] = []
        for engine in (self.ours, self.peer):
            docker = engine.docker
            docker.ok("network", "create", "many")
            started = time.perf_counter()
            for _ in range(_MANY):
                wall(self.command(docker, *flags))
            between = time.perf_counter()
            docker.ok("rm", "-f", *docker.ok("ps", "-q", "--filter", "network=many").split())
            taken.append((between - started, time.perf_counter() - between))
            docker.ok("network", "rm", "many")
        for what, first, second in zip(("start", "remove"), *taken, strict=True):
            name = f"{what} {_MANY} on one network"
            self.rows.append(Row(name, first, second, "s", 0.5, True, "the same, dockerd"))

    def start_of_the_cli(self) -> None:
        python = os.path.realpath(sys.executable)
        bare = [python, "-I", "-S", "-c", "pass"], dict(os.environ)
        self.add(
            "wherry version --client",
            self.command(self.wherry, "version", "--client"),
            bare,
            2.0,
            "python -c pass",
        )

    def pull(self) -> None:
        """Debian's root file system from a registry on this machine: fetched, verified and unpacked."""
        with tempfile.TemporaryDirectory() as scratch:
            first, second = Path(scratch, "1"), Path(scratch, "2")
            first.mkdir()
            registry = plain(first)
            self.stack.callback(registry.close)
            registry.push(image("debian:stable"))
            second.mkdir()
            os.symlink(first / "storage", second / "storage")
            twin = Registry(second, namespace=self.peer.namespace)
            self.stack.callback(twin.close)
            sides = ((self.ours, registry), (self.peer, twin))
            times: list[list[float]] = [[], []]
            for number in range(4):
                for side, (engine, source) in enumerate(sides):
                    name = f"{source.address}/debian:stable"
                    taken = wall(self.command(engine.docker, "pull", "-q", name))
                    engine.docker.ok("rmi", "-f", name)
                    if number:
                        times[side].append(taken)
            ours, theirs = (statistics.median(each) * 1000 for each in times)
            self.rows.append(Row("docker pull, 40 MB", ours, theirs, "ms", 0.5, True, "docker pull, dockerd"))

    def transfers(self) -> None:
        """A large image from a registry, and to an empty one."""
        size = self.megabytes
        for what, (ours, theirs) in zip(("pull", "push"), transfers(self.ours, self.peer, size), strict=True):
            row = Row(
                f"docker {what}, {size} MB",
                ours * 1000,
                theirs * 1000,
                "ms",
                0.5,
                True,
                f"docker {what}, dockerd",
            )
            self.rows.append(row)

    def builds(self) -> None:
        for what, ours, theirs in builds(self.ours, self.peer, self.rounds):
            self.rows.append(Row(what, ours * 1000, theirs * 1000, "ms", 1.0, True, "docker build, dockerd"))

    def rootless(self) -> None:
        for what, ours, theirs, peer in rootless.figures(self.stack, self.rounds):
            self.rows.append(Row(what, ours, theirs, "ms", 0.5, True, peer))

    def throughput(self) -> None:
        user = User()
        self.stack.callback(user.close)
        engine = RootlessEngine(user).start()
        self.stack.callback(engine.close)
        engine.docker.ok("load", "--quiet", "--input", image("busybox:latest").archive())
        for what, ours, theirs in throughput.figures(engine, self.ours, max(3, self.rounds // 4)):
            self.rows.append(Row(what, ours, theirs, "ms", 2.0, True, "the same, with root"))

    def agent(self) -> None:
        starts, busy = [], []
        for _ in range(7):
            started = time.perf_counter()
            engine = self.engine()
            starts.append((time.perf_counter() - started) * 1000)
            assert engine.process is not None
            busy.append(processor_time(engine.process.pid) * 1000)
            engine.close()
        # Unlike a ratio it suffers from whatever else the machine does; processor time does so less.
        wall, work = statistics.median(starts), statistics.median(busy)
        self.rows.append(Row("agent, cold start to first answer", wall, None, "ms", 300, False))
        self.rows.append(Row("  of which processor time", work, None, "ms", 300, False))

    def memory(self) -> None:
        fresh = self.engine()
        self.stack.callback(fresh.close)
        fresh.docker.ok("load", "--quiet", "--input", image("busybox:latest").archive())
        fresh.docker.ok("run", "--rm", IMAGE, "true")
        assert fresh.process is not None
        peer = self.peer.process.pid

        def of_us() -> int:
            assert fresh.process is not None
            containers = set(container_pids(fresh))
            return proportional([pid for pid in engine_pids(fresh) if pid not in containers])

        def of_dockerd() -> int:
            containers = set(container_pids(self.peer))
            return proportional(
                [pid for pid in family(peer) if pid not in containers]
                + named(self.peer.root, "containerd-shim")
            )

        idle = resident(fresh.process.pid) / MEGABYTE
        self.rows.append(
            Row("agent, idle memory (RSS)", idle, resident(peer) / MEGABYTE, "MB", 40, False, "dockerd alone")
        )
        before = of_us(), of_dockerd()
        count = 10
        for engine in (fresh, self.peer):
            for number in range(count):
                engine.docker.ok("run", "-d", "--name", f"bench-{number}", IMAGE, "sleep", "3600")
        time.sleep(1)
        ours, theirs = of_us() - before[0], of_dockerd() - before[1]
        self.rows.append(
            Row(
                "memory per running container (PSS)",
                ours / count / MEGABYTE,
                theirs / count / MEGABYTE,
                "MB",
                3,
                False,
                "dockerd, containerd, shims",
            )
        )
        self.peer.forget()


def container_pids(engine: OurEngine | Dockerd) -> list[int]:
    """The processes inside containers: not the engine's own memory."""
    api = engine.client.api
    return [api.inspect_container(each["Id"])["State"]["Pid"] for each in api.containers(quiet=True)]


def engine_pids(engine: OurEngine) -> list[int]:
    """Agent, monitor and port proxies, and what they have started."""
    return sorted({pid for found in named(engine.root, "python") for pid in family(found)})


def named(root: Path, program: str) -> list[int]:
    """Processes of a program that have a directory on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:  # it has ended
                continue
            if program.encode() in line.split(b"\0")[0] and os.fsencode(root) in line:
                found.append(int(entry.name))
    return found


def installed(stack: ExitStack) -> Path:
    """Wherry as install.sh leaves it, which starts faster than a checkout run with `python -m`: its prefix."""
    home = Path(tempfile.mkdtemp(prefix="wherry-installed-"))
    stack.callback(shutil.rmtree, home, ignore_errors=True)
    done = subprocess.run(
        ["sh", REPOSITORY / "install.sh"],
        env=os.environ | {"WHERRY_PREFIX": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"install.sh: {done.stderr}")
    return home


def table(rows: list[Row]) -> str:
    """Columns in plain text."""
    head = ["what", "Wherry", "peer", "", "ratio", "budget", "kept"]
    lines = [head, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run-tests --bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each command (default 15)")
    parser.add_argument(
        "--dockerd", default="", help="another dockerd to compare with, such as /usr/sbin/dockerd"
    )
    parser.add_argument(
        "--megabytes", type=int, default=600, help="size of the image that is pushed and pulled (default 600)"
    )
    options = parser.parse_args()
    started = time.monotonic()
    with ExitStack() as stack:
        bench = Bench(stack, options.rounds, options.dockerd, options.megabytes)
        for part in (
            bench.many_on_one_network,
            bench.start_of_the_cli,
            bench.exec,
            bench.run,
            bench.pull,
            bench.transfers,
            bench.builds,
            bench.agent,
            bench.memory,
            bench.rootless,
            bench.throughput,
        ):
            print(f"… {part.__name__.replace('_', ' ')}", file=sys.stderr)
            part()
        print(f"dockerd {bench.peer.version}, {docker_cli()}, medians of {options.rounds} pairs in turn")
        print(f"{time.monotonic() - started:.0f} s, load average {os.getloadavg()[0]:.1f}\n")
        print(table(bench.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
