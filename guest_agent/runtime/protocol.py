"""Messages between agent and monitor: one JSON object a datagram on a SEQPACKET socket, descriptors beside
it.

What does not fit a datagram goes in a memfd, which is then the first descriptor.

Requests carry `op` and `seq`; the answer repeats `seq` with `ok` or with `error` (`kind`, and for kind
"launch" `stage`, `errno`, `text`). Events carry `event` and no `seq`. The words are stable: an agent may
meet a monitor of another version.
"""

from __future__ import annotations

import json
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any

VERSION = 1
_INLINE = 60_000  # well below the default send buffer
_MAX_FDS = 250  # SCM_MAX_FD is 253
_BUFFER = 1 << 16
_SOL_SOCKET, _SCM_RIGHTS, _MSG_CMSG_CLOEXEC = 1, 1, 0x40000000
_ANCILLARY = (_MAX_FDS + 1) * 4 + 64

Message = dict[str, "Any"]


def send(sock: socket, message: Message, fds: list[int] | tuple[int, ...] = (), flags: int = 0) -> None:
    """Sends a message; the descriptors stay the caller's. BlockingIOError on a full non-blocking socket."""
    if len(fds) > _MAX_FDS:
        raise ValueError(f"too many descriptors in one message: {len(fds)}")
    payload = json.dumps(message, separators=(",", ":")).encode()
    if len(payload) <= _INLINE:
        _send(sock, b"J" + payload, fds, flags)
        return
    memfd = os.memfd_create("message", os.MFD_CLOEXEC)
    try:
        view = memoryview(payload)
        while view:
            view = view[os.write(memfd, view) :]
        _send(sock, b"M", [memfd, *fds], flags)
    finally:
        os.close(memfd)


def _send(sock: socket, payload: bytes, fds: list[int] | tuple[int, ...], flags: int) -> None:
    rights = [(_SOL_SOCKET, _SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
    sock.sendmsg([payload], rights, flags)


def receive(sock: socket, flags: int = 0) -> tuple[Message, list[int]] | None:
    """The next message and its descriptors, the caller's now; None at the end of the connection.

    BlockingIOError when nothing is there on a non-blocking socket, ValueError for what is no message.
    """
    payload, ancillary, _, _ = sock.recvmsg(_BUFFER, _ANCILLARY, flags | _MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == _SOL_SOCKET and kind == _SCM_RIGHTS:
            fds += struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4])
    if not payload:
        for fd in fds:
            os.close(fd)
        return None
    if payload[:1] == b"M":
        if not fds:
            raise ValueError("a message without its content")
        with open(fds.pop(0), "rb") as file:
            file.seek(0)
            payload = file.read()
    else:
        payload = payload[1:]
    try:
        message: Message = json.loads(payload)
        if not isinstance(message, dict):
            raise ValueError("a message that is no object")
    except ValueError:
        for fd in fds:
            os.close(fd)
        raise
    return message, fds
