"""Launch children and the processes they become, as the monitor has them: from the fork to the exit code."""

from __future__ import annotations

import json
import os
import signal
import struct
import time
from _socket import (
    AF_UNIX,
    MSG_CMSG_CLOEXEC,
    MSG_DONTWAIT,
    SO_PASSCRED,
    SOCK_CLOEXEC,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    socket,
    socketpair,
)
from collections.abc import Callable

from guest_agent.kernel import syscalls as s

from . import cgroups, console, launch, protocol
from .jsonlog import JsonLog, compress_file
from .loop import READ, Loop
from .process import changed_signals
from .stage import strerror
from .stdio import Streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .containers import Container

_SCM_RIGHTS, _SCM_CREDENTIALS = 1, 2
_MAX_UNHEARD = 16
_SPARE_SECONDS = 0.02
_OUTPUT_GRACE_SECONDS = 2.0  # as dockerd: for output of children that outlive the process


class Failure(Exception):
    """An error for the agent: `kind` is launch, notfound, conflict, protocol or internal."""

    def __init__(self, kind: str, text: str, stage: str = "", errno: int = 0) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text
        self.stage = stage
        self.errno = errno

    def as_dict(self) -> dict[str, Any]:
        """As it travels."""
        return {"kind": self.kind, "text": self.text, "stage": self.stage, "errno": self.errno}


class Host:
    """What all containers share: the loop, the exec root, and how to tell agents."""

    def __init__(
        self, loop: Loop, run: str, announce: Callable[[dict[str, Any]], None], has_agent: Callable[[], bool]
    ) -> None:
        self.loop = loop
        self.run = run
        self.announce = announce
        self.has_agent = has_agent
        self.deleting: dict[str, Container] = {}  # groups that are busy yet, by path
        self.oom_score_adj: int | None = None  # for processes that ask for none, when ours is not the usual
        self.limits: list[dict[str, Any]] = []  # likewise
        self.busy: Callable[[], bool] = lambda: False  # whether a container runs
        self.spare = Spare(self)
        self.staging = os.path.join(run, "rootfs")
        os.makedirs(self.staging, mode=0o755, exist_ok=True)  # a user namespace's root must get into it
        os.makedirs(os.path.join(run, "containers"), mode=0o700, exist_ok=True)
        self.signals = changed_signals()
        self.namespaces = launch.own_namespaces()

    def job(self, request: dict[str, Any]) -> launch.Job:
        """A job with what is the same for all."""
        job = launch.Job(request)
        job.staging = self.staging
        job.host_namespaces = self.namespaces
        job.oom_score_adj = self.oom_score_adj
        job.limits = self.limits
        job.signals = self.signals
        return job

    def reap(self, pidfd: int, then: Callable[[], None]) -> None:
        """Waits for a helper process to end and calls `then`."""

        def ended(events: int) -> None:
            self.loop.remove(pidfd)
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            os.close(pidfd)
            then()

        self.loop.add(pidfd, READ, ended)

    def compress(self, path: str, then: Callable[[], None]) -> None:
        """Compresses a rotated log in a process of its own."""
        pid, pidfd = s.clone3(0)
        if pid == 0:
            try:
                os.nice(10)
                compress_file(path)
            finally:
                os._exit(0)
        self.reap(pidfd, then)


Child = tuple[int, int, socket]
"""A launch child: its pid, pidfd, and our end of the socket to it."""


