"""Sizes as Docker reads them (github.com/docker/go-units): `10g`, `1.5 GiB`, `512`."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)(?:i?b)?", re.IGNORECASE)
_POWERS = " kmgtp"


def ram_in_bytes(text: str) -> int:
    """Bytes in a size of memory or disk: a kilobyte is 1024 of them. Raises ValueError."""
    return _parse(text, 1024)


def human_size(text: str) -> int:
    """Bytes in a size of files: a kilobyte is 1000 of them. Raises ValueError."""
    return _parse(text, 1000)


def _parse(text: str, base: int) -> int:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"invalid size: '{text}'")
    return int(float(match[1]) * base ** _POWERS.index(match[2].lower() or " "))
