"""Signals by name and number, as `kill`, `stop` and `STOPSIGNAL` take them."""

from __future__ import annotations

import signal

from guest_agent.errors import InvalidParameter

_RTMIN, _RTMAX = 34, 64  # as glibc numbers them
_NAMES = {
    each.name.removeprefix("SIG"): int(each) for each in signal.Signals if not each.name.startswith("SIGRT")
}
_NAMES |= {"STKFLT": 16, "CLD": 17, "IOT": 6, "POLL": 29, "UNUSED": 31}
_NAMES |= {"RTMIN": _RTMIN, "RTMAX": _RTMAX}
_NAMES |= {f"RTMIN+{offset}": _RTMIN + offset for offset in range(1, 16)}
_NAMES |= {f"RTMAX-{offset}": _RTMAX - offset for offset in range(1, 15)}

KILL = 9
DEFAULT_STOP = 15


def parse_signal(text: str) -> int:
    """`KILL`, `sigkill` or `9` as 9. Raises InvalidParameter."""
    if text.isdigit() or (text.startswith("-") and text[1:].isdigit()):
        number = int(text)
        if 1 <= number <= _RTMAX:
            return number
    else:
        number = _NAMES.get(text.upper().removeprefix("SIG"), 0)
        if number:
            return number
    raise InvalidParameter(f"invalid signal: {text}")
