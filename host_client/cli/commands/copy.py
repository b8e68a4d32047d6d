"""`cp` between a container and this machine, in both directions, as tar archives.

What comes out of a container is hostile: names and links in the archive never lead outside the destination
(`host_client.cli.unpack`).
"""

from __future__ import annotations

import os

from host_client.cli import output, units
from host_client.cli.errors import CliError
from host_client.cli.flags import Command
from host_client.engine_api.client import Client, quote
from host_client.engine_api.errors import ApiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session

# Bits of Go's os.FileMode, which the API uses for `mode`.
GO_DIRECTORY = 1 << 31
GO_SYMLINK = 1 << 27
GO_SPECIAL = 1 << 26 | 1 << 25 | 1 << 24 | 1 << 19  # device, pipe, socket, irregular


def split(argument: str) -> tuple[str, str]:
    """Container and path; an empty container for a local path."""
    if os.path.isabs(argument):
        return "", argument
    container, colon, path = argument.partition(":")
    if not colon or container.startswith("."):
        return "", argument
    return container, path


def _join(parent_of: str, link: str) -> str:
    import posixpath

    return posixpath.normpath(posixpath.join(posixpath.dirname(parent_of.rstrip("/")), link))


def _stat(client: Client, container: str, path: str) -> dict[str, Any]:
    """What is at a path in a container: name, size, mode, linkTarget.

    Raises:
        ApiError: nothing is there, or there is no such container.
    """
    response = client.request("HEAD", f"/containers/{quote(container)}/archive", {"path": path})
    client.release(response)
    return _decode_stat(response.headers.get("x-docker-container-path-stat", ""))


def _decode_stat(header: str) -> dict[str, Any]:
    import binascii

    from host_client.engine_api.wire import loads

    found: dict[str, Any] = loads(binascii.a2b_base64(header))
    return found


def copy(session: Session, parsed: Parsed) -> int:
    """`wherry cp`."""
    source, destination = parsed.args
    if not source:
        raise CliError("source can not be empty")
    if not destination:
        raise CliError("destination can not be empty")
    from_container, from_path = split(source)
    to_container, to_path = split(destination)
    quiet = parsed["quiet"] if "quiet" in parsed.given else not output.is_terminal(output.OUT)
    if from_container and to_container:
        raise CliError("copying between containers is not supported", "copy to a local directory first")
    if from_container:
        summary = _out(session.client, from_container, from_path, to_path, parsed["follow-link"])
    elif to_container:
        summary = _in(
            session.client, from_path, to_container, to_path, parsed["follow-link"], parsed["archive"]
        )
    else:
        raise CliError(
            "must specify at least one container source", "write a path in a container as NAME:/path"
        )
    if summary and not quiet:
        output.err(f"Successfully copied {summary}\n")
    return 0


def _out(client: Client, container: str, path: str, target: str, follow: bool) -> str:
    name = ""
    if follow:
        try:
            found = _stat(client, container, path)
        except ApiError:
            found = {"mode": 0}
        if found["mode"] & GO_SYMLINK:
            name = path.rstrip("/").rpartition("/")[2]
            path = _join(path, found["linkTarget"])
    if target != "-":
        _check_target(target)
    response = client.request("GET", f"/containers/{quote(container)}/archive", {"path": path})
    counted = _Counted(response.chunks())
    if target == "-":
        for piece in counted:
            output.write_bytes(output.OUT, piece)
        return ""
    found = _decode_stat(response.headers["x-docker-container-path-stat"])
    from host_client.cli import unpack

    is_directory = bool(found["mode"] & GO_DIRECTORY)
    place = _place(target, name or found["name"], path, is_directory)
    unpack.extract(counted, place)
    size = counted.total if is_directory else found["size"]
    return _summary(size, counted.total, os.path.abspath(target))


def _summary(size: int, sent: int, where: str) -> str:
    shown = units.human_size(size, 3)
    if size != sent:
        shown += f" (transferred {units.human_size(sent, 3)})"
    return f"{shown} to {where}"


