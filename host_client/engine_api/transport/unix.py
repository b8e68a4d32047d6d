"""Unix domain sockets."""

from __future__ import annotations

import _socket

from host_client.engine_api.endpoint import Endpoint
from host_client.engine_api.errors import ConnectError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket


def connect(endpoint: Endpoint) -> socket:
    """A connected stream to the socket file of `endpoint`.

    Raises:
        ConnectError: with its own hint for absent, refused and forbidden.
    """
    path = endpoint.address
    if not hasattr(_socket, "AF_UNIX"):
        raise ConnectError(
            f"cannot connect to {endpoint.url}: this system's Python has no unix sockets",
            "use tcp://host:port",
        )
    stream = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        stream.connect(path)
    except FileNotFoundError:
        stream.close()
        raise ConnectError(
            f"cannot connect to the engine at {endpoint.url}: there is no such socket",
            "is the engine running? 'wherry engine status' tells, 'wherry engine serve' starts one",
            absent=True,
        )
    except ConnectionRefusedError:
        stream.close()
        raise ConnectError(
            f"cannot connect to the engine at {endpoint.url}: the socket is there, but nothing listens on it",
            "the engine has ended without removing it; start the engine again",
            absent=True,
        )
    except PermissionError:
        stream.close()
        raise ConnectError(
            f"permission denied while trying to connect to the engine at {endpoint.url}",
            f"run as root, or as a member of the group that owns the socket ('ls -l {path}' shows it)",
        )
    except OSError as error:
        stream.close()
        raise ConnectError(f"cannot connect to the engine at {endpoint.url}: {error.strerror or error}")
    return stream  # type: ignore[return-value]
