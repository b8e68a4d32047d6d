"""Which shared libraries an ELF file needs (System V gABI, chapter 5: the dynamic section)."""

from __future__ import annotations

import struct


def needed(data: bytes) -> list[str]:
    """DT_NEEDED of a 64-bit little-endian ELF file; empty for anything else, as for a static program."""
    if data[:6] != b"\x7fELF\x02\x01":
        return []
    offset, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQ", data, offset + i * size) for i in range(count)]
    loads = [(address, start, length) for kind, _, start, address, _, length in segments if kind == 1]
    dynamic = next(((start, length) for kind, _, start, _, _, length in segments if kind == 2), (0, 0))
    entries = list(struct.iter_unpack("<QQ", data[dynamic[0] : dynamic[0] + dynamic[1]]))
    names = [value for tag, value in entries if tag == 1]
    table = next((value for tag, value in entries if tag == 5), 0)
    position = next(
        (table - address + start for address, start, n in loads if address <= table < address + n), 0
    )
    return [data[position + name : data.index(b"\0", position + name)].decode() for name in names]
