"""Docker's progress messages, and how often they may be sent."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

Say = Callable[[dict[str, Any]], None]

INTERVAL = 0.1  # seconds
_BAR = 50  # characters


def bar(current: int, total: int) -> str:
    """`[====>   ]  1.2MB/3.4MB`, which old clients show as it is."""
    if total <= 0:
        return f"{size_text(current):>8}"
    filled = min(_BAR, current * _BAR // total)
    numbers = f"{size_text(current):>8}" + (f"/{size_text(total)}" if current <= total else "")
    return f"[{'=' * filled}>{' ' * (_BAR - filled)}] {numbers}"


def size_text(count: float) -> str:
    """Bytes as go-units' HumanSize has them: four significant digits, powers of 1000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.4g}{unit}"
        count /= 1000
    return f"{count:.4g}PB"


def message(status: str, id: str, current: int = 0, total: int = 0) -> dict[str, Any]:
    """One message about a layer, or without `id` about all. A negative total is one that nobody knows."""
    about = {"id": id} if id else {}
    if not total:
        return {"status": status, "progressDetail": {}, **about}
    detail = {"current": current, "total": total}
    return {"status": status, "progressDetail": detail, "progress": bar(current, total), **about}


class Throttle:
    """Lets through one call in INTERVAL."""

    def __init__(self) -> None:
        self._next = 0.0

    def ready(self) -> bool:
        """Whether it is time for the next one."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + INTERVAL
        return True
