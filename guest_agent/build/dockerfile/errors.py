"""What is wrong with a Dockerfile, and where."""

from __future__ import annotations

from guest_agent.build.dockerfile.types import Lines
from guest_agent.errors import InvalidParameter


class DockerfileError(InvalidParameter):
    """The Dockerfile, or a value in it, is wrong. `lines`: the instruction's, None when no line is to
    blame."""

    def __init__(self, message: str, lines: Lines | None = None, hint: str = "") -> None:
        super().__init__(message, hint)
        self.lines = lines


class DockerfileSyntaxError(DockerfileError):
    """Words that do not go together; BuildKit says these without the line in the message."""
