"""A build as a live tree on a terminal: a line a step, by stage, with the last output below what runs."""

from __future__ import annotations

import threading
import time

from host_client.cli import output
from host_client.cli.errors import CliError
from host_client.cli.progress import has_progress, text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

EVERY = 0.15  # seconds between redraws
TAIL = 4  # lines of output below a step that runs
KEPT = 40  # lines of output shown of a step that failed


class _Step:
    def __init__(self, about: dict[str, Any]) -> None:
        self.name = str(about.get("name", ""))
        self.stage = int(about.get("stage", 0))
        self.label = f"{about['number']}/{about['total']}" if about.get("number") else "onbuild"
        self.begun = time.monotonic()
        self.seconds: float | None = None
        self.cached = False
        self.error = ""
        self.lines: list[str] = []
        self.partial = ""
        self.pulls: dict[str, str] = {}

    def add(self, text: str) -> None:
        """Some output."""
        *whole, self.partial = (self.partial + text).split("\n")
        self.lines += [line.rpartition("\r")[2] for line in whole]
        del self.lines[:-KEPT]


class Screen:
    """Draws until `finish`. A thread redraws, so that the clock goes on while nothing is said."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._steps: dict[str, _Step] = {}
        self._begun = time.monotonic()
        self._drawn = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._redraw, daemon=True)
        self._thread.start()

    def show(self, message: dict[str, Any]) -> None:
        """Take one message of the engine's in."""
        about = message["step"]
        with self._lock:
            step = self._steps.get(about["id"])
            if step is None:
                step = self._steps[about["id"]] = _Step(about)
            if message["state"] == "output":
                step.add(message["text"])
            elif message["state"] == "message":
                step.pulls[message["message"].get("id", "")] = text_of(message["message"], 80)
                if not has_progress(message["message"]) and not message["message"].get("id"):
                    step.pulls.pop("", None)
            elif message["state"] == "ended":
                step.seconds = time.monotonic() - step.begun
                step.cached, step.error = bool(message["cached"]), str(message["error"])

    def finish(self) -> None:
        """Draw the end."""
        self._ended.set()
        self._thread.join()
        self._draw(final=True)

    def failed(self) -> list[str]:
        """The last output of the step that failed."""
        for step in self._steps.values():
            if step.error:
                return step.lines + ([step.partial] if step.partial else [])
        return []

    def _redraw(self) -> None:
        while not self._ended.wait(EVERY):
            self._draw()

    def _draw(self, final: bool = False) -> None:
        from host_client.cli.terminal import for_this_system

        rows, columns = for_this_system().size(self._descriptor)
        rows, columns = rows or 24, columns or 80
        with self._lock:
            lines = self._lines(final)
        if not final and len(lines) > rows - 1:
            lines = [lines[0], *lines[len(lines) - (rows - 2) :]]
        text = f"\x1b[{self._drawn}A\x1b[J\r" if self._drawn else ""
        text += "".join(_fit(line, columns) + "\n" for line in lines)
        self._drawn = len(lines)
        try:
            output.write_bytes(self._descriptor, text.encode("utf-8", "surrogateescape"))
        except (BrokenPipeError, CliError):
            self._ended.set()

    def _lines(self, final: bool) -> list[str]:
        now = time.monotonic()
        done = sum(1 for step in self._steps.values() if step.seconds is not None)
        lines = [f"[+] Building {now - self._begun:.1f}s ({done}/{len(self._steps)})"]
        for step in sorted(self._steps.values(), key=lambda step: step.stage):
            seconds = now - step.begun if step.seconds is None else step.seconds
            mark = "CACHED " if step.cached else "ERROR " if step.error else ""
            colour = output.RED if step.error else output.GREEN if step.seconds is None else ""
            text = f" => {mark}[{step.label}] {step.name}  {seconds:.1f}s"
            lines.append(f"{colour}{text}{output.PLAIN}" if colour else text)
            if step.seconds is None and not final:
                lines += [f"    {text}" for text in list(step.pulls.values())[-TAIL:]]
                shown = [*step.lines[-TAIL:], *([step.partial] if step.partial else [])][-TAIL:]
                lines += [f"{output.GREY}    {line}{output.PLAIN}" for line in shown]
        return lines


def _fit(line: str, columns: int) -> str:
    """Cut to the terminal's width; colours take no room, other control characters are not passed on."""
    out, width, position = [], 0, 0
    while position < len(line):
        character = line[position]
        if character == "\x1b":
            end = line.find("m", position)
            if 0 <= end < position + 6:
                out.append(line[position : end + 1])
                position = end + 1
                continue
        position += 1
        if character < " " or character == "\x7f":
            continue
        if width < columns - 1:
            out.append(character)
            width += 1
    return "".join(out) + ("\x1b[0m" if "\x1b" in line else "")


def show(messages: Iterable[dict[str, Any]], descriptor: int) -> str:
    """Show a build until it ends; the image's id.

    Raises:
        CliError: the build failed; its status is that of the step's process.
    """
    screen = Screen(descriptor)
    image, said = "", []
    error: dict[str, Any] | None = None
    try:
        for message in messages:
            if message.get("step"):
                screen.show(message)
            elif message.get("aux"):
                image = str(message["aux"].get("ID", ""))
            elif message.get("errorDetail"):
                error = message["errorDetail"]
            elif message.get("stream"):
                said.append(message["stream"])
    finally:
        screen.finish()
    text = "".join(f"{line}\n" for line in screen.failed()) if error else ""
    output.write_bytes(descriptor, (text + "".join(said)).encode("utf-8", "surrogateescape"))
    if error:
        raise CliError(str(error["message"]), str(error.get("hint", "")), int(error.get("code") or 1))
    return image
