"""Opens what `--host` names: unix sockets, TCP with TLS, sockets handed over by systemd."""

from __future__ import annotations

import errno
import grp
import os
import socket
import stat
from collections.abc import Callable
from contextlib import ExitStack

from guest_agent.engine.config import Config
from guest_agent.errors import Conflict, InternalError, InvalidParameter

TLS_PORT = 2376
BACKLOG = 512

_SYSTEMD_FIRST = 3  # sd_listen_fds(3)
_MAX_PATH = 107  # unix(7)

Wrap = Callable[[socket.socket], socket.socket]  # an accepted connection → a plain stream


class Listener:
    """One listening socket; a unix socket's path is removed by `remove`."""

    def __init__(self, host: str, opened: socket.socket, wrap: Wrap | None = None, path: str = "") -> None:
        self.host = host
        self.socket = opened
        self.wrap = wrap
        self._path = path
        self._inode = os.stat(path).st_ino if path else 0

    def remove(self) -> None:
        """Removes a unix socket's path unless somebody else has taken it."""
        try:
            if self._path and os.stat(self._path).st_ino == self._inode:
                os.unlink(self._path)
        except FileNotFoundError:
            pass


def open_listeners(hosts: list[str], config: Config) -> list[Listener]:
    """Opens all hosts or none. Raises Conflict (in use), InvalidParameter, InternalError."""
    if config.tls and not config.tlsverify:
        raise InvalidParameter(
            "--tls without --tlsverify lets anybody in who reaches the API",
            hint="Give --tlsverify and --tlscacert, so that clients need a certificate.",
        )
    listeners: list[Listener] = []
    with ExitStack() as undo:
        for host in hosts:
            for listener in _open(host, config):
                listeners.append(listener)
                undo.callback(listener.socket.close)
                undo.callback(listener.remove)
        undo.pop_all()
    return listeners


def _open(host: str, config: Config) -> list[Listener]:
    scheme, separator, rest = host.partition("://")
    if not separator:
        scheme, rest = ("unix", host) if host.startswith("/") else ("tcp", host)
    if scheme == "unix":
        return [_open_unix(host, rest, group_id(config.group))]
    if scheme == "tcp":
        return [_open_tcp(host, rest, _tls(host, config))]
    if scheme == "fd":
        return _open_systemd(host, rest, config)
    raise InvalidParameter(
        f"invalid host {host!r}: unknown scheme {scheme!r}",
        hint="Use unix:///PATH, tcp://ADDRESS:PORT or fd://.",
    )


def group_id(name: str) -> int | None:
    """The id of a group given by name or number; None for "". Raises InvalidParameter."""
    if not name:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        if name.isdigit():
            return int(name)
        raise InvalidParameter(f"group {name} not found", hint=f"Create it with `groupadd {name}`.")


def _open_unix(host: str, path: str, group: int | None) -> Listener:
    if not path.startswith("/"):
        raise InvalidParameter(f"invalid host {host!r}: the path of a unix socket must be absolute")
    if len(os.fsencode(path)) > _MAX_PATH:
        raise InvalidParameter(f"the socket path {path} is longer than {_MAX_PATH} bytes, the kernel's limit")
    opened = socket.socket(socket.AF_UNIX)
    try:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        _remove_stale(path)
        # Never reachable by others, not even between bind and chmod.
        mask = os.umask(0o177)
        try:
            opened.bind(path)
        finally:
            os.umask(mask)
        if group is not None:
            os.chown(path, 0, group)
            os.chmod(path, 0o660)
        opened.listen(BACKLOG)
        return Listener(host, opened, path=path)
    except OSError as error:
        opened.close()
        raise InternalError(f"cannot listen on {host}: {error.strerror or error}")
    except BaseException:
        opened.close()
        raise


def _remove_stale(path: str) -> None:
    """Removes the socket of a process that is gone. Raises Conflict when one still listens."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise Conflict(f"cannot listen on unix://{path}: a file that is not a socket is in the way")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        answer = probe.connect_ex(path)
    if answer not in (errno.ECONNREFUSED, errno.ENOENT):
        raise Conflict(
            f"cannot listen on unix://{path}: another process is listening there",
            hint="Stop it, or choose another --host.",
        )
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _tls(host: str, config: Config) -> Wrap:
    if not (config.tlsverify and config.tlscacert and config.tlscert and config.tlskey):
        raise InvalidParameter(
            f"refusing to listen on {host} without TLS and clients' certificates: "
            "whoever reaches the API controls this machine",
            hint="Give --tlsverify, --tlscacert, --tlscert and --tlskey; or use unix:// and ssh.",
        )
    from guest_agent.api.tls import server_context, terminator

    return terminator(server_context(config.tlscacert, config.tlscert, config.tlskey))


def _open_tcp(host: str, rest: str, wrap: Wrap) -> Listener:
    address, colon, port_text = rest.rpartition(":")
    if not colon or port_text.endswith("]"):
        address, port_text = rest, str(TLS_PORT)
    address = address.removeprefix("[").removesuffix("]")
    if not port_text.isdigit() or int(port_text) > 65535:
        raise InvalidParameter(f"invalid host {host!r}: {port_text!r} is not a port")
    try:
        found = socket.getaddrinfo(
            address or None, int(port_text), 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE
        )
    except OSError as error:
        raise InvalidParameter(f"invalid host {host!r}: {error.strerror}")
    family, kind, protocol, _, resolved = found[0]
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(resolved)
        opened.listen(BACKLOG)
    except OSError as error:
        opened.close()
        if error.errno == errno.EADDRINUSE:
            raise Conflict(f"cannot listen on {host}: the port is taken")
        raise InternalError(f"cannot listen on {host}: {error.strerror}")
    return Listener(host, opened, wrap)


def _open_systemd(host: str, name: str, config: Config) -> list[Listener]:
    """`fd://` takes all sockets systemd passed, `fd://NAME` the ones of that FileDescriptorName."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdigit() or not int(count):
        raise InvalidParameter(
            f"no sockets found for {host}: systemd passed none to this process",
            hint="fd:// is for socket activation; start the engine from its .socket unit, or use unix://.",
        )
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    listeners = []
    for index in range(int(count)):
        if name and name not in names[index : index + 1]:
            continue
        fd = _SYSTEMD_FIRST + index
        os.set_inheritable(fd, False)
        opened = socket.socket(fileno=fd)
        wrap = None if opened.family == socket.AF_UNIX else _tls(host, config)
        listeners.append(Listener(host, opened, wrap))
    if not listeners:
        raise InvalidParameter(f"no socket named {name!r} was passed for {host}")
    return listeners
