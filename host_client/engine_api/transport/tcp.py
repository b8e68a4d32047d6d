"""TCP, plain or with TLS."""

from __future__ import annotations

import _socket

from host_client.engine_api.endpoint import Endpoint
from host_client.engine_api.errors import ConnectError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket


def connect(endpoint: Endpoint) -> socket:
    """A connected stream to the host and port of `endpoint`, inside TLS when it says so.

    Raises:
        ConnectError: name not resolved, refused, unreachable, or no trust either way.
    """
    if endpoint.tls is not None:
        from host_client.engine_api.transport import tls

        return tls.connect(endpoint)  # type: ignore[return-value]
    where = f"{endpoint.address}:{endpoint.port}"
    try:
        found = _socket.getaddrinfo(endpoint.address, endpoint.port, 0, _socket.SOCK_STREAM)
    except OSError as error:
        raise ConnectError(
            f"cannot connect to the engine at {where}: {error.strerror or error}", "check the host name"
        )
    last: OSError | None = None
    for family, kind, protocol, _name, address in found:
        stream = _socket.socket(family, kind, protocol)
        try:
            stream.connect(address)
            stream.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        except OSError as error:
            stream.close()
            last = error
            continue
        return stream  # type: ignore[return-value]
    raise ConnectError(
        f"cannot connect to the engine at {where}: {last.strerror if last else 'no address'}",
        "is an engine listening there, and does a firewall let you through?",
        absent=True,
    )
