"""A scope of systemd's for an engine without root: control groups of cgroup v2 that the user may divide.

An engine that is started from a shell is in a session's group, which is root's. One that is started as a
service is in the service's, which is the user's; but once containers have limits in groups below it,
systemd cannot put a process into it any more, and so not start the service again beside them (cgroups(7),
"no internal processes"). So the engine, its keeper, its monitor and its containers have a unit of their own.
"""

from __future__ import annotations

import logging
import os

log = logging.getLogger(__name__)

_ROOT = "/sys/fs/cgroup"
_NAME = "wherry-"
_SECONDS = 10.0
_MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")


def leave_unit() -> None:
    """Moves this process into a new scope that is delegated to it.

    Nothing happens, but for a line in the log where one could be expected, when there is none to be had.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    if not os.path.exists(f"{_ROOT}/cgroup.controllers") or not os.path.exists(f"{runtime}/systemd/private"):
        return
    name = f"{_NAME}{os.getpid()}.scope"
    import subprocess  # which most engines start without

    # It holds the scope until we are in it, and tells where that is.
    holder = ["systemd-run", "--user", "--scope", "--quiet", "--collect", f"--unit={name}"]
    holder += ["--property=Delegate=yes", "--description=Wherry containers", "--"]
    holder += ["cat", "/proc/self/cgroup", "-"]
    environment = os.environ | {"XDG_RUNTIME_DIR": runtime}
    try:
        with subprocess.Popen(
            holder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                line = process.stdout.readline()
                if not line.startswith("0::"):
                    reason = process.stderr.read().strip()
                    log.warning("limits may not be held: systemd makes no scope for containers: %s", reason)
                    return
                _move(line[3:].rstrip("\n"), "", name)
            finally:
                process.stdin.close()
    except OSError as error:
        log.warning("limits may not be held: systemd makes no scope for containers: %s", error)


def follow(pid: int) -> None:
    """Moves this process to where `pid` is, a keeper of this user's. What goes wrong is logged."""
    try:
        theirs, ours = _group_of(pid), _group_of(os.getpid())
        before, ending, below = theirs.partition(".scope")
        name = os.path.basename(before)
        if theirs != ours and ending and name.startswith(_NAME):
            _move(before + ending, below, name + ending)
    except OSError as error:
        log.warning("limits may not be held: cannot join the containers' scope: %s", error)


def _group_of(pid: int) -> str:
    with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        return next((line[3:].rstrip("\n") for line in file if line.startswith("0::")), "")


def _move(path: str, below: str, unit: str) -> None:
    """Raises OSError."""
    pid = str(os.getpid())
    try:
        with open(f"{_ROOT}{path}{below}/cgroup.procs", "w", encoding="ascii") as file:
            file.write(pid)
        return
    except PermissionError:
        pass  # we come from a group of root's, and only systemd may move us
    import subprocess

    command = ["busctl", "--user", "call", *_MANAGER, "AttachProcessesToUnit", "ssau", unit, below, "1", pid]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip() or f"busctl ended with status {done.returncode}")
