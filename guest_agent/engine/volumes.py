"""Volumes: directories that outlive containers, `DATA/volumes/NAME/_data`, kept by the one driver `local`.

A volume may have mount options (`type`, `o`, `device`); then what they name is mounted on `_data` while a
container uses it. One with a `size` has `_data` limited by a project quota.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from msgspec import Struct, field

from guest_agent.errors import Conflict, InternalError, InvalidParameter, NotFound
from guest_agent.kernel import quota
from guest_agent.roots import Roots

from . import host_mounts
from .containers import NAME_CHARACTERS
from .events import EventBus
from .ids import new_id
from .mountinfo import is_mounted
from .state import rfc3339
from .store import Store
from .units import ram_in_bytes

log = logging.getLogger(__name__)

DRIVER = "local"
ANONYMOUS_LABEL = "com.docker.volume.anonymous"
TABLE = "volumes"
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_NEEDS = {"device": ("type",), "type": ("device",), "o": ("device", "type"), "size": ()}


class Snapshot(Struct):
    """A volume's content as it was; `id` names its directory, `created` is in nanoseconds since the epoch."""

    id: str
    created: int


class Volume(Struct, omit_defaults=True):
    """One volume as it is kept in the database. `created` is in nanoseconds since the epoch.

    `snapshots` are by their names. `moving_to`: the name it is being given; its directory has that already,
    or not.
    """

    name: str
    created: int
    labels: dict[str, str] | None = None
    options: dict[str, str] | None = None
    driver: str = DRIVER
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    moving_to: str = ""

    @property
    def anonymous(self) -> bool:
        """Whether nobody gave it a name."""
        return ANONYMOUS_LABEL in (self.labels or {})

    @property
    def has_device(self) -> bool:
        """Whether its content is what its mount options name."""
        return bool(self.options and self.options.get("device"))

    @property
    def size(self) -> int:
        """What it may hold in bytes; 0: no limit."""
        return ram_in_bytes((self.options or {}).get("size", "0"))


class _Users(Struct):
    references: set[str] = field(default_factory=set)  # ids of containers that have it, running or not
    mounted_for: set[str] = field(default_factory=set)  # those that run


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Volume)


