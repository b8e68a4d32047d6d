"""What happens in the engine, told to everybody who asked: the stream behind `docker events`."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any

Event = dict[str, Any]  # Docker's EventMessage

REMEMBERED = 256  # events kept for `since`, as dockerd keeps them
BACKLOG = 8192  # events a subscriber may be behind before it is cut off

# Filters that name objects of one type: each matches the actor's id or its name.
_OBJECTS = ("container", "plugin", "volume", "network", "daemon", "node", "service", "secret", "config")


class EventBus:
    """Events of one engine. Not thread-safe: publish on the event loop."""

    def __init__(self) -> None:
        self._recent: deque[Event] = deque(maxlen=REMEMBERED)
        self._subscribers: set[_Subscriber] = set()

    def publish(self, type: str, action: str, actor_id: str, attributes: Mapping[str, str]) -> None:
        """Tells an event: `type` is container, image, network, volume, daemon or builder, `action` the verb.

        `attributes` are the actor's, with `name` (and for a container `image` and its labels).
        """
        now = time.time_ns()
        event: Event = {}
        if type in ("container", "image"):  # fields that API versions before 1.52 have twice
            event = {"status": action, "id": actor_id}
            if type == "container":
                event["from"] = attributes.get("image", "")
        event |= {
            "Type": type,
            "Action": action,
            "Actor": {"ID": actor_id, "Attributes": dict(attributes)},
            "scope": "local",
            "time": now // 1_000_000_000,
            "timeNano": now,
        }
        self._recent.append(event)
        for subscriber in self._subscribers:
            subscriber.offer(event)

    async def subscribe(
        self,
        since: int | None = None,
        until: int | None = None,
        filters: Mapping[str, list[str]] | None = None,
    ) -> AsyncIterator[Event]:
        """Events from now on, after the remembered ones from `since`; ends at `until`.

        With `until` alone all remembered ones come first, as with dockerd.
        Times are nanoseconds since the epoch. A reader that falls more than BACKLOG events behind is ended.
        """
        filters = filters or {}
        subscriber = _Subscriber(filters)
        if since is None and until is not None:
            since = 0
        past = [event for event in self._recent if since is not None and event["timeNano"] >= since]
        self._subscribers.add(subscriber)
        try:
            for event in past:
                if (until is None or event["timeNano"] <= until) and matches(event, filters):
                    yield event
            while True:
                left = None if until is None else max(0.0, (until - time.time_ns()) / 1e9)
                try:
                    async with asyncio.timeout(left):
                        new = await subscriber.take()
                except TimeoutError:
                    return
                if new is None:
                    return
                for event in new:
                    if until is not None and event["timeNano"] > until:
                        return
                    if matches(event, filters):
                        yield event
        finally:
            self._subscribers.discard(subscriber)

    def labels_followed(self, labels: Mapping[str, str]) -> bool:
        """Whether somebody follows containers by labels that these fit, as Compose follows a project's."""
        return any(
            wanted and all(_has_label(labels, each) for each in wanted)
            for subscriber in self._subscribers
            if (wanted := subscriber.filters.get("label"))
        )

    @property
    def subscribers(self) -> int:
        """How many listen now (`NEventsListener` of /info)."""
        return len(self._subscribers)


class _Subscriber:
    def __init__(self, filters: Mapping[str, list[str]]) -> None:
        self.filters = filters
        self._events: list[Event] = []
        self._arrived = asyncio.Event()
        self._behind = False

    def offer(self, event: Event) -> None:
        if len(self._events) >= BACKLOG:
            self._behind = True
        else:
            self._events.append(event)
        self._arrived.set()

    async def take(self) -> list[Event] | None:
        """What has arrived since the last call, waiting for something; None once events had to be dropped."""
        await self._arrived.wait()
        if self._behind and not self._events:
            return None
        events, self._events = self._events, []
        if not self._behind:
            self._arrived.clear()
        return events


def matches(event: Event, filters: Mapping[str, list[str]]) -> bool:
    """Whether an event passes Docker's event filters: any value of a filter, all of the filters."""
    attributes: dict[str, str] = event["Actor"]["Attributes"]
    actor_id: str = event["Actor"]["ID"]
    for name, values in filters.items():
        if not values:
            continue
        if name == "event":
            # "exec_create" matches "exec_create: sh -c …", health_status likewise.
            ok = any(event["Action"] == value or event["Action"].startswith(value + ":") for value in values)
        elif name == "type":
            ok = event["Type"] in values
        elif name == "scope":
            ok = event["scope"] in values
        elif name == "label":
            ok = all(_has_label(attributes, value) for value in values)
        elif name == "image":
            ok = _names_image(event, values)
        elif name in _OBJECTS:
            ok = event["Type"] == name and any(
                value == attributes.get("name") or actor_id.startswith(value) for value in values
            )
        else:
            continue  # dockerd does not look at filters it does not know
        if not ok:
            return False
    return True


def _has_label(attributes: Mapping[str, str], wanted: str) -> bool:
    key, equals, value = wanted.partition("=")
    return key in attributes and (not equals or attributes[key] == value)


def _names_image(event: Event, values: list[str]) -> bool:
    attributes = event["Actor"]["Attributes"]
    if event["Type"] == "image":
        names = {event["Actor"]["ID"], attributes.get("name", "")}
    else:
        names = {attributes.get("image", "")}
    # A name without its tag matches all tags of it.
    names |= {name.rpartition(":")[0] for name in names if ":" in name.rpartition("/")[2]}
    return any(value in names for value in values)
