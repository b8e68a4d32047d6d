"""Starts the monitor so that no container can ever write to the program it runs (CVE-2019-5736).

Container processes can reach /proc/PID/exe of whatever enters their pid namespace, and for us that is the
host's Python. So the monitor, and with it every launch child, runs from a read-only overlay of the
interpreter's directory that is mounted nowhere: unlike a read-only bind it has no writable side (runc,
exeseal). Where overlay does not take that directory, from a sealed copy in memory.
"""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import sys

from guest_agent.kernel import syscalls as s
from guest_agent.kernel.overlay import open_overlay

_MONITOR_FD = 3
_DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)  # as we were started with
_SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def raise_descriptor_limit() -> None:
    """Lets this process have as many descriptors as it may: everybody who is connected takes some."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS[1], _DESCRIPTORS[1]))


def spawn_monitor(run: str) -> tuple[socket.socket, int]:
    """Starts a monitor for the exec root `run`; our connection to it and its pid. Raises OSError."""
    interpreter = os.path.realpath(sys.executable)
    # -I leaves only the standard library on sys.path, so the code's place is said here.
    code = (
        f"import sys; sys.path.insert(0, {_SOURCE!r}); from guest_agent.runtime.monitor import main; main()"
    )
    environment = {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}
    if not sys.base_prefix.startswith("/usr"):
        environment["LD_LIBRARY_PATH"] = f"{sys.base_prefix}/lib"  # $ORIGIN does not work from where it runs
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    opened: list[int] = []
    try:
        sealed, path = _sealed(interpreter, run)
        opened.append(sealed)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        opened.append(null)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        log = os.open(os.path.join(run, "monitor.log"), flags, 0o600)
        opened.append(log)
        pid = os.posix_spawn(
            path,
            [interpreter, "-I", "-S", "-c", code, run, str(_DESCRIPTORS[0])],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, null, 0),
                (os.POSIX_SPAWN_DUP2, null, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), _MONITOR_FD),
            ],
            setsid=True,
        )
        return ours, pid
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
        for fd in opened:
            os.close(fd)


def _sealed(interpreter: str, run: str) -> tuple[int, str]:
    """A descriptor that keeps an unwritable `interpreter` alive, and the path to execute it by."""
    empty = os.path.join(run, "rootfs")
    os.makedirs(empty, mode=0o755, exist_ok=True)
    try:
        directory, name = os.path.split(interpreter)
        tree = open_overlay([directory, empty], "", "", empty)
    except OSError:
        return _sealed_copy(interpreter)
    fd = _high(tree)
    return fd, f"/proc/self/fd/{fd}/{name}"


def _sealed_copy(interpreter: str) -> tuple[int, str]:
    try:
        memfd = os.memfd_create("python", s.MFD_CLOEXEC | s.MFD_ALLOW_SEALING | s.MFD_EXEC)
    except OSError:
        memfd = os.memfd_create("python", s.MFD_CLOEXEC | s.MFD_ALLOW_SEALING)
    with open(interpreter, "rb") as source:
        while os.sendfile(memfd, source.fileno(), None, 1 << 24):
            pass
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, _SEALS)
    # Executed by a read-only descriptor: one that is open for writing makes it "text file busy".
    fd = os.open(f"/proc/self/fd/{memfd}", os.O_RDONLY | os.O_CLOEXEC)
    os.close(memfd)
    fd = _high(fd)
    return fd, f"/proc/self/fd/{fd}"


def _high(fd: int) -> int:
    """Moves a descriptor out of the way of the ones the new process gets."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16)
    os.close(fd)
    return moved
