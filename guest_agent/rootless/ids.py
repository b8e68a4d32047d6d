"""Subordinate ids (subuid(5), subgid(5)), and the maps of a user namespace that uses them."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess

from guest_agent.kernel.subids import SUBGID, SUBUID, Map, ranges

HINT = (
    "Give the user a range of ids: 'sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 "
    "{user}', "
    "and install newuidmap (Debian's package uidmap); then stop the engine once."
)


def user_name() -> str:
    """The name of the user who runs this, or the number when it has none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def write_maps(pid: int) -> str:
    """Maps the ids of a process that has just made its user namespace; run by a process outside of it.

    Returns why there is only one id, or "". Raises OSError when not even that can be mapped.
    """
    user, uid, gid = user_name(), os.getuid(), os.getgid()
    uids, gids = ranges(SUBUID, user, uid, 1), ranges(SUBGID, user, uid, 1)  # 0 is for the user
    tools = shutil.which("newuidmap"), shutil.which("newgidmap")
    if not uids or not gids:
        reason = f"/etc/sub{'gid' if uids else 'uid'} has no range for {user}"
    elif not tools[0] or not tools[1]:
        reason = "newuidmap and newgidmap are not installed"
    else:
        reason = _run(tools[0], pid, [(0, uid, 1), *uids]) or _run(tools[1], pid, [(0, gid, 1), *gids])
        if not reason:
            return ""
    # Allowed without privilege (user_namespaces(7)): the own ids, and only without a say over groups.
    _write(f"/proc/{pid}/setgroups", "deny")
    _write(f"/proc/{pid}/gid_map", f"0 {gid} 1\n")
    if not _has_map(pid):
        _write(f"/proc/{pid}/uid_map", f"0 {uid} 1\n")
    return reason


def _has_map(pid: int) -> bool:
    with open(f"/proc/{pid}/uid_map", encoding="ascii") as file:
        return bool(file.read().strip())


def _run(tool: str, pid: int, maps: Map) -> str:
    words = [str(number) for entry in maps for number in entry]
    done = subprocess.run(
        [tool, str(pid), *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stderr.strip() or f"{tool} failed"


def _write(path: str, content: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, content.encode())
    finally:
        os.close(fd)
