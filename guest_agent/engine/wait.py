"""Waiting for a container to stop, to exit next time, or to be gone."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

NOT_RUNNING, NEXT_EXIT, REMOVED = "not-running", "next-exit", "removed"
CONDITIONS = (NOT_RUNNING, NEXT_EXIT, REMOVED)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a wait ended: the container's exit code, and why its removal failed ("" when it did not)."""

    exit_code: int
    error: str = ""


class Waiters:
    """Who waits for one container. A removal wakes everybody, since a removed container never exits."""

    def __init__(self) -> None:
        self._stop: list[asyncio.Future[Outcome]] = []
        self._removal: list[asyncio.Future[Outcome]] = []

    def add(self, condition: str) -> asyncio.Future[Outcome]:
        """A future that is done when the condition is met from now on; cancel it to stop waiting."""
        waiter = asyncio.get_running_loop().create_future()
        (self._removal if condition == REMOVED else self._stop).append(waiter)
        return waiter

    def stopped(self, outcome: Outcome) -> None:
        """The container stopped, also when it is about to be restarted."""
        waiters, self._stop = self._stop, []
        _wake(waiters, outcome)

    def removed(self, outcome: Outcome) -> None:
        """The container is gone, or its removal failed."""
        waiters = self._removal + self._stop
        self._removal, self._stop = [], []
        _wake(waiters, outcome)


def _wake(waiters: list[asyncio.Future[Outcome]], outcome: Outcome) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(outcome)
