"""Machines as a user has them: made, started, stopped, changed and removed by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from host_client import contexts
from host_client.config import directory as docker_directory
from host_client.engine_api.errors import ConnectError
from host_client.machine import config, control, image, keys, layout, qcow2, shares, system, template
from host_client.machine.config import Config
from host_client.machine.errors import MachineError

STOP_SECONDS = 60.0  # for the supervisor's own bounded steps
WAKE_SECONDS = 320.0  # likewise
Progress = Callable[[dict[str, Any]], None]


def _shares(folders: Sequence[str] | None) -> tuple[str, ...]:
    if not shares.supported():
        if folders:
            raise MachineError(
                "folders cannot be shared with a machine on this system", "Copy with: wherry cp"
            )
        return ()
    return shares.check(shares.default_folders() if folders is None else folders)


def _ignore(message: dict[str, Any]) -> None:
    pass


class Machine:
    """One machine of this user, running or not. Raises MachineError for a name that cannot be one."""

    def __init__(self, name: str) -> None:
        self.layout = layout.Layout(name)
        self.name = name

    def exists(self) -> bool:
        return os.path.exists(self.layout.config)

    def init(
        self,
        picture: image.Image,
        cpus: int = 0,
        memory: int = 0,
        disk: int = 0,
        folders: Sequence[str] | None = None,
        idle_stop: int = 0,
        warm_start: bool = True,
    ) -> Config:
        """Makes the machine; zeros are taken from the host, None shares the user's files.

        Raises MachineError when it is there already.
        """
        if self.exists():
            raise MachineError(
                f"machine {self.name} exists already", f"Remove it first: wherry machine rm {self.name}"
            )
        wanted = Config(
            arch=picture.arch,
            image=picture.folder,
            cpus=cpus or config.default_cpus(os.cpu_count() or 1),
            memory=memory or config.default_memory(system.host_memory()),
            disk=disk or config.DISK_DEFAULT,
            created=time.time(),
            shares=_shares(folders),
            idle_stop=idle_stop,
            warm_start=warm_start,
        ).check()
        os.makedirs(self.layout.folder, mode=0o700, exist_ok=True)
        keys.make_keys(self.layout.tls, self.name)
        qcow2.create(self.layout.disk, wanted.disk)
        config.save(self.layout, wanted)
        return wanted

    def running(self) -> bool:
        """Whether a supervisor holds the machine."""
        if not os.path.isdir(self.layout.folder):
            return False
        lock = system.Lock(self.layout.lock)
        free = lock.take()
        lock.release()
        return not free

    def status(self) -> dict[str, Any] | None:
        """What the supervisor says of the running machine; None when it is stopped."""
        if not self.running():
            return None
        status: dict[str, Any] = control.ask(self.layout, {"do": "status"})
        return status

    def start(self, progress: Progress = _ignore) -> dict[str, Any]:
        """Boots the machine until its engine answers; does nothing when it runs. Raises MachineError."""
        config.load(self.layout)
        if self.running():
            status: dict[str, Any] = control.ask(self.layout, {"do": "status"})
            if status.get("asleep"):  # which a supervisor of an older version does not know of
                status = control.ask(self.layout, {"do": "wake"}, WAKE_SECONDS)
        else:
            status = self._boot(progress)
        try:
            contexts.put(
                docker_directory(),
                self.context,
                layout.address(self.layout.api_socket),
                f"Wherry, machine {self.name}",
                self.layout.folder,
            )
        except (OSError, ConnectError) as error:
            progress({"warning": f"no docker context for machine {self.name}: {error}"})
        return status

    @property
    def context(self) -> str:
        """The name of the docker context that is made for it."""
        return "wherry" if self.name == layout.DEFAULT_NAME else f"wherry-{self.name}"

    def _boot(self, progress: Progress) -> dict[str, Any]:
        # Isolated from the user's environment; the package may be in a checkout, which is on no path.
        code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from host_client.machine import supervisor"
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        command = [sys.executable, "-I", "-c", f"{code}; sys.exit(supervisor.main())", package, self.name]
        process = system.start_detached(command, self.layout.log)
        return self._follow(process, progress)

    def _follow(self, process: subprocess.Popen[bytes], progress: Progress) -> dict[str, Any]:
        assert process.stdout is not None
        with process.stdout as messages:
            for line in messages:
                message = json.loads(line)
                if "ready" in message:
                    ready: dict[str, Any] = message["ready"]
                    return ready
                if "error" in message:
                    process.wait()
                    raise MachineError(message["error"], message["hint"])
                progress(message)
        status = process.wait()
        raise MachineError(
            f"the supervisor of machine {self.name} ended with status {status} while the machine booted",
            f"Its log is {self.layout.log}",
        )

    def stop(self) -> bool:
        """Stops the machine and waits until it has ended;

        False when it was not running. Raises MachineError.
        """
        if not self.running():
            return False
        control.ask(self.layout, {"do": "stop"})
        lock = system.Lock(self.layout.lock)
        if not lock.wait(STOP_SECONDS):
            raise MachineError(
                f"machine {self.name} did not stop within {STOP_SECONDS:.0f} s", self.layout.log
            )
        lock.release()
        return True

    def describe(self) -> dict[str, Any]:
        """Everything there is to know, for `inspect`."""
        made = config.load(self.layout)
        return {
            "Name": self.name,
            "Arch": made.arch,
            "CPUs": made.cpus,
            "Memory": made.memory,
            "Disk": made.disk,
            "Image": made.image,
            "Shares": list(made.shares),
            "IdleStop": made.idle_stop,
            "WarmStart": made.warm_start,
            "Created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(made.created)),
            "DataDisk": self.layout.disk,
            "ConsoleLog": self.layout.console,
            "SupervisorLog": self.layout.log,
            "Context": self.context,
            "State": self.status(),
        }

    def set(
        self,
        cpus: int = 0,
        memory: int = 0,
        disk: int = 0,
        folders: Sequence[str] | None = None,
        idle_stop: int | None = None,
        warm_start: bool | None = None,
    ) -> Config:
        """Changes a stopped machine; zeros of sizes and None stay as they are. Raises MachineError."""
        self.must_be_stopped()
        old = config.load(self.layout)
        new = replace(
            old,
            cpus=cpus or old.cpus,
            memory=memory or old.memory,
            disk=disk or old.disk,
            shares=old.shares if folders is None else _shares(folders),
            idle_stop=old.idle_stop if idle_stop is None else idle_stop,
            warm_start=old.warm_start if warm_start is None else warm_start,
        )
        if new.disk < old.disk:
            raise MachineError(
                "a data disk cannot be made smaller", "Reset the machine, or make another one."
            )
        qcow2.grow(self.layout.disk, new.check().disk)
        if replace(new, disk=old.disk, idle_stop=old.idle_stop) != old:
            template.discard(self.layout)
        config.save(self.layout, new)
        return new

    def reset(self) -> None:
        """Gives a stopped machine an empty data disk: images, containers and volumes are gone."""
        self.must_be_stopped()
        disk = config.load(self.layout).disk
        fresh = self.layout.disk + ".new"
        if os.path.exists(fresh):
            os.unlink(fresh)
        qcow2.create(fresh, disk)
        template.discard(self.layout)
        os.replace(fresh, self.layout.disk)

    def remove(self) -> None:
        """Removes a stopped machine with all its data."""
        self.must_be_stopped()
        config.load(self.layout)
        os.unlink(self.layout.config)  # from now on there is no such machine, whatever is left
        contexts.remove(docker_directory(), self.context, self.layout.folder)
        shutil.rmtree(self.layout.folder)
        shutil.rmtree(self.layout.sockets, ignore_errors=True)

    def must_be_stopped(self) -> None:
        """Raises MachineError when it runs."""
        if self.running():
            raise MachineError(
                f"machine {self.name} is running", f"Stop it first: wherry machine stop {self.name}"
            )
