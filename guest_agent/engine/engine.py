"""The engine: what the API's routes see of everything below them."""

from __future__ import annotations

from typing import Any

from guest_agent.engine.config import Config
from guest_agent.engine.events import EventBus
from guest_agent.engine.watches import Watches
from guest_agent.images import ImageStore
from guest_agent.roots import Roots


class Engine:
    """Holds the parts of one engine."""

    containers: Any
    networks: Any
    volumes: Any
    monitor: Any

    def __init__(self, roots: Roots, config: Config) -> None:
        self.roots = roots
        self.config = config
        self.events = EventBus()
        self.images = ImageStore(roots)
        self.watches = Watches()