class Volumes:
    """All volumes of an engine."""

    def __init__(self, roots: Roots, store: Store, events: EventBus) -> None:
        self._roots = roots
        self._store = store
        self._events = events
        self._volumes: dict[str, Volume] = {}
        self._users: dict[str, _Users] = {}
        self._mounting = asyncio.Lock()
        self.prune_lock = asyncio.Lock()
        self.content_lock = asyncio.Lock()  # of volume_content: one thing at a time
        self._held: dict[str, asyncio.Event] = {}
        self._deleting: set[asyncio.Task[None]] = set()
        os.makedirs(roots.data_path("volumes"), mode=0o701, exist_ok=True)
        host_mounts.delete_set_aside(roots.data_path("volumes"))
        for name, document in store.load(TABLE):
            self._volumes[name] = _decoder.decode(document)
        for volume in list(self):
            if volume.moving_to:
                self._finish_move(volume)

    def __iter__(self) -> Iterator[Volume]:
        return iter(list(self._volumes.values()))

    def path(self, name: str) -> str:
        """The directory with a volume's content."""
        return self._roots.data_path("volumes", name, "_data")

    def get(self, name: str) -> Volume:
        """The volume of that name. Raises NotFound."""
        volume = self._volumes.get(name)
        if volume is None:
            raise NotFound(f"get {name}: no such volume")
        return volume

    def __contains__(self, name: str) -> bool:
        return name in self._volumes

    def mounted_for(self, name: str) -> set[str]:
        """Ids of the containers that run with this volume."""
        return self._users[name].mounted_for if name in self._users else set()

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Meanwhile no container starts with the volume, and it is not removed."""
        released = self._held[name] = asyncio.Event()
        try:
            yield
        finally:
            del self._held[name]
            released.set()

    async def _released(self, name: str) -> None:
        while (held := self._held.get(name)) is not None:
            await held.wait()

    async def save(self, volume: Volume) -> None:
        """Keeps what has changed of a volume, durably. Raises InternalError."""
        await self._store.save(TABLE, volume.name, _encoder.encode(volume), durable=True)

    def users(self, name: str) -> set[str]:
        """Ids of the containers that have this volume."""
        return self._users[name].references if name in self._users else set()

    async def create(
        self,
        name: str = "",
        driver: str = "",
        options: dict[str, str] | None = None,
        labels: dict[str, str] | None = None,
        durable: bool = True,
    ) -> Volume:
        """Makes a volume, or returns the one that has this name. "" makes an anonymous one.

        Raises InvalidParameter for a bad name or option, NotFound for another driver than local. A volume
        that is to vanish with its `--rm` container need not be `durable`.
        """
        if driver and driver != DRIVER:
            raise NotFound(
                f'create {name}: error looking up volume plugin {driver}: plugin "{driver}" not found',
                hint='Wherry has one volume driver: "local".',
            )
        if not name:
            name, labels = new_id(), {**(labels or {}), ANONYMOUS_LABEL: ""}
        elif (existing := self._volumes.get(name)) is not None:
            return existing
        check_name(name)
        check_options(name, options or {})
        volume = Volume(name, time.time_ns(), labels, options or None)
        if volume.size and not quota.enforced(self._roots.data_path("volumes")):
            raise InvalidParameter(
                f"create {name}: quota size requested but no quota support",
                hint="The data root has to be on XFS mounted with pquota, or on ext4 with prjquota.",
            )
        try:
            os.makedirs(self._roots.data_path("volumes", name), mode=0o701, exist_ok=True)
            os.makedirs(self.path(name), mode=0o755, exist_ok=True)
            if volume.size:
                quota.limit(self.path(name), volume.size)
        except OSError as error:
            raise InternalError(f"error while creating volume path '{self.path(name)}': {error.strerror}")
        self._volumes[name] = volume
        try:
            await self._store.save(TABLE, name, _encoder.encode(volume), durable)
        except BaseException:
            self._volumes.pop(name, None)
            raise
        self._events.publish("volume", "create", name, {"driver": DRIVER})
        return volume

    def refer(self, name: str, container_id: str) -> None:
        """A container has this volume; it cannot be removed until `release`."""
        self._users.setdefault(name, _Users()).references.add(container_id)

    def release(self, name: str, container_id: str) -> None:
        """The container is gone."""
        users = self._users.get(name)
        if users is not None:
            users.references.discard(container_id)
            if not users.references and not users.mounted_for:
                del self._users[name]

    async def mount(self, name: str, container_id: str) -> str:
        """Makes the volume's content available to a container that starts; the directory it is in.

        Raises NotFound, or InternalError when its mount options do not work.
        """
        await self._released(name)
        volume = self.get(name)
        path = self.path(name)
        os.makedirs(path, mode=0o755, exist_ok=True)
        users = self._users.setdefault(name, _Users())
        if not volume.has_device:
            users.mounted_for.add(container_id)
            return path
        async with self._mounting:
            if not is_mounted(path):
                await asyncio.to_thread(host_mounts.mount_volume, path, volume.options or {})
            users.mounted_for.add(container_id)
        return path

    async def unmount(self, name: str, container_id: str) -> bool:
        """The container has stopped; whether it had the volume mounted."""
        users = self._users.get(name)
        if users is None or container_id not in users.mounted_for:
            return False
        users.mounted_for.discard(container_id)
        volume = self._volumes.get(name)
        if users.mounted_for or volume is None or not volume.has_device:
            return True
        async with self._mounting:
            if not users.mounted_for and is_mounted(self.path(name)):
                await asyncio.to_thread(host_mounts.unmount, self.path(name))
        return True

    def adopt(self, name: str, container_id: str) -> None:
        """A running container that an earlier agent started has this volume mounted."""
        self._users.setdefault(name, _Users()).mounted_for.add(container_id)

    async def unmount_unused(self) -> None:
        """Unmounts what an earlier agent left mounted and no container uses; called once, after the
        adoption.
        """
        for volume in list(self._volumes.values()):
            if volume.has_device:
                users = self._users.get(volume.name)
                if (users is None or not users.mounted_for) and is_mounted(self.path(volume.name)):
                    await asyncio.to_thread(host_mounts.unmount, self.path(volume.name))

    async def remove(self, name: str, force: bool = False) -> None:
        """Deletes a volume and its content.

        Raises NotFound (not with `force`), Conflict while a container has it.
        """
        await self._released(name)
        if name not in self._volumes and force:
            return
        self.get(name)
        self._check_unused(name, "remove")
        if self.get(name).has_device and is_mounted(self.path(name)):
            await asyncio.to_thread(host_mounts.unmount, self.path(name))
        volume = self._volumes.pop(name)
        self._store.post(TABLE, name, None)
        if volume.size:
            _release_quota(self.path(name))
        trash = host_mounts.set_aside(self._roots.data_path("volumes"), name)
        task = asyncio.get_running_loop().create_task(asyncio.to_thread(host_mounts.delete, trash))
        self._deleting.add(task)
        task.add_done_callback(self._deleting.discard)
        self._events.publish("volume", "destroy", name, {"driver": DRIVER})

    async def adopt_content(self, staged: str, name: str, labels: dict[str, str] | None) -> Volume:
        """Makes a volume of a directory that has its `_data`, which moves; all of it is on disk already.

        Raises Conflict when the name is taken.
        """
        directory = self._roots.data_path("volumes", name)
        if name in self._volumes:
            raise Conflict(
                f"a volume named {name} exists already", hint="Choose another name, or remove it first."
            )
        if self._has_directory(name):
            raise Conflict(
                f"{directory} exists, although there is no volume {name}",
                hint="Move it away, or adopt it with `volume create` and look what is in it.",
            )
        os.rename(staged, directory)
        _sync_directory(self._roots.data_path("volumes"))
        volume = self._volumes[name] = Volume(name, time.time_ns(), labels)
        try:
            await self.save(volume)
        except BaseException:
            self._volumes.pop(name, None)
            raise
        self._events.publish("volume", "create", name, {"driver": DRIVER})
        return volume

    async def rename(self, name: str, new: str) -> Volume:
        """Gives a volume that no container has another name; an anonymous one is so no longer.

        Raises NotFound, InvalidParameter, Conflict.
        """
        await self._released(name)
        volume = self.get(name)
        check_name(new, "rename")
        if new in self._volumes or self._has_directory(new):
            raise Conflict(
                f"a volume named {new} exists already", hint="Choose another name, or remove it first."
            )
        self._check_unused(name, "rename")
        if volume.has_device and is_mounted(self.path(name)):
            await asyncio.to_thread(host_mounts.unmount, self.path(name))
        with self.hold(name), self.hold(new):
            volume.moving_to = new
            await self.save(volume)
            try:
                self._check_unused(name, "rename")  # by now
            except Conflict:
                volume.moving_to = ""
                await self.save(volume)
                raise
            renamed = self._finish_move(volume)
            await self._store.flush()
        self._events.publish("volume", "rename", new, {"driver": DRIVER, "oldName": name})
        return renamed

    def _finish_move(self, volume: Volume) -> Volume:
        """Moves the directory, unless it has been, and then the record: a crash in between is made up for by
        the next agent.
        """
        old, new = (self._roots.data_path("volumes", name) for name in (volume.name, volume.moving_to))
        if os.path.lexists(old):
            os.rename(old, new)
            _sync_directory(self._roots.data_path("volumes"))
        labels = {key: value for key, value in (volume.labels or {}).items() if key != ANONYMOUS_LABEL}
        renamed = msgspec.structs.replace(volume, name=volume.moving_to, moving_to="", labels=labels or None)
        del self._volumes[volume.name]
        self._volumes[renamed.name] = renamed
        self._store.post(TABLE, volume.name, None)
        self._store.post(TABLE, renamed.name, _encoder.encode(renamed))
        return renamed

    def _has_directory(self, name: str) -> bool:
        return os.path.lexists(self._roots.data_path("volumes", name))

    def _check_unused(self, name: str, action: str) -> None:
        used_by = self.users(name)
        if used_by:
            raise Conflict(f"{action} {name}: volume is in use - [{', '.join(sorted(used_by))}]")

    def describe(self, volume: Volume) -> dict[str, object]:
        """A volume as the API shows it."""
        return {
            "CreatedAt": rfc3339(volume.created // 1_000_000_000 * 1_000_000_000),
            "Driver": volume.driver,
            "Labels": volume.labels,
            "Mountpoint": self.path(volume.name),
            "Name": volume.name,
            "Options": volume.options,
            "Scope": "local",
        }


def _release_quota(path: str) -> None:
    """A content that is gone, or on a file system without quotas by now, holds nothing that could be free."""
    try:
        quota.release(path)
    except OSError as error:
        log.warning("cannot free the quota of %s: %s", path, error.strerror)


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def check_name(name: str, action: str = "create") -> None:
    """Raises InvalidParameter for what cannot be the name of a volume."""
    if len(name) == 1:
        raise InvalidParameter(
            f"{action} {name}: volume name is too short, names should be at least two alphanumeric characters"
        )
    if not _NAME.fullmatch(name):
        raise InvalidParameter(
            f'{action} {name}: "{name}" includes invalid characters for a local volume name, only '
            f'"{NAME_CHARACTERS}" are allowed. If you intended to pass a host directory, use absolute path'
        )


def check_options(name: str, options: dict[str, str]) -> None:
    """Raises InvalidParameter for driver options that `local` does not have, or not without others."""
    for option in options:
        if option not in _NEEDS:
            raise InvalidParameter(f'create {name}: invalid option: "{option}"')
        for needed in _NEEDS[option]:
            if needed not in options:
                raise InvalidParameter(f'create {name}: missing required option: "{needed}"')
    try:
        size = ram_in_bytes(options.get("size", "0"))
    except ValueError as error:
        raise InvalidParameter(f"create {name}: {error}")
    if size and "device" in options:
        raise InvalidParameter(
            f"create {name}: option size limits the engine's own directory, not what option device names",
            hint="Limit it where it is; for tmpfs use `--opt o=size=…`.",
        )
