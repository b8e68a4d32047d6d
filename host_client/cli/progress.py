"""The progress of pulls and loads, from the API's JSON messages: a line a layer on a terminal, plain lines
elsewhere.
"""

from __future__ import annotations

import time

from host_client.cli import output, units
from host_client.engine_api.errors import ApiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

INTERVAL = 0.1  # seconds between two redraws
BAR = 50
CLEAR_LINE = "\x1b[2K\r"


def show(messages: Iterable[dict[str, Any]], descriptor: int, quiet: bool = False) -> list[Any]:
    """Show messages until they end; what came as `aux` besides.

    Raises:
        ApiError: a message reports an error.
    """
    screen: _Plain | _Screen
    if quiet:
        screen = _Quiet()
    elif output.is_terminal(descriptor):
        screen = _Screen(descriptor)
    else:
        screen = _Plain(descriptor)
    extra = []
    try:
        for message in messages:
            detail = message.get("errorDetail")
            if detail or message.get("error"):
                code = (detail or {}).get("code") or 500
                text = (detail or {}).get("message") or message["error"]
                raise ApiError(code, text, str(message.get("hint", "")))
            if message.get("aux") is not None:
                extra.append(message["aux"])
                continue
            screen.show(message)
    finally:
        screen.finish()
    return extra


class _Plain:
    """Lines for a pipe or a file: no progress, only what has been done."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def show(self, message: dict[str, Any]) -> None:
        if message.get("stream"):
            self._write(message["stream"])
        elif not has_progress(message):
            self._write(text_of(message) + "\n")

    def _write(self, text: str) -> None:
        output.write_bytes(self._descriptor, text.encode("utf-8", "surrogateescape"))

    def finish(self) -> None:
        pass


class _Quiet(_Plain):
    def __init__(self) -> None:
        super().__init__(-1)

    def show(self, message: dict[str, Any]) -> None:
        pass


class _Screen(_Plain):
    """One line for every id, redrawn in place, at most ten times a second."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        self._lines: dict[str, str] = {}
        self._changed: set[str] = set()
        self._drawn = 0  # lines of this block that are on the screen; the cursor is below them
        self._last = 0.0

    def show(self, message: dict[str, Any]) -> None:
        name = message.get("id", "")
        if not name:
            self._draw()
            self._lines.clear()
            self._drawn = 0
            super().show({**message, "progressDetail": None})
            return
        self._lines[name] = text_of(message, width=self._width())
        self._changed.add(name)
        if time.monotonic() - self._last >= INTERVAL or not has_progress(message):
            self._draw()

    def finish(self) -> None:
        self._draw()

    def _width(self) -> int:
        from host_client.cli.terminal import for_this_system

        return int(for_this_system().size(self._descriptor)[1]) or 80

    def _draw(self) -> None:
        if not self._changed:
            return
        width = self._width()
        written = ""
        for index, (name, text) in enumerate(self._lines.items()):
            if index >= self._drawn:
                written += text[:width] + "\n"
                self._drawn += 1
            elif name in self._changed:
                up = self._drawn - index
                written += f"\x1b[{up}A{CLEAR_LINE}{text[:width]}\x1b[{up}B\r"
        self._changed.clear()
        self._last = time.monotonic()
        self._write(written)


def has_progress(message: dict[str, Any]) -> bool:
    """Whether a message is about work under way."""
    detail = message.get("progressDetail") or {}
    return bool(detail.get("current") or detail.get("total"))


def text_of(message: dict[str, Any], width: int = 0) -> str:
    """`id: status [==>  ]  1.2MB/3.4MB`."""
    name, status = message.get("id", ""), message.get("status", "")
    text = f"{name}: {status}" if name else status
    if width and has_progress(message):
        text += " " + bar(message["progressDetail"], width)
    return text


def bar(detail: dict[str, Any], width: int) -> str:
    """How far it is: a bar on a wide terminal, and the figures."""
    current, total = detail.get("current", 0), detail.get("total", 0)
    unit = detail.get("units", "")
    if total <= 0:
        return f"{current} {unit}" if unit else f"{units.human_size(current):>8}"
    shown = ""
    if width > 110:
        filled = min(current * BAR // total, BAR)
        shown = f"[{'=' * filled}>{' ' * (BAR - filled)}] "
    if detail.get("hidecounts"):
        return shown
    if current > total:
        return shown + (f"{current} {unit}" if unit else f"{units.human_size(current):>8}")
    if unit:
        return f"{shown}{current}/{total} {unit}"
    return f"{shown}{units.human_size(current):>8}/{units.human_size(total)}"
