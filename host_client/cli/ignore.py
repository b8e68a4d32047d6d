"""`.dockerignore`: which files of a build's context are not sent. The rules are those of docker's own
documentation: the last pattern that matches a path or a directory above it decides, `!` brings back.
"""

from __future__ import annotations

import posixpath
import re


def read(text: str) -> list[str]:
    """The patterns of a file, without comments."""
    found = []
    for line in text.removeprefix("\ufeff").splitlines():
        pattern = line.strip()
        if not pattern or line.startswith("#"):
            continue
        negated = pattern.startswith("!")
        pattern = posixpath.normpath(pattern.removeprefix("!").strip()).lstrip("/") or "."
        found.append("!" + pattern if negated else pattern)
    return found


class Patterns:
    """Patterns in their order.

    Raises:
        ValueError: one of them is malformed.
    """

    def __init__(self, patterns: list[str]) -> None:
        self._patterns = [
            (not text.startswith("!"), _compiled(text.removeprefix("!")), text) for text in patterns
        ]

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def ignores(self, path: str) -> bool:
        """Whether a path, relative and with slashes, is left out."""
        parts = path.split("/")
        ways = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        ignored = False
        for leaves_out, expression, _ in self._patterns:
            if leaves_out != ignored and any(expression.fullmatch(way) for way in ways):
                ignored = leaves_out
        return ignored

    def may_keep_below(self) -> bool:
        """Whether something in a directory that is left out may be wanted."""
        return any(not leaves_out for leaves_out, _, _ in self._patterns)


def _compiled(pattern: str) -> re.Pattern[str]:
    out = []
    position = 0
    while position < len(pattern):
        character = pattern[position]
        position += 1
        if character == "*" and pattern[position : position + 1] == "*":
            position += 1
            if pattern[position : position + 1] == "/":
                position += 1
                out.append("(?:.*/)?")
            else:
                out.append(".*")
        elif character == "*":
            out.append("[^/]*")
        elif character == "?":
            out.append("[^/]")
        elif character == "[":
            end = pattern.find("]", position + 1)
            if end < 0:
                raise ValueError(f"error parsing .dockerignore: {pattern!r}: syntax error in pattern")
            out.append("[" + pattern[position:end].replace("[", "\\[") + "]")
            position = end + 1
        elif character == "\\" and position < len(pattern):
            out.append(re.escape(pattern[position]))
            position += 1
        else:
            out.append(re.escape(character))
    try:
        return re.compile("".join(out), re.DOTALL)
    except re.error:
        raise ValueError(f"error parsing .dockerignore: {pattern!r}: syntax error in pattern")
