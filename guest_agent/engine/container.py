"""One container: the record that is kept in the database, and what is known of it only while the agent
runs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct, field

from .container_config import ContainerConfig, EndpointSettings, HostConfig, MountPoint
from .links import Link
from .restart import Backoff
from .state import State
from .wait import Waiters

if TYPE_CHECKING:
    from guest_agent.runtime.types import Attachment, Overlay

    from .execs import Exec


class Record(Struct, omit_defaults=True):
    """What is persisted of a container. `created` is in nanoseconds since the epoch."""

    id: str
    name: str  # without Docker's leading slash
    created: int
    image_id: str
    config: ContainerConfig
    host_config: HostConfig
    platform: dict[str, str] = field(default_factory=dict)  # os, architecture, variant of the image
    manifest: dict[str, Any] | None = None  # descriptor of the image's manifest, where the store knows it
    path: str = ""
    args: list[str] = field(default_factory=list)
    state: State = field(default_factory=State)
    mounts: list[MountPoint] = field(default_factory=list)
    networks: dict[str, EndpointSettings] = field(default_factory=dict)
    ports: dict[str, list[dict[str, str]] | None] = field(default_factory=dict)  # NetworkSettings.Ports
    links: list[Link] = field(default_factory=list)
    restart_count: int = 0
    manually_stopped: bool = False
    started_before: bool = False


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)


class Container:
    """A container the agent knows. `lock` serialises everything that changes its state."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.lock = asyncio.Lock()
        self.waiters = Waiters()
        self.backoff = Backoff()
        self.backoff.count = record.restart_count
        self.removing = False
        self.removed = False
        self.manually_restarted = False  # a restart request is between its stop and its start
        self.stops = 0  # stop requests that wait for its end, each of which is an event
        self.execs: dict[str, Exec] = {}
        self.pending_attachments: list[Attachment] = []  # clients that wait for the start
        self.overlay: Overlay | None = None  # its root file system, once asked for: see `create.root_of`
        self.restart_task: asyncio.Task[None] | None = None
        self.health_task: asyncio.Task[None] | None = None

    @classmethod
    def decode(cls, document: bytes) -> Container:
        """A container from its row in the database.

        Raises msgspec.ValidationError when the row is damaged.
        """
        return cls(_decoder.decode(document))

    def encode(self) -> bytes:
        """The row for the database."""
        return _encoder.encode(self.record)

    @property
    def id(self) -> str:
        """64 hexadecimal digits."""
        return self.record.id

    @property
    def name(self) -> str:
        """The name, without Docker's leading slash."""
        return self.record.name

    @property
    def state(self) -> State:
        """The current state."""
        return self.record.state

    @property
    def pid(self) -> int:
        """The first process as this host numbers it; 0 when none runs."""
        return self.record.state.pid

    @property
    def config(self) -> ContainerConfig:
        """What runs, merged with the image's configuration."""
        return self.record.config

    @property
    def host_config(self) -> HostConfig:
        """What it gets of this host."""
        return self.record.host_config

    @property
    def status(self) -> str:
        """created, running, paused, restarting, removing, exited or dead."""
        return "removing" if self.removing and not self.state.running else self.state.status
