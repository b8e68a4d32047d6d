"""Containers as the monitor has them, from their start to the day they are forgotten."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator

from guest_agent.kernel import syscalls as s

from . import cgroups, launch
from .children import Failure, Host, Process
from .idmap import Mappings
from .stage import StageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_DELETE_SECONDS = 2.0
_DELETE_RETRY_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


class Container:
    """One container: its control group, its processes, what is written down of it."""

    def __init__(self, host: Host, message: dict[str, Any]) -> None:
        self._host = host
        self.id: str = message["id"]
        self._exit_path: str = message["exit_path"]
        self._cgroup = cgroups.at(message["config"]["linux"]["cgroupsPath"])
        self._seccomp = -1
        self._seccomp_flags = 0
        self._oom_fd = -1
        self._oom_killed = False
        self._own_pids = False
        self._user_root: tuple[int, int] | None = None
        self.init = Process(host, message["stdio"])
        self.execs: dict[str, Process] = {}
        self.init.on_death = self._kill_rest

    def known(self) -> bool:
        """Whether agents are told of it: not before it has started."""
        return self.init.running or self.init.ended

    def as_dict(self) -> dict[str, Any]:
        """What a new agent is told."""
        return {
            "id": self.id,
            "pid": self.init.pid,
            "started_at": self.init.started_at,
            "exit": self._exit(self.init, None) if self.init.ended else None,
            "execs": {exec_id: process.pid for exec_id, process in self.execs.items() if process.running},
        }

    def _exit(self, process: Process, exec_id: str | None) -> dict[str, Any]:
        return {
            "id": self.id,
            "exec_id": exec_id,
            "code": process.code,
            "oom_killed": self._oom_killed,
            "finished_at": process.finished_at,
        }

    def start(
        self, message: dict[str, Any], fds: list[int], on_start: Callable[[Failure | None], None]
    ) -> None:
        """Makes the group and launches the first process. Takes descriptors out of `fds` as it goes."""
        config = message["config"]
        if message.get("seccomp"):
            self._seccomp, self._seccomp_flags = fds.pop(0), message["seccomp_flags"]
        for spec in message["attachments"]:
            self.init.streams.attach(spec, fds.pop(0))
        try:
            new, join = launch.namespaces(config)
            flags = launch.clone_flags(config)
            self._own_pids = bool(new & s.CLONE_NEWPID)
            own_users = new & s.CLONE_NEWUSER or s.CLONE_NEWUSER in join
            self._user_root = Mappings(config["linux"]).root if own_users else None
            self._write_state()
            self._make_group(config["linux"].get("resources") or {})
            self.init.launch(self._job(message), launch.start, flags, self._launched(on_start), self._ended)
        except (OSError, ValueError, StageError) as e:
            self.init.streams.reject()
            self._clean_up()
            if isinstance(e, StageError):
                raise Failure("launch", e.text, e.stage, e.errno) from e
            if isinstance(e, OSError):
                text = f"unable to apply cgroup configuration: {e.strerror}: {e.filename}"
            else:
                what = "error setting cgroup config for procHooks process"
                text = f"error during container init: {what}: {e}"
            raise Failure("launch", text, "cgroup", getattr(e, "errno", 0) or 0) from e

    def _launched(self, on_start: Callable[[Failure | None], None]) -> Callable[[Failure | None], None]:
        def started(failure: Failure | None) -> None:
            if failure:
                self._clean_up()
            else:
                self._cgroup.follow(self.init.pid)
                self._host.spare.prepare()
            on_start(failure)

        return started

    def _job(self, message: dict[str, Any]) -> launch.Job:
        job = self._host.job(message)
        job.seccomp, job.seccomp_flags = self._seccomp, self._seccomp_flags
        job.cgroup = self._cgroup
        return job

    def _make_group(self, resources: dict[str, Any]) -> None:
        before = self._host.deleting.pop(self._cgroup.path, None)
        if before is not None:
            before.delete_group_now()
        self._cgroup.create()
        rules = resources.get("devices")
        if rules:
            resources = {**resources, "devices": [*rules, *cgroups.IMPLIED_DEVICES]}
        self._cgroup.set(resources)
        try:
            self._oom_fd, events = self._cgroup.oom_watch()
        except OSError:
            return  # no memory controller: nothing to watch
        self._host.loop.add(self._oom_fd, events, lambda events: self._out_of_memory())

    def _out_of_memory(self) -> None:
        self._cgroup.oom_acknowledge(self._oom_fd)
        self._host.announce({"event": "oom", "id": self.id})

    def exec(
        self, message: dict[str, Any], fds: list[int], on_start: Callable[[Failure | None], None]
    ) -> Process:
        """Launches one more process."""
        exec_id: str = message["exec_id"]
        if exec_id in self.execs:
            raise Failure("conflict", f"exec {exec_id} is already there")
        process = Process(self._host, message["stdio"])
        for spec in message["attachments"]:
            process.streams.attach(spec, fds.pop(0))
        job = self._job(message)
        job.pidfd = self.init.open_pidfd()
        job.user_root = self._user_root
        self.execs[exec_id] = process

        def started(failure: Failure | None) -> None:
            if failure:
                self.execs.pop(exec_id, None)
            on_start(failure)

        def ended() -> None:
            self._host.announce({"event": "exit", **self._exit(process, exec_id)})

        try:
            process.launch(job, launch.enter, 0, started, ended)
        except OSError as e:
            del self.execs[exec_id]
            process.streams.reject()
            raise Failure("launch", f"unable to start a process: {e}", "clone", e.errno or 0) from e
        return process

    def forget_ended_execs(self) -> None:
        """Drops what has ended."""
        self.execs = {exec_id: process for exec_id, process in self.execs.items() if not process.ended}

    def _kill_rest(self) -> None:
        """A container ends with its first process; in a pid namespace of its own the kernel sees to that."""
        if not self._own_pids:
            self._cgroup.kill()

    def _ended(self) -> None:
        """The first process is gone: notes it down, tells, and clears away."""
        try:
            self._oom_killed = self._cgroup.oom_kills() > 0
        except OSError:
            pass
        event = self._exit(self.init, None)
        self._write_exit(event)
        self._host.announce({"event": "exit", **event})
        self.init.streams.let_go()
        self._clean_up()
        if not self._host.busy():
            self._host.spare.drop()

    def _write_exit(self, event: dict[str, Any]) -> None:
        temporary = f"{self._exit_path}.tmp"
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, json.dumps(event).encode())
                if not self._host.has_agent():
                    os.fsync(fd)  # with an agent there, it is its database that has to survive a power cut
            finally:
                os.close(fd)
            os.rename(temporary, self._exit_path)
        except OSError:
            pass  # disk full, or the container's directory is gone: agents are told by word of mouth

    def _state_directory(self) -> str:
        return os.path.join(self._host.run, "containers", self.id)

    def _write_state(self) -> None:
        """What is needed to clear up after us should we be killed."""
        directory = self._state_directory()
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with open(os.path.join(directory, "state.json"), "w", encoding="utf-8") as file:
            json.dump({"id": self.id, "cgroup": self._cgroup.path, "exit_path": self._exit_path}, file)

    def _clean_up(self) -> None:
        if self._seccomp >= 0:
            os.close(self._seccomp)
            self._seccomp = -1
        if self._oom_fd >= 0:
            self._host.loop.remove(self._oom_fd)
            os.close(self._oom_fd)
            self._oom_fd = -1
        self._host.deleting[self._cgroup.path] = self
        self._delete_group(iter(_DELETE_RETRY_SECONDS))
        directory = self._state_directory()
        try:
            os.unlink(os.path.join(directory, "state.json"))
            os.rmdir(directory)
        except OSError:
            pass

    def delete_group_now(self) -> None:
        """Waits for a group that is busy yet, two seconds at most: for when there will be no later."""
        deadline = time.monotonic() + _DELETE_SECONDS
        while not self._cgroup.delete() and time.monotonic() < deadline:
            self._cgroup.kill()
            time.sleep(0.002)

    def _delete_group(self, pauses: Iterator[float]) -> None:
        if self._host.deleting.get(self._cgroup.path) is not self:
            return  # another container has it by now
        self._kill_rest()
        pause = None
        if not self._cgroup.delete():
            # A launch child that was on its way into the pid namespace, and perhaps was frozen there.
            self._cgroup.kill()
            pause = next(pauses, None)
        if pause is None:
            del self._host.deleting[self._cgroup.path]
        else:
            self._host.loop.later(pause, lambda: self._delete_group(pauses))
