"""Reading and writing tar streams: ustar, PAX, GNU long names, GNU and PAX sparse files, base-256 numbers.

Formats: POSIX.1-2001 pax(1), GNU tar manual "Basic Tar Format", "Sparse Formats". Streams only, no paths and
no files: putting entries on disk is the business of `extract` and `layer`.
Where readers differ, this one decides as Go's archive/tar does, since that is what images are made for:
global PAX headers are skipped, links, devices, directories and FIFOs have no content whatever their size
field says.

Names are str with surrogateescape, as Python's os functions take them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from guest_agent.errors import InvalidParameter

BLOCK = 512
_ZERO = bytes(BLOCK)
_MAX_SPECIAL = 1 << 20  # bytes of one PAX header, long name or sparse map, as in Go's archive/tar
_MAX_INT = (1 << 63) - 1
_MAX_ID = (1 << 32) - 2  # 2^32-1 means "leave as it is" to chown(2)
_CHUNK = 1 << 18

REGULAR, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = "0", "1", "2", "3", "4", "5", "6"
_CONTENT_TYPES = {"\0": REGULAR, "0": REGULAR, "7": REGULAR, "S": REGULAR}
_PLAIN_TYPES = frozenset((LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO))
XATTR_PREFIX = "SCHILY.xattr."

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")


class TarError(InvalidParameter):
    """The archive is damaged, hostile or of a kind that is not understood."""

    def __init__(self, message: str, hint: str = "This is no tar archive, or it is damaged.") -> None:
        super().__init__(message, hint)


class Entry:
    """One member of an archive.

    Times in ns since the epoch, `size` is the content's length with holes filled.
    """

    __slots__ = (
        "gid", "linkname", "major", "minor", "mode", "mtime", "name", "size", "sparse", "stored", "type",
        "uid", "xattrs",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        type: str = REGULAR,
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
        size: int = 0,
        mtime: int = 0,
        linkname: str = "",
        major: int = 0,
        minor: int = 0,
        xattrs: dict[str, bytes] | None = None,
    ) -> None:
        self.name = name
        self.type = type
        self.mode = mode  # permission and set-id bits only
        self.uid = uid
        self.gid = gid
        self.size = size
        self.mtime = mtime
        self.linkname = linkname
        self.major = major
        self.minor = minor
        self.xattrs = xattrs or {}
        self.sparse: list[tuple[int, int]] | None = None  # (offset, length) of the data that is there
        self.stored = size  # bytes of content in the archive

    def __repr__(self) -> str:
        return f"<Entry {self.type} {self.name!r} {self.size}>"


def _number(field: bytes, what: str) -> int:
    """A numeric header field: octal digits, or GNU base-256 when the top bit is set."""
    digits = field[:-1]
    if digits.isdigit() and field[-1] in b"\0 ":  # as nearly all are
        try:
            return int(digits, 8)
        except ValueError:
            raise TarError(f"archive/tar: invalid tar header: {what} is not a number") from None
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=False)
        bits = len(field) * 8
        if field[0] & 0x40:  # two's complement after the marker bit
            value -= 1 << bits
        else:
            value -= 1 << (bits - 1)
        if not -_MAX_INT - 1 <= value <= _MAX_INT:
            raise TarError(f"archive/tar: invalid tar header: {what} is out of range")
        return value
    text = field.strip(b" \0")
    end = text.find(b"\0")
    if end >= 0:
        text = text[:end].rstrip(b" ")
    if not text:
        return 0
    if not text.isdigit():
        raise TarError(f"archive/tar: invalid tar header: {what} is not a number")
    try:
        return int(text, 8)
    except ValueError:
        raise TarError(f"archive/tar: invalid tar header: {what} is not a number") from None


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


class TarReader:
    """Iterates over the entries of a tar stream.

    `read(n)` returns up to n bytes, none at the end. The content of an entry is read with `chunks` before
    the next entry is asked for; what is left of it is skipped.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._buffer = b""
        self._at = 0
        self._left = 0  # bytes of the current entry's content not yet read
        self._padding = 0
        self.offset = 0  # bytes taken from the stream

    # -- the stream --------------------------------------------------------------------------------

    def _fill(self) -> bool:
        self._buffer = self._read(_CHUNK)
        self._at = 0
        self.offset += len(self._buffer)
        return bool(self._buffer)

    def _exactly(self, count: int) -> bytes:
        end = self._at + count
        if end <= len(self._buffer):
            data = self._buffer[self._at : end]
            self._at = end
            return data
        parts = [self._buffer[self._at :]]
        count -= len(parts[0])
        while count:
            if not self._fill():
                self._at = 0
                self._buffer = b""
                raise TarError(
                    "archive/tar: unexpected EOF", "The archive is cut short; fetch or make it again."
                )
            part = self._buffer[:count]
            parts.append(part)
            self._at = len(part)
            count -= len(part)
        return b"".join(parts)

    def _skip(self, count: int) -> None:
        while count:
            have = len(self._buffer) - self._at
            if have >= count:
                self._at += count
                return
            count -= have
            if not self._fill():
                raise TarError(
                    "archive/tar: unexpected EOF", "The archive is cut short; fetch or make it again."
                )

    def drain(self) -> None:
        """Reads what follows the end of the archive, so that a digest of the stream is of all of it."""
        while self._fill():
            pass
        self._buffer = b""

    # -- entries -----------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self.next()) is not None:
            yield entry

    def next(self) -> Entry | None:
        """The next entry, None at the end of the archive. Raises TarError."""
        pax: dict[str, str] = {}
        sparse_pairs: list[int] = []
        long_name = long_link = None
        while True:
            if self._left or self._padding:
                self._skip(self._left + self._padding)
                self._left = self._padding = 0
            header = self._header()
            if header is None:
                if pax or long_name is not None or long_link is not None:
                    raise TarError("archive/tar: unexpected EOF")
                return None
            kind = header[156:157]
            if kind == b"x":
                pax, sparse_pairs = _pax_records(self._special(header))
            elif kind == b"g":
                self._special(header)
            elif kind == b"L":
                long_name = _text(self._special(header))
            elif kind == b"K":
                long_link = _text(self._special(header))
            else:
                break
        entry = self._entry(header, long_name, long_link)
        if pax:
            _apply_pax(entry, pax)
        if entry.type == REGULAR:
            self._sparse(entry, header, pax, sparse_pairs)
            if entry.name.endswith("/") and header[156] in b"\0000":
                entry.type = DIRECTORY  # how pre-POSIX archives mark one
                entry.size = entry.stored = 0
        else:
            entry.size = entry.stored = 0
        if not 0 <= entry.uid <= _MAX_ID or not 0 <= entry.gid <= _MAX_ID:
            raise TarError(f"archive/tar: invalid tar header: owner of {entry.name!r} is out of range")
        return entry

    def _header(self) -> bytes | None:
        if self._at == len(self._buffer) and not self._fill():
            return None
        block = self._exactly(BLOCK)
        if block == _ZERO:
            return None
        want = _number(block[148:156], "checksum")
        # The sum takes its own field as spaces; ancient tars added signed bytes.
        total = sum(block) - sum(block[148:156]) + 256
        if total != want and total - 256 * sum(b > 127 for b in block[:148] + block[156:]) != want:
            raise TarError("archive/tar: invalid tar header")
        return block

    def _special(self, header: bytes) -> bytes:
        size = _number(header[124:136], "size")
        if not 0 <= size <= _MAX_SPECIAL:
            raise TarError("archive/tar: header field too long")
        data = self._exactly(size)
        self._skip(-size % BLOCK)
        return data

    def _entry(self, header: bytes, long_name: str | None, long_link: str | None) -> Entry:
        name, mode, uid, gid, size, mtime, _, kind, link, magic, _, _, major, minor, prefix = (
            _HEADER.unpack_from(header)
        )
        type = _CONTENT_TYPES.get(chr(kind[0])) or chr(kind[0])
        entry = Entry(
            _text(name) if long_name is None else long_name,
            type,
            _number(mode, "mode") & 0o7777,
            _number(uid, "uid"),
            _number(gid, "gid"),
            _number(size, "size"),
            _number(mtime, "mtime") * 1_000_000_000,
            _text(link) if long_link is None else long_link,
        )
        if type == REGULAR:
            self._content(entry, entry.size)
        elif type not in _PLAIN_TYPES:
            raise TarError(f"unhandled tar header type {ord(kind)} of {entry.name!r}")
        elif type in (CHAR, BLOCK_DEVICE):
            entry.major, entry.minor = _number(major, "device number"), _number(minor, "device number")
        if magic == b"ustar\x0000" and prefix[0] and long_name is None:
            entry.name = f"{_text(prefix)}/{entry.name}"
        return entry

    def _content(self, entry: Entry, stored: int) -> None:
        if stored < 0:
            raise TarError(f"archive/tar: invalid tar header: negative size of {entry.name!r}")
        entry.size = entry.stored = stored
        self._left = stored
        self._padding = -stored % BLOCK

    def chunks(self) -> Iterator[memoryview]:
        """The stored content of the current entry (of a sparse file the data that is there, end to end)."""
        while self._left:
            if self._at == len(self._buffer) and not self._fill():
                raise TarError(
                    "archive/tar: unexpected EOF", "The archive is cut short; fetch or make it again."
                )
            end = min(len(self._buffer), self._at + self._left)
            chunk = memoryview(self._buffer)[self._at : end]
            self._at = end
            self._left -= len(chunk)
            yield chunk

    def content(self, limit: int) -> bytes:
        """The whole content of the current entry; TarError when it is larger than `limit` bytes."""
        if self._left > limit:
            raise TarError(f"archive member of {self._left} bytes where at most {limit} are expected")
        return b"".join(self.chunks())

    # -- sparse files ------------------------------------------------------------------------------

    def _sparse(self, entry: Entry, header: bytes, pax: dict[str, str], pairs: list[int]) -> None:
        if "size" in pax:
            self._content(entry, _decimal(pax["size"], "size"))
        if header[156:157] == b"S":
            pairs, size = self._old_gnu_map(header)
        elif pax.get("GNU.sparse.major") == "1" and pax.get("GNU.sparse.minor") == "0":
            size = _decimal(pax.get("GNU.sparse.realsize", ""), "sparse size")
            pairs = self._map_in_content()
        elif "GNU.sparse.numblocks" in pax or "GNU.sparse.map" in pax:
            size = _decimal(pax.get("GNU.sparse.size") or pax.get("GNU.sparse.realsize", ""), "sparse size")
            if "GNU.sparse.map" in pax:
                pairs = [_decimal(n, "sparse map") for n in pax["GNU.sparse.map"].split(",") if n]
        elif any(key.startswith("GNU.sparse.") for key in pax):
            raise TarError(f"archive/tar: unknown sparse format of {entry.name!r}")
        else:
            return
        if len(pairs) % 2:
            raise TarError(f"archive/tar: odd sparse map of {entry.name!r}")
        regions = [(pairs[i], pairs[i + 1]) for i in range(0, len(pairs), 2)]
        position = total = 0
        for offset, length in regions:
            if length < 0 or offset < position or offset + length > size:
                raise TarError(f"archive/tar: invalid sparse map of {entry.name!r}")
            position = offset + length
            total += length
        if total != self._left:
            raise TarError(f"archive/tar: sparse map of {entry.name!r} and its content do not agree")
        entry.size = size
        entry.stored = total
        entry.sparse = [region for region in regions if region[1]]
        entry.name = pax.get("GNU.sparse.name") or entry.name

    def _old_gnu_map(self, header: bytes) -> tuple[list[int], int]:
        size = _number(header[483:495], "sparse size")
        if size < 0:
            raise TarError("archive/tar: negative sparse size")
        pairs = _old_gnu_pairs(header[386:482])
        more = header[482]
        while more:
            block = self._exactly(BLOCK)
            pairs += _old_gnu_pairs(block[:504])
            more = block[504]
            if len(pairs) > _MAX_SPECIAL // 16:
                raise TarError("archive/tar: sparse map too long")
        return pairs, size

    def _map_in_content(self) -> list[int]:
        """PAX sparse 1.0: decimal lines at the head of the content, padded to a block."""
        blocks: list[bytes] = []
        lines = wanted = 0  # `wanted` is known once the first line is whole
        while not wanted or lines < wanted:
            if self._left < BLOCK or len(blocks) * BLOCK >= _MAX_SPECIAL:
                raise TarError("archive/tar: invalid sparse map")
            blocks.append(self._exactly(BLOCK))
            self._left -= BLOCK
            lines += blocks[-1].count(b"\n")
            if lines and not wanted:
                wanted = 1 + 2 * _decimal(b"".join(blocks).split(b"\n", 1)[0].decode("latin-1"), "sparse map")
        numbers = b"".join(blocks).split(b"\n")[1:wanted]
        return [_decimal(number.decode("latin-1"), "sparse map") for number in numbers]


