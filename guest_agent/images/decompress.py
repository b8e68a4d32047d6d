"""Decompressing streams as they come: gzip, zstd, bzip2, xz or plain, told apart by their first bytes.

The media type is not asked: dockerd looks at the bytes, too, and registries hold layers with the wrong label.
All of these release the GIL while they work.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from guest_agent.errors import EngineError
from guest_agent.images.tar import TarError

Read = Callable[[int], bytes]  # up to n bytes, none at the end

_DAMAGED = "The archive is damaged or cut short; fetch or make it again."
_IN = 1 << 18
_OUT = 1 << 20
_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
)
# A layer of zeros legitimately comes to gzip's own maximum, about 1030 to 1, so a ratio says nothing before
# the result is large.
BOMB_SIZE = 8 << 30
BOMB_RATIO = 400


def kind_of(head: bytes) -> str:
    """The compression of a stream that starts with `head` (6 bytes at least): "" for none."""
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50:
        return "zstd"  # a skippable frame comes first
    return ""


def _decompressor(kind: str) -> Any:
    """An object with the interface of bz2.BZ2Decompressor."""
    if kind == "gzip":
        from isal import igzip_lib

        return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    if kind == "zstd":
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
        return zstd.ZstdDecompressor()
    if kind == "bzip2":
        import bz2

        return bz2.BZ2Decompressor()
    import lzma

    return lzma.LZMADecompressor(memlimit=256 << 20)


class Decompressed:
    """The decompressed bytes of a stream; `read` has the shape of what it is made from."""

    def __init__(self, source: Read) -> None:
        self._source = source
        self._head = b""
        while len(self._head) < 6 and (chunk := source(_IN)):
            self._head += chunk
        self.kind = kind_of(self._head)
        self._engine: Any = _decompressor(self.kind) if self.kind else None
        self._taken = 0
        self._given = 0

    def read(self, size: int) -> bytes:
        """Some decompressed bytes, none at the end. TarError when the stream is damaged or a bomb."""
        if self._engine is None:
            return self._input(size)
        try:
            out = self._inflate()
        except EngineError:
            raise  # the source's, such as a cut connection
        except Exception as e:  # each library has its own class for bad data
            raise TarError(f"{self.kind}: invalid data: {e}", _DAMAGED) from e
        self._given += len(out)
        if self._given > BOMB_SIZE and self._given > BOMB_RATIO * self._taken:
            raise TarError(
                f"{self.kind}: {self._taken} bytes decompress to more than {self._given}, "
                "which is taken for a decompression bomb",
                "If the archive is wanted, make it with less padding.",
            )
        return out

    def _input(self, size: int) -> bytes:
        data, self._head = self._head, b""
        return data or self._source(size)

    def _inflate(self) -> bytes:
        while True:
            data = b""
            if self._engine.eof:
                data = self._engine.unused_data or self._input(_IN)
                while data and not data.strip(b"\0"):
                    data = self._input(_IN)  # padding behind the last member, as tapes and dd leave it
                if not data:
                    return b""
                self._engine = _decompressor(self.kind)
            elif self._engine.needs_input:
                data = self._input(_IN)
                if not data:
                    raise TarError(f"{self.kind}: unexpected EOF", _DAMAGED)
            self._taken += len(data)
            out: bytes = self._engine.decompress(data, _OUT)
            if out:
                return out
