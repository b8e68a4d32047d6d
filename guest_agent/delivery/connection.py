"""Sockets to those who receive logs. Blocking; used in threads of the sender. Errors are OSError."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

    from guest_agent.delivery.addresses import Address

CONNECT_SECONDS = 5.0
SEND_SECONDS = 30.0  # a receiver that takes nothing for so long is asked anew


def dial(
    address: Address, context: ssl.SSLContext | None = None, timeout: float = SEND_SECONDS
) -> socket.socket:
    """A connected socket, closed on exec; `context` for TLS. Raises OSError with the words of Go's dialer."""
    scheme, host, port = address
    if scheme in ("unix", "unixgram"):
        kind = socket.SOCK_STREAM if scheme == "unix" else socket.SOCK_DGRAM
        sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(timeout)
            sock.connect(host)
        except OSError as error:
            sock.close()
            raise _named(error, f"dial {scheme} {host}")
        return sock
    kind = socket.SOCK_DGRAM if scheme == "udp" else socket.SOCK_STREAM
    where = f"dial {'udp' if scheme == 'udp' else 'tcp'} {f'[{host}]' if ':' in host else host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=kind)
    except socket.gaierror as error:
        raise OSError(errno.EHOSTUNREACH, f"{where}: lookup {host}: {error.strerror}")
    failure: OSError | None = None
    for family, type_, protocol, _, place in found:
        sock = socket.socket(family, type_ | socket.SOCK_CLOEXEC, protocol)
        try:
            sock.settimeout(CONNECT_SECONDS)
            sock.connect(place)
            if context is not None:
                sock = context.wrap_socket(sock, server_hostname=host)
            sock.settimeout(timeout)
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return sock
        except OSError as error:
            sock.close()
            failure = error
    assert failure is not None
    raise _named(failure, where)


def _named(error: OSError, where: str) -> OSError:
    if isinstance(error, TimeoutError):
        return OSError(errno.ETIMEDOUT, f"{where}: i/o timeout")
    reason = os.strerror(error.errno).lower() if error.errno and error.errno > 0 else str(error)
    return OSError(error.errno or errno.EIO, f"{where}: connect: {reason}")


def hung_up(sock: socket.socket) -> bool:
    """Whether the other end of a stream has closed it: what is written then is lost without an error.

    Receivers of logs say nothing; whatever one does say is dropped.
    """
    timeout = sock.gettimeout()
    sock.settimeout(0)
    try:
        while data := sock.recv(4096):
            del data
        return True
    except (BlockingIOError, InterruptedError):
        return False
    except OSError as error:
        return not _wants_more(error)
    finally:
        sock.settimeout(timeout)


def _wants_more(error: OSError) -> bool:
    """TLS has a word of its own for "nothing yet"."""
    return type(error).__name__ in ("SSLWantReadError", "SSLWantWriteError")