def _old_gnu_pairs(table: bytes) -> list[int]:
    pairs = []
    for at in range(0, len(table) - 23, 24):
        if not table[at]:
            break
        pairs += [_number(table[at : at + 12], "sparse map"), _number(table[at + 12 : at + 24], "sparse map")]
    return pairs


def _decimal(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 19:
        raise TarError(f"archive/tar: invalid tar header: {what} is not a number")
    return int(text)


def _pax_records(data: bytes) -> tuple[dict[str, str], list[int]]:
    """The records of a PAX header, and the pairs of the PAX sparse 0.0 format, whose keys repeat."""
    records: dict[str, str] = {}
    pairs: list[int] = []
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 12)
        digits = data[at:space] if space > 0 else b""
        if not digits.isdigit():
            raise TarError("archive/tar: invalid PAX record")
        end = at + int(digits)
        if end <= space + 1 or end > len(data) or data[end - 1] != 10:
            raise TarError("archive/tar: invalid PAX record")
        raw_key, equals, raw_value = data[space + 1 : end - 1].partition(b"=")
        key = raw_key.decode("utf-8", "surrogateescape")
        value = raw_value.decode("utf-8", "surrogateescape")
        if not equals or not key or "\0" in key or ("\0" in value and not key.startswith(XATTR_PREFIX)):
            raise TarError("archive/tar: invalid PAX record")
        if key in ("GNU.sparse.offset", "GNU.sparse.numbytes"):
            if (key == "GNU.sparse.offset") != (len(pairs) % 2 == 0):
                raise TarError("archive/tar: invalid sparse map")
            pairs.append(_decimal(value, "sparse map"))
        elif value or key.startswith(XATTR_PREFIX):
            records[key] = value
        else:
            records.pop(key, None)  # an empty value takes an earlier record back
        at = end
    return records, pairs


