"""Docker's progress messages for a pull: what its CLI and docker-py show, at most ten times a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from guest_agent.images.transfer import LayerJob

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
    """One message about a layer."""
    if not total:
        return {"status": status, "progressDetail": {}, "id": id}
    detail = {"current": current, "total": total}
    return {"status": status, "progressDetail": detail, "progress": bar(current, total), "id": id}


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


@dataclass(slots=True)
class _Line:
    id: str
    job: LayerJob
    stage: int = 0  # 0 announced, 1 downloading, 2 downloaded, 3 extracting, 4 complete
    shown: int = -1


class PullProgress:
    """Tells how the layers of one pull get on. Used by the pull's own thread only."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._lines: list[_Line] = []

    def announce(self, id: str) -> None:
        """A layer that has to be fetched."""
        self._say(message("Pulling fs layer", id))

    def exists(self, id: str) -> None:
        """A layer that is here."""
        self._say(message("Already exists", id))

    def follow(self, id: str, job: LayerJob) -> None:
        """A layer that is being fetched from now on."""
        self._lines.append(_Line(id, job))

    def wait(self, finished: Callable[[], bool], wake: threading.Event) -> None:
        """Tells what changes until `finished`; `wake` interrupts the wait for the next look."""
        while True:
            wake.clear()
            done = finished()
            self.update()
            if done:
                return
            wake.wait(INTERVAL)

    def update(self) -> None:
        """Tells what has changed."""
        for line in self._lines:
            self._update(line)

    def _update(self, line: _Line) -> None:
        job = line.job
        download = job.download
        total = job.blob.size
        if job.finished.is_set():
            stage = 4
            if job.error is not None:
                return
        elif download is None or download.finished:
            stage = 3 if job.unpacked else 2
        else:
            stage = 1 if download.done else 0
        if line.stage < 2 <= stage and download is not None:
            self._say(message("Verifying Checksum", line.id))
            self._say(message("Download complete", line.id))
        if stage == 4 and line.stage < 4:
            if line.stage < 3:
                self._say(message("Extracting", line.id, total, total))
            self._say(message("Pull complete", line.id))
        current = download.done if stage == 1 and download is not None else job.unpacked
        if stage in (1, 3) and (stage, current) != (line.stage, line.shown):
            self._say(message("Downloading" if stage == 1 else "Extracting", line.id, current, total))
            line.shown = current
        line.stage = max(line.stage, stage)
