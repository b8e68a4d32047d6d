"""The streams of one process, in the monitor: from its pipes or terminal to the log and to attached clients.

Output is read only while every attached client keeps up: a slow client slows the process, and nothing is
lost.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

from .attachment import CHUNK, Client
from .loop import READ, WRITE, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .jsonlog import JsonLog

_EXIT_SECONDS = 0.1
_CLIENT_LIMIT = 256 * 1024  # what may be queued for a client before the process has to wait
_STREAMS = {"stdout": 1, "stderr": 2}


class Streams:
    """Owns the monitor's ends of a process's streams, its log and its clients.

    `on_end` is called once, when all output has ended and is logged.
    """

    def __init__(self, loop: Loop, tty: bool, stdin_once: bool, log: JsonLog | None) -> None:
        self._loop = loop
        self.tty = tty
        self._stdin_once = stdin_once
        self._log = log
        self.input = Input(loop, self._input_moved)
        self._outputs: dict[int, str] = {}
        self._clients: list[Client] = []
        self._paused = False
        self.ended = False
        self.on_end: Callable[[], None] | None = None

    def start(self, stdin: int, stdout: int, stderr: int) -> None:
        """Takes the descriptors over (-1: none) and begins to read."""
        self._read_from(stdout, "stdout")
        self._read_from(stderr, "stderr")
        if stdin >= 0:
            self.input.open(stdin)
        else:
            self.input.close()

    def start_terminal(self, master: int) -> None:
        """Takes the master over: all output comes from it, input goes to a duplicate of it."""
        self.input.open(os.dup(master))
        self._read_from(master, "stdout")

    def _read_from(self, fd: int, name: str) -> None:
        os.set_blocking(fd, False)
        self._outputs[fd] = name
        if not self._paused:
            self._watch(fd)

    def _watch(self, fd: int) -> None:
        self._loop.add(fd, READ, lambda events: self._readable(fd))

    def attach(self, spec: dict[str, Any], fd: int) -> None:
        """Adds a client; `fd` is a connected stream socket, owned from now on."""
        client = Client(self, self._loop, fd, spec)
        if self.ended:
            client.finish()
        else:
            self._clients.append(client)

    def detach(self, client: Client) -> None:
        """A client is no longer to be fed; it may have gone already."""
        if client in self._clients:
            self._clients.remove(client)
            self.balance()

    def client_input_ended(self, client: Client) -> None:
        """A client sends no more: the end of the process's input, or of the attachment, as in dockerd."""
        if self.tty:
            return
        if self._stdin_once:
            self.input.end()
        else:
            self.detach(client)
            client.finish()

    def _readable(self, fd: int) -> None:
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return
        except OSError:  # EIO: a terminal nobody has open any more
            data = b""
        if data:
            self._deliver(self._outputs[fd], data)
        else:
            self._end_output(fd)

    def _deliver(self, name: str, data: bytes) -> None:
        if self._log:
            self._log.write(name, data)
        if not self._clients:
            return
        frame = struct.pack(">BxxxL", _STREAMS[name], len(data)) + data
        for client in list(self._clients):
            if client.wants(name):
                client.send(frame if client.framed else data)
        self.balance()

    def balance(self) -> None:
        """Stops or resumes reading as the slowest client has it."""
        full = any(client.queued > _CLIENT_LIMIT for client in self._clients)
        if full == self._paused:
            return
        self._paused = full
        for fd in self._outputs:
            # Not merely "no events": epoll would go on reporting a hang-up.
            if full:
                self._loop.remove(fd)
            else:
                self._watch(fd)

    def _end_output(self, fd: int) -> None:
        name = self._outputs.pop(fd)
        self._loop.remove(fd)
        os.close(fd)
        if self._log:
            self._log.end(name)
        if not self._outputs:
            self._end()

    def _end(self) -> None:
        if self.ended:
            return
        self.ended = True
        self.input.close()
        if self._log:
            self._log.close()
        if self.on_end:
            self.on_end()
        else:
            # A process that ends closes its streams a moment before it is gone. A client that was told of the
            # end already would ask for the exit code too early.
            self._loop.later(_EXIT_SECONDS, self.let_go)

    def let_go(self) -> None:
        """Tells the clients that the output has ended: once the exit is known, or the process goes on
        without streams.
        """
        clients, self._clients = self._clients, []
        for client in clients:
            client.finish()

    def reject(self) -> None:
        """The process could not be started: closes the clients' sockets without shutting them down, for
        whoever asked for it may still want to tell them why.
        """
        clients, self._clients = self._clients, []
        for client in clients:
            client.drop()
        self.abandon()

    def drain(self) -> None:
        """The process is gone: takes what is left in its pipes, at whatever pace clients have.

        That ends the streams, unless another process has the pipes open still.
        """
        for fd in list(self._outputs):
            while fd in self._outputs:
                try:
                    data = os.read(fd, CHUNK)
                except BlockingIOError:
                    break
                except OSError:
                    data = b""
                if data:
                    self._deliver(self._outputs[fd], data)
                else:
                    self._end_output(fd)

    def abandon(self) -> None:
        """Ends all output now, whoever else has the pipes open."""
        self.drain()
        for fd in list(self._outputs):
            self._end_output(fd)
        self._end()

    def _input_moved(self) -> None:
        for client in self._clients:
            client.update()


class Input:
    """The way into a process. What does not fit its pipe waits here, and the clients it comes from wait
    too.
    """

    def __init__(self, loop: Loop, on_change: Callable[[], None]) -> None:
        self._loop = loop
        self._on_change = on_change  # `blocked` has changed
        self.fd = -1
        self._pending = bytearray()
        self._ending = False
        self._closed = False
        self.blocked = False

    def open(self, fd: int) -> None:
        """Takes the pipe or the terminal over, and sends what has come already."""
        os.set_blocking(fd, False)
        self.fd = fd
        self._flush()

    def feed(self, data: bytes) -> None:
        """Takes input; drops it when the process takes no more."""
        if self._closed or self._ending:
            return
        self._pending += data
        if not self.blocked:
            self._flush()

    def end(self) -> None:
        """No more input: closes when what is pending is through."""
        self._ending = True
        if self.fd >= 0 and not self.blocked:
            self._flush()

    def close(self) -> None:
        """Closes at once."""
        self._closed = True
        self._pending.clear()
        self._set_blocked(False)
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _flush(self) -> None:
        if self.fd < 0:
            self._set_blocked(bool(self._pending))  # not started yet
            return
        try:
            while self._pending:
                written = os.write(self.fd, self._pending[:CHUNK])
                del self._pending[:written]
        except BlockingIOError:
            self._set_blocked(True)
            return
        except OSError:  # EPIPE: the process has closed its end
            self._pending.clear()
        self._set_blocked(False)
        if self._ending:
            self.close()

    def _set_blocked(self, blocked: bool) -> None:
        if blocked == self.blocked:
            return
        self.blocked = blocked
        if self.fd >= 0:
            if blocked:
                self._loop.add(self.fd, WRITE, lambda events: self._flush())
            else:
                self._loop.remove(self.fd)
        self._on_change()
