"""Which images a list or a prune is about: Docker's image filters."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from guest_agent.errors import InvalidParameter
from guest_agent.images import reference
from guest_agent.images.store import Image

LIST_FILTERS = ("dangling", "label", "before", "since", "reference", "until")
PRUNE_FILTERS = ("dangling", "label", "label!", "until")

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_UNIT = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_FRACTION = re.compile(r"(\.\d{1,6})\d*")


def created(image: Image) -> float:
    """When an image was created, seconds since the epoch; 0 when it does not say."""
    text = image.config.get("created")
    return instant(text) if isinstance(text, str) and text else 0.0


def instant(text: str) -> float:
    """RFC 3339 as seconds since the epoch; 0 for what is no time, and for Go's year 1."""
    try:
        moment = datetime.fromisoformat(_FRACTION.sub(r"\1", text))
    except ValueError:
        return 0.0
    if moment.year == 1:
        return 0.0
    return moment.timestamp() if moment.tzinfo else moment.replace(tzinfo=UTC).timestamp()


def until(text: str) -> float:
    """An `until` filter: a Unix time, RFC 3339, or a duration such as 1h30m before now."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return time.time() - sum(float(number) * _UNIT[unit] for number, unit in parts)
    moment = instant(text)
    if moment:
        return moment
    raise InvalidParameter(
        f'failed to parse value as time or duration: "{text}"',
        "Use 24h, 2026-01-31T10:00:00Z or a Unix time.",
    )


def flag(filters: Mapping[str, Sequence[str]], name: str, default: bool) -> bool:
    """A filter that is true or false."""
    values = dict.fromkeys(filters.get(name, ()))
    if not values:
        return default
    yes, no = ("1" in values or "true" in values), ("0" in values or "false" in values)
    if yes == no:
        raise InvalidParameter(f"invalid filter '{name}=[{' '.join(values)}]'", "It is true or false.")
    return yes


def has_labels(image: Image, wanted: Sequence[str]) -> bool:
    """Whether an image has all of these labels (KEY or KEY=VALUE)."""
    labels = (image.config.get("config") or {}).get("Labels") or {}
    for item in wanted:
        key, equals, value = item.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True


def matches_pattern(pattern: re.Pattern[str], name: str) -> bool:
    """Whether a familiar name fits, with its tag or without it."""
    if pattern.fullmatch(name):
        return True
    ref = reference.parse(name)
    return pattern.fullmatch(ref.familiar_name) is not None


def glob(pattern: str) -> re.Pattern[str]:
    """Go's path.Match: `*` and `?` stay within a path component, `[a-z]`, `[^a]`, `\\` quotes."""
    out = ""
    at = 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*":
            out += "[^/]*"
        elif char == "?":
            out += "[^/]"
        elif char == "\\":
            if at == len(pattern):
                raise InvalidParameter(f"syntax error in pattern {pattern!r}")
            out += re.escape(pattern[at])
            at += 1
        elif char == "[":
            end = pattern.find("]", at + 2 if pattern[at : at + 1] == "^" else at + 1)
            if end < 0:
                raise InvalidParameter(f"syntax error in pattern {pattern!r}")
            body = pattern[at:end]
            negated, body = body.startswith("^"), body.removeprefix("^")
            out += ("[^" if negated else "[") + re.sub(r"([][&~|^])", r"\\\1", body) + "]"
            at = end + 1
        else:
            out += re.escape(char)
    try:
        return re.compile(out)
    except re.error:
        raise InvalidParameter(f"syntax error in pattern {pattern!r}")
