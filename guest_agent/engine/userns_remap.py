"""The setting `userns-remap`: whose subordinate ids all containers run with, as dockerd has it.

dockerd keeps a store for each mapping, with files chowned; here all have the same one, and files are seen
through idmapped mounts (Linux 5.19). The rules: Docker's manual, engine/security/userns-remap.
"""

from __future__ import annotations

import grp
import logging
import pwd
import subprocess

from guest_agent.errors import InvalidParameter, NotSupported
from guest_agent.kernel import syscalls, userns
from guest_agent.kernel.subids import SUBGID, SUBUID, entries, ranges

from .user_namespaces import Mapping

log = logging.getLogger(__name__)

_DEFAULT_USER = "dockremap"
_FIRST_ID, _IDS = 100_000, 65_536  # of the ranges that are made for it
_IDMAPPED_OVERLAY = (5, 19)


def mapping(setting: str) -> Mapping | None:
    """The ids of `default` or USER[:GROUP], names or numbers; None for "" and for root, who stays that.

    For `default` the user dockremap and its ranges are made where they are missing. Raises InvalidParameter
    for users that are not there or have no ranges, NotSupported where there are no idmapped mounts.
    """
    if not setting:
        return None
    if userns.inside():
        raise NotSupported(
            "userns-remap is for an engine of root's",
            hint="Without root all containers are in a user namespace already: leave the setting out.",
        )
    if syscalls.LINUX < _IDMAPPED_OVERLAY:
        raise NotSupported(
            "userns-remap needs idmapped mounts below overlay, which Linux has since 5.19",
            hint="Use a newer kernel, or leave the setting out.",
        )
    user = _user(setting)
    if user.pw_uid == 0:
        log.warning("User namespaces: root cannot be remapped with itself; user namespaces are OFF")
        return None
    uids = ranges(SUBUID, user.pw_name, user.pw_uid, 0)
    gids = ranges(SUBGID, user.pw_name, user.pw_uid, 0)
    for found, path, kind in ((uids, SUBUID, "uid"), (gids, SUBGID, "gid")):
        if not found:
            raise InvalidParameter(
                f'error creating ID mappings: no sub{kind} ranges found for user "{user.pw_name}"',
                hint=f"Give it some in {path}: usermod --add-sub{kind}s 100000-165535 {user.pw_name}",
            )
    return Mapping(tuple(uids), tuple(gids))


def _user(setting: str) -> pwd.struct_passwd:
    """The user of the setting. Its group only has to exist (dockerd takes both ranges by the user's name)."""
    name, colon, group = setting.partition(":")
    if ":" in group or not name or (colon and not group):
        raise InvalidParameter(
            f'invalid user/group specification in --userns-remap: "{setting}"',
            hint="Write USER or USER:GROUP.",
        )
    if name == "default":
        _make_default_user()
        name = _DEFAULT_USER
    try:
        user = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except KeyError:
        raise InvalidParameter(
            f'error during uid lookup for "{name}": no such user',
            hint="userns-remap=default makes a user of its own.",
        )
    group = group or (name if name.isdigit() else user.pw_name)
    try:
        grp.getgrgid(int(group)) if group.isdigit() else grp.getgrnam(group)
    except KeyError:
        raise InvalidParameter(
            f'error during gid lookup for "{group}": no such group', hint="Write USER:GROUP."
        )
    return user


def _make_default_user() -> None:
    try:
        pwd.getpwnam(_DEFAULT_USER)
    except KeyError:
        _run(
            "useradd", "--system", "--user-group", "--no-create-home", "--shell", "/bin/false", _DEFAULT_USER
        )
    for path, option in ((SUBUID, "--add-subuids"), (SUBGID, "--add-subgids")):
        taken = entries(path)
        if not any(whose == _DEFAULT_USER for whose, _, _ in taken):
            first = _free(taken)
            _run("usermod", option, f"{first}-{first + _IDS - 1}", _DEFAULT_USER)


def _free(taken: list[tuple[str, int, int]]) -> int:
    first = _FIRST_ID
    for _, start, count in sorted(taken, key=lambda entry: entry[1]):
        if start < first + _IDS and first < start + count:
            first = start + count
    return first


def _run(*words: str) -> None:
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        failure = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        failure = f"{words[0]}: {error.strerror}"
    if failure:
        raise InvalidParameter(
            f'error during "{_DEFAULT_USER}" user creation: {failure}',
            hint=f"Make the user {_DEFAULT_USER} and its ranges in {SUBUID} and {SUBGID} by hand.",
        )
