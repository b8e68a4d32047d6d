"""Files into and out of containers: `docker cp` and `docker export`.

Paths are the container's: they are resolved in its tree by the kernel, whatever links are there. A container
that runs may do with its files what it likes meanwhile; one that does not is kept from starting until it is
done.
"""

from __future__ import annotations

import asyncio
import errno
import os
import posixpath
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from guest_agent.engine.background import Piped
from guest_agent.engine.state import rfc3339
from guest_agent.errors import Conflict, Forbidden, InternalError, InvalidParameter, NotFound
from guest_agent.images import tar
from guest_agent.images.decompress import Decompressed
from guest_agent.images.extract import Extractor, clean
from guest_agent.images.tar import TarReader, TarWriter
from guest_agent.images.tree import TreeWriter
from guest_agent.kernel import userns
from guest_agent.kernel.paths import O_PATH, RootFd
from guest_agent.runtime import users
from guest_agent.runtime.stage import StageError
from guest_agent.runtime.types import Overlay
from guest_agent.runtime.view import Part, with_view
from guest_agent.threads import blocking_reader, in_thread

from .container_events import publish
from .create import root_of
from .user_namespaces import Mapping, of_running

if TYPE_CHECKING:
    from .container import Container
    from .container_config import MountPoint
    from .engine import Engine

PathStat = dict[str, Any]  # name, size, mode (Go's os.FileMode), mtime, linkTarget

_MAX_LINKS = 255
_MAX_STEPS = 4096  # names on the way through links
_ENDING_SECONDS, _ENDING_TRIES = 0.01, 500
_PERMISSIONS = 0o777
# Go's os.FileMode bits.
_GO_TYPES = {
    stat.S_IFDIR: 1 << 31,
    stat.S_IFLNK: 1 << 27,
    stat.S_IFBLK: 1 << 26,
    stat.S_IFCHR: 1 << 26 | 1 << 21,
    stat.S_IFIFO: 1 << 25,
    stat.S_IFSOCK: 1 << 24,
}
_GO_BITS = ((stat.S_ISUID, 1 << 23), (stat.S_ISGID, 1 << 22), (stat.S_ISVTX, 1 << 20))

T = TypeVar("T")


async def path_stat(engine: Engine, container: Container, path: str, called: str) -> PathStat:
    """What is at a path.

    `called` is how the client calls the container. Raises NotFound, InvalidParameter.
    """
    wanted = absolute(path)

    def work(root: RootFd, ids: Mapping | None) -> PathStat:
        fd = _open(root, wanted, path, called)
        try:
            return _stat(root, wanted, os.fstat(fd))
        finally:
            os.close(fd)

    return await _look(engine, container, work)


async def get(
    engine: Engine, container: Container, path: str, called: str
) -> tuple[PathStat, AsyncGenerator[bytes, None]]:
    """What is at a path, and a tar archive of it. Raises NotFound, InvalidParameter."""
    wanted = absolute(path)

    def work(root: RootFd, ids: Mapping | None, output: Piped[PathStat]) -> None:
        fd = _open(root, wanted, path, called)
        try:
            output.announce(_stat(root, wanted, os.fstat(fd)))
            _write_tree(fd, base(wanted), True, output, ids)
        finally:
            os.close(fd)

    output: Piped[PathStat] = Piped(
        lambda output: _look(engine, container, lambda root, ids: work(root, ids, output)),
    )
    found = await output.head()
    publish(engine, container, "archive-path")
    return found, output.pieces()


async def export(engine: Engine, container: Container) -> AsyncGenerator[bytes, None]:
    """A tar archive of the container's root file system, without volumes."""

    def work(root: RootFd, ids: Mapping | None, output: Piped[None]) -> None:
        output.announce(None)
        _write_tree(root.fd, "", False, output, ids)

    output: Piped[None] = Piped(
        lambda output: _look(engine, container, lambda root, ids: work(root, ids, output), volumes=False),
    )
    await output.head()
    publish(engine, container, "export")
    return output.pieces()


async def put(
    engine: Engine,
    container: Container,
    path: str,
    called: str,
    body: AsyncIterator[bytes],
    keep_kinds: bool = False,
    as_user: bool = False,
) -> None:
    """Extracts a tar archive (plain, gzip, bzip2, xz or zstd) into a directory of the container.

    `keep_kinds` refuses to put a directory in the place of something else, and the reverse. `as_user` gives
    what is extracted to the container's user. Raises NotFound, InvalidParameter, Forbidden (read-only).
    """
    wanted = absolute(path)
    _check_writable(container, wanted)
    read = blocking_reader(body)

    def work(root: RootFd, ids: Mapping | None) -> None:
        _check_directory(root, wanted, path, called)
        owner = _user(root, container.config.user) if as_user and container.config.user else None
        _extract(root, wanted, TarReader(Decompressed(read).read), keep_kinds, owner, ids)

    await _look(engine, container, work)
    publish(engine, container, "extract-to-dir")


