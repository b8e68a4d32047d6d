"""`stats`: one stream from the engine per container, all in one loop, redrawn twice a second."""

from __future__ import annotations

import time

from host_client.cli import output, units
from host_client.cli.flags import Command
from host_client.cli.listing import FORMAT_FLAG, Listing
from host_client.engine_api.client import quote
from host_client.engine_api.errors import ApiError, ProtocolError
from host_client.engine_api.wire import scan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session
    from host_client.engine_api.http import Response

INTERVAL = 0.5  # seconds between two redraws
NOTHING = "--"


class Sampled:
    """One container's stream of figures."""

    def __init__(self, name: str, response: Response) -> None:
        self.name = name
        self.figures: dict[str, Any] = {}
        self.ended = False
        self._response = response
        self._chunks: Iterator[bytes] = response.chunks()
        self._rest = b""

    def fileno(self) -> int:
        """Readable when more figures have come."""
        return self._response.connection.fileno()

    def read(self) -> None:
        """Take what has come (waits for a piece)."""
        while True:
            try:
                piece = next(self._chunks, None)
            except ProtocolError:
                piece = None
            if piece is None:
                self.ended = True
                return
            self._rest += piece
            complete, newline, self._rest = self._rest.rpartition(b"\n")
            if newline and complete.strip():
                self.figures = scan(complete.decode("utf-8", "replace"))[-1]
            if not self._response.connection.has_more():
                return


def listing(full: bool) -> Listing:
    """The listing of figures; items are `Sampled`."""

    def identity(item: Sampled) -> str:
        found: str = item.figures.get("id", "")
        return found if full else units.short_id(found)

    return Listing(
        "container.statsContext",
        {
            "Container": ("CONTAINER", lambda item: item.name),
            "Name": ("NAME", lambda item: item.figures.get("name", "").removeprefix("/") or NOTHING),
            "ID": ("CONTAINER ID", identity),
            "CPUPerc": (
                "CPU %",
                lambda item: f"{cpu_percent(item.figures):.2f}%" if item.figures else NOTHING,
            ),
            "MemUsage": ("MEM USAGE / LIMIT", _memory),
            "MemPerc": ("MEM %", _memory_percent),
            "NetIO": ("NET I/O", _network),
            "BlockIO": ("BLOCK I/O", _blocks),
            "PIDs": ("PIDS", _processes),
        },
        ("ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs"),
    )


def cpu_percent(figures: dict[str, Any]) -> float:
    """Share of one CPU between the last two samples, in percent."""
    now, before = figures.get("cpu_stats") or {}, figures.get("precpu_stats") or {}
    usage = now.get("cpu_usage") or {}
    used = usage.get("total_usage", 0) - (before.get("cpu_usage") or {}).get("total_usage", 0)
    passed = now.get("system_cpu_usage", 0) - before.get("system_cpu_usage", 0)
    count = now.get("online_cpus") or len(usage.get("percpu_usage") or ())
    return float(used / passed * count * 100) if used > 0 and passed > 0 else 0.0


def memory_used(memory: dict[str, Any]) -> int:
    """Memory without the part of the page cache that can be had back at once."""
    usage: int = memory.get("usage", 0)
    detail = memory.get("stats") or {}
    for name in ("total_inactive_file", "inactive_file"):  # cgroup v1, v2
        if name in detail and detail[name] < usage:
            return int(usage - detail[name])
    return usage


def _memory(item: Sampled) -> str:
    memory = item.figures.get("memory_stats")
    if memory is None:
        return f"{NOTHING} / {NOTHING}"
    return f"{units.binary_size(memory_used(memory))} / {units.binary_size(memory.get('limit', 0))}"


def _memory_percent(item: Sampled) -> str:
    memory = item.figures.get("memory_stats")
    if memory is None:
        return NOTHING
    limit = memory.get("limit", 0)
    return f"{memory_used(memory) / limit * 100 if limit else 0:.2f}%"


def _network(item: Sampled) -> str:
    if not item.figures:
        return NOTHING
    networks = (item.figures.get("networks") or {}).values()
    received = sum(network.get("rx_bytes", 0) for network in networks)
    sent = sum(network.get("tx_bytes", 0) for network in networks)
    return f"{units.human_size(received, 3)} / {units.human_size(sent, 3)}"


