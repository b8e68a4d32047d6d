"""Sizes, durations and times as docker writes them (go-units and Go's time package)."""

from __future__ import annotations

import time

DECIMAL = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB")


def human_size(size: float, precision: int = 4) -> str:
    """Bytes with a decimal unit: 1.98MB."""
    return _scaled(size, 1000.0, DECIMAL, precision)


def binary_size(size: float, precision: int = 4) -> str:
    """Bytes with a binary unit: 23.54GiB."""
    return _scaled(size, 1024.0, BINARY, precision)


def _scaled(size: float, base: float, names: tuple[str, ...], precision: int) -> str:
    index = 0
    while size >= base and index < len(names) - 1:
        size /= base
        index += 1
    return f"{size:.{precision}g}{names[index]}"


def human_duration(seconds: float) -> str:
    """About how long: 5 minutes, About an hour, 3 weeks."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes = whole // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    for limit, length, name in (
        (24 * 14, 24, "days"),
        (24 * 60, 24 * 7, "weeks"),
        (24 * 730, 24 * 30, "months"),
    ):
        if hours < limit:
            return f"{hours // length} {name}"
    return f"{int(seconds / 3600) // 24 // 365} years"


def since(timestamp: float) -> str:
    """How long ago a time (seconds since the epoch) was."""
    return human_duration(time.time() - timestamp) + " ago"


def local_time(timestamp: int, fraction: str = "") -> str:
    """Go's Time.String() of a local time: 2025-11-24 03:00:00 +0000 UTC."""
    local = time.localtime(timestamp)
    return time.strftime(f"%Y-%m-%d %H:%M:%S{fraction} {_offset(local, '')} %Z", local)


def rfc3339(timestamp: int) -> str:
    """A local time as 2025-11-24T03:00:00Z, or with the zone's offset."""
    local = time.localtime(timestamp)
    zone = _offset(local, ":") if local.tm_gmtoff else "Z"
    return time.strftime("%Y-%m-%dT%H:%M:%S", local) + zone


def _offset(local: time.struct_time, colon: str) -> str:
    minutes = abs(local.tm_gmtoff) // 60
    return f"{'-' if local.tm_gmtoff < 0 else '+'}{minutes // 60:02}{colon}{minutes % 60:02}"


def parse_rfc3339(text: str) -> tuple[int, str]:
    """Seconds since the epoch, and the fraction with its dot and without trailing zeros, of an API time.

    Raises:
        ValueError: it is none.
    """
    date, _, rest = text.partition("T")
    year, month, day = (int(part) for part in date.split("-"))
    clock, zone = rest, "Z"
    for mark in ("Z", "+", "-"):
        if mark in rest:
            clock, zone = rest[: rest.index(mark)], rest[rest.index(mark) :]
            break
    whole, _, fraction = clock.partition(".")
    hour, minute, second = (int(part) for part in whole.split(":"))
    seconds = days(year, month, day) * 86400 + hour * 3600 + minute * 60 + second
    if zone != "Z":
        sign = -1 if zone[0] == "-" else 1
        seconds -= sign * (int(zone[1:3]) * 3600 + int(zone[-2:]) * 60)
    fraction = fraction.rstrip("0")
    return seconds, f".{fraction}" if fraction else ""


def days(year: int, month: int, day: int) -> int:
    """Days from the epoch to a date of the proleptic Gregorian calendar."""
    year -= month <= 2
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468


def ellipsis(text: str, limit: int) -> str:
    """At most `limit` columns of a text, with … at its end when something is missing."""
    if text.isascii():
        return text if len(text) <= limit else text[: limit - 1] + "…"
    from host_client.cli.tabwriter import width_of

    if width_of(text) <= limit:
        return text
    used = 0
    for index, character in enumerate(text):
        used += width_of(character)
        if used > limit - 1:
            return text[: max(index, 1)] + "…"
    return text


def short_id(text: str) -> str:
    """The first twelve digits of an id, without its algorithm."""
    return text.partition(":")[2][:12] if ":" in text else text[:12]
