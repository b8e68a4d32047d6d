"""How a pull tells of its layers, at most ten times a second."""

from __future__ import annotations

from dataclasses import dataclass

from guest_agent.images.messages import Say, message
from guest_agent.images.transfer import LayerJob


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
