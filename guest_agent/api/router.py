"""Which handler answers which path, and the API version in front of it."""

from __future__ import annotations

import re

from guest_agent.api.http import Handler
from guest_agent.errors import InvalidParameter, NotFound

MAX_VERSION = (1, 51)
MIN_VERSION = (1, 40)

_VERSION = re.compile(r"/v([0-9.]{1,16})(/.*)")
_PARAMETER = re.compile(r"\{(\w+)(\.\.\.)?\}")


def version_text(version: tuple[int, int]) -> str:
    """(1, 51) → "1.51"."""
    return f"{version[0]}.{version[1]}"


def split_version(path: str) -> tuple[tuple[int, int], str]:
    """Takes "/v1.NN" off a path; the newest is meant without it. Raises InvalidParameter out of range."""
    match = _VERSION.fullmatch(path)
    if match is None:
        return MAX_VERSION, path
    text = match[1]
    major, _, minor = text.partition(".")
    # dockerd reads missing or odd components as 0.
    version = (int(major) if major.isdigit() else 0, int(minor) if minor.isdigit() else 0)
    if version > MAX_VERSION:
        raise InvalidParameter(
            f"client version {text} is too new. Maximum supported API version is {version_text(MAX_VERSION)}",
            hint=f"Set DOCKER_API_VERSION={version_text(MAX_VERSION)} for this client.",
        )
    if version < MIN_VERSION:
        raise InvalidParameter(
            f"client version {text} is too old. "
            f"Minimum supported API version is {version_text(MIN_VERSION)}, "
            "please upgrade your client to a newer version",
        )
    return version, match[2]


class Router:
    """Routes by method and path; patterns have `{name}` for one segment and `{name...}` for one or more."""

    def __init__(self) -> None:
        self._exact: dict[tuple[str, str], Handler] = {}
        self._patterns: dict[tuple[str, str], list[tuple[re.Pattern[str], Handler]]] = {}

    def add(self, method: str, pattern: str, handler: Handler) -> None:
        """Adds a route; the first segment of a pattern is fixed. Earlier routes win over later ones."""
        if "{" not in pattern:
            self._exact[method, pattern] = handler
            return
        regex, position = "", 0
        for match in _PARAMETER.finditer(pattern):
            regex += re.escape(pattern[position : match.start()])
            regex += f"(?P<{match[1]}>{'.+' if match[2] else '[^/]+'})"
            position = match.end()
        regex += re.escape(pattern[position:])
        first = pattern.split("/", 2)[1]
        self._patterns.setdefault((method, first), []).append((re.compile(regex), handler))

    def find(self, method: str, path: str) -> tuple[Handler, dict[str, str]]:
        """The handler for a path without version, and the pattern's parameters. Raises NotFound."""
        handler = self._exact.get((method, path))
        if handler is not None:
            return handler, {}
        first = path[1:].partition("/")[0]
        for regex, handler in self._patterns.get((method, first), ()):
            match = regex.fullmatch(path)
            if match is not None:
                return handler, match.groupdict()
        raise NotFound("page not found")
