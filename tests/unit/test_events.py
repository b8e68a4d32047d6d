"""The event bus: Docker's shape, filters, what is remembered, and slow readers."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from guest_agent.engine import events
from guest_agent.engine.events import EventBus, matches


async def collect(bus: EventBus, **arguments: Any) -> list[str]:
    return [event["Action"] async for event in bus.subscribe(**arguments)]


def test_a_container_event_has_dockers_shape_with_its_older_fields() -> None:
    async def main() -> events.Event:
        bus = EventBus()
        bus.publish("container", "start", "ab12", {"image": "busybox", "name": "x"})
        return await anext(aiter(bus.subscribe(since=1)))

    event = asyncio.run(main())
    assert abs(event["timeNano"] - time.time_ns()) < 10**9
    assert event.pop("timeNano") // 10**9 == event.pop("time")
    assert event == {
        "status": "start",
        "id": "ab12",
        "from": "busybox",
        "Type": "container",
        "Action": "start",
        "Actor": {"ID": "ab12", "Attributes": {"image": "busybox", "name": "x"}},
        "scope": "local",
    }


def test_since_gives_the_remembered_and_until_ends() -> None:
    async def main() -> None:
        bus = EventBus()
        for number in range(events.REMEMBERED + 5):
            bus.publish("network", f"{number}", "n", {})
        now = time.time_ns()
        assert (await collect(bus, since=1, until=now))[0] == "5"
        assert len(await collect(bus, since=1, until=now)) == events.REMEMBERED
        assert len(await collect(bus, until=now)) == events.REMEMBERED
        started = time.monotonic()
        task = asyncio.create_task(collect(bus, until=time.time_ns() + 50_000_000))
        await asyncio.sleep(0)
        bus.publish("network", "new", "n", {})
        assert (await task)[-1:] == ["new"]
        assert time.monotonic() - started < 1
        assert bus.subscribers == 0

    asyncio.run(main())


def test_a_reader_far_behind_gets_what_was_kept_and_is_ended() -> None:
    async def main() -> None:
        bus = EventBus()
        stream = aiter(bus.subscribe())
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        for number in range(events.BACKLOG + 10):
            bus.publish("volume", f"{number}", "v", {})
        assert (await first)["Action"] == "0"
        assert [event["Action"] async for event in stream][-1] == f"{events.BACKLOG - 1}"

    asyncio.run(main())


def event(
    type: str = "container", action: str = "start", id: str = "abcdef", **attributes: str
) -> events.Event:
    return {
        "Type": type,
        "Action": action,
        "scope": "local",
        "Actor": {"ID": id, "Attributes": attributes},
    }


@pytest.mark.parametrize(
    ("given", "filters", "expected"),
    [
        (event(), {}, True),
        (event(), {"event": ["stop", "start"]}, True),
        (event(), {"event": ["stop"]}, False),
        (event(action="exec_create: sh -c x"), {"event": ["exec_create"]}, True),
        (event(action="health_status: healthy"), {"event": ["health_status"]}, True),
        (event(action="starting"), {"event": ["start"]}, False),
        (event(), {"type": ["container"], "event": ["start"]}, True),
        (event(), {"type": ["image"], "event": ["start"]}, False),
        (event(name="web"), {"container": ["web"]}, True),
        (event(name="web"), {"container": ["abc"]}, True),
        (event(name="web"), {"container": ["we"]}, False),
        (event("network", name="web"), {"container": ["web"]}, False),
        (event("network", name="web"), {"network": ["web"]}, True),
        (event(image="a/b:1"), {"image": ["a/b"]}, True),
        (event(image="a/b:1"), {"image": ["a/b:1"]}, True),
        (event(image="r:5000/b"), {"image": ["r"]}, False),
        (event("image", "pull", "b:2", name="b"), {"image": ["b:2"]}, True),
        (event(k="v"), {"label": ["k"]}, True),
        (event(k="v"), {"label": ["k=v"]}, True),
        (event(k="v"), {"label": ["k=v", "other"]}, False),
        (event(k="v"), {"label": ["k=w"]}, False),
        (event(), {"scope": ["swarm"]}, False),
        (event(), {"nonsense": ["x"]}, True),
    ],
)
def test_filters(given: events.Event, filters: dict[str, list[str]], expected: bool) -> None:
    assert matches(given, filters) is expected


def test_who_follows_labels() -> None:
    async def main() -> None:
        bus = EventBus()
        assert not bus.labels_followed({"a": "b"})
        follower = asyncio.create_task(collect(bus, filters={"type": ["container"], "label": ["a=b", "c"]}))
        other = asyncio.create_task(collect(bus, filters={"type": ["container"]}))
        await asyncio.sleep(0)
        assert bus.labels_followed({"a": "b", "c": "", "d": ""})
        assert not bus.labels_followed({"a": "b"})
        for task in (follower, other):
            task.cancel()
        await asyncio.wait([follower, other])
        assert not bus.labels_followed({"a": "b", "c": ""})

    asyncio.run(main())
