"""What takes up space: `docker system df`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from guest_agent.errors import InvalidParameter

from . import build_cache, listing
from .images import Images
from .sizes import container_size, directory_size

if TYPE_CHECKING:
    from .engine import Engine

TYPES = ("container", "image", "volume", "build-cache")


async def disk_usage(engine: Engine, types: list[str], api: tuple[int, int]) -> dict[str, Any]:
    """SystemDataUsageResponse for one API version; of all types when none is named.

    Raises InvalidParameter.
    """
    for name in types:
        if name not in TYPES:
            raise InvalidParameter(f"unknown object type: {name}")
    wanted = types or TYPES
    answer: dict[str, Any] = {}
    if "image" in wanted:
        answer |= await asyncio.to_thread(_images, engine, api)
    if "container" in wanted:
        answer["Containers"] = []
        for container, summary in listing.list_containers(engine, api, {}, stopped=True):
            writable, whole = await asyncio.to_thread(container_size, engine, container)
            answer["Containers"].append(summary | {"SizeRw": writable, "SizeRootFs": whole})
    if "volume" in wanted:
        answer["Volumes"] = [
            engine.volumes.describe(volume)
            | {
                "UsageData": {
                    "Size": await asyncio.to_thread(directory_size, engine.volumes.path(volume.name)),
                    "RefCount": len(engine.volumes.users(volume.name)),
                }
            }
            for volume in sorted(engine.volumes, key=lambda volume: volume.name)
        ]
    if "build-cache" in wanted:
        cached = await asyncio.to_thread(build_cache.records, engine)
        answer["BuildCache"] = [build_cache.shown(record) for record in cached]
    if api < (1, 42):
        kept = answer.get("BuildCache", ())
        answer["BuilderSize"] = sum(record["Size"] for record in kept if not record["Shared"])
    return answer


def _images(engine: Engine, api: tuple[int, int]) -> dict[str, Any]:
    images = Images(engine.images, engine.events, engine.containers.of_image)
    summaries = images.summaries({}, shared_size=True, version=api, count_containers=True)
    chains = {chain for image in engine.images.images() for chain in image.chains}
    layers = [engine.images.layer(chain) for chain in chains]
    return {"LayersSize": sum(layer.size for layer in layers if layer), "Images": summaries}
