"""What is done with the content of whole volumes: snapshots, restoring, clones, export, import.

Everything is made under a name that the next agent deletes, written to disk, and then put in place by one
rename, so that after a crash it is there or it is not. Containers that run with the volume are frozen while
it is copied; where the file system shares blocks (XFS, Btrfs, bcachefs) that takes no time.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from guest_agent.errors import Conflict, EngineError, InternalError, InvalidParameter, NotFound, Unavailable
from guest_agent.images.decompress import Decompressed
from guest_agent.images.extract import Extractor
from guest_agent.images.tar import TarReader, TarWriter
from guest_agent.images.tree import TreeWriter
from guest_agent.kernel import quota
from guest_agent.kernel.copies import copy_tree
from guest_agent.kernel.paths import O_PATH, RootFd
from guest_agent.kernel.syscalls import rename_exchange, syncfs
from guest_agent.kernel.trees import OPEN_DIR
from guest_agent.threads import blocking_reader, in_thread

from . import host_mounts, pausing
from .background import Piped
from .ids import new_id
from .sizes import directory_size
from .state import rfc3339
from .volumes import ANONYMOUS_LABEL, DRIVER, Snapshot, Volume, check_name

if TYPE_CHECKING:
    from .container import Container
    from .engine import Engine

_LABEL = re.compile("[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_SNAPSHOTS, _DATA = "snapshots", "_data"


async def snapshots(engine: Engine, name: str) -> list[dict[str, object]]:
    """The snapshots of a volume, oldest first, as the API shows them. Raises NotFound."""
    volume = engine.volumes.get(name)
    known = sorted(volume.snapshots.items(), key=lambda item: item[1].created)

    def sizes() -> list[int]:
        return [directory_size(_snapshot_path(engine, name, item.id)) for _, item in known]

    return [
        {"Name": label, "CreatedAt": rfc3339(item.created), "Size": size}
        for (label, item), size in zip(known, await in_thread(sizes, "volume"), strict=True)
    ]


async def snapshot(engine: Engine, name: str, label: str = "", pause: bool = True) -> str:
    """Keeps a volume's content as it is now; the snapshot's name, by default the time in UTC.

    Raises NotFound, InvalidParameter, Conflict (the name is taken), Unavailable (disk full).
    """
    volumes = engine.volumes
    _check_own(volumes.get(name), "snapshot")
    label = label or time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    if not _LABEL.fullmatch(label):
        raise InvalidParameter(
            f'snapshot {name}: "{label}" includes invalid characters for a snapshot name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed'
        )
    async with _still(engine, name, pause):
        volume = volumes.get(name)
        if label in volume.snapshots:
            raise Conflict(f"volume {name} has a snapshot {label} already", hint="Choose another name.")
        made = Snapshot(new_id()[:16], time.time_ns())
        staged = host_mounts.aside_path(engine.roots.data_path("volumes"))

        def work() -> None:
            directory = engine.roots.data_path("volumes", name, _SNAPSHOTS)
            os.makedirs(directory, mode=0o700, exist_ok=True)
            _copy(volumes.path(name), staged)
            os.rename(staged, _snapshot_path(engine, name, made.id))
            _sync(directory)

        await _staging(work, staged, f"snapshot {name}")
        volume.snapshots[label] = made
        try:
            await volumes.save(volume)
        except EngineError:
            del volume.snapshots[label]
            raise
    engine.events.publish("volume", "snapshot", name, {"driver": DRIVER, "snapshot": label})
    return label


async def remove_snapshot(engine: Engine, name: str, label: str) -> None:
    """Deletes a snapshot. Raises NotFound."""
    async with engine.volumes.content_lock:
        volume = engine.volumes.get(name)
        item = _snapshot_of(volume, label)
        del volume.snapshots[label]
        await engine.volumes.save(volume)
        aside = host_mounts.aside_path(engine.roots.data_path("volumes"))
        os.rename(_snapshot_path(engine, name, item.id), aside)
        await in_thread(lambda: host_mounts.delete(aside), "volume")


async def restore(engine: Engine, name: str, label: str) -> None:
    """Makes a volume's content what it was at a snapshot; what it is now is lost.

    Raises NotFound, Conflict while a container runs with it, Unavailable (disk full).
    """
    volumes = engine.volumes
    async with _still(engine, name, pause=False):
        item = _snapshot_of(volumes.get(name), label)
        running = volumes.mounted_for(name)
        if running:
            raise Conflict(
                f"restore {name}: volume is in use by running containers - [{', '.join(sorted(running))}]",
                hint="Stop them first.",
            )
        staged = host_mounts.aside_path(engine.roots.data_path("volumes"))

        def work() -> None:
            size = volumes.get(name).size
            _copy(_snapshot_path(engine, name, item.id), staged, size)
            os.makedirs(volumes.path(name), mode=0o755, exist_ok=True)
            rename_exchange(staged, volumes.path(name))
            if size:
                quota.release(staged)
            _sync(os.path.dirname(volumes.path(name)))
            host_mounts.delete(staged)

        await _staging(work, staged, f"restore {name}")
    engine.events.publish("volume", "restore", name, {"driver": DRIVER, "snapshot": label})


async def clone(engine: Engine, name: str, new: str, label: str = "", pause: bool = True) -> Volume:
    """Makes a volume with the content of another one, or of its snapshot `label`, and its labels.

    Raises NotFound, InvalidParameter, Conflict (the name is taken), Unavailable (disk full).
    """
    volumes = engine.volumes
    volume = volumes.get(name)
    _check_new(engine, new, "clone")
    staged = host_mounts.aside_path(engine.roots.data_path("volumes"))
    async with _mounted(engine, volume), _still(engine, name, pause and not label):
        source = _source(engine, volume, label)

        def work() -> None:
            os.mkdir(staged, 0o701)
            _copy(source, os.path.join(staged, _DATA))

        await _staging(work, staged, f"clone {name}")
        labels = {key: value for key, value in (volume.labels or {}).items() if key != ANONYMOUS_LABEL}
        return await _adopted(engine, staged, new, labels or None)


async def export(
    engine: Engine, name: str, label: str = "", pause: bool = True
) -> AsyncGenerator[bytes, None]:
    """A tar archive of a volume or of its snapshot `label`: owners, extended attributes, holes and all.

    What running containers have is copied first, so that they are not frozen for as long as the reader takes.
    Raises NotFound, Unavailable (disk full).
    """
    volumes = engine.volumes
    volume = volumes.get(name)
    reader = f"export-{new_id()[:12]}"  # keeps it from being removed
    volumes.refer(name, reader)
    staged = ""
    try:
        if label or not volumes.mounted_for(name) or not pause:
            await volumes.mount(name, reader)
            source = _source(engine, volume, label)
        else:
            source = staged = host_mounts.aside_path(engine.roots.data_path("volumes"))
            async with _still(engine, name, pause):
                await _staging(lambda: _copy(volumes.path(name), staged), staged, f"export {name}")

        async def run(output: Piped[None]) -> None:
            await in_thread(lambda: _write(source, output), "volume")

        output: Piped[None] = Piped(run)
        await output.head()
    except BaseException:
        await _let_go(engine, name, reader, staged)
        raise
    engine.events.publish("volume", "export", name, {"driver": DRIVER})

    async def pieces() -> AsyncGenerator[bytes, None]:
        try:
            async for piece in output.pieces():
                yield piece
        finally:
            output.close()
            await _let_go(engine, name, reader, staged)

    return pieces()


async def import_(
    engine: Engine, name: str, body: AsyncIterator[bytes], labels: dict[str, str] | None = None
) -> Volume:
    """Makes a volume of a tar archive (plain, gzip, bzip2, xz or zstd).

    Raises InvalidParameter, Conflict (the name is taken), Unavailable (disk full).
    """
    _check_new(engine, name, "import")
    staged = host_mounts.aside_path(engine.roots.data_path("volumes"))
    read = blocking_reader(body)

    def work() -> None:
        data = os.path.join(staged, _DATA)
        os.mkdir(staged, 0o701)
        os.mkdir(data, 0o755)
        with RootFd.at(data) as root, Extractor(root, fresh=True) as extractor:
            extractor.extract(TarReader(Decompressed(read).read))
        _sync_all(data)

    await _staging(work, staged, f"import {name}")
    return await _adopted(engine, staged, name, labels)


async def _adopted(engine: Engine, staged: str, name: str, labels: dict[str, str] | None) -> Volume:
    try:
        return await engine.volumes.adopt_content(staged, name, labels)
    except Conflict:  # somebody was faster
        await in_thread(lambda: host_mounts.delete(staged), "volume")
        raise


async def _let_go(engine: Engine, name: str, reader: str, staged: str) -> None:
    await engine.volumes.unmount(name, reader)
    engine.volumes.release(name, reader)
    if staged:
        await in_thread(lambda: host_mounts.delete(staged), "volume")


@asynccontextmanager
async def _mounted(engine: Engine, volume: Volume) -> AsyncIterator[None]:
    """Meanwhile what a volume's mount options name is mounted."""
    reader = f"copy-{new_id()[:12]}"
    if volume.has_device:
        await engine.volumes.mount(volume.name, reader)
    try:
        yield
    finally:
        await engine.volumes.unmount(volume.name, reader)
        engine.volumes.release(volume.name, reader)


