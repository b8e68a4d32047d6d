"""Downloading one blob to the content store, with whoever unpacks it reading right behind.

The downloader writes to a file at the network's speed; readers follow in the file, so a slow unpacker
never stalls a connection into a timeout. A cut connection is taken up where it stopped (Range).
Readers see the end only when the digest is right, so nothing is kept of a blob that is not what it should be.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from guest_agent.errors import EngineError, InternalError, Unavailable
from guest_agent.images.content import BlobStore, BlobWriter
from guest_agent.images.manifest import Descriptor
from guest_agent.images.registry import Cancelled, RegistryError, Unreachable
from guest_agent.images.repository import Repository

_GIVE_UP_AFTER = 5  # cuts in a row that brought not a byte


class Download:
    """One blob on its way: `run` in one thread, `read_at` in others."""

    def __init__(self, content: BlobStore, blob: Descriptor, sources: Sequence[Repository]) -> None:
        self.blob = blob
        self.done = 0  # bytes that are here
        self.finished = False  # verified, and in the store
        self._content = content
        self._sources = list(sources)
        self._condition = threading.Condition()
        self._error: EngineError | None = None
        self._fd = -1
        self._readers = 0

    def cancel(self) -> None:
        """Ends the download; readers get Cancelled."""
        self._fail(Cancelled("cancelled"))

    def run(self) -> None:
        """Downloads, verifies and stores the blob; what goes wrong is for the readers."""
        try:
            with self._content.writer(self.blob.digest) as writer:
                with self._condition:
                    if not self._readers:
                        return
                    self._fd = os.dup(writer.fd)
                failures = 0
                while writer.size < self.blob.size:
                    before = writer.size
                    try:
                        self._fetch(writer)
                    except Unreachable as e:
                        failures = 1 if writer.size > before else failures + 1
                        if failures >= _GIVE_UP_AFTER or not e.passing:
                            raise
                        if self._wait(0.1 * 2**failures):
                            return
                with self._condition:
                    if self._error is not None:
                        return
                    writer.commit(self.blob.digest)
                    self.finished = True
                    self._condition.notify_all()
        except EngineError as e:
            self._fail(e)
        except OSError as e:
            self._fail(Unavailable(f"download of {self.blob.digest}: {(e.strerror or str(e)).lower()}"))
        except BaseException as e:
            self._fail(InternalError(f"download of {self.blob.digest}: {type(e).__name__}: {e}"))
            raise

    def _fetch(self, writer: BlobWriter) -> None:
        """Gets what is missing from the first source that has it; Unreachable when the connection is cut."""
        for index, source in enumerate(self._sources):
            try:
                for chunk in source.blob(self.blob.digest, writer.size):
                    if writer.size + len(chunk) > self.blob.size:
                        raise InternalError(
                            f"blob {self.blob.digest} is longer than the {self.blob.size} bytes that its "
                            "manifest says"
                        )
                    writer.write(chunk)
                    with self._condition:
                        if self._error is not None:
                            raise self._error
                        self.done = writer.size
                        self._condition.notify_all()
                return
            except (RegistryError, Unreachable) as e:
                if index + 1 == len(self._sources) or (isinstance(e, Unreachable) and e.passing):
                    raise

    def _wait(self, seconds: float) -> bool:
        with self._condition:
            return self._condition.wait_for(lambda: self._error is not None, seconds)

    def _fail(self, error: EngineError) -> None:
        with self._condition:
            if not self.finished and self._error is None:
                self._error = error
            self._condition.notify_all()

    def read_at(self, position: int, size: int) -> bytes:
        """Up to `size` bytes from `position`, waiting for them; none at the end of the verified blob.

        Raises what the download failed with.
        """
        with self._condition:
            while self.done <= position and not self.finished:
                if self._error is not None:
                    raise self._error
                self._condition.wait()
            if self._error is not None:
                raise self._error
            size = min(size, self.done - position)
        return os.pread(self._fd, size, position) if size > 0 else b""

    def open_reader(self) -> None:
        """Counts somebody who is going to read; `close_reader` ends that."""
        with self._condition:
            self._readers += 1

    def close_reader(self) -> None:
        """The last one to leave ends the download's own use of the file."""
        with self._condition:
            self._readers -= 1
            if not self._readers and self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