def fork(job: launch.Job, body: Callable[[launch.Job], None], flags: int) -> Child:
    """Forks a launch child, with the namespaces of `flags`, that goes through `body`."""
    mine, job.sync = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    mine.setsockopt(SOL_SOCKET, SO_PASSCRED, 1)
    group = None
    # Of v2; but an exec's group comes later, unless it could not be entered from a user namespace.
    born = body is launch.start or job.user_root
    if born and job.cgroup is not None and cgroups.version() == 2:
        group = os.open(job.cgroup.directories()[0], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        job.in_cgroup = True
    try:
        pid, pidfd = s.clone3(flags, group)
        if pid == 0:
            launch.run(job, body)
        return pid, pidfd, mine
    except BaseException:
        mine.close()
        raise
    finally:
        job.sync.close()
        if group is not None:
            os.close(group)


class Spare:
    """A launch child that stands by for the next exec, so that it need not be waited for."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._child: Child | None = None
        self._due = False

    def prepare(self) -> None:
        """Makes one a little later, when what goes on now is done."""
        if self._child is None and not self._due:
            self._due = True
            self._host.loop.later(_SPARE_SECONDS, self._fork)

    def _fork(self) -> None:
        self._due = False
        if self._child is None and self._host.busy():
            self._child = fork(self._host.job({}), launch.stand_by, 0)
            self._host.loop.add(self._child[1], READ, lambda events: self.drop())

    def drop(self) -> None:
        """Lets it go: nothing runs that it could be for, or it has died."""
        if self._child is not None:
            _, pidfd, sync = self._child
            self._child = None
            self._host.loop.remove(pidfd)
            sync.close()
            self._host.reap(pidfd, lambda: None)

    def send(self, job: launch.Job) -> Child | None:
        """Gives it the job; None when there is no spare, or it does not take it."""
        if self._child is None:
            self.prepare()
            return None
        assert job.cgroup is not None
        names = [
            name for name in ("stdin", "stdout", "stderr", "seccomp", "pidfd") if getattr(job, name) >= 0
        ]
        message = {
            "request": job.request,
            "fds": names,
            "seccomp_flags": job.seccomp_flags,
            "cgroup": job.cgroup.path,
        }
        child = self._child
        try:
            protocol.send(child[2], message, [getattr(job, name) for name in names], MSG_DONTWAIT)
        except OSError:
            self.drop()
            return None
        self._child = None
        self._host.loop.remove(child[1])
        self.prepare()
        return child


class Process:
    """One process of a container: the first one, or an exec's."""

    def __init__(self, host: Host, stdio: dict[str, Any]) -> None:
        self._host = host
        log = None
        if stdio.get("log"):
            try:
                log = JsonLog(stdio["log"], host.compress)
            except OSError as e:
                text = f"failed to initialize logging driver: open {e.filename}: {strerror(e)}"
                raise Failure("launch", text, "log", e.errno or 0) from e
        self.streams = Streams(host.loop, stdio["tty"], stdio["stdin_once"], log)
        self._open_stdin = bool(stdio["open_stdin"])
        self.pid = 0
        self.started_at = 0.0
        self.running = False  # executed, and not ended
        self.ended = False
        self.code = 0
        self.finished_at = 0.0
        self._pidfd = -1
        self._sync: socket | None = None
        self._launchers: list[int] = []  # pids of the launch child and of the one it cloned
        self._unheard: list[tuple[int, bytes]] = []  # messages of others
        self._about_to_execute = False
        self._failure: Failure | None = None
        self._on_start: Callable[[Failure | None], None] = lambda failure: None
        self._on_exit: Callable[[], None] = lambda: None
        self.on_death: Callable[[], None] = lambda: None  # ended, its output perhaps not

    def launch(
        self,
        job: launch.Job,
        body: Callable[[launch.Job], None],
        flags: int,
        on_start: Callable[[Failure | None], None],
        on_exit: Callable[[], None],
    ) -> None:
        """Forks the launch child. `on_start` is called with None when it has executed, or with why it has
        not.

        `on_exit` is called when a process that had started has ended and its output is logged.
        """
        self._on_start, self._on_exit = on_start, on_exit
        stdin = stdout = stderr = -1
        if not self.streams.tty:
            if self._open_stdin:
                job.stdin, stdin = os.pipe2(os.O_CLOEXEC)
            stdout, job.stdout = os.pipe2(os.O_CLOEXEC)
            stderr, job.stderr = os.pipe2(os.O_CLOEXEC)
        try:
            child = self._host.spare.send(job) if body is launch.enter and not job.user_root else None
            child = child or fork(job, body, flags)
        finally:
            for fd in (job.stdin, job.stdout, job.stderr):
                if fd >= 0:
                    os.close(fd)
        self.pid, self._pidfd, self._sync = child
        self._launchers = [self.pid]
        self._host.loop.add(self._sync.fileno(), READ, lambda events: self._hear())
        self._host.loop.add(self._pidfd, READ, lambda events: self._died())
        if not self.streams.tty:
            self.streams.start(stdin, stdout, stderr)

    def _hear(self) -> None:
        """Takes what the launch child has to say, up to the end of file that execve makes."""
        while self._sync is not None:
            try:
                data, ancillary, _, _ = self._sync.recvmsg(65536, 128, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                data, ancillary = b"", []
            if not data:
                self._end_of_launch()
                return
            sender, fds = _parse_ancillary(ancillary)
            if sender in self._launchers:
                self._take(data, fds)
            elif len(self._unheard) < _MAX_UNHEARD:
                # Either a child that we have not been told of yet, or a process of the container: one with
                # CAP_SYS_PTRACE might get hold of an exec's socket in the instant before its execve.
                self._unheard.append((sender, data))
            for fd in fds:
                os.close(fd)

    def _take(self, data: bytes, fds: list[int]) -> None:
        if data == b"x":
            self._about_to_execute = True
        elif data == b"m" and fds:
            self.streams.start_terminal(fds.pop(0))
        elif data[:1] == b"p" and len(self._launchers) == 1:
            self._replaced_by(int(data[1:]))
        elif data[:1] == b"{":
            said = json.loads(data)
            self._failure = Failure("launch", said["text"], said["stage"], said["errno"])

    def _replaced_by(self, pid: int) -> None:
        """The launch child has cloned our real child, and goes."""
        self._host.loop.remove(self._pidfd)
        self._host.reap(self._pidfd, lambda: None)
        self.pid, self._pidfd = pid, os.pidfd_open(pid)
        self._launchers.append(pid)
        for sender, data in self._unheard:
            if sender == pid:
                self._take(data, [])
        self._unheard.clear()
        self._host.loop.add(self._pidfd, READ, lambda events: self._died())

    def _end_of_launch(self) -> None:
        """Nothing more will be heard: it has executed, if it was about to and did not complain."""
        assert self._sync is not None
        self._host.loop.remove(self._sync.fileno())
        self._sync.close()
        self._sync = None
        if self._about_to_execute and self._failure is None:
            self.running = True
            self.started_at = time.time()
            self._on_start(None)

    def _died(self) -> None:
        pidfd = self._pidfd
        self._hear()  # what it said last counts
        if pidfd != self._pidfd:
            return
        self._host.loop.remove(pidfd)
        status = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)
        self._pidfd = -1
        assert status is not None
        self.code = status.si_status if status.si_code == os.CLD_EXITED else 128 + status.si_status
        self.finished_at = time.time()
        if self._sync is not None:
            # The child it was cloned by, about to exit, still has a copy; all that was to be said is heard.
            self._end_of_launch()
        if not self.running:
            self.ended = True
            self.streams.reject()
            text = f"error during container init: the launch process ended early, status {self.code}"
            self._on_start(self._failure or Failure("launch", text, "launch"))
            return
        self.running = False
        self.on_death()
        self._finish_output()

    def _finish_output(self) -> None:
        self.streams.drain()
        if self.streams.ended:
            self._exited()
            return
        self.streams.on_end = self._exited
        self._host.loop.later(_OUTPUT_GRACE_SECONDS, self.streams.abandon)

    def _exited(self) -> None:
        self.streams.on_end = None
        if not self.ended:
            self.ended = True
            self._on_exit()
            self.streams.let_go()

    def kill(self, number: int) -> None:
        """Sends a signal."""
        if self._pidfd < 0:
            raise Failure("notfound", "process is gone")
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            raise Failure("notfound", "process is gone") from None

    def resize(self, rows: int, columns: int) -> None:
        """Sets the terminal's size."""
        if not self.streams.tty or self.streams.input.fd < 0:
            raise Failure("notfound", "no terminal")
        console.set_size(self.streams.input.fd, rows, columns)

    def open_pidfd(self) -> int:
        """The process's pidfd, ours."""
        return self._pidfd


def _parse_ancillary(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, list[int]]:
    """The sender's pid, as the kernel vouches for it, and the descriptors sent."""
    sender = 0
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == SOL_SOCKET and kind == _SCM_CREDENTIALS:
            sender = struct.unpack("3i", payload)[0]
        elif level == SOL_SOCKET and kind == _SCM_RIGHTS:
            fds += struct.unpack(f"{len(payload) // 4}i", payload[: len(payload) // 4 * 4])
    return sender, fds
