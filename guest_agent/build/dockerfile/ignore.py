"""Which paths of a context are left out: `.dockerignore`, and `--exclude` of COPY and ADD.

The rules are moby/patternmatcher's, which the reference of `docker build` describes under ".dockerignore
file": the last pattern that matches a path or one of its parents decides, `!` brings back, `**` crosses
directories.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable

from guest_agent.build.dockerfile.errors import DockerfileError

_MAX_STARS = 2  # more of them in a pattern, and `re` may take exponential time on a hostile one


def read(source: bytes | str) -> list[str]:
    """The patterns of a `.dockerignore`: without comments, blanks at the ends and leading slashes."""
    text = source.decode("utf-8", "replace") if isinstance(source, bytes) else source
    patterns = []
    for line in text.removeprefix("\ufeff").split("\n"):
        pattern = line.strip()
        if line.startswith("#") or not pattern:
            continue
        negated = pattern.startswith("!")
        pattern = pattern[1:].strip() if negated else pattern
        if pattern:
            pattern = _clean(pattern)
            pattern = pattern[1:] if len(pattern) > 1 and pattern.startswith("/") else pattern
        patterns.append("!" + pattern if negated else pattern)
    return patterns


class Patterns:
    """Patterns in their order. InvalidParameter, with patternmatcher's text, for one that is none."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns: list[_Pattern] = []
        for text in patterns:
            text = text.strip()
            if text:
                self._patterns.append(_Pattern(_clean(text)))
        self._directories: dict[str, list[bool]] = {}

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def ignores(self, path: str) -> bool:
        """Is the path, relative and slash-separated, left out? Its parents count, too."""
        ignored = False
        for pattern, matched in zip(self._patterns, self._matches(path), strict=True):
            if matched:
                ignored = not pattern.negated
        return ignored

    def may_keep_below(self, directory: str) -> bool:
        """May something below an ignored directory be brought back by a `!` pattern?"""
        parts = directory.split("/")
        return any(pattern.negated and pattern.may_match_below(parts) for pattern in self._patterns)

    def _matches(self, path: str) -> list[bool]:
        """For each pattern: does it match the path or one of its parents?"""
        parent = posixpath.dirname(path)
        if not parent:
            return [pattern.matches(path) for pattern in self._patterns]
        above = self._directories.get(parent)
        if above is None:
            above = self._directories[parent] = self._matches(parent)
        return [known or pattern.matches(path) for known, pattern in zip(above, self._patterns, strict=True)]


class _Pattern:
    def __init__(self, text: str) -> None:
        if text == "!":
            raise DockerfileError('illegal exclusion pattern: "!"')
        self.negated = text.startswith("!")
        self.text = text[1:] if self.negated else text
        _check(self.text)
        self.matches = _matcher(self.text)

    def may_match_below(self, directory: list[str]) -> bool:
        parts = self.text.split("/")
        for part, name in zip(parts, directory, strict=False):
            if "**" in part:
                return True
            if not _matcher(part)(name):
                return False
        return len(parts) > len(directory)


def _clean(path: str) -> str:
    """filepath.Clean."""
    cleaned = posixpath.normpath(path)
    return cleaned[1:] if cleaned.startswith("//") else cleaned


def _check(text: str) -> None:
    """path.Match's idea of a malformed pattern: an unclosed or empty class, a backslash at the end."""
    position = 0
    while position < len(text):
        character = text[position]
        position += 1
        if character == "\\":
            if position == len(text):
                raise DockerfileError("syntax error in pattern")
            position += 1
        elif character == "[":
            position = _class_end(text, position)


def _class_end(text: str, position: int) -> int:
    """Behind a class that starts behind its bracket."""
    if text.startswith("^", position):
        position += 1
    ranges = 0
    while not (text.startswith("]", position) and ranges):
        position = _class_character(text, position)
        if text.startswith("-", position):
            position = _class_character(text, position + 1)
        ranges += 1
    return position + 1


def _class_character(text: str, position: int) -> int:
    if position == len(text) or text[position] in "-]":
        raise DockerfileError("syntax error in pattern")
    position += text[position] == "\\"
    if position + 1 >= len(text):
        raise DockerfileError("syntax error in pattern")
    return position + 1


def _matcher(text: str) -> Callable[[str], bool]:
    literal = not any(character in text for character in "*?[]\\")
    if literal:
        return text.__eq__
    body = text[2:]
    if text.startswith("**") and not any(character in body for character in "*?[]\\"):
        if not body:
            return lambda path: True
        return lambda path: path.endswith(body) or (body[0] == "/" and path == body[1:])
    body = text[:-2]
    if text.endswith("**") and not any(character in body for character in "*?[]\\"):
        return lambda path: path.startswith(body)
    tokens = _tokens(text)
    if sum(token in (_STAR, _STARS, _STARS_SLASH) for token in tokens) > _MAX_STARS:
        return _Automaton(tokens).matches
    try:
        expression = re.compile("".join(tokens), re.DOTALL)
    except re.error:
        raise DockerfileError("syntax error in pattern") from None
    return lambda path: expression.fullmatch(path) is not None


_STAR = "[^/]*"
_STARS = ".*"
_STARS_SLASH = "(?:.*/)?"


def _tokens(text: str) -> list[str]:
    """The pattern as regular expressions that each match one character, but for those of the stars."""
    tokens = []
    position = 0
    while position < len(text):
        character = text[position]
        position += 1
        if character == "*":
            if not text.startswith("*", position):
                tokens.append(_STAR)
                continue
            position += 1
            position += text.startswith("/", position)
            tokens.append(_STARS_SLASH if position < len(text) else _STARS)
        elif character == "?":
            tokens.append("[^/]")
        elif character == "[":
            end = _class_end(text, position)
            tokens.append("[" + re.sub(r"[\[&~|]", r"\\\g<0>", text[position : end - 1]) + "]")
            position = end
        else:
            if character == "\\":
                character = text[position]
                position += 1
            tokens.append(re.escape(character))
    return tokens


class _Automaton:
    """The same without backtracking: positions in the path are the bits of an integer."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = [(token, re.compile(token, re.DOTALL)) for token in tokens]

    def matches(self, path: str) -> bool:
        everything = (1 << len(path) + 1) - 1
        slashes = sum(1 << i for i, character in enumerate(path) if character == "/")
        reached = 1
        for token, expression in self._tokens:
            if not reached:
                return False
            from_first = everything & ~((reached & -reached) - 1)
            if token == _STARS:
                reached = from_first
            elif token == _STARS_SLASH:
                reached |= (from_first & slashes) << 1
            elif token == _STAR:
                # Carries run from each position reached up to the next slash, and stop there.
                steps = everything >> 1 & ~slashes
                start = reached & steps
                reached |= ((start + steps) ^ steps | start) & everything
            else:
                fits = sum(1 << i for i, character in enumerate(path) if expression.match(character))
                reached = (reached & fits) << 1 & everything
        return bool(reached >> len(path) & 1)
