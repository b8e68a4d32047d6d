"""What COPY and ADD take: files and trees below one root, found by patterns, walked in order, and digested.

The root is somebody else's: a build context, or the file system of another stage. Patterns and names are
resolved in it by the kernel (openat2), links that are named are followed inside it, links below are taken as
they are.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from guest_agent.build.dockerfile.ignore import Patterns
from guest_agent.errors import InvalidParameter, NotFound
from guest_agent.kernel.paths import O_PATH, RootFd, open_in_root
from guest_agent.kernel.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS

_INSIDE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SPECIAL = re.compile(r"[*?\[\\]")
_PIECE = 1 << 18

Ignored = Callable[[str], bool]


@dataclass(slots=True)
class Source:
    """One thing that is taken. `name` is what it is called where it goes, "" for what is in a directory."""

    fd: int  # O_PATH
    details: os.stat_result
    name: str


@dataclass(slots=True)
class Selection:
    """The things that one COPY or ADD takes. Owns their descriptors."""

    sources: list[Source] = field(default_factory=list)
    ignored: Ignored = lambda path: False  # by path relative to what is named

    def __enter__(self) -> Selection:
        return self

    def __exit__(self, *exc: object) -> None:
        for source in self.sources:
            os.close(source.fd)
        self.sources.clear()

    def only_file(self) -> bool:
        """Whether it is one thing that is no directory."""
        return len(self.sources) == 1 and not stat.S_ISDIR(self.sources[0].details.st_mode)


def select(
    selection: Selection, root: RootFd, patterns: Sequence[str], parents: bool = False, verb: str = "COPY"
) -> None:
    """Adds what matches the patterns, in the order of names. Raises NotFound, InvalidParameter in dockerd's
    words.
    """
    for pattern in patterns:
        pivot, found, rest = pattern.partition("/./") if parents else ("", "", pattern)
        if not found:
            pivot, rest = "", pattern
        base = _clean(pivot, verb)
        wanted = "/".join(filter(None, (base, _clean(rest, verb))))
        names = list(_matches(root, wanted)) if _SPECIAL.search(wanted) else [wanted]
        for name in names:
            _add(selection, root, name, base if parents else None, verb)
    if patterns and not selection.sources:
        raise NotFound(f"{verb} failed: no source files were specified")


def _clean(pattern: str, verb: str) -> str:
    parts: list[str] = []
    for part in pattern.split("/"):
        if part == "..":
            if not parts and not pattern.startswith("/"):
                raise InvalidParameter(
                    f"{verb} failed: forbidden path outside the build context: {pattern} ()",
                    "Name a path inside the context, or give the folder as the context.",
                )
            if parts:
                parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _add(selection: Selection, root: RootFd, name: str, base: str | None, verb: str) -> None:
    try:
        fd = root.open(name or ".", O_PATH)
    except OSError:
        raise NotFound(
            f"{verb} failed: file not found in build context or excluded by .dockerignore: "
            f"stat {name}: file does not exist"
        )
    details = os.fstat(fd)
    target = "" if stat.S_ISDIR(details.st_mode) else name.rpartition("/")[2]
    if base is not None:
        target = name[len(base) :].strip("/") if base else name
    if target and selection.ignored(target):
        os.close(fd)
        return
    selection.sources.append(Source(fd, details, target))


def _matches(root: RootFd, pattern: str) -> Iterator[str]:
    """Paths in the root that match, by component as Go's filepath.Match; `**` is any directories."""
    parts = pattern.split("/")

    def descend(found: str, index: int) -> Iterator[str]:
        if index == len(parts):
            yield found
            return
        part = parts[index]
        if part == "**":
            yield from descend(found, index + 1)
            for name in _names(root, found):
                path = f"{found}/{name}" if found else name
                if _is_real_dir(root, path):
                    yield from descend(path, index)
            return
        if not _SPECIAL.search(part):
            path = f"{found}/{part}" if found else part
            if root.exists(path):
                yield from descend(path, index + 1)
            return
        match = Patterns(["\\" + part if part.startswith("!") else part])
        for name in _names(root, found):
            if match.ignores(name):
                yield from descend(f"{found}/{name}" if found else name, index + 1)

    yield from dict.fromkeys(descend("", 0))


def _names(root: RootFd, path: str) -> list[str]:
    try:
        return sorted(root.listdir(path or "."))
    except OSError:
        return []


def _is_real_dir(root: RootFd, path: str) -> bool:
    try:
        return stat.S_ISDIR(root.stat(path, follow=False).st_mode)
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class Item:
    """One thing below a source: a name in an open directory. `path` is relative to the destination."""

    directory: int
    name: str  # in `directory`; "" when `directory` is the thing's own O_PATH descriptor
    path: str
    details: os.stat_result


def walk(selection: Selection) -> Iterator[Item]:
    """All that is taken, each directory before what is in it, sockets left out.

    An item's directory is open until the next one is asked for. Raises OSError.
    """
    for source in selection.sources:
        if not stat.S_ISDIR(source.details.st_mode):
            yield Item(source.fd, "", source.name, source.details)
            continue
        if source.name:
            yield Item(source.fd, "", source.name, source.details)
        waiting = [""]
        while waiting:
            below = waiting.pop()
            directory = open_in_root(source.fd, below or ".", _OPEN_DIR, resolve=_INSIDE)
            try:
                deeper = []
                for name in sorted(os.listdir(directory)):
                    relative = f"{below}/{name}" if below else name
                    details = os.lstat(name, dir_fd=directory)
                    is_dir = stat.S_ISDIR(details.st_mode)
                    if stat.S_ISSOCK(details.st_mode):
                        continue
                    path = f"{source.name}/{relative}" if source.name else relative
                    ignored = selection.ignored(path)
                    if ignored and not is_dir:
                        continue
                    if is_dir:
                        deeper.append(relative)
                        if ignored:
                            continue  # an exception below may be wanted
                    yield Item(directory, name, path, details)
                waiting += reversed(deeper)
            finally:
                os.close(directory)


def open_item(item: Item) -> int:
    """A regular file's content. Raises OSError when it is something else by now."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    if item.name:
        return os.open(item.name, flags | os.O_NOFOLLOW, dir_fd=item.directory)
    return os.open(f"/proc/self/fd/{item.directory}", flags)


def link_target(item: Item) -> str:
    """Where a symbolic link leads."""
    return os.readlink(item.name, dir_fd=item.directory)


def digest(selection: Selection) -> str:
    """The digest (hexadecimal SHA-256) of all that is taken: names, kinds, modes, owners, targets, content;
    no times.
    """
    total = hashlib.sha256()
    for item in walk(selection):
        details = item.details
        mode = details.st_mode
        fields: list[object] = [item.path, oct(mode), details.st_uid, details.st_gid]
        if stat.S_ISLNK(mode):
            fields.append(link_target(item))
        elif stat.S_ISREG(mode):
            fields.append(details.st_size)
        elif not stat.S_ISDIR(mode):
            fields.append(details.st_rdev)
        text = "\0".join(map(str, fields)).encode("utf-8", "surrogateescape")
        total.update(b"%d:" % len(text) + text)
        if stat.S_ISREG(mode):
            fd = open_item(item)
            try:
                while data := os.read(fd, _PIECE):
                    total.update(data)
            finally:
                os.close(fd)
    return total.hexdigest()
