"""DNS messages, as far as a container's resolver needs them: questions read, answers made. No sockets.

RFC 1035 (format), RFC 3596 (AAAA), RFC 6891 (EDNS(0): only the size a client can take).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

A, PTR, MX, AAAA, OPT = 1, 12, 15, 28, 41
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, REFUSED = 0, 1, 2, 3, 5
TTL = 600  # seconds, as libnetwork's resolver answers
MAX_UDP = 512  # bytes without EDNS(0)

_HEADER = struct.Struct(">HHHHHH")
_QR, _AA, _TC, _RD, _RA = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080
_OPCODE = 0x7800
_POINTER = 0xC0


class Question:
    """A query with one question: `name` as asked, without the final dot; `raw`, the question's own bytes."""

    __slots__ = ("flags", "id", "kind", "klass", "max_size", "name", "raw")

    def __init__(self, data: bytes) -> None:
        """Read a query. Raises ValueError for anything but a well-formed standard query of one question."""
        try:
            self.id, self.flags, questions, answers, authorities, extra = _HEADER.unpack_from(data)
            if self.flags & (_QR | _OPCODE) or questions != 1:
                raise ValueError("not a standard query with one question")
            self.name, end = read_name(data, _HEADER.size)
            self.kind, self.klass = struct.unpack_from(">HH", data, end)
            self.raw = data[_HEADER.size : end + 4]
            self.max_size = MAX_UDP
            if not answers and not authorities and extra:
                self.max_size = max(MAX_UDP, _edns_size(data, end + 4, extra))
        except (struct.error, IndexError):
            raise ValueError("truncated message")

    id: int
    flags: int
    kind: int
    klass: int

    def _flags(self, code: int, truncated: bool = False) -> int:
        return _QR | _RA | (self.flags & _RD) | code | (_TC if truncated else 0)

    def answer(self, records: Sequence[tuple[int, bytes]] = (), limit: int = 0) -> bytes:
        """An answer with these records, (type, data); cut to `limit` bytes (0: no limit) and then marked."""
        parts, size, count = [], _HEADER.size + len(self.raw), 0
        for kind, data in records:
            # Every name is the question's, which stands at offset 12.
            record = struct.pack(">HHHIH", 0xC00C, kind, IN, TTL, len(data)) + data
            if limit and size + len(record) > limit:
                break
            parts.append(record)
            size += len(record)
            count += 1
        flags = self._flags(NOERROR, truncated=count < len(records))
        return _HEADER.pack(self.id, flags, 1, count, 0, 0) + self.raw + b"".join(parts)

    def failure(self, code: int) -> bytes:
        """An answer without records that says why."""
        return _HEADER.pack(self.id, self._flags(code), 1, 0, 0, 0) + self.raw


def format_error(data: bytes) -> bytes:
    """The answer to a message that could not be read; empty when it has not even an id or is no query."""
    if len(data) < _HEADER.size or data[2] & 0x80:
        return b""
    return _HEADER.pack(int.from_bytes(data[:2], "big"), _QR | FORMERR, 0, 0, 0, 0)


def read_name(data: bytes, offset: int) -> tuple[str, int]:
    """An uncompressed name and the offset behind it. Raises ValueError, IndexError.

    Bytes that are no ASCII survive as surrogates. Questions have no name before theirs to point to.
    """
    labels = []
    start = offset
    while length := data[offset]:
        if length & _POINTER:
            raise ValueError("compressed name in a question")
        label = data[offset + 1 : offset + 1 + length]
        if len(label) != length:
            raise ValueError("truncated name")
        labels.append(label.decode("ascii", "surrogateescape"))
        offset += 1 + length
        if offset - start > 254:
            raise ValueError("name longer than 255 bytes")
    return ".".join(labels), offset + 1


def write_name(name: str) -> bytes:
    """A name, uncompressed. Raises ValueError for an empty or too long label or name."""
    parts = []
    for label in name.split("."):
        data = label.encode("utf-8", "surrogateescape")
        if not 0 < len(data) < 64:
            raise ValueError(f"a label has 1 to 63 bytes: {label!r}")
        parts.append(bytes([len(data)]) + data)
    encoded = b"".join(parts) + b"\0"
    if len(encoded) > 255:
        raise ValueError(f"name longer than 255 bytes: {name!r}")
    return encoded


def reversed_address(name: str) -> bytes | None:
    """The packed address that a PTR question's name stands for; None for other names."""
    lower = name.lower()
    if lower.endswith(".in-addr.arpa"):
        parts = lower.removesuffix(".in-addr.arpa").split(".")
        if len(parts) == 4 and all(part.isascii() and part.isdigit() and int(part) < 256 for part in parts):
            return bytes(int(part) for part in reversed(parts))
    elif lower.endswith(".ip6.arpa"):
        digits = lower.removesuffix(".ip6.arpa").split(".")
        if len(digits) == 32 and all(len(digit) == 1 and digit in "0123456789abcdef" for digit in digits):
            return bytes.fromhex("".join(reversed(digits)))
    return None


def _edns_size(data: bytes, offset: int, records: int) -> int:
    """The UDP payload size in the OPT record among the additional records; 0 without."""
    for _ in range(records):
        while length := data[offset]:
            if length & _POINTER:
                offset += 1
                break
            offset += 1 + length
        offset += 1
        kind, size, _, length = struct.unpack_from(">HHIH", data, offset)
        if kind == OPT:
            return int(size)
        offset += 10 + length
    return 0
