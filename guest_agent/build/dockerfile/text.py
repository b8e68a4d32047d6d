"""Go's ways with text that show in messages: quoting, suggestions, booleans, durations, sizes, CSV."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

_UNITS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_DURATION_PART = re.compile(r"(\d*)(?:\.(\d*))?([^\d.]*)", re.ASCII)
_MAX_INT64 = 2**63 - 1


def quote(text: str) -> str:
    """As Go's %q shows a string."""
    return json.dumps(text, ensure_ascii=False)


def suggestion(word: str, options: Iterable[str], *, any_case: bool = False) -> str:
    """` (did you mean X?)` for the option that is at most two edits away, or nothing."""
    wanted = word.lower() if any_case else word
    best, least = "", 3
    for option in sorted(options):
        candidate = option.lower() if any_case else option
        if candidate == wanted:
            return ""
        if (distance := _distance(wanted, candidate)) < least:
            best, least = candidate, distance
    if not best:
        return ""
    if any_case and word == word.upper():
        best = best.upper()
    return f" (did you mean {best}?)"


def _distance(left: str, right: str) -> int:
    """Levenshtein's; 3 stands for all that is greater, so that long words cost nothing."""
    if abs(len(left) - len(right)) > 2:
        return 3
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        previous, row = row, [i]
        for j, b in enumerate(right, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (a != b)))
        if min(row) > 2:
            return 3
    return row[-1]


def boolean(text: str) -> bool:
    """strconv.ParseBool; ValueError."""
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise ValueError(text)


def duration(text: str) -> int:
    """time.ParseDuration: nanoseconds; ValueError with its text."""
    sign, rest = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if rest == "0":
        return 0
    if not rest:
        raise ValueError(f"time: invalid duration {quote(text)}")
    total = 0
    while rest:
        match = _DURATION_PART.match(rest)
        assert match is not None  # every part is optional
        whole, fraction, unit = match[1], match[2] or "", match[3]
        if not whole and not fraction:
            raise ValueError(f"time: invalid duration {quote(text)}")
        if not unit:
            raise ValueError(f"time: missing unit in duration {quote(text)}")
        if unit not in _UNITS:
            raise ValueError(f"time: unknown unit {quote(unit)} in duration {quote(text)}")
        fraction = fraction[:18]
        total += int(whole[:20] or "0") * _UNITS[unit] + int(fraction or "0") * _UNITS[unit] // 10 ** len(
            fraction
        )
        if len(whole) > 20 or total > _MAX_INT64:
            raise ValueError(f"time: invalid duration {quote(text)}")
        rest = rest[match.end() :]
    return sign * total


def size(text: str) -> int:
    """go-units RAMInBytes: `64m`, `1.5GiB`; ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([bB]|[kKmMgGtTpP](?:[iI]?[bB])?)?", text, re.ASCII)
    if match is None:
        raise ValueError(text)
    unit = (match[2] or "b")[0].lower()
    return int(float(match[1]) * 1024 ** "bkmgtp".index(unit))


def csv_fields(text: str) -> list[str]:
    """One line of CSV as Go's reader takes it; ValueError with its text."""
    fields, position = [], 0
    while True:
        if text.startswith('"', position):
            value, position = _quoted_field(text, position + 1)
        else:
            end = text.find(",", position)
            end = len(text) if end < 0 else end
            value, position = text[position:end], end
            if '"' in value:
                raise ValueError('parse error on line 1: bare " in non-quoted field')
        fields.append(value)
        if position >= len(text):
            return fields
        position += 1


def _quoted_field(text: str, position: int) -> tuple[str, int]:
    parts = []
    while (end := text.find('"', position)) >= 0:
        parts.append(text[position:end])
        position = end + 1
        if not text.startswith('"', position):
            if position < len(text) and text[position] != ",":
                break
            return "".join(parts), position
        parts.append('"')
        position += 1
    raise ValueError('parse error on line 1: extraneous or missing " in quoted-field')
