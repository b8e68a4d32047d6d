"""Who a process runs as: Docker's `user[:group]` and `--group-add`, looked up in the container's own files.

The rules and texts are those of moby/sys/user (GetExecUser, GetAdditionalGroups). The files are the
image's: they are read through `RootFd`, only when regular, up to a limit, and a malformed line is no
entry, never uid 0.
"""

from __future__ import annotations

from io import BytesIO

from guest_agent.kernel.paths import RootFd

from .stage import StageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_ID = (1 << 31) - 1
_MAX_FILE = 16 << 20
_MAX_LINE = 64 << 10  # as far as moby's reader goes
_MAX_DIGITS = 12
_OUT_OF_RANGE = 1 << 62
_MAX_GROUPS = 65536  # NGROUPS_MAX of setgroups(2)
_EINVAL = 22


class Identity:
    """The ids of a process: `groups` are the supplementary ones, `home` its user's home directory."""

    def __init__(self, uid: int, gid: int, groups: list[int], home: str) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.home = home


def resolve(root: RootFd, name: str, additional: list[str]) -> Identity:
    """The identity of `name` (`user`, `uid`, `user:group`, …; empty is uid 0) with the groups of
    `additional`.

    StageError with dockerd's text for somebody who is not there or an id out of range.
    """
    user_arg, _, group_arg = name.partition(":")
    identity, user_name = _user(root, user_arg)
    if group_arg:
        number = _number(group_arg)
        gid = next(
            (
                gid
                for group, gid, _ in _groups(root)
                if (gid == number if number is not None else group == group_arg)
            ),
            number,
        )
        if gid is None:
            raise _not_found("group", group_arg)
        identity.gid = gid
    elif user_name:
        identity.groups = [gid for _, gid, members in _groups(root) if user_name in members]
    if additional:
        identity.groups += _additional(root, additional)
    # The primary group is in the supplementary set too, lest a file that is closed to it opens
    # (CVE-2022-36109).
    identity.groups = list(dict.fromkeys([identity.gid, *identity.groups]))
    for number in (identity.uid, *identity.groups):
        if not 0 <= number <= _MAX_ID:
            raise StageError("user", _EINVAL, f"uids and gids must be in range 0-{_MAX_ID}")
    if len(identity.groups) > _MAX_GROUPS:
        raise StageError("user", _EINVAL, f"{name}: more than {_MAX_GROUPS} groups")
    return identity


def home_of(root: RootFd, uid: int) -> str:
    """The home directory of a user given by number; `/` for one without an entry."""
    return next((home for _, entry, _, home in _passwd(root) if entry == uid), "/")


def _user(root: RootFd, user_arg: str) -> tuple[Identity, str]:
    """The user's identity without groups, and the name in the passwd file, if any."""
    number = _number(user_arg) if user_arg else 0
    for name, uid, gid, home in _passwd(root):
        if uid == number if number is not None else name == user_arg:
            return Identity(uid, gid, [], home), name
    if number is None:
        raise _not_found("user", user_arg)
    return Identity(number, 0, [], "/"), ""


def _additional(root: RootFd, wanted: list[str]) -> list[int]:
    entries = list(_groups(root))
    result = []
    for item in wanted:
        found = [gid for name, gid, _ in entries if item in (name, str(gid))]
        number = _number(item)
        if found:
            result.append(found[0])
        elif number is not None:
            result.append(number)
        else:
            text = f"unable to find group {item}: no matching entries in group file"
            raise StageError("user", _EINVAL, text)
    return result


def _not_found(kind: str, name: str) -> StageError:
    file = "passwd" if kind == "user" else "group"
    return StageError("user", _EINVAL, f"unable to find {kind} {name}: no matching entries in {file} file")


def _number(text: str) -> int | None:
    """A decimal number with an optional sign, nothing else (int() takes more); None for a name."""
    digits = text[1:] if text[:1] in ("+", "-") else text
    if not (digits.isascii() and digits.isdigit()):
        return None
    number = digits.lstrip("0") or "0"
    if len(number) > _MAX_DIGITS:
        return _OUT_OF_RANGE  # Python does not even read one of 4300 digits
    return -int(number) if text[0] == "-" else int(number)


def _lines(root: RootFd, path: str) -> Iterator[list[str]]:
    """The fields of each line, one line at a time: the file may have millions. Only a line feed ends a line,
    lest a user's own words become another's entry.
    """
    try:
        content = BytesIO(root.read(path, _MAX_FILE))
    except OSError:  # no such file, not a regular one: no entries
        return
    while line := content.readline():
        if len(line) <= _MAX_LINE:
            yield line.decode("utf-8", "surrogateescape").removesuffix("\n").split(":")


def _passwd(root: RootFd) -> Iterator[tuple[str, int, int, str]]:
    """name, uid, gid, home of each well-formed line."""
    for fields in _lines(root, "/etc/passwd"):
        if len(fields) >= 6:
            uid, gid = _number(fields[2]), _number(fields[3])
            if uid is not None and gid is not None:
                yield fields[0], uid, gid, fields[5] or "/"


def _groups(root: RootFd) -> Iterator[tuple[str, int, list[str]]]:
    """name, gid, members of each well-formed line."""
    for fields in _lines(root, "/etc/group"):
        if len(fields) >= 3:
            gid = _number(fields[2])
            if gid is not None:
                members = fields[3].split(",") if len(fields) > 3 else []
                yield fields[0], gid, [member.strip() for member in members]