def absolute(path: str) -> str:
    """A path from the container's top: cleaned as text, but for a `/` or `/.` at its end, which mean
    something.

    Raises InvalidParameter for an empty one (moby's PreserveTrailingDotOrSeparator).
    """
    if not path:
        raise InvalidParameter("bad parameter: path cannot be empty")
    cleaned = posixpath.normpath("/" + path.lstrip("/"))
    if posixpath.basename(path) == ".":
        return cleaned.rstrip("/") + "/."
    if path.endswith("/") and cleaned != "/":
        return cleaned + "/"
    return cleaned


def base(path: str) -> str:
    """The last component of an `absolute` path, "/" for the top (Go's filepath.Base)."""
    return posixpath.basename(path.rstrip("/")) or "/"


async def _look(
    engine: Engine,
    container: Container,
    function: Callable[[RootFd, Mapping | None], T],
    volumes: bool = True,
) -> T:
    """Calls `function` in a thread with the container's tree, and its ids where they are not ours."""
    while True:
        try:
            return await _look_once(engine, container, function, volumes)
        except ProcessLookupError:
            pass  # it ended just before its tree was put together; as one that does not run it has another


async def _look_once(
    engine: Engine, container: Container, function: Callable[[RootFd, Mapping | None], T], volumes: bool
) -> T:
    await container.lock.acquire()
    locked = True
    process = -1
    try:
        process = await _process_of(engine, container)
        if container.removing or container.removed or container.state.dead:
            raise Conflict(f"container {container.id} is dead or marked for removal")
        ids = None
        if process >= 0:
            ids = of_running(container.pid)
            # It lends its root; its state may change while we work.
            container.lock.release()
            locked = False
            root: Overlay | int = process
        else:
            root = root_of(engine, container)
        mounted: list[str] = []
        try:
            parts = _lent(container) if process >= 0 else await _parts(engine, container, mounted)
            scratch = engine.roots.run_path("view")
            os.makedirs(scratch, 0o700, exist_ok=True)
            read_only = container.host_config.readonly_rootfs
            work = partial(
                with_view,
                root,
                parts if volumes else (),
                scratch,
                lambda root: function(root, ids),
                read_only,
                # What nobody in a mapped mount is could not make anything there.
                ids.root if ids is not None and not userns.inside() else None,
            )
            return await in_thread(work, "archive")
        finally:
            for name in mounted:
                await engine.volumes.unmount(name, container.id)
    except (ConnectionError, ProcessLookupError):
        raise  # the client has gone, or the container's process
    except OSError as error:
        raise InternalError(f"cannot read the files of container {container.id}: {error.strerror or error}")
    finally:
        if process >= 0:
            os.close(process)
        if locked:
            container.lock.release()


async def _process_of(engine: Engine, container: Container) -> int:
    """A pidfd of the container's first process, -1 when it does not run. Its lock is held.

    Raises Conflict.
    """
    for _ in range(_ENDING_TRIES):
        if not container.pid:
            return -1
        pidfd = await _open_process(engine, container)
        if pidfd >= 0:
            return pidfd
        container.lock.release()
        try:
            await asyncio.sleep(_ENDING_SECONDS)  # it has ended, and we are about to be told
        finally:
            await container.lock.acquire()
    raise Conflict(f"container {container.id} is not running")


async def _open_process(engine: Engine, container: Container) -> int:
    """A pidfd of the container's first process, -1 when that has ended: by its number alone it could be
    another by now, with the host's files for its own.
    """
    try:
        pidfd = os.pidfd_open(container.pid)
    except ProcessLookupError:
        return -1
    try:
        # Only the monitor collects it. What it still has after we opened the number is what we opened.
        await engine.monitor.kill(container.id, 0)
    except BaseException as error:
        os.close(pidfd)
        if isinstance(error, NotFound):
            return -1
        raise
    return pidfd


_NETWORK_FILES = ("hosts", "hostname", "resolv.conf")


def _lent(container: Container) -> list[Part]:
    """What is mounted in a running container, as it is there: a path of this host may lead elsewhere by now,
    for another container may have what is above it.
    """
    parts = [
        Part(point.destination, "", not point.rw, recursive=point.type == "bind")
        for point in container.record.mounts
    ]
    parts += [Part(target, "") for target in container.host_config.tmpfs or ()]
    return parts + [Part(f"/etc/{name}", "") for name in _NETWORK_FILES]


