"""Times as API parameters have them: seconds since the epoch, with an optional fraction."""

from __future__ import annotations

import re

from guest_agent.errors import InvalidParameter

_SECONDS = re.compile(r"(-?\d{1,12})(?:\.(\d{1,9})\d*)?")


def parse_timestamp(text: str, name: str) -> int | None:
    """`1136073600.000000001` as nanoseconds; None when empty or 0. Raises InvalidParameter, naming `name`."""
    if not text:
        return None
    match = _SECONDS.fullmatch(text)
    if match is None:
        raise InvalidParameter(f'invalid value for {name}: "{text}" is not a time in seconds since the epoch')
    nanoseconds = int(match[1]) * 1_000_000_000 + int((match[2] or "").ljust(9, "0"))
    return nanoseconds or None
