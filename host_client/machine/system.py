"""What differs between macOS, Windows and Linux for a machine: processes, locks, what the host has.

Every function takes its own way by `sys.platform`; modules that exist on one system only are imported where
they are used, so that everything above imports anywhere.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from host_client.machine.errors import MachineError

IS_WINDOWS = sys.platform == "win32"
PR_SET_PDEATHSIG, SIGTERM = 1, 15


def host_arch() -> str:
    """The host processor's architecture by Debian's name.

    Raises MachineError for one that no image exists for.
    """
    machine = platform.machine().lower()
    arch = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}.get(machine)
    if arch is None:
        raise MachineError(f"there is no VM image for {machine} processors")
    return arch


def host_memory() -> int:
    """Bytes of memory the host has."""
    if IS_WINDOWS:
        return _windows_memory()
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def processor_identity() -> str:
    """Changes with what a guest sees of the host's processor, and with the kernel that shows it."""
    seen = [platform.release(), platform.machine(), platform.processor()]
    try:
        with open("/proc/cpuinfo") as file:
            first = file.read().partition("\n\n")[0]
    except OSError:
        return "\n".join(seen)
    changing = ("cpu MHz", "bogomips", "BogoMIPS")
    return "\n".join([*seen, *(line for line in first.splitlines() if not line.startswith(changing))])


def _windows_memory() -> int:
    import ctypes

    class Status(ctypes.Structure):  # MEMORYSTATUSEX
        _fields_ = [
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            *((name, ctypes.c_uint64) for name in ("total", "free", "pt", "pf", "vt", "vf", "ve")),
        ]

    status = Status(length=ctypes.sizeof(Status))
    windll: Any = getattr(ctypes, "windll")  # noqa: B009 - on Windows only
    windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return int(status.total)


class Lock:
    """A file held by one process at a time;

    the system lets go of it when the process ends, however it ends.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd: int | None = None

    def take(self) -> bool:
        """Whether it is ours now."""
        os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if IS_WINDOWS:
                import msvcrt

                locking: Any = getattr(msvcrt, "locking")  # noqa: B009
                locking(fd, getattr(msvcrt, "LK_NBLCK"), 1)  # noqa: B009
            else:
                import fcntl

                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return False
        self._fd = fd
        return True

    def wait(self, seconds: float) -> bool:
        """As `take`, but waits for who has it."""
        until = time.monotonic() + seconds
        while not self.take():
            if time.monotonic() > until:
                return False
            time.sleep(0.02)  # no system can wait for a lock for a bounded time
        return True

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def start_detached(command: Sequence[str], log: str) -> subprocess.Popen[bytes]:
    """Starts a process that outlives ours and our terminal;

    its stdout is a pipe to us, its stderr goes to `log`.
    """
    os.makedirs(os.path.dirname(log), mode=0o700, exist_ok=True)
    with open(log, "ab") as errors:
        options: dict[str, Any] = {"start_new_session": True}
        if IS_WINDOWS:
            # CREATE_NEW_PROCESS_GROUP | DETACHED_PROCESS | CREATE_BREAKAWAY_FROM_JOB
            options = {"creationflags": 0x200 | 0x8 | 0x01000000}
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, cwd=_root(), **options
        )


def _root() -> str:
    """A folder that a detached process may keep in use."""
    return os.path.abspath(os.sep)


def tie_to_this_process() -> Callable[[], None] | None:
    """For Popen's preexec_fn: the child is told to end when we do. None where that works otherwise.

    On macOS the guest notices: its control channel is then closed, and it powers off. On Windows see `job`.
    """
    if sys.platform != "linux":
        return None
    import ctypes

    prctl = ctypes.CDLL(None).prctl  # looked up now: after the fork only the call itself is safe

    def in_child() -> None:
        prctl(PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0)

    return in_child


def put_into_job(process: subprocess.Popen[bytes]) -> object | None:
    """On Windows:

    a job object that ends the process when our last handle is gone; the caller keeps what we return.
    """
    if not IS_WINDOWS:
        return None
    import ctypes

    windll: Any = getattr(ctypes, "windll")  # noqa: B009
    kernel = windll.kernel32

    class Limits(ctypes.Structure):  # JOBOBJECT_EXTENDED_LIMIT_INFORMATION on 64 bits
        _fields_ = [("head", ctypes.c_uint64 * 2), ("flags", ctypes.c_uint32), ("rest", ctypes.c_byte * 124)]

    kernel.CreateJobObjectW.restype = ctypes.c_void_p
    job = kernel.CreateJobObjectW(None, None)
    limits = Limits(flags=0x2000)  # JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
    handle = getattr(process, "_handle")  # noqa: B009
    if (
        not job
        or not kernel.SetInformationJobObject(
            ctypes.c_void_p(job), 9, ctypes.byref(limits), ctypes.sizeof(limits)
        )
        or not kernel.AssignProcessToJobObject(ctypes.c_void_p(job), ctypes.c_void_p(int(handle)))
    ):
        raise MachineError(
            "Windows refused a job object for QEMU", "Without it QEMU could be left running; report this."
        )
    return job  # type: ignore[no-any-return]
