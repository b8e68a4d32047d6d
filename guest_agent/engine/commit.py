"""An image from a container: `docker commit`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from guest_agent.errors import Conflict
from guest_agent.images import Image
from guest_agent.images.commit import commit as commit_image
from guest_agent.images.reference import Reference
from guest_agent.threads import in_thread

from . import pausing
from .config_changes import apply_changes
from .container_config import ContainerConfig
from .container_events import publish
from .images import image_config
from .merge import fill_from

if TYPE_CHECKING:
    from .container import Container
    from .engine import Engine


async def commit(
    engine: Engine,
    container: Container,
    name: Reference | None,
    config: ContainerConfig | None = None,
    changes: Sequence[str] = (),
    author: str = "",
    comment: str = "",
    pause: bool = True,
) -> Image:
    """Makes an image of a container's root file system as it is, and gives it `name`.

    `config` replaces the container's configuration where it says something; `changes` are Dockerfile
    instructions. A running container is paused meanwhile, unless told otherwise. Raises InvalidParameter,
    Conflict, Unavailable (disk full).
    """
    if container.removing or container.state.dead:
        raise Conflict(f"You cannot commit container {container.id} which is dead or marked for removal")
    settled = apply_changes(config or container.config, changes)
    fill_from(settled, msgspec.to_builtins(container.config))
    paused = pause and container.state.running and not container.state.paused
    if paused:
        try:
            await pausing.pause(engine, container)
        except Conflict:
            paused = False  # it has just ended, or somebody else has paused it
    try:
        image = await in_thread(
            lambda: commit_image(
                engine.images,
                container.id,
                image_config(settled),
                name,
                author,
                comment,
                " ".join(container.config.cmd or ()),
            ),
            "commit",
        )
    finally:
        if paused and container.state.paused:
            await pausing.unpause(engine, container)
    publish(
        engine,
        container,
        "commit",
        comment=comment,
        imageID=image.id,
        imageRef=name.familiar if name else "",
    )
    return image
