"""Sizes as Docker reads them (github.com/docker/go-units): `10g`, `1.5 GiB`, `512`."""

from __future__ import annotations

import re

# A number and the unit after its last digit, or after one space.
_SIZE = re.compile(r"(.*[0-9.])()|(.*[0-9. ]?) ([^0-9. ]*)|(.*[0-9.])([^0-9. ]+)", re.DOTALL)
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
_UNIT = re.compile(r"b?|([kmgtp])(i?b)?", re.IGNORECASE)
_POWERS = " kmgtp"


def ram_in_bytes(text: str) -> int:
    """Bytes in a size of memory or disk: a kilobyte is 1024 of them. Raises ValueError in go-units' words."""
    return _parse(text, 1024)


def human_size(text: str) -> int:
    """Bytes in a size of files: a kilobyte is 1000 of them. Raises ValueError in go-units' words."""
    return _parse(text, 1000)


def _parse(text: str, base: int) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"invalid size: '{text}'")
    number, suffix = (group for group in match.groups() if group is not None)
    if _NUMBER.fullmatch(number) is None:
        raise ValueError(f'strconv.ParseFloat: parsing "{number}": invalid syntax')
    if float(number) < 0:
        raise ValueError(f"invalid size: '{text}'")
    unit = _UNIT.fullmatch(suffix)
    if unit is None:
        raise ValueError(f"invalid suffix: '{suffix}'")
    try:
        return int(float(number) * base ** _POWERS.index((unit[1] or " ").lower()))
    except OverflowError:
        raise ValueError(f"invalid size: '{text}'")
