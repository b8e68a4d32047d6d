"""Events of containers, with the attributes dockerd gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .container import Container
    from .engine import Engine


def publish(engine: Engine, container: Container, action: str, **attributes: str) -> None:
    """Tells that something happened to a container; its labels, image and name are attributes of every
    event.
    """
    config = container.config
    values = dict(config.labels or {})
    values.update(attributes)
    values["image"] = config.image
    values["name"] = container.name
    engine.events.publish("container", action, container.id, values)
