"""Bytes on disk: of directories, and of containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guest_agent.errors import NotFound
from guest_agent.kernel.trees import files_below
from guest_agent.runtime.layers import is_whole

from .create import root_of

if TYPE_CHECKING:
    from .container import Container
    from .engine import Engine


def directory_size(path: str) -> int:
    """Bytes of all files below `path`, hard links counted once. Blocks."""
    total = 0
    seen: set[tuple[int, int]] = set()
    try:
        for info in files_below(path):
            if info.st_nlink > 1:
                key = (info.st_dev, info.st_ino)
                if key in seen:
                    continue
                seen.add(key)
            total += info.st_size
    except FileNotFoundError:
        pass  # gone meanwhile
    return total


def container_size(engine: Engine, container: Container) -> tuple[int, int]:
    """Bytes a container has written, and those of its whole root file system. Blocks."""
    overlay = root_of(engine, container)
    written = directory_size(overlay.upper)
    try:
        image = engine.images.get(container.record.image_id).size
    except NotFound:
        image = 0
    if is_whole(overlay):
        return max(0, written - image), written
    return written, image + written
