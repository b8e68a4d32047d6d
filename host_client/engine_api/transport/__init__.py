"""Byte streams to an engine, one module per kind; each is imported when an endpoint of its kind is used.

A stream is a connected socket object with `sendall`, `recv`, `recv_into`, `shutdown`, `fileno` and `close`.
The plain ones are `_socket.socket`: the C type below `socket.socket`, without the 5 ms that `import socket`
costs.
"""

from __future__ import annotations

from host_client.engine_api.endpoint import Endpoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket


def connect(endpoint: Endpoint) -> socket:
    """A connected stream to the engine.

    Raises:
        ConnectError: says what is in the way and what to do about it.
    """
    if endpoint.scheme == "unix":
        from host_client.engine_api.transport import unix

        return unix.connect(endpoint)
    if endpoint.scheme == "tcp":
        from host_client.engine_api.transport import tcp

        return tcp.connect(endpoint)
    if endpoint.scheme == "ssh":
        from host_client.engine_api.transport import ssh

        return ssh.connect(endpoint)
    from host_client.engine_api.transport import npipe

    return npipe.connect(endpoint)
