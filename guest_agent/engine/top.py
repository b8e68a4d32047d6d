"""`docker top`: what ps(1) would print of a container's processes, without running a ps.

The formats and columns are those of procps; what is not known is refused by name.
"""

from __future__ import annotations

import pwd
import time
from collections.abc import Callable, Iterable

from guest_agent.errors import InvalidParameter
from guest_agent.kernel.procfs import PAGE, Process, total_memory

Column = tuple[str, Callable[[Process], str]]  # title, value


def _user(uid: str) -> str:
    try:
        name = pwd.getpwuid(int(uid)).pw_name
    except KeyError:
        return uid
    return name if len(name) <= 8 else name[:7] + "+"


def _uid(process: Process, which: int = 1) -> str:
    return process.status["Uid"].split()[which]


def _gid(process: Process) -> str:
    return process.status["Gid"].split()[1]


def _clock(seconds: float) -> str:
    """[DD-]HH:MM:SS."""
    days, rest = divmod(int(seconds), 86400)
    text = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days}-{text}" if days else text


def _elapsed(process: Process) -> str:
    text = _clock(process.elapsed)
    return text[3:] if text.startswith("00:") else text


def _bsd_time(process: Process) -> str:
    minutes, seconds = divmod(int(process.cpu_seconds), 60)
    return f"{minutes}:{seconds:02}"


def _start(process: Process) -> str:
    started, now = time.localtime(process.started), time.localtime()
    if started.tm_year != now.tm_year:
        return f"{started.tm_year}"
    return time.strftime("%H:%M" if started.tm_yday == now.tm_yday else "%b%d", started)


def _cpu(process: Process) -> float:
    return 100 * process.cpu_seconds / process.elapsed if process.elapsed else 0.0


def _memory(process: Process) -> float:
    return 100 * process.resident / total_memory()


def _flags(process: Process) -> str:
    """The state and what ps adds to it."""
    flags = process.state
    nice = process.field(19)
    flags += "<" if nice < 0 else "N" if nice > 0 else ""
    flags += "L" if process.status.get("VmLck", "0 kB").split()[0] != "0" else ""
    flags += "s" if process.field(6) == process.pid else ""
    flags += "l" if process.field(20) > 1 else ""
    flags += "+" if process.field(8) == process.field(5) else ""
    return flags


