"""Engines for tests: an agent with roots of its own, or another Docker engine to compare with."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import docker
from docker.errors import DockerException

from tests.support import leaks
from tests.support.cli import REPOSITORY, Cli, docker_binary, eventually, wherry_command

START_SECONDS = 20
AGENT = (sys.executable, "-m", "guest_agent")  # of this checkout


class Engine:
    """What a test talks to: `docker` and `wherry` are command lines bound to it, `client` is docker-py's."""

    ours = False

    def __init__(self, host: str) -> None:
        self.host = host
        self.home = Path(tempfile.mkdtemp(prefix="wherry-client-"))
        self.docker = Cli([docker_binary()], host, self.home)
        self.wherry = Cli(wherry_command(), host, self.home)
        self._client: docker.DockerClient | None = None

    @property
    def socket(self) -> str:
        return self.host.removeprefix("unix://")

    @property
    def client(self) -> docker.DockerClient:
        if self._client is None:
            self._client = docker.DockerClient(base_url=self.host, version="auto", timeout=60)
        return self._client

    def forget(self, keep_images: bool = True) -> None:
        """Remove containers, volumes and nameless images a test left, so that the next one starts clean."""

        def remove_containers() -> bool:
            left = self.client.api.containers(all=True, quiet=True)
            for container in left:
                try:
                    self.client.api.remove_container(container["Id"], force=True, v=True)
                except docker.errors.APIError as error:  # one with --rm is being removed already
                    if error.status_code not in (404, 409):
                        raise
            return not left

        eventually(remove_containers, what="all containers removed")
        for volume in self.client.volumes.list():
            volume.remove(force=True)
        self.client.images.prune({"dangling": True})
        if not keep_images:
            for image in self.client.images.list():
                self.client.images.remove(image.id, force=True)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
        shutil.rmtree(self.home, ignore_errors=True)

    def check(self) -> None:
        """Fail when the engine is no longer there."""


class OtherEngine(Engine):
    """A running Docker engine: shows that the suite's expectations are Docker's behaviour, not only ours."""


class OurEngine(Engine):
    """An agent of this checkout; data root, exec root and socket are below one short temporary directory."""

    ours = True

    def __init__(
        self, *arguments: str, env: dict[str, str] | None = None, agent: Sequence[str] = AGENT
    ) -> None:
        """`arguments` are options of `serve`, `env` is added to the agent's environment, `agent` is its program."""
        self.root = Path(tempfile.mkdtemp(prefix="wherry-"))
        self.data = self.root / "data"
        self.run = self.root / "run"
        super().__init__(f"unix://{self.root}/s.sock")
        self.agent = list(agent)
        self.arguments = list(arguments)
        self.agent_env = env or {}
        self.process: subprocess.Popen[bytes] | None = None
        self.ids: set[str] = set()
        self.bridges: set[str] = set()

    # Life

    def start(self) -> Self:
        """Start the agent and return when it says that it answers; AssertionError with its log otherwise."""
        ready, told = os.pipe()
        with open(self.root / "agent.log", "ab") as log:
            self.process = subprocess.Popen(
                [
                    *(*self.agent, "serve", "--host", self.host, "--ready-fd", str(told)),
                    *("--data-root", str(self.data), "--exec-root", str(self.run), *self.arguments),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[told],
                cwd=REPOSITORY,
                env=os.environ | self.agent_env,
            )
        os.close(told)
        try:
            readable, _, _ = select.select([ready], [], [], START_SECONDS)
            if not readable or not os.read(ready, 1):
                raise AssertionError(f"the agent did not get ready:\n{self.log()}")
        finally:
            os.close(ready)
        threading.Thread(target=self._note_containers, daemon=True).start()
        return self

    def _note_containers(self) -> None:
        """Learn every container's id, to be able to ask later what is left of it."""
        try:
            with closing(docker.DockerClient(base_url=self.host, version="auto")) as client:
                for event in client.events(decode=True, filters={"type": "container", "event": "create"}):
                    self.ids.add(event["Actor"]["ID"])
        except (DockerException, OSError, ValueError):  # the agent ended
            pass

    def check(self) -> None:
        assert self.process is not None
        assert self.process.poll() is None, f"the agent ended with {self.process.returncode}:\n{self.log()}"

    def log(self) -> str:
        """The agent's own log, its last 100 lines."""
        path = self.root / "agent.log"
        return (
            "\n".join(path.read_text(errors="replace").splitlines()[-100:]) if path.exists() else "(no log)"
        )

    def kill(self) -> None:
        """SIGKILL the agent alone, as a crash or the kernel's OOM killer would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self, seconds: float = 15) -> None:
        """SIGTERM and wait."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the agent did not end within {seconds} s of SIGTERM:\n{self.log()}")

    def restart(self) -> None:
        """A new agent on the same roots, after a crash or else after an orderly stop of the present one."""
        if self.process is not None and self.process.poll() is None:
            self.stop()
        if self._client is not None:
            self._client.close()
            self._client = None
        self.start()

    @property
    def monitor_pid(self) -> int:
        return int((self.run / "monitor.pid").read_text())

    def close(self) -> None:
        """Take everything down and fail if anything is left of it."""
        try:
            self.check()
            self.forget()
            self.bridges |= {
                name
                for network in self.client.networks.list()
                if (name := network.attrs["Options"].get("com.docker.network.bridge.name"))
            }
            self.stop()
            left = self._left()
            assert not left, "left behind by the engine:\n" + "\n".join(left) + "\n" + self.log()
        finally:
            self._raze()
            super().close()

    def _left(self, seconds: float = 5) -> list[str]:
        deadline = time.monotonic() + seconds
        while True:
            left = leaks.everything([self.data, self.run], self.ids, self.bridges)
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.05)

    def _raze(self) -> None:
        """By force, so that a failed test does not spoil the next."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for line in leaks.processes([self.data, self.run], self.ids):
            pid = int(line.split()[1].rstrip(":"))
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for line in reversed(leaks.mounts([self.data, self.run])):
            subprocess.run(["umount", "-l", line.split(" ", 1)[1]], check=False)
        for line in leaks.cgroups(self.ids):
            try:
                os.rmdir(line.split(" ", 1)[1])
            except OSError:
                pass
        for line in leaks.networks(self.bridges):
            kind, name = line.split()
            remove = ["nft", "delete", "table", "inet"] if kind == "table" else ["ip", "link", "delete"]
            subprocess.run([*remove, name], check=False, capture_output=True)
        shutil.rmtree(self.root, ignore_errors=True)

    def inspect(self, container: str) -> dict[str, Any]:
        """The container as the API tells it."""
        answer: dict[str, Any] = self.client.api.inspect_container(container)
        return answer
