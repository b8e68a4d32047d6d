"""A tar stream from a container, unpacked on this machine, for `cp` out of it.

The archive is hostile. Its first entry goes where the user wants it, everything else below that; a name that
would leave it, or that passes through a symbolic link, is refused. Links are made as they are and never
followed; owners, set-id bits and devices are not taken over.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile

from host_client.cli.errors import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PIECE = 1024 * 1024


class _Stream(io.RawIOBase):
    """Pieces as a file that can be read."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces: Iterator[bytes] = iter(pieces)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = piece
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def extract(pieces: Iterable[bytes], place: str, root: str | None = None) -> None:
    """Unpack an archive; its first entry becomes `place`, unless `root` says what does ("": the top of all).

    Raises:
        CliError: the archive is damaged or wants to leave `place`, or a file cannot be written.
    """
    stream = io.BufferedReader(_Stream(pieces), PIECE)  # type: ignore[type-var]
    directories: list[tuple[str, tarfile.TarInfo]] = []
    try:
        with tarfile.open(fileobj=stream, mode="r|", errorlevel=2) as archive:
            for member in archive:
                if root is None:
                    root = _clean(member.name)
                target = _below(place, root, member.name)
                _make(archive, member, target, place, root)
                if member.isdir():
                    directories.append((target, member))
        while stream.read(PIECE):  # the padding after the end, so that the connection stays usable
            pass
    except tarfile.TarError as error:
        raise CliError(f"the archive from the container is damaged: {error}")
    except OSError as error:
        raise CliError(f"cannot write {error.filename or place}: {error.strerror or error}")
    for target, member in reversed(directories):
        os.chmod(target, member.mode & 0o777)
        os.utime(target, (member.mtime, member.mtime))


def _clean(name: str) -> str:
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _below(place: str, root: str, name: str) -> str:
    cleaned = _clean(name)
    if root and cleaned != root:
        if not cleaned.startswith(f"{root}/"):
            raise CliError(
                f"the archive from the container has an entry outside of what was asked for: {name}"
            )
        cleaned = cleaned[len(root) + 1 :]
    elif root:
        cleaned = ""
    parts = cleaned.split("/") if cleaned else []
    if ".." in parts:
        raise CliError(f"the archive from the container has an entry that leads outside: {name}")
    target = place
    for index, part in enumerate(parts):
        if index and not _plain_directory(target):
            raise CliError(f"the archive from the container has an entry that leads through a link: {name}")
        target = os.path.join(target, part)
    return target


def _plain_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        os.mkdir(path)
        return True


def _make(archive: tarfile.TarFile, member: tarfile.TarInfo, target: str, place: str, root: str) -> None:
    if member.isdir():
        if not os.path.isdir(target) or (target != place and os.path.islink(target)):
            _clear(target)
            os.mkdir(target, 0o700)
        elif target != place:
            os.chmod(target, 0o700)
        return
    if not (member.isfile() or member.issym() or member.islnk()):
        return  # devices, pipes and sockets mean nothing here
    _clear(target)
    if member.issym():
        os.symlink(member.linkname, target)
        return
    if member.islnk():
        original = _below(place, root, member.linkname)
        if os.path.islink(original):
            os.symlink(os.readlink(original), target)
        else:
            os.link(original, target)
        return
    descriptor = os.open(
        target,
        os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0),
        0o600,
    )
    with open(descriptor, "wb") as file:
        content = archive.extractfile(member)
        assert content is not None
        while piece := content.read(PIECE):
            file.write(piece)
    os.chmod(target, member.mode & 0o777)
    os.utime(target, (member.mtime, member.mtime))


def _clear(target: str) -> None:
    """Make room for an entry; a directory stays where it is."""
    try:
        status = os.lstat(target)
    except FileNotFoundError:
        return
    if stat.S_ISDIR(status.st_mode):
        raise CliError(f"cannot overwrite directory {target} with a file")
    os.unlink(target)
