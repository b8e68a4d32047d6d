"""All containers of an engine: found by name or id, named, and kept in the database."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator

import msgspec

from guest_agent.errors import Conflict, InvalidParameter, NotFound

from .container import Container
from .execs import Execs
from .links import Links
from .names import random_name
from .releases import Releases
from .store import Store

log = logging.getLogger(__name__)

NAME_CHARACTERS = "[a-zA-Z0-9][a-zA-Z0-9_.-]"
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
TABLE = "containers"


class Containers:
    """The registry.

    What is done to containers lives in `create`, `lifecycle`, `execs` and their neighbours.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._by_id: dict[str, Container] = {}
        self._names: dict[str, str] = {}  # name → id; a name is taken from before its container exists
        self.links = Links()
        self.execs = Execs()
        self.releases = Releases()
        self.prune_lock = asyncio.Lock()
        self.unreadable: set[str] = set()  # ids of rows in the database that make no sense
        self.stopping = False  # the engine stops its containers and restarts none

    def __iter__(self) -> Iterator[Container]:
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def of_image(self, image_id: str) -> list[tuple[str, bool]]:
        """The ids of the containers made from an image, each with whether it runs. From any thread."""
        return [(each.id, each.state.running) for each in self if each.record.image_id == image_id]

    def get(self, name_or_id: str) -> Container:
        """The container with this id, name ("/name" too) or unambiguous id prefix.

        Raises NotFound, or InvalidParameter when the prefix is ambiguous or the name empty.
        """
        if not name_or_id:
            raise InvalidParameter('invalid name or ID supplied: ""')
        found = self._by_id.get(name_or_id)
        if found is None:
            found = self._by_id.get(self._names.get(name_or_id.removeprefix("/"), ""))
        if found is not None:
            return found
        matches = [id for id in self._by_id if id.startswith(name_or_id)]
        if len(matches) > 1:
            raise InvalidParameter(f"multiple IDs found with provided prefix: {name_or_id}")
        if not matches:
            raise NotFound(f"No such container: {name_or_id}")
        return self._by_id[matches[0]]

    def find(self, id: str) -> Container | None:
        """The container with exactly this id."""
        return self._by_id.get(id)

    def names_of(self, container: Container) -> list[str]:
        """Its name and the names its links gave it, each with Docker's leading slash, as `docker ps` lists
        them.
        """
        return [f"/{container.name}", *self.links.names_of(container.id, self._name_by_id)]

    def _name_by_id(self, id: str) -> str:
        container = self._by_id.get(id)
        return container.name if container else ""

    def reserve_name(self, name: str, id: str) -> str:
        """Takes a name (without or with its slash) for a container to be; "" picks one. Returns it without
        slash.

        Raises InvalidParameter for characters Docker does not allow, Conflict when it is taken.
        """
        if not name:
            for attempt in range(6):
                name = random_name(attempt)
                if name not in self._names:
                    break
            else:
                name = id[:12]
            self._names[name] = id
            return name
        bare = name.removeprefix("/")
        if not _NAME.fullmatch(bare):
            raise InvalidParameter(f"Invalid container name ({name}), only {NAME_CHARACTERS} are allowed")
        holder = self._names.get(bare)
        if holder is not None:
            raise Conflict(
                f'Conflict. The container name "/{bare}" is already in use by container "{holder}". '
                "You have to remove (or rename) that container to be able to reuse that name."
            )
        self._names[bare] = id
        return bare

    def release_name(self, name: str) -> None:
        """Gives a name back."""
        self._names.pop(name, None)

    async def add(self, container: Container) -> None:
        """Enters a new container whose name is reserved; it is in the database when this returns."""
        self._by_id[container.id] = container
        try:
            await self._store.save(
                TABLE, container.id, container.encode(), not container.host_config.auto_remove
            )
        except BaseException:
            self._by_id.pop(container.id, None)
            raise

    async def save(self, container: Container) -> None:
        """Saves what a user changed; survives power loss when this returns."""
        await self._store.save(TABLE, container.id, container.encode(), durable=True)

    def post(self, container: Container) -> None:
        """Saves a change of state soon; see `store` for what may be forgotten."""
        if container.id in self._by_id:
            self._store.post(TABLE, container.id, container.encode())

    def discard(self, container: Container) -> None:
        """Forgets a container: it is no longer found, and its name is free."""
        if self._by_id.pop(container.id, None) is not None:
            self._store.post(TABLE, container.id, None)
        if self._names.get(container.name) == container.id:
            del self._names[container.name]
        self.links.forget(container.id)

    def load(self) -> None:
        """Reads the database. A row that cannot be read is left out, and left alone."""
        for key, document in self._store.load(TABLE):
            try:
                container = Container.decode(document)
            except msgspec.DecodeError as error:
                log.error("container %s is left out: its record cannot be read: %s", key, error)
                self.unreadable.add(key)
                continue
            self._by_id[container.id] = container
            self._names[container.name] = container.id
        for container in self:
            for link in container.record.links:
                self.links.add(container.id, link.container_id, link.alias)
