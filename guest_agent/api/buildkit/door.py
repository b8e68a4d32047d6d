"""What clients of BuildKit's API share: the services, and the sessions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from guest_agent.api.buildkit.connection import Services
from guest_agent.api.buildkit.services import BuildServices
from guest_agent.api.buildkit.session import Sessions
from guest_agent.api.buildkit.solve import Jobs
from guest_agent.engine.engine import Engine

if TYPE_CHECKING:
    from guest_agent.build.builder import Builder


class Door:
    """BuildKit's API of one engine."""

    def __init__(self, engine: Engine, builder: Callable[[], Builder]) -> None:
        self.sessions = Sessions()
        self.services = Services([BuildServices(engine, builder, Jobs(builder, self.sessions))])