def _blocks(item: Sampled) -> str:
    if not item.figures:
        return NOTHING
    amounts = {"r": 0, "w": 0}
    for entry in (item.figures.get("blkio_stats") or {}).get("io_service_bytes_recursive") or ():
        kind = entry.get("op", "")[:1].lower()
        if kind in amounts:
            amounts[kind] += entry["value"]
    return f"{units.human_size(amounts['r'], 3)} / {units.human_size(amounts['w'], 3)}"


def _processes(item: Sampled) -> str:
    return str((item.figures.get("pids_stats") or {}).get("current", 0)) if item.figures else NOTHING


def stats(session: Session, parsed: Parsed) -> int:
    """`wherry stats`."""
    layout = parsed["format"] or session.config.text("statsFormat")
    shown = listing(parsed["no-trunc"])
    if parsed["no-stream"]:
        return _once(session, parsed, shown, layout)
    _Live(session, parsed, shown, layout).run()
    return 0


def _chosen(session: Session, parsed: Parsed) -> list[str]:
    if parsed.args:
        return list(dict.fromkeys(parsed.args))
    return [item["Id"] for item in session.client.get("/containers/json", {"all": parsed["all"]})]


def _once(session: Session, parsed: Parsed, shown: Listing, layout: str) -> int:
    """One sample of each, the requests under way together: the engine takes a second for a CPU figure."""
    client, items, status = session.client, [], 0
    client.negotiate()
    asked = [
        (name, client.send("GET", f"/containers/{quote(name)}/stats", {"stream": "0"}))
        for name in _chosen(session, parsed)
    ]
    for name, connection in asked:
        try:
            item = Sampled(name, client.answer(connection))
        except ApiError as error:
            if parsed.args:
                output.report(error.message, error.hint)
                status = 1
            continue
        while not item.ended:
            item.read()
        items.append(item)
    if not status and items:
        shown.show(items, layout)
    return status


class _Live:
    """The loop: streams of containers, the events that add and remove them, and the screen."""

    def __init__(self, session: Session, parsed: Parsed, shown: Listing, layout: str) -> None:
        self._client = session.client
        self._all = parsed["all"]
        self._follow = not parsed.args
        self._names = _chosen(session, parsed)
        self._shown = shown
        self._layout = layout
        self._items: dict[str, Sampled] = {}

    def run(self) -> None:
        import select

        self._client.negotiate()
        events = None
        if self._follow:
            events = Sampled(
                "", self._client.request("GET", "/events", {"filters": '{"type":["container"]}'})
            )
        for name in self._names:
            self._add(name, required=not self._follow)
        # The first figures take the engine a second; after two, what is there is shown.
        due, drawn = time.monotonic() + (2 if self._items else 0), False
        while events is not None or self._items:
            sources: list[Sampled] = [*self._items.values(), *([events] if events else [])]
            for source in select.select(sources, [], [], max(0.0, due - time.monotonic()))[0]:
                source.read()
                if source is events:
                    if events.ended:
                        return
                    self._event(events.figures)
            self._items = {name: item for name, item in self._items.items() if not item.ended}
            complete = not drawn and all(item.figures for item in self._items.values())
            if complete or time.monotonic() >= due:
                self._draw()
                due, drawn = time.monotonic() + INTERVAL, True
        output.out("\x1b[H\x1b[J")

    def _add(self, name: str, required: bool) -> None:
        if name in self._items:
            return
        try:
            self._items[name] = Sampled(name, self._client.request("GET", f"/containers/{quote(name)}/stats"))
        except ApiError:
            if required:
                raise

    def _event(self, event: dict[str, Any]) -> None:
        action, container = event.get("Action"), (event.get("Actor") or {}).get("ID", "")
        if action == "start" or (self._all and action == "create"):
            self._add(container, required=False)
        elif action == "destroy" or (not self._all and action == "die"):
            self._items.pop(container, None)

    def _draw(self) -> None:
        text = self._shown.render(list(self._items.values()), self._layout)
        lines = "".join(line + "\x1b[K\n" for line in text.split("\n"))
        output.out(f"\x1b[H{lines}\x1b[J")


STATS = Command(
    "[OPTIONS] [CONTAINER...]",
    stats,
    0,
    None,
    (
        ("all", "a", "bool", "Show all containers, not only running ones"),
        FORMAT_FLAG,
        ("no-stream", "", "bool", "Show one sample and end"),
        ("no-trunc", "", "bool", "Do not shorten anything"),
    ),
    complete="container",
    examples=(("wherry stats --no-stream", "what all running containers use now"),),
)
