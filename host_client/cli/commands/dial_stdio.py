"""`system dial-stdio`: what an `ssh://` client runs on the engine's machine."""

from __future__ import annotations

import os
import threading

from host_client.cli import output
from host_client.cli.flags import Command
from host_client.engine_api.http import Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session

CHUNK = 128 * 1024


def _to_engine(stream: Any) -> None:
    try:
        while data := os.read(0, CHUNK):
            stream.sendall(data)
        if hasattr(stream, "close_write"):
            stream.close_write()
        else:
            import _socket

            stream.shutdown(_socket.SHUT_WR)
    except OSError:
        pass  # the engine has closed the connection: the other direction ends the command


def dial(session: Session, parsed: Parsed) -> int:
    """`wherry system dial-stdio`."""
    stream = Connection(session.client.endpoint).stream
    threading.Thread(target=_to_engine, args=(stream,), daemon=True).start()
    try:
        while data := stream.recv(CHUNK):
            output.write_bytes(output.OUT, data)
    except ConnectionResetError:
        pass
    return 0


DIAL = Command(
    "",
    dial,
    detail="It ends when the engine closes the connection.",
    examples=(("ssh me@server wherry system dial-stdio", "what DOCKER_HOST=ssh://me@server runs"),),
)
