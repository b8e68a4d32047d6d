"""The context of a build as a tar stream: a folder without what `.dockerignore` leaves out, a Dockerfile from
elsewhere, or what comes on standard input.
"""

from __future__ import annotations

import io
import os
import tarfile

from host_client.cli.errors import CliError
from host_client.cli.ignore import Patterns, read
from host_client.cli.pack import PIECE, standard_input

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

OUTSIDE = ".dockerfile.wherry"  # what a Dockerfile from outside the folder is called in the archive


def is_remote(path: str) -> bool:
    """Whether the engine is to fetch the context itself."""
    return path.startswith(("http://", "https://", "git://", "git@", "ssh://", "github.com/"))


def from_input(dockerfile: str) -> tuple[Iterator[bytes], str]:
    """Standard input: an archive, or a Dockerfile alone. The stream, and the Dockerfile's name in it."""
    pieces = standard_input()
    head = b""
    while len(head) < 512:
        piece = next(pieces, b"")
        if not piece:
            break
        head += piece
    packed = head[:2] == b"\x1f\x8b" or head[:3] == b"BZh" or head[:4] == b"\x28\xb5\x2f\xfd"
    if packed or head[:6] == b"\xfd7zXZ\0" or head[257:262] == b"ustar":
        return _chained(head, pieces), dockerfile or "Dockerfile"
    if dockerfile:
        raise CliError(
            "ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles",
            "leave -f out, or give a folder",
        )
    return iter(_single("Dockerfile", head + b"".join(pieces))), "Dockerfile"


def _chained(head: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from rest


def _single(name: str, data: bytes) -> list[bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    packed = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    return [packed, data, bytes(-len(data) % 512), bytes(1024)]


def from_folder(folder: str, dockerfile: str) -> tuple[Iterator[bytes], str]:
    """A folder; `dockerfile` is a path as the user gave it, "-" standard input, "" the folder's own."""
    if not os.path.isdir(folder):
        raise CliError(
            f'unable to prepare context: path "{folder}" not found', "give a folder, a URL, or - for stdin"
        )
    extra: bytes | None = None
    if dockerfile == "-":
        extra, name = b"".join(standard_input()), OUTSIDE
    else:
        path = dockerfile or os.path.join(folder, "Dockerfile")
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError as error:
            raise CliError(
                f"unable to prepare context: cannot read the Dockerfile {path}: {error.strerror}",
                "-f names another one",
            )
        real, top = os.path.realpath(path), os.path.realpath(folder)
        name = os.path.relpath(real, top).replace(os.sep, "/") if _same_drive(real, top) else ".."
        if name.startswith(".."):
            extra, name = content, OUTSIDE
    return _packed(folder, _patterns(folder, dockerfile), extra, name), name


def _same_drive(one: str, other: str) -> bool:
    return os.path.splitdrive(one)[0].lower() == os.path.splitdrive(other)[0].lower()


def _patterns(folder: str, dockerfile: str) -> Patterns:
    own = f"{dockerfile or os.path.join(folder, 'Dockerfile')}.dockerignore"
    for path in (own, os.path.join(folder, ".dockerignore")):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                return Patterns(read(file.read()))
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise CliError(str(error), f"see {path}")
        except OSError as error:
            raise CliError(f"cannot read {path}: {error.strerror}")
    return Patterns([])


def _packed(folder: str, patterns: Patterns, extra: bytes | None, dockerfile: str) -> Iterator[bytes]:
    builder = tarfile.TarFile(fileobj=io.BytesIO(), mode="w", format=tarfile.PAX_FORMAT)
    keep = {dockerfile, ".dockerignore"}
    pending = b""  # small files go together: each piece is a write
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            with os.scandir(os.path.join(folder, below)) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise CliError(
                f"cannot read {os.path.join(folder, below)}: {error.strerror}", "or list it in .dockerignore"
            )
        deeper = []
        for entry in found:
            name = f"{below}/{entry.name}" if below else entry.name
            is_dir = entry.is_dir(follow_symlinks=False)
            if patterns and name not in keep and patterns.ignores(name):
                if is_dir and (patterns.may_keep_below() or dockerfile.startswith(name + "/")):
                    deeper.append(name)
                continue
            if is_dir:
                deeper.append(name)
            for piece in _entry(builder, entry.path, name):
                pending += piece
                if len(pending) >= PIECE:
                    yield pending
                    pending = b""
        waiting += reversed(deeper)
    if extra is not None:
        pending += b"".join(_single(dockerfile, extra)[:-1])
    yield pending + bytes(1024)


def _entry(builder: tarfile.TarFile, path: str, name: str) -> Iterator[bytes]:
    try:
        info = builder.gettarinfo(path, name)
        if info is None:
            return
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        size = info.size if info.isreg() else 0
        head = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        if not size:
            yield head
            return
        with open(path, "rb") as file:
            yield head
            left = size
            while left:
                piece = file.read(min(PIECE, left)) or bytes(min(PIECE, left))
                left -= len(piece)
                yield piece
    except OSError as error:
        raise CliError(f"cannot read {path}: {error.strerror}", "or list it in .dockerignore")
    yield bytes(-size % 512)


def compressed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same, compressed by gzip."""
    import zlib

    engine = zlib.compressobj(wbits=31)
    for piece in pieces:
        packed = engine.compress(piece)
        if packed:
            yield packed
    yield engine.flush()
