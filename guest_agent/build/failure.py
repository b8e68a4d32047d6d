"""A step that failed, with its place in the Dockerfile."""

from __future__ import annotations

from guest_agent.build.dockerfile.types import Lines
from guest_agent.errors import EngineError

_AROUND = 2  # lines shown before and after


class StepFailed(EngineError):
    """A step failed. `code` is the exit code of its process, 0 when it is not a process's."""

    def __init__(self, message: str, code: int = 0, hint: str = "") -> None:
        super().__init__(message, hint)
        self.code = code
        self.excerpt = ""  # the lines of the Dockerfile that are to blame


def excerpt(name: str, text: str, lines: Lines) -> str:
    """The lines of a Dockerfile around an instruction, which is marked, as BuildKit shows it."""
    source = text.splitlines()
    first, last = max(lines.start - _AROUND, 1), min(lines.end + _AROUND, len(source))
    shown = [f"{name}:{lines.start}", "-" * 20]
    for number in range(first, last + 1):
        mark = ">>>" if lines.start <= number <= lines.end else "   "
        shown.append(f"{number:4} | {mark} {source[number - 1]}".rstrip())
    return "\n".join([*shown, "-" * 20, ""])
