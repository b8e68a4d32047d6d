"""What the drivers have in common, and which they are."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from guest_agent.delivery.entries import Entry


@dataclass(frozen=True, slots=True)
class Retries:
    """How often and when sending is tried again; `times` None: until the container has long ended."""

    times: int | None = None
    wait: float = 0.1  # seconds before the first retry
    factor: float = 2.0  # each further wait is longer by that
    longest: float = 5.0


class Target(abc.ABC):
    """One receiver of one container's log. Used by one thread."""

    retries = Retries()
    lazy = False  # the container may start although nobody answers

    @abc.abstractmethod
    def open(self) -> None:
        """Connect. Raises OSError."""

    @abc.abstractmethod
    def send(self, entries: Sequence[Entry]) -> int:
        """Send entries; how many were, fewer only when the connection is lost. Raises OSError if none."""

    @abc.abstractmethod
    def close(self) -> None:
        """Disconnect; `open` may follow."""


def make(spec: dict[str, Any]) -> Target:
    """The receiver that a container's log options name. Raises ValueError, OSError."""
    match spec["driver"]:
        case "syslog":
            from guest_agent.delivery.syslog import Syslog

            return Syslog(spec)
        case "gelf":
            from guest_agent.delivery.gelf import Gelf

            return Gelf(spec)
        case "fluentd":
            from guest_agent.delivery.fluentd import Fluentd

            return Fluentd(spec)
        case "journald":
            from guest_agent.delivery.journald import Journald

            return Journald(spec)
    raise ValueError(f"no log driver named {spec['driver']}")
