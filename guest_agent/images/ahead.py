"""Reading ahead in a thread, so that inflating and hashing overlap with writing files."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import Self

from guest_agent.images.decompress import Read

_PIECES = 4  # of about a megabyte


class Ahead:
    """A stream that another thread reads, a few pieces ahead of `read`. Use as a context."""

    def __init__(self, source: Read, size: int) -> None:
        self._source = source
        self._size = size
        self._room = threading.Semaphore(_PIECES)
        self._pieces: SimpleQueue[bytes | BaseException] = SimpleQueue()
        self._stopped = False
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="images-ahead", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped = True
        self._room.release()
        self._thread.join()

    def _run(self) -> None:
        try:
            data = b"first"
            while data:
                self._room.acquire()
                if self._stopped:
                    return
                data = self._source(self._size)
                self._pieces.put(data)
        except BaseException as e:
            self._pieces.put(e)

    def read(self, size: int) -> bytes:
        """The next piece, none at the end; raises what the source raised."""
        if self._ended:
            return b""
        piece = self._pieces.get()
        self._room.release()
        if isinstance(piece, BaseException):
            self._ended = True
            raise piece
        self._ended = not piece
        return piece
