"""One attached client of a process, in the monitor."""

from __future__ import annotations

from _socket import MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR, socket
from collections import deque

from .loop import ERROR, HANGUP, READ, WRITE, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .stdio import Streams

CHUNK = 32 * 1024  # also the longest frame: some clients cannot take more at once
_LINGER_SECONDS = 10.0


class Client:
    """Owns a client's socket: input from it to the process, output to it, each at the pace of the other
    side.
    """

    def __init__(self, streams: Streams, loop: Loop, fd: int, spec: dict[str, Any]) -> None:
        self._streams = streams
        self._loop = loop
        self._socket = socket(fileno=fd)
        self._fd = fd
        self._reading = bool(spec["stdin"])
        self._wanted = {name for name in ("stdout", "stderr") if spec[name]}
        self.framed = bool(spec.get("framed", not streams.tty))
        self._queue: deque[memoryview] = deque()
        self.queued = 0  # bytes
        self._finishing = False
        self._lingering = False
        self._events = READ if self._reading else 0
        loop.add(fd, self._events, self._ready)

    def wants(self, stream: str) -> bool:
        """Whether the client is to have this output."""
        return stream in self._wanted

    def send(self, data: bytes) -> None:
        """Sends now what the socket takes, the rest when it can."""
        self._queue.append(memoryview(data))
        self.queued += len(data)
        if len(self._queue) == 1:
            self._flush()

    def finish(self) -> None:
        """No more output will come: shuts down when what is queued has been sent. Forgotten by the
        streams.
        """
        self._finishing = True
        if not self._queue:
            self._shut_down()

    def drop(self) -> None:
        """Closes the socket, and nothing else: the connection lives on in other descriptors."""
        self._close()

    def update(self) -> None:
        """Watches for what is to be done now."""
        if self._fd < 0:
            return
        blocked = self._streams.input.blocked and not self._lingering
        events = (READ if self._reading and not blocked else 0) | (WRITE if self._queue else 0)
        if events != self._events:
            self._events = events
            self._loop.modify(self._fd, events)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
            self._streams.balance()
        if self._fd >= 0 and events & READ:
            self._receive()
        elif self._fd >= 0 and events & (HANGUP | ERROR):
            self._gone()

    def _flush(self) -> None:
        try:
            while self._queue:
                sent = self._socket.send(self._queue[0], MSG_DONTWAIT | MSG_NOSIGNAL)
                self.queued -= sent
                if sent == len(self._queue[0]):
                    self._queue.popleft()
                else:
                    self._queue[0] = self._queue[0][sent:]
        except BlockingIOError:
            pass
        except OSError:  # EPIPE, ECONNRESET: the client has left
            self._gone()
            return
        if self._finishing and not self._queue:
            self._shut_down()
        else:
            self.update()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(CHUNK, MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            self._gone()
            return
        if self._lingering:
            if not data:
                self._close()
        elif data:
            self._streams.input.feed(data)
        else:
            self._input_ended()

    def _input_ended(self) -> None:
        self._reading = False
        self.update()
        self._streams.client_input_ended(self)

    def _gone(self) -> None:
        if self._reading and not self._lingering:
            self._reading = False
            self._finishing = True
            self._streams.client_input_ended(self)
        self._close()

    def _shut_down(self) -> None:
        try:
            self._socket.shutdown(SHUT_WR)
        except OSError:
            self._close()
            return
        if self._reading:
            # Closing with unread input would reset the connection and could cost the client the last output.
            self._lingering = True
            self.update()
            self._loop.later(_LINGER_SECONDS, self._close)
        else:
            self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            self._loop.remove(self._fd)
            self._fd = -1
            self._socket.close()
        self._queue.clear()
        self.queued = 0
        self._streams.detach(self)