def _apply_pax(entry: Entry, pax: dict[str, str]) -> None:
    for key, value in pax.items():
        if key == "path":
            entry.name = value
        elif key == "linkpath":
            entry.linkname = value
        elif key == "uid":
            entry.uid = _decimal(value, "uid")
        elif key == "gid":
            entry.gid = _decimal(value, "gid")
        elif key == "mtime":
            entry.mtime = _pax_time(value)
        elif key.startswith(XATTR_PREFIX):
            entry.xattrs[key[len(XATTR_PREFIX) :]] = value.encode("utf-8", "surrogateescape")


def _pax_time(text: str) -> int:
    whole, _, fraction = text.partition(".")
    negative = whole.startswith("-")
    digits = whole[1:] if negative else whole
    if fraction and not (fraction.isascii() and fraction.isdigit()):
        raise TarError("archive/tar: invalid tar header: mtime is not a number")
    nanoseconds = _decimal(digits, "mtime") * 1_000_000_000 + int((fraction[:9] or "0").ljust(9, "0"))
    return -nanoseconds if negative else nanoseconds


# -- writing ---------------------------------------------------------------------------------------


class TarWriter:
    """Writes a tar stream: ustar where an entry fits, PAX where it does not, as Go's archive/tar does.

    The same entries give the same bytes. Times are cut to whole seconds, owner names are left out.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write

    def add(self, entry: Entry, content: Iterable[bytes | memoryview] = ()) -> None:
        """Writes one entry; `content` must come to `entry.size` bytes (of a regular file), else TarError.

        Of an entry with `sparse`, the content is that of its regions, one after the other (GNU tar manual,
        "PAX Format, Version 1.0").
        """
        if entry.sparse is not None:
            self._add_sparse(entry, content)
            return
        self._add(entry, content, {})

    def _add_sparse(self, entry: Entry, content: Iterable[bytes | memoryview]) -> None:
        assert entry.sparse is not None
        numbers = [len(entry.sparse), *(number for region in entry.sparse for number in region)]
        table = b"".join(b"%d\n" % number for number in numbers)
        table += _ZERO[: -len(table) % BLOCK]
        head, _, base = entry.name.rpartition("/")
        stored = Entry(
            f"{head + '/' if head else ''}GNUSparseFile.0/{base}",
            entry.type,
            entry.mode,
            entry.uid,
            entry.gid,
            len(table) + sum(length for _, length in entry.sparse),
            entry.mtime,
            xattrs=entry.xattrs,
        )
        described = {
            "GNU.sparse.major": b"1",
            "GNU.sparse.minor": b"0",
            "GNU.sparse.name": entry.name.encode("utf-8", "surrogateescape"),
            "GNU.sparse.realsize": b"%d" % entry.size,
        }
        self._add(stored, chain((table,), content), described)

    def _add(self, entry: Entry, content: Iterable[bytes | memoryview], pax: dict[str, bytes]) -> None:
        size = self._head(entry, pax)
        written = 0
        for chunk in content:
            written += len(chunk)
            if written > size:
                break
            self._write(chunk if isinstance(chunk, bytes) else bytes(chunk))
        if written != size:
            raise TarError(f"archive/tar: {entry.name!r} is not {size} bytes long")
        if size % BLOCK:
            self._write(_ZERO[: -size % BLOCK])

    def head(self, entry: Entry) -> int:
        """Writes what stands before an entry's content and returns how long that must be.

        The caller goes on with it, and with zeros up to a multiple of BLOCK.
        """
        return self._head(entry, {})

    def _head(self, entry: Entry, pax: dict[str, bytes]) -> int:
        name = entry.name
        if entry.type == DIRECTORY and not name.endswith("/"):
            name += "/"
        size = entry.size if entry.type == REGULAR else 0
        seconds = entry.mtime // 1_000_000_000
        raw = name.encode("utf-8", "surrogateescape")
        prefix, short = _split_name(raw)
        if short is None:
            pax["path"] = raw
            prefix, short = b"", _ascii(raw)[:100]
        link = entry.linkname.encode("utf-8", "surrogateescape")
        if len(link) > 100 or not link.isascii():
            pax["linkpath"] = link
            link = _ascii(link)[:100]
        for key, value, limit in (
            ("uid", entry.uid, 7),
            ("gid", entry.gid, 7),
            ("size", size, 11),
            ("mtime", seconds, 11),
        ):
            if not 0 <= value < 1 << (3 * limit):
                pax[key] = b"%d" % value
        for attribute, data in entry.xattrs.items():
            pax[XATTR_PREFIX + attribute] = data
        if pax:
            self._pax(name, pax)
        self._write(
            _header(
                short,
                entry.mode,
                entry.uid,
                entry.gid,
                size,
                seconds,
                entry.type,
                link,
                entry.major,
                entry.minor,
                prefix,
            )
        )
        return size

    def _pax(self, name: str, records: dict[str, bytes]) -> None:
        data = b"".join(
            _pax_record(key.encode("utf-8", "surrogateescape"), records[key]) for key in sorted(records)
        )
        if len(data) > _MAX_SPECIAL:
            raise TarError(f"archive/tar: attributes of {name!r} are too long")
        head, _, base = name.rstrip("/").rpartition("/")
        path = _ascii(f"{head + '/' if head else ''}PaxHeaders.0/{base}".encode("utf-8", "surrogateescape"))
        self._write(_header(path[:100], 0, 0, 0, len(data), 0, "x", b"", 0, 0, b""))
        self._write(data + _ZERO[: -len(data) % BLOCK])

    def close(self) -> None:
        """Writes the end of the archive: two zero blocks."""
        self._write(_ZERO + _ZERO)


def _ascii(raw: bytes) -> bytes:
    return bytes(b for b in raw if b < 128)


def _split_name(raw: bytes) -> tuple[bytes, bytes | None]:
    """ustar's prefix and name; the name is None when the path fits neither."""
    if not raw.isascii():
        return b"", None
    if len(raw) <= 100:
        return b"", raw
    cut = raw.rfind(b"/", 0, min(len(raw) - 1, 156))
    if cut <= 0 or len(raw) - cut - 1 > 100:
        return b"", None
    return raw[:cut], raw[cut + 1 :]


def _pax_record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    size = length + len(str(length))
    if len(str(size)) > len(str(length)):
        size += 1
    return b"%d %s=%s\n" % (size, key, value)


def _octal(value: int, digits: int) -> bytes:
    return (b"%0*o" % (digits, value) if 0 <= value < 1 << (3 * digits) else b"0" * digits) + b"\0"


def _header(
    name: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    type: str,
    link: bytes,
    major: int,
    minor: int,
    prefix: bytes,
) -> bytes:
    block = bytearray(
        _HEADER.pack(
            name,
            _octal(mode, 7),
            _octal(uid, 7),
            _octal(gid, 7),
            _octal(size, 11),
            _octal(mtime, 11),
            b" " * 8,
            type.encode("ascii"),
            link,
            b"ustar\x0000",
            b"",
            b"",
            _octal(major, 7),
            _octal(minor, 7),
            prefix,
        )
    )
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)
