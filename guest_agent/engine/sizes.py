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
    waiting = [path]  # os.walk recurses, and a container's tree may be deeper than Python does
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError:
            continue  # gone meanwhile
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                    continue
                info = entry.stat(follow_symlinks=False)
            except OSError:
                continue
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