async def _parts(engine: Engine, container: Container, mounted: list[str]) -> list[Part]:
    """What will be mounted in the container. Volumes that had to be mounted for this are added to
    `mounted`.
    """
    parts = []
    for point in container.record.mounts:
        source, subpath = point.source, ""
        if point.type == "volume":
            await engine.volumes.mount(point.name, container.id)
            mounted.append(point.name)
            source = engine.volumes.path(point.name)
            subpath = point.spec.volume_options.subpath if point.spec.volume_options else ""
        elif point.type != "bind":
            continue  # a tmpfs is there only while the container runs
        parts.append(Part(point.destination, source, not point.rw, subpath, point.type == "bind"))
    files = engine.roots.data_path("containers", container.id)
    return parts + [Part(f"/etc/{name}", f"{files}/{name}") for name in _NETWORK_FILES]


def _open(root: RootFd, wanted: str, path: str, called: str) -> int:
    """What is at a path, opened without following it."""
    try:
        return root.open(wanted, O_PATH | os.O_NOFOLLOW)
    except OSError as error:
        raise _explain(error, path, called)


def _stat(root: RootFd, wanted: str, details: os.stat_result) -> PathStat:
    return {
        "name": base(wanted),
        "size": details.st_size,
        "mode": go_mode(details.st_mode),
        "mtime": rfc3339(details.st_mtime_ns),
        "linkTarget": _final_target(root, wanted) if stat.S_ISLNK(details.st_mode) else "",
    }


def go_mode(mode: int) -> int:
    """A file's mode in the bits of Go's os.FileMode."""
    bits = sum(theirs for ours, theirs in _GO_BITS if mode & ours)
    return (mode & _PERMISSIONS) | _GO_TYPES.get(stat.S_IFMT(mode), 0) | bits


def _final_target(root: RootFd, path: str) -> str:
    """Where a symbolic link ends, as far as there is something, as a path from the top."""
    done = ""
    left = [part for part in path.split("/") if part not in ("", ".")][::-1]
    links = steps = 0
    while left:
        part = left.pop()
        steps += 1
        if part in ("", "."):
            continue
        if part == "..":
            done = posixpath.dirname(done).rstrip("/")
            continue
        try:
            link = root.readlink(f"{done}/{part}")
        except OSError:  # no link, or nothing at all
            done = f"{done}/{part}"
            continue
        links += 1
        if links > _MAX_LINKS or steps > _MAX_STEPS:
            raise InvalidParameter(f"lstat {path}: {os.strerror(errno.ELOOP).lower()}")
        if link.startswith("/"):
            done = ""
        left += link.split("/")[::-1]
    return done or "/"


def _explain(error: OSError, path: str, called: str) -> Exception:
    if error.errno == errno.ENOENT:
        return NotFound(f"Could not find the file {path} in container {called}")
    return InvalidParameter(f"lstat {path}: {(error.strerror or str(error)).lower()}")


def _write_tree(fd: int, name: str, top_entry: bool, output: Piped[Any], ids: Mapping | None) -> None:
    writer = TarWriter(output.write)
    TreeWriter(writer, owners=ids.inside if ids is not None else None).add(fd, name, top_entry)
    writer.close()
    output.flush()


def _check_writable(container: Container, wanted: str) -> None:
    """Raises Forbidden for a path on a read-only mount or root file system."""
    inside = [point for point in container.record.mounts if _is_below(wanted, point)]
    if inside:
        if not max(inside, key=lambda point: len(point.destination)).rw:
            raise Forbidden("mounted volume is marked read-only")
    elif container.host_config.readonly_rootfs:
        raise Forbidden("container rootfs is marked read-only")


def _is_below(path: str, point: MountPoint) -> bool:
    return f"{path.rstrip('/')}/".startswith(f"{point.destination.rstrip('/')}/")


def _check_directory(root: RootFd, wanted: str, path: str, called: str) -> None:
    try:
        os.close(root.open(wanted, O_PATH | os.O_DIRECTORY))
    except NotADirectoryError:
        raise InvalidParameter("extraction point is not a directory")
    except OSError as error:
        raise _explain(error, path, called)


def _user(root: RootFd, name: str) -> tuple[int, int]:
    """Ids of a user by the container's own files. Raises InvalidParameter."""
    try:
        identity = users.resolve(root, name, [])
    except StageError as error:
        raise InvalidParameter(str(error))
    return identity.uid, identity.gid


def _extract(
    root: RootFd,
    directory: str,
    reader: TarReader,
    keep_kinds: bool,
    owner: tuple[int, int] | None,
    ids: Mapping | None,
) -> None:
    """Extracts below `directory`, links on the way meaning what they mean in the container."""
    prefix = directory.strip("/").removesuffix("/.")
    prefix = "" if prefix in ("", ".") else prefix + "/"
    owners = ids.outside if ids is not None else None
    with Extractor(root, owner=owner, keep_kinds=keep_kinds, owners=owners) as extractor:
        for entry in reader:
            name = clean(entry.name)
            if not name:
                continue  # the directory itself keeps its owner and mode (CVE-2021-41089)
            entry.name = prefix + name
            if entry.type == tar.LINK:
                entry.linkname = prefix + clean(entry.linkname)
            extractor.add(entry, reader)
        extractor.finish()
