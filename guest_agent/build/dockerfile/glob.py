"""The patterns of `${name#pattern}` and its kin: `*`, `?` and a backslash before one of them.

POSIX.1-2017, 2.6.2 "Parameter Expansion" and 2.13, without bracket expressions, as in BuildKit. Matched by
sets of positions kept as the bits of an integer, in one pass over the pattern, so that no pattern of a
hostile Dockerfile takes exponential time as it may with `re`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_ANY: Final = "?"
_MANY: Final = "*"


class Pattern:
    """A compiled pattern. ValueError("invalid escape '\\x'") when it is none."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, bool]] = []  # character, is it a wildcard
        position = 0
        while position < len(text):
            character = text[position]
            position += 1
            if character != "\\":
                self._tokens.append((character, character in (_ANY, _MANY)))
                continue
            following = text[position : position + 1]
            if following in ("}", "/") and following:
                continue  # escaped for the sake of ${…}, not of the pattern
            if following not in ("*", "?", "\\") or not following:
                raise ValueError(f"invalid escape '\\{following or chr(0xFFFD)}'")
            self._tokens.append((following, False))
            position += 1

    def trim_prefix(self, value: str, *, greedy: bool) -> str:
        end = _extreme(_ends(self._tokens, value), last=greedy)
        return value if end is None else value[end:]

    def trim_suffix(self, value: str, *, greedy: bool) -> str:
        end = _extreme(_ends(self._tokens[::-1], value[::-1]), last=greedy)
        return value if end is None else value[: len(value) - end]

    def replace(self, value: str, replacement: str, *, everywhere: bool) -> str:
        """The leftmost match, or all that do not overlap, each the longest from where it starts."""
        starts = _starts(self._tokens, value)
        parts, position = [], 0
        while position <= len(value) and (remaining := starts >> position):
            start = position + ((remaining & -remaining).bit_length() - 1)
            end = start + (_extreme(_ends(self._tokens, value[start:]), last=True) or 0)
            parts += [value[position:start], replacement]
            position = end
            if end == start:  # an empty match: the character after it stays
                parts.append(value[end : end + 1])
                position = end + 1
            if not everywhere:
                break
        return "".join(parts) + value[position:]


def _step(reached: int, token: str, wildcard: bool, value: str, masks: dict[str, int]) -> int:
    """From positions in the value to those behind one more token."""
    everything = (1 << len(value) + 1) - 1
    if wildcard and token == _MANY:
        return everything & ~((reached & -reached) - 1)
    if not wildcard and token not in masks:
        masks[token] = sum(1 << i for i, character in enumerate(value) if character == token)
    return (reached if wildcard else reached & masks[token]) << 1 & everything


def _run(tokens: Sequence[tuple[str, bool]], value: str, reached: int) -> int:
    masks: dict[str, int] = {}
    for token, wildcard in tokens:
        if not reached:
            break
        reached = _step(reached, token, wildcard, value, masks)
    return reached


def _ends(tokens: Sequence[tuple[str, bool]], value: str) -> int:
    """Where a match from the beginning may end."""
    return _run(tokens, value, 1)


def _starts(tokens: Sequence[tuple[str, bool]], value: str) -> int:
    """Where a match may start, whatever its end: the same from behind, from every position at once."""
    backwards = _run(tokens[::-1], value[::-1], (1 << len(value) + 1) - 1)
    return sum(1 << len(value) - i for i in range(len(value) + 1) if backwards >> i & 1)


def _extreme(positions: int, *, last: bool) -> int | None:
    if not positions:
        return None
    return positions.bit_length() - 1 if last else (positions & -positions).bit_length() - 1
