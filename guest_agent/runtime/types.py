"""What the engine says to the runtime, and what comes back. Plain values, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

OciConfig = dict[str, Any]  # OCI runtime-spec config.json, plus the extensions named in docs/internals.md


@dataclass(frozen=True, slots=True)
class Overlay:
    """A root file system made of layers: absolute directories, `lower` topmost first.

    `upper` and `work` are empty for a read-only view.
    """

    lower: tuple[str, ...]
    upper: str = ""
    work: str = ""


@dataclass(frozen=True, slots=True)
class LogSpec:
    """Docker's json-file log: lines of {"log","stream","time"} at `path`, rotated to path.1, path.2, …"""

    path: str
    max_size: int = -1  # bytes, -1: no limit
    max_files: int = 1
    compress: bool = False
    attrs: dict[str, str] = field(default_factory=dict)  # written as "attrs" when not empty


@dataclass(frozen=True, slots=True)
class Stdio:
    """How a process's standard streams are wired."""

    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False  # close stdin when the first attached client's input ends
    log: LogSpec | None = None  # None: output goes to attached clients only
    console_size: tuple[int, int] = (0, 0)  # rows, columns; 0: kernel default


@dataclass(frozen=True, slots=True)
class Attachment:
    """One attached client: `fd` is a connected stream socket which the monitor owns from now on.

    The monitor reads stdin bytes from it (end of file there closes stdin as `stdin_once` says) and writes
    output to it: raw bytes or Docker's frames (`>BxxxL` stream, length), as `framed` says, by default frames
    for a process without tty. It shuts down its write side when the process's output has ended and been
    delivered. A slow client slows the container; it never loses bytes.
    """

    fd: int
    stdin: bool = False
    stdout: bool = True
    stderr: bool = True
    framed: bool | None = None


@dataclass(frozen=True, slots=True)
class Launch:
    """All there is to know to start a container's first process."""

    id: str
    config: OciConfig
    rootfs: Overlay | str  # str: an existing directory, bind-mounted
    stdio: Stdio
    exit_path: str  # the monitor writes the Exit here as JSON (tmp, fsync, rename) before it tells anybody


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a container's first process or of an exec."""

    id: str
    exec_id: str | None
    code: int  # 0..255; 128+n for a signal
    oom_killed: bool
    finished_at: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class Running:
    """A container the monitor holds: what a new agent learns on connecting."""

    id: str
    pid: int
    started_at: float
    exit: Exit | None  # set when it ended and nobody has called `forget`
    execs: dict[str, int] = field(default_factory=dict)  # exec id -> pid


class LaunchError(Exception):
    """A container or an exec could not be started.

    `stage` is what was being done (e.g. "mount", "user", "exec"), `text` is the user's sentence in runc's
    words, e.g. `exec: "nosuch": executable file not found in $PATH`, since the docker CLI derives 126 and 127
    from it.
    """

    def __init__(self, stage: str, errno: int, text: str) -> None:
        super().__init__(text)
        self.stage = stage
        self.errno = errno
        self.text = text
