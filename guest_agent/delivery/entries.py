"""Entries of a container's log, as they are sent on."""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Iterable

import msgspec

_CUT = 16 * 1024 - 4  # a line that is longer is logged in pieces, of which all but the last are so long


class Partial(msgspec.Struct):
    """Which piece of a long line an entry is (dockerd's PartialLogMetaData)."""

    id: str
    ordinal: int
    last: bool


class Entry(msgspec.Struct):
    """One line, without its line feed, or a piece of one."""

    log: str
    stream: str
    time: str  # RFC 3339, UTC, nanoseconds
    partial: Partial | None = None

    @property
    def error(self) -> bool:
        """Whether it was written to the standard error."""
        return self.stream == "stderr"

    @property
    def nanoseconds(self) -> int:
        """When, since the epoch."""
        seconds, _, fraction = self.time.removesuffix("Z").partition(".")
        moment = datetime.datetime.fromisoformat(seconds + "+00:00")
        return int(moment.timestamp()) * 10**9 + int(f"{fraction:0<9}"[:9] or 0)


class Reader:
    """Turns lines of the log file into entries; knows the pieces of a line of each stream."""

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(Entry).decode
        self._open: dict[str, Partial] = {}

    def entries(self, lines: Iterable[bytes]) -> list[Entry]:
        """The entries of some lines; what is damaged is left out."""
        found = []
        for line in lines:
            try:
                entry = self._decode(line)
            except msgspec.MsgspecError:
                continue
            ends = entry.log.endswith("\n")
            before = self._open.pop(entry.stream, None)
            if not ends and len(entry.log.encode("utf-8", "surrogatepass")) >= _CUT:
                entry.partial = Partial(
                    before.id if before else secrets.token_hex(32), before.ordinal + 1 if before else 1, False
                )
                self._open[entry.stream] = entry.partial
            elif before is not None:
                entry.partial = Partial(before.id, before.ordinal + 1, True)
            entry.log = entry.log.removesuffix("\n")
            found.append(entry)
        return found
