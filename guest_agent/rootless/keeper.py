"""The keeper: the part of a rootless engine that stays outside of its namespaces, with the user's own rights.

It maps the ids of the user namespace, holds the namespaces so that the next agent can join them while
containers run on, and is the parent of what leads the network out. It ends when neither an agent is
connected nor a monitor runs; the kernel then removes the namespaces.

Requests are messages of `runtime.protocol`, answered by `{"ok": …}` or `{"error": TEXT}`:

    map PID                     map the ids of that process's new user namespace;
                                `ok`: why there is one id only, or ""
    hold [user, mnt, net]       hold these namespaces
    uplink NAME USERNS NETNS    start pasta or slirp4netns for namespaces by their paths
    check                       `error` when that has ended
    facts FACTS                 what `join` answers
    join                        `ok`: the facts, with the three namespaces
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import struct
from typing import Any

from guest_agent.kernel import syscalls
from guest_agent.runtime import protocol

from . import ids, uplink

log = logging.getLogger(__name__)

_KEPT_LOG = 2
_CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7)


class KeeperError(Exception):
    """The keeper could not do what it was asked, or is gone."""


class Client:
    """A connection to the keeper. While one is open the keeper stays."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def ask(self, operation: str, fds: tuple[int, ...] = (), **words: Any) -> tuple[Any, list[int]]:
        """One request and its answer, with the descriptors that came. Raises KeeperError."""
        try:
            protocol.send(self._connection, {"op": operation, **words}, fds)
            received = protocol.receive(self._connection)
        except OSError as error:
            raise KeeperError(f"the keeper of the namespaces is gone: {error.strerror}") from error
        if received is None:
            raise KeeperError("the keeper of the namespaces is gone")
        message, got = received
        if "error" in message:
            raise KeeperError(message["error"])
        return message["ok"], got

    @property
    def pid(self) -> int:
        """The process id of a keeper that was found."""
        credentials = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return int(_CREDENTIALS.unpack(credentials)[0])

    def close(self) -> None:
        """Hangs up."""
        self._connection.close()


def find(path: str) -> Client | None:
    """The keeper that listens at `path`; None when there is none."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _directory_of(path) as name:
            connection.connect(name)
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    return Client(connection)


def fork(path: str, monitor_pid: str) -> Client:
    """Starts a keeper that listens at `path`; `monitor_pid` is the file with the monitor's process id."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        code = 1
        try:
            ours.close()
            _detach(theirs.fileno())
            _Keeper(path, monitor_pid, theirs).run()
            code = 0
        except BaseException:
            log.exception("the keeper of the namespaces failed")
        finally:
            os._exit(code)
    theirs.close()
    os.wait()  # for the first of two: the keeper is nobody's child
    return Client(ours)


def _detach(connection: int) -> None:
    if os.fork():
        os._exit(0)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    syscalls.close_range(_KEPT_LOG + 1, connection - 1)
    syscalls.close_range(connection + 1)
    os.chdir("/")
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)


class _directory_of:
    """A name for a socket's path that fits its address however long the path is."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> str:
        self._fd = os.open(os.path.dirname(self._path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._fd}/{os.path.basename(self._path)}"

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)


class _Keeper:
    def __init__(self, path: str, monitor_pid: str, first: socket.socket) -> None:
        self._path = path
        self._monitor_pid = monitor_pid
        self._namespaces: list[int] = []
        self._uplink: uplink.Uplink | None = None
        self._facts: dict[str, Any] = {}
        self._poll = select.poll()
        self._clients: dict[int, socket.socket] = {}
        self._add(first)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        with _directory_of(path) as name:
            self._listener.bind(name)
        os.chmod(path, 0o600)
        self._listener.listen(4)
        self._poll.register(self._listener, select.POLLIN)

    def _add(self, connection: socket.socket) -> None:
        self._clients[connection.fileno()] = connection
        self._poll.register(connection, select.POLLIN)

    def run(self) -> None:
        """Serves until nobody needs the namespaces."""
        try:
            while self._clients or self._wait_for_monitor():
                for fd, _ in self._poll.poll():
                    if fd == self._listener.fileno():
                        self._accept()
                    elif fd in self._clients:
                        self._serve(self._clients[fd])
        finally:
            os.unlink(self._path)
            if self._uplink is not None:
                self._uplink.close()

    def _wait_for_monitor(self) -> bool:
        """Without an agent: waits for the next one, or for the monitor's end; False when that has come."""
        try:
            with open(self._monitor_pid, encoding="ascii") as file:
                monitor = os.pidfd_open(int(file.read()))
        except (OSError, ValueError):
            return False
        waiter = select.poll()
        waiter.register(monitor, select.POLLIN)
        waiter.register(self._listener, select.POLLIN)
        try:
            return self._listener.fileno() in [fd for fd, _ in waiter.poll()]
        finally:
            os.close(monitor)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, _ = _CREDENTIALS.unpack(credentials)
        if uid == os.getuid():
            self._add(connection)
        else:
            connection.close()

    def _serve(self, connection: socket.socket) -> None:
        try:
            received = protocol.receive(connection)
        except (OSError, ValueError):
            received = None
        if received is None:
            self._poll.unregister(connection)
            del self._clients[connection.fileno()]
            connection.close()
            return
        message, fds = received
        try:
            answer, sent = self._answer(message, fds)
            protocol.send(connection, {"ok": answer}, sent)
        except (OSError, KeyError) as error:
            text = error.strerror if isinstance(error, OSError) else repr(error)
            try:
                protocol.send(connection, {"error": text or str(error)})
            except OSError:
                pass  # it has gone

    def _answer(self, message: dict[str, Any], fds: list[int]) -> tuple[Any, list[int]]:
        match message["op"]:
            case "map":
                return ids.write_maps(int(message["pid"])), []
            case "hold":
                self._namespaces = fds
                return None, []
            case "uplink":
                if self._uplink is not None:
                    self._uplink.close()
                self._uplink = uplink.start(message["name"], message["userns"], message["netns"])
                return None, []
            case "check":
                if self._uplink is not None:
                    self._uplink.check()
                return None, []
            case "facts":
                self._facts = message["facts"]
                return None, []
            case "join":
                return self._facts, self._namespaces
        raise KeyError(message["op"])
