"""What is kept of builds, as `docker system df` and `docker builder prune` know it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from guest_agent.errors import InvalidParameter
from guest_agent.images.build_cache import BuildCache, CacheEntry
from guest_agent.kernel.trees import remove_tree

from .image_filters import until
from .sizes import directory_size
from .state import rfc3339

if TYPE_CHECKING:
    from .engine import Engine

PRUNE_FILTERS = frozenset(
    ("until", "unused-for", "id", "parent", "type", "description", "inuse", "shared", "private")
)
_CACHE_MOUNT = "exec.cachemount"


def mounts_directory(engine: Engine) -> str:
    """Where the directories of `RUN --mount=type=cache` are."""
    return engine.roots.data_path("build", "mounts")


def records(engine: Engine, in_use: Collection[str] = ()) -> list[dict[str, Any]]:
    """Docker's `BuildCache` objects. `in_use`: names of cache mounts that a build has. Blocks."""
    cache = BuildCache(engine.images)
    of_images = cache.of_images()
    held = {chain for lease in list(engine.images.leases) for chain in lease.chains}
    found = [_record(entry, entry.chain in of_images, entry.chain in held) for entry in cache.entries()]
    top = mounts_directory(engine)
    for name in sorted(os.listdir(top)) if os.path.isdir(top) else ():
        path = os.path.join(top, name)
        details = os.stat(path)
        found.append(
            {
                "ID": hashlib.sha256(name.encode()).hexdigest()[:25],
                "Type": _CACHE_MOUNT,
                "Description": "cached mount",
                "InUse": name in in_use,
                "Shared": False,
                "Size": directory_size(path),
                "CreatedAt": rfc3339(int(details.st_ctime_ns)),
                "LastUsedAt": rfc3339(int(details.st_mtime_ns)),
                "UsageCount": 1,
                "path": path,
            }
        )
    return found


def _record(entry: CacheEntry, shared: bool, in_use: bool) -> dict[str, Any]:
    return {
        "ID": entry.key.rpartition(":")[2][:25],
        "Type": "regular",
        "Description": entry.description,
        "InUse": in_use and not shared,
        "Shared": shared and entry.layer is not None,
        "Size": entry.size,
        "CreatedAt": rfc3339(int(entry.made * 1e9)),
        "LastUsedAt": rfc3339(int(entry.used * 1e9)),
        "UsageCount": entry.uses,
        "key": entry.key,
        "used": entry.used,
    }


def shown(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as the API has it."""
    return {key: value for key, value in record.items() if key[0].isupper()}


def prune(
    engine: Engine,
    filters: Mapping[str, Sequence[str]],
    everything: bool,
    keep: int = 0,
    most: int = 0,
    in_use: Collection[str] = (),
) -> dict[str, Any]:
    """Removes what no image needs, or `everything` that is not in use; the oldest first. Blocks.

    `keep`: bytes that may stay; `most`: removes only what is above so many bytes. Raises InvalidParameter.
    """

    def admits(record: Mapping[str, Any]) -> bool:
        return all(_admits(record, name, values) for name, values in filters.items())

    removed = remove(
        engine,
        admits,
        limit=_limit(filters),
        everything=everything,
        keep=max(keep, most),
        in_use=in_use,
    )
    return {
        "CachesDeleted": [record["ID"] for record in removed] or None,
        "SpaceReclaimed": reclaimed(removed),
    }


def reclaimed(removed: Sequence[Mapping[str, Any]]) -> int:
    """Bytes that removed records gave back: what images have, too, is still there."""
    return sum(record["Size"] for record in removed if not record["Shared"])


def is_mutable(record: Mapping[str, Any]) -> bool:
    """Whether a build writes into it again, as into a cache mount."""
    return bool(record["Type"] == _CACHE_MOUNT)


def remove(
    engine: Engine,
    admits: Callable[[Mapping[str, Any]], bool],
    *,
    limit: float | None,
    everything: bool,
    keep: int,
    in_use: Collection[str],
) -> list[dict[str, Any]]:
    """Removes the records that `admits` lets through and that were last used before `limit` (seconds since
    the epoch), the oldest first, until no more than `keep` bytes are left (0: all of them). Blocks.

    `everything`: what images need, too. Returns them.
    """
    found = records(engine, in_use)
    chosen = []
    for record in found:
        if record["InUse"] or (record["Shared"] and not everything):
            continue
        used = record.get("used", os.stat(record["path"]).st_mtime if "path" in record else 0)
        if (limit is None or used < limit) and admits(record):
            chosen.append(record)
    total = sum(record["Size"] for record in found)
    chosen.sort(key=lambda record: record["LastUsedAt"])
    removed: list[dict[str, Any]] = []
    for record in chosen:
        if keep and total <= keep:
            break
        total -= record["Size"]
        removed.append(record)
    BuildCache(engine.images).remove([record["key"] for record in removed if "key" in record])
    for record in removed:
        if "path" in record:
            remove_tree(record["path"])
    return removed


def _limit(filters: Mapping[str, Sequence[str]]) -> float | None:
    """Only what was last used before this moment goes."""
    texts = [*filters.get("until", ()), *filters.get("unused-for", ())]
    if len(texts) > 1:
        raise InvalidParameter("filters expect only one value of 'until'")
    return until(texts[0]) if texts else None


def _admits(record: Mapping[str, Any], name: str, values: Sequence[str]) -> bool:
    if name == "id":
        return any(record["ID"].startswith(value) for value in values)
    if name == "type":
        return record["Type"] in values
    if name == "description":
        return any(value in record["Description"] for value in values)
    if name == "inuse":
        return bool(record["InUse"])
    if name == "shared":
        return bool(record["Shared"])
    if name == "private":
        return not record["Shared"]
    return name != "parent"