@asynccontextmanager
async def _still(engine: Engine, name: str, pause: bool) -> AsyncIterator[None]:
    """Meanwhile nothing else is done with volumes, no container starts with this one, and those that run with
    it are frozen if `pause` is set. Raises NotFound.
    """
    frozen: list[Container] = []
    async with engine.volumes.content_lock:
        try:
            # Before it is held: a container that is starting has its own lock, which freezing waits for.
            for id in sorted(engine.volumes.mounted_for(name)) if pause else ():
                container = engine.containers.find(id)
                if container is None or not container.state.running or container.state.paused:
                    continue
                try:
                    await pausing.pause(engine, container)
                    frozen.append(container)
                except Conflict:
                    pass  # it has just ended, or somebody else has frozen it
            engine.volumes.get(name)
            with engine.volumes.hold(name):
                yield
        finally:
            for container in frozen:
                try:
                    await pausing.unpause(engine, container)
                except Conflict:
                    pass  # it was killed, or somebody else let it go on


def _check_own(volume: Volume, action: str) -> None:
    if volume.has_device:
        device = (volume.options or {})["device"]
        raise InvalidParameter(
            f"{action} {volume.name}: the volume's content is on {device}, not the engine's",
            hint="`clone` or `export` make a copy of it.",
        )


def _check_new(engine: Engine, name: str, action: str) -> None:
    if not name:
        raise InvalidParameter(f"{action}: the new volume needs a name")
    check_name(name, action)
    if name in engine.volumes:
        raise Conflict(
            f"a volume named {name} exists already", hint="Choose another name, or remove it first."
        )


