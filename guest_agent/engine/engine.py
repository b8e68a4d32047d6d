"""The engine: what the API's routes see of everything below them."""

from __future__ import annotations

import asyncio

from guest_agent.delivery.client import Delivery
from guest_agent.engine import restore
from guest_agent.engine.config import Config
from guest_agent.engine.config_rules import storage_size
from guest_agent.engine.containers import Containers
from guest_agent.engine.events import EventBus
from guest_agent.engine.networks import Networks
from guest_agent.engine.store import Store
from guest_agent.engine.unlisted import Unlisted
from guest_agent.engine.userns_ranges import Ranges
from guest_agent.engine.userns_remap import mapping
from guest_agent.engine.volumes import Volumes
from guest_agent.engine.watches import Watches
from guest_agent.images import ImageStore
from guest_agent.images.config import RegistryConfig
from guest_agent.roots import Roots
from guest_agent.runtime.client import Begun, Monitor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from guest_agent.rootless.space import Space


class Engine:
    """Holds the parts of one engine. `start` before use; `stop_containers` and `close` at the end."""

    monitor: Monitor  # from `start` on; a new one when it was lost

    def __init__(self, roots: Roots, config: Config, space: Space | None = None) -> None:
        """`space`: the namespaces of an engine without root."""
        self.space = space
        self.roots = roots
        self.config = config
        self.remap = mapping(config.userns_remap)
        self.user_ranges = Ranges()
        self.events = EventBus()
        self.images = ImageStore(
            roots,
            RegistryConfig(
                mirrors=config.registry_mirrors,
                insecure=config.insecure_registries,
                concurrent_downloads=config.max_concurrent_downloads,
                concurrent_uploads=config.max_concurrent_uploads,
                signature_policy=config.signature_policy,
                attempts=config.max_download_attempts,
            ),
            storage_size(config.storage_opts),
            config.storage_driver,
        )
        self.watches = Watches()
        self._store = Store(roots.data_path("engine.db"))
        self.containers = Containers(self._store)
        self.volumes = Volumes(roots, self._store, self.events)
        self.networks = Networks(self)
        self.unlisted = Unlisted()
        self.delivery = Delivery(roots)
        self._starting: asyncio.Task[None] | None = None

    async def start(self, monitor: Begun | None = None) -> None:
        """Takes over what an earlier agent left: containers that run, networks, volumes.

        `monitor`: where it was begun already.
        """
        await restore.take_over(self, monitor)

    def start_containers(self) -> None:
        """Begins to start the containers whose restart policies want it; does not wait for them."""
        self._starting = asyncio.get_running_loop().create_task(restore.start_wanted(self))

    async def stop_containers(self) -> None:
        """Stops what runs; with live-restore containers run on."""
        self.containers.stopping = True
        if self._starting is not None:
            await asyncio.wait((self._starting,))
        if not self.config.live_restore:
            await restore.stop_all(self, float(self.config.shutdown_timeout))

    async def close(self) -> None:
        """Lets go of the containers and closes what is open; no request may be under way any more."""
        await restore.let_go(self)
        await self.networks.close()
        await self.delivery.close()
        self._store.close()