def _kilobytes(size: int) -> str:
    return str(size // 1024)


COLUMNS: dict[str, Column] = {
    "pid": ("PID", lambda p: str(p.pid)),
    "ppid": ("PPID", lambda p: str(p.field(4))),
    "pgid": ("PGID", lambda p: str(p.field(5))),
    "sid": ("SID", lambda p: str(p.field(6))),
    "uid": ("UID", _uid),
    "ruid": ("RUID", lambda p: _uid(p, 0)),
    "gid": ("GID", _gid),
    "user": ("USER", lambda p: _user(_uid(p))),
    "ruser": ("RUSER", lambda p: _user(_uid(p, 0))),
    "pcpu": ("%CPU", lambda p: f"{_cpu(p):.1f}"),
    "c": ("C", lambda p: str(min(int(_cpu(p)), 99))),
    "pmem": ("%MEM", lambda p: f"{_memory(p):.1f}"),
    "vsz": ("VSZ", lambda p: _kilobytes(p.field(23))),
    "rss": ("RSS", lambda p: _kilobytes(p.resident)),
    "sz": ("SZ", lambda p: str(p.field(23) // PAGE)),
    "tname": ("TTY", lambda p: p.terminal),
    "tty": ("TT", lambda p: p.terminal),
    "stat": ("STAT", _flags),
    "s": ("S", lambda p: p.state),
    "f": ("F", lambda p: f"{p.field(9) >> 6 & 7:x}"),
    "pri": ("PRI", lambda p: str(39 - p.field(18))),
    "opri": ("PRI", lambda p: str(60 + p.field(18))),
    "ni": ("NI", lambda p: str(p.field(19))),
    "addr": ("ADDR", lambda p: "-"),
    "wchan": ("WCHAN", lambda p: p.waits_in),
    "nlwp": ("NLWP", lambda p: str(p.field(20))),
    "psr": ("PSR", lambda p: str(p.field(39))),
    "stime": ("STIME", _start),
    "start": ("START", _start),
    "lstart": ("STARTED", lambda p: time.asctime(time.localtime(p.started))),
    "time": ("TIME", lambda p: _clock(p.cpu_seconds)),
    "bsdtime": ("TIME", _bsd_time),
    "etime": ("ELAPSED", _elapsed),
    "etimes": ("ELAPSED", lambda p: str(int(p.elapsed))),
    "comm": ("COMMAND", lambda p: f"{p.name} <defunct>" if p.state == "Z" else p.name),
    "ucmd": ("CMD", lambda p: p.name),
    "cmd": ("CMD", lambda p: p.command_line),
    "args": ("COMMAND", lambda p: p.command_line),
}
_SYNONYMS = {
    "euid": "uid", "euser": "user", "uname": "user", "pgrp": "pgid", "sess": "sid", "session": "sid",
    "%cpu": "pcpu", "%mem": "pmem", "vsize": "vsz", "rssize": "rss", "rsz": "rss", "tt": "tty",
    "state": "s", "flags": "f", "flag": "f", "nice": "ni", "thcount": "nlwp",
    "start_time": "stime", "bsdstart": "start", "cputime": "time", "ucomm": "ucmd", "command": "args",
}  # fmt: skip

_FORMATS = {
    "": "pid tname time ucmd",
    "f": "user:UID pid ppid c stime tname time cmd",
    "F": "user:UID pid ppid c sz rss psr stime tname time cmd",
    "l": "f s uid pid ppid c opri ni addr sz wchan tname time ucmd",
    "j": "pid pgid sid tname time ucmd",
    "u": "user pid pcpu pmem vsz rss tname stat start bsdtime args",
    "x": "pid tname stat bsdtime args",
}


def parse(arguments: str) -> list[Column]:
    """The columns that `ps ARGUMENTS` prints. Raises InvalidParameter, naming what is not supported."""
    format = ""
    own: list[str] = []
    words = arguments.split()
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            raise InvalidParameter(f"ps: error: unsupported option {word!r}", hint=_HINT)
        dash = word.startswith("-")
        letters = word[1:] if dash else word
        for index, letter in enumerate(letters):
            if letter == "o":
                value = letters[index + 1 :] or (words.pop(0) if words else "")
                if not value:
                    raise InvalidParameter("ps: error: format specification must follow -o")
                own += value.split(",")
                break
            if letter in "eAadxw":  # all of a container's processes are shown anyway
                format = format or ("x" if not dash and letter in "ax" else "")
            elif letter in ("fFlj" if dash else "u"):
                format = letter
            else:
                raise InvalidParameter(f"ps: error: unsupported option {letter!r} in {word!r}", hint=_HINT)
    return [_column(name) for name in (own or _FORMATS[format].split())]


_HINT = "Supported are -e, -f, -F, -l, -j, aux and -o with a list of columns."


def _column(text: str) -> Column:
    if "=" in text:
        raise InvalidParameter(f'specifying "{text}" is not allowed')
    name, _, title = text.partition(":")
    known = COLUMNS.get(_SYNONYMS.get(name, name))
    if known is None:
        raise InvalidParameter(f'ps: error: unknown user-defined format specifier "{name}"', hint=_HINT)
    return (title, known[1]) if title and not title.isdigit() else known


def top(pids: Iterable[int], arguments: str) -> dict[str, list[str] | list[list[str]]]:
    """ContainerTopResponse for `ps ARGUMENTS`. Raises InvalidParameter."""
    columns = parse(arguments)
    if all(title != "PID" for title, _ in columns):
        raise InvalidParameter("Couldn't find PID field in ps output")
    rows = []
    for pid in sorted(pids):
        try:
            process = Process(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        rows.append([value(process) for _, value in columns])
    return {"Titles": [title for title, _ in columns], "Processes": rows}
