"""Bytes on disk: of directories, and of containers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from guest_agent.errors import NotFound

from .create import root_of

if TYPE_CHECKING:
    from .container import Container
    from .engine import Engine


def directory_size(path: str) -> int:
    """Bytes of all files below `path`, hard links counted once. Blocks."""
    total = 0
    seen: set[tuple[int, int]] = set()
    for directory, _, names in os.walk(path):
        for name in names:
            try:
                info = os.lstat(os.path.join(directory, name))
            except OSError:
                continue  # gone meanwhile
            if info.st_nlink > 1:
                key = (info.st_dev, info.st_ino)
                if key in seen:
                    continue
                seen.add(key)
            total += info.st_size
    return total


def container_size(engine: Engine, container: Container) -> tuple[int, int]:
    """Bytes a container has written, and those of its whole root file system. Blocks."""
    written = directory_size(root_of(engine, container).upper)
    try:
        layers = engine.images.get(container.record.image_id).size
    except NotFound:
        layers = 0
    return written, layers + written