class _Counted:
    """Passes pieces on and counts their bytes."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.total = 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self.total += len(piece)
            yield piece


def _check_target(target: str) -> None:
    """The directory it goes into must be there."""
    directory = os.path.dirname(os.path.abspath(target))
    if not os.path.isdir(directory):
        raise CliError(f'invalid output path: directory "{directory}" does not exist', "make it first")
    if os.path.exists(target) and not os.path.isdir(target) and not os.path.isfile(target):
        raise CliError(
            f'got a device or other special file at "{target}"', "copy to a directory or a regular file"
        )


def _place(target: str, name: str, path: str, is_directory: bool) -> str:
    """Where the first entry of the archive goes, by docker's rules for cp."""
    wants_directory = target.endswith(("/", os.sep)) or os.path.basename(target) == "."
    if os.path.isdir(target):
        if is_directory and path.endswith("/."):
            return target
        return os.path.join(target, name.strip("/") or ".")
    if os.path.lexists(target):
        if is_directory:
            raise CliError(f"cannot copy a directory over the file {target}")
        if wants_directory:
            raise CliError(f"not a directory: {target}")
        return target
    if wants_directory and not is_directory:
        raise CliError(f"no such directory: {target}", "make it first, or leave out the / at its end")
    return target.rstrip("/" + os.sep)


def _in(client: Client, source: str, container: str, path: str, follow: bool, keep_owner: bool) -> str:
    resolved = path
    found: dict[str, Any] | None
    try:
        found = _stat(client, container, path)
        if found["mode"] & GO_SYMLINK:
            link = found["linkTarget"]
            resolved = link if link.startswith("/") else _join(path, link)
            found = _stat(client, container, resolved)
    except ApiError as error:
        if "No such container" in error.message or error.status not in (400, 404):
            raise
        found = None
    if found is not None and found["mode"] & GO_SPECIAL:
        raise CliError(f'destination "{container}:{path}" must be a directory or a regular file')
    exists = found is not None
    is_directory = found is not None and bool(found["mode"] & GO_DIRECTORY)
    from host_client.cli import pack

    if source == "-":
        if not is_directory:
            raise CliError(f'destination "{container}:{path}" must be a directory')
        pieces = pack.standard_input()
        into, size = resolved, None
    else:
        into, pieces, size = _prepared(source, resolved, exists, is_directory, follow)
    counted = _Counted(pieces)
    query: dict[str, Any] = {"path": into, "noOverwriteDirNonDir": "true", "copyUIDGID": keep_owner}
    headers = [("Content-Type", "application/x-tar")]
    response = client.request("PUT", f"/containers/{quote(container)}/archive", query, iter(counted), headers)
    response.read()
    client.release(response)
    return _summary(counted.total if size is None else size, counted.total, f"{container}:{resolved}")


def _prepared(
    source: str, path: str, exists: bool, is_directory: bool, follow: bool
) -> tuple[str, Iterator[bytes], int]:
    """Directory in the container, archive, and size of the content for a local source, by docker's rules for
    cp.
    """
    from host_client.cli import pack

    real = os.path.realpath(source) if follow else source
    try:
        status = os.lstat(real)
        if os.path.islink(real) and source.endswith(("/", "/.")):
            status = os.stat(real)
    except OSError as error:
        raise CliError(f"lstat {os.path.abspath(source)}: {(error.strerror or str(error)).lower()}")
    import stat

    local_directory = stat.S_ISDIR(status.st_mode)
    if source.endswith("/") and not local_directory:
        raise CliError(f"not a directory: {source}")
    contents = local_directory and (source.endswith("/.") or os.path.basename(source) == ".")
    name = "." if contents else os.path.basename(os.path.abspath(source))
    parent, _, base = path.rstrip("/").rpartition("/")
    if is_directory:
        into = path
    elif exists:
        if local_directory:
            raise CliError("cannot copy a directory over a file")
        if path.endswith("/"):
            raise CliError(f"not a directory: {path}")
        into, name = parent or "/", base
    elif local_directory:
        into, name = parent or "/", base
    elif path.endswith(("/", "/.")):
        raise CliError(f"no such directory: {path}", "leave out the / at its end to copy to that name")
    else:
        into, name = parent or "/", base
    return into, pack.archive(real, name), pack.content_size(real)


COPY = Command(
    "[OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-  or  [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH",
    copy,
    2,
    2,
    (
        ("archive", "a", "bool", "Keep owner and group"),
        ("follow-link", "L", "bool", "Follow a symbolic link given as the source"),
        ("quiet", "q", "bool", "Do not say how much was copied"),
    ),
    complete="container",
    detail="With '-' as the source, a tar archive is read from standard input; with '-' as the destination, "
    "one is written to standard output.",
    examples=(
        ("wherry cp web:/etc/nginx ./conf", "a directory out of a container"),
        ("wherry cp app.py web:/srv/", "a file into one"),
    ),
)
