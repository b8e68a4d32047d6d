"""What Wherry is compared with: dockerd and runc, started beside it with roots of their own.

dockerd gets a network namespace of its own, since it rewrites the machine's firewall.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.support.cli import cache_directory, docker_binary, new_enough
from tests.support.engine import OtherEngine
from tests.support.images import image


class Dockerd(OtherEngine):
    """A running dockerd with its files below `root`. `namespace` is the path of its network namespace."""

    def __init__(
        self, stack: ExitStack, program: str = "", options: Sequence[str] = (), namespace: str = ""
    ) -> None:
        """`options` are further options of dockerd's; without a `namespace` it gets one of its own."""
        tree = cache_directory() / "docker" / "usr"
        program = program or str(tree / "sbin" / "dockerd")
        self.root = root = Path(tempfile.mkdtemp(prefix="wherry-peer-"))
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        self.namespace = namespace or network_namespace(stack, root.name)
        host = f"unix://{root}/d.sock"
        path = f"{Path(program).parent}:{tree / 'bin'}:{tree / 'sbin'}:{os.environ['PATH']}"
        with open(root / "log", "wb") as log:
            self.process = subprocess.Popen(
                [
                    *("nsenter", f"--net={self.namespace}", program, "--host", host),
                    *("--data-root", root / "data", "--exec-root", root / "exec", "--pidfile", root / "pid"),
                    *options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"PATH": path},
            )
        stack.callback(self._end)
        super().__init__(host)
        stack.callback(self.close)
        deadline = time.monotonic() + 30
        while self.docker("version").code:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError(f"dockerd did not start:\n{(root / 'log').read_text()}")
            time.sleep(0.1)
        self.version = self.docker.ok("version", "--format", "{{.Server.Version}}")

    def _end(self) -> None:
        self.process.terminate()
        self.process.wait()


def network_namespace(stack: ExitStack, name: str) -> str:
    """A network namespace with a loopback interface, and its path."""
    run("ip", "netns", "add", name)
    stack.callback(run, "ip", "netns", "delete", name)
    run("ip", "-n", name, "link", "set", "lo", "up")
    return f"/run/netns/{name}"


class Runc:
    """A bundle that runs `true` of the busybox image by bare runc, with what runc's own `spec` sets up."""

    def __init__(self, stack: ExitStack) -> None:
        self.bundle = Path(tempfile.mkdtemp(prefix="wherry-runc-"))
        stack.callback(shutil.rmtree, self.bundle, ignore_errors=True)
        rootfs = self.bundle / "rootfs"
        rootfs.mkdir()
        image("busybox:latest").unpack(rootfs)
        run("runc", "spec", "--bundle", str(self.bundle))
        config = json.loads((self.bundle / "config.json").read_text())
        config["process"] |= {"args": ["true"], "terminal": False}
        (self.bundle / "config.json").write_text(json.dumps(config))

    def command(self) -> list[str]:
        return ["runc", "--root", str(self.bundle / "state"), "run", "--bundle", str(self.bundle), "bench"]


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def docker_cli() -> str:
    """The docker CLI on PATH where it is new enough, since builds differ in how fast they start; else the suite's."""
    found = shutil.which("docker")
    return found if found and new_enough(found) else docker_binary()
