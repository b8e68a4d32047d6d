"""From a layer's blob to a staged directory: inflate, hash and extract in one pass."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from guest_agent.errors import InternalError
from guest_agent.images.ahead import Ahead
from guest_agent.images.decompress import Decompressed, Read
from guest_agent.images.extract import LIMITS, Limits
from guest_agent.images.layer import LayerExtractor
from guest_agent.images.snapshots import Snapshots
from guest_agent.images.tar import TarReader
from guest_agent.kernel.paths import RootFd

_PIECE = 1 << 20
SMALL = 1 << 18  # bytes of a blob


class StagedLayer:
    """A layer extracted into a staging directory. `commit` makes it a snapshot.

    Leaving the context drops it.
    """

    def __init__(self, snapshots: Snapshots, base: bool, limits: Limits = LIMITS) -> None:
        self._snapshots = snapshots
        self.path = snapshots.stage()
        self._root = RootFd.at(self.path)
        self._extractor = LayerExtractor(self._root, base, limits)
        self._committed = False
        self.diff_id = ""
        self.compression = ""

    def __enter__(self) -> StagedLayer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases the descriptors, and the directory unless it has been committed."""
        self._extractor.__exit__()
        self._root.close()
        if not self._committed:
            self._committed = True
            self._snapshots.discard(self.path)

    @property
    def size(self) -> int:
        """Bytes of content extracted."""
        return self._extractor.size

    def unpack(self, read: Read, expected: str = "", small: bool = False) -> None:
        """Extracts the (compressed) stream and computes its diff id; a `small` one is not worth a thread.

        Raises TarError, DiskFull, InternalError when the diff id is not `expected`.
        """
        digest = hashlib.sha256()
        stream = Decompressed(read)

        def hashed(size: int) -> bytes:
            data = stream.read(size)
            digest.update(data)
            return data

        if small:
            self._extract(hashed)
        else:
            with Ahead(hashed, _PIECE) as ahead:
                self._extract(ahead.read)
        self.compression = stream.kind
        self.diff_id = f"sha256:{digest.hexdigest()}"
        if expected and expected != self.diff_id:
            raise InternalError(
                f"layers from manifest don't match image configuration: {self.diff_id} is not {expected}",
                "The image is damaged or was tampered with; have it built again.",
            )

    def _extract(self, read: Read) -> None:
        reader = TarReader(read)
        for entry in reader:
            self._extractor.add(entry, reader)
        reader.drain()

    def commit(self, chain: str, below: Sequence[str]) -> None:
        """Makes this the layer `chain`, on top of the layers' directories `below` (topmost first)."""
        self._extractor.settle(below)
        self._snapshots.commit(self.path, chain)
        self._committed = True


def reading(fd: int) -> Read:
    """Reads a file from its start, whatever its offset."""
    position = 0

    def read(size: int) -> bytes:
        nonlocal position
        data = os.pread(fd, size, position)
        position += len(data)
        return data

    return read