def _snapshot_of(volume: Volume, label: str) -> Snapshot:
    item = volume.snapshots.get(label)
    if item is None:
        raise NotFound(f"get {volume.name}: no such snapshot: {label}", hint="`volume snapshots` lists them.")
    return item


def _snapshot_path(engine: Engine, name: str, id: str) -> str:
    return engine.roots.data_path("volumes", name, _SNAPSHOTS, id)


def _source(engine: Engine, volume: Volume, label: str) -> str:
    if not label:
        return engine.volumes.path(volume.name)
    return _snapshot_path(engine, volume.name, _snapshot_of(volume, label).id)


async def _staging(work: Callable[[], None], staged: str, what: str) -> None:
    """Does the work in a thread; what it has made so far is deleted when it fails. Raises EngineError."""
    try:
        await in_thread(work, "volume")
    except BaseException as error:
        await in_thread(lambda: host_mounts.delete(staged), "volume")
        if isinstance(error, OSError) and not isinstance(error, ConnectionError):
            text = f"{what}: {(error.strerror or str(error)).lower()}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Unavailable(text, hint="Make room on the disk that holds the data root.")
            raise InternalError(text)
        raise


def _copy(source: str, target: str, size: int = 0) -> None:
    """Copies a directory to a new one, which is on disk then and may hold `size` bytes (0: no limit)."""
    os.makedirs(source, mode=0o755, exist_ok=True)
    os.mkdir(target, 0o700)
    if size:
        quota.limit(target, size)
    original = os.open(source, OPEN_DIR)
    try:
        copy = os.open(target, OPEN_DIR)
        try:
            copy_tree(original, copy)
            syncfs(copy)
        finally:
            os.close(copy)
    finally:
        os.close(original)


def _write(source: str, output: Piped[None]) -> None:
    top = os.open(source, O_PATH | os.O_DIRECTORY)
    try:
        output.announce(None)
        writer = TarWriter(output.write)
        TreeWriter(writer, whole=True).add(top, "./")
        writer.close()
        output.flush()
    finally:
        os.close(top)


def _sync(directory: str) -> None:
    fd = os.open(directory, OPEN_DIR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_all(path: str) -> None:
    fd = os.open(path, OPEN_DIR)
    try:
        syncfs(fd)
    finally:
        os.close(fd)
