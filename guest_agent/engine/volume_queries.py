"""Which volumes a list or a prune is about, and pruning them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from guest_agent.errors import Conflict, EngineError, InvalidParameter

from .listing import Filters, has_labels
from .sizes import directory_size
from .volumes import Volume

if TYPE_CHECKING:
    from .engine import Engine

LIST_FILTERS = frozenset(("dangling", "driver", "label", "name"))
PRUNE_FILTERS = frozenset(("all", "label", "label!"))


def select(engine: Engine, filters: Filters) -> list[Volume]:
    """The volumes that pass the list's filters, by name. Raises InvalidParameter."""
    found = sorted(engine.volumes, key=lambda volume: volume.name)
    for value in filters.get("dangling", ()):
        wanted = _flag("dangling", value)
        found = [volume for volume in found if bool(engine.volumes.users(volume.name)) != wanted]
    if drivers := filters.get("driver"):
        found = [volume for volume in found if volume.driver in drivers]
    if labels := filters.get("label"):
        found = [volume for volume in found if has_labels(volume.labels or {}, labels)]
    if names := filters.get("name"):
        try:
            patterns = [re.compile(name) for name in names]
        except re.error as error:
            raise InvalidParameter(f"invalid filter 'name': {error}")
        found = [volume for volume in found if any(pattern.search(volume.name) for pattern in patterns)]
    return found


def _flag(name: str, value: str) -> bool:
    if value.lower() in ("true", "1"):
        return True
    if value.lower() in ("false", "0"):
        return False
    raise InvalidParameter(f"invalid filter '{name}=[{value}]'")


def _all(values: Sequence[str]) -> bool:
    """The filter `all` of a prune: one value, as Go's strconv.ParseBool reads it. Raises InvalidParameter."""
    if len(set(values)) > 1:
        shown = " ".join(sorted(set(values)))
        raise InvalidParameter(f"invalid filter 'all=[{shown}]': only one value is expected")
    if values[0] in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if values[0] in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise InvalidParameter(
        f"invalid filter 'all': strconv.ParseBool: parsing \"{values[0]}\": invalid syntax"
    )


async def prune(engine: Engine, filters: Filters, everything: bool) -> dict[str, Any]:
    """Deletes volumes that no container has: anonymous ones, or `everything`; never those with mount options.

    Raises Conflict while another prune is under way, InvalidParameter.
    """
    if values := filters.get("all"):
        everything = _all(values)
    if engine.volumes.prune_lock.locked():
        raise Conflict("a prune operation is already running")
    deleted: list[str] = []
    reclaimed = 0
    async with engine.volumes.prune_lock:
        for volume in list(engine.volumes):
            labels = volume.labels or {}
            if (
                engine.volumes.users(volume.name)
                or volume.options
                or not (everything or volume.anonymous)
                or not has_labels(labels, filters.get("label", []))
                or (filters.get("label!") and has_labels(labels, filters["label!"]))
            ):
                continue
            size = await asyncio.to_thread(directory_size, engine.volumes.path(volume.name))
            try:
                await engine.volumes.remove(volume.name)
            except EngineError:
                continue  # in use by now
            deleted.append(volume.name)
            reclaimed += size
    engine.events.publish("volume", "prune", "", {"reclaimed": str(reclaimed)})
    return {"VolumesDeleted": deleted, "SpaceReclaimed": reclaimed}
