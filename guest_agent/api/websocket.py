"""The server's side of a WebSocket (RFC 6455) over a hijacked connection: binary messages, no extensions."""

from __future__ import annotations

import base64
import hashlib
import struct

from guest_agent.api.http import Request
from guest_agent.api.stream import Stream
from guest_agent.errors import InvalidParameter

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_FINAL = 0x80
_MASKED = 0x80
MAX_FRAME = 1024 * 1024  # bytes in one frame from a client

NORMAL = 1000
PROTOCOL_ERROR = 1002
TOO_BIG = 1009


class _Broken(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class WebSocket:
    """A connected WebSocket. Text and binary messages are the same to it: bytes."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._closed = False  # a close frame was sent

    @classmethod
    async def accept(cls, request: Request) -> WebSocket:
        """Takes a request over. Raises InvalidParameter when it is no handshake (RFC 6455 4.2.1)."""
        headers = request.headers
        key = headers.get("sec-websocket-key", "")
        try:
            valid = len(base64.b64decode(key, validate=True)) == 16
        except ValueError:
            valid = False
        if headers.get("upgrade", "").lower() != "websocket" or not valid:
            raise InvalidParameter("not a WebSocket handshake: bad Upgrade or Sec-WebSocket-Key header")
        if headers.get("sec-websocket-version") != "13":
            raise InvalidParameter("unsupported WebSocket version: Sec-WebSocket-Version must be 13")
        digest = hashlib.sha1(key.encode() + _GUID.encode(), usedforsecurity=False).digest()
        return cls(
            await request.upgrade("websocket", {"Sec-WebSocket-Accept": base64.b64encode(digest).decode()})
        )

    async def receive(self) -> bytes:
        """The next piece of a message (never b""), or b"" when the client has closed; pings are answered."""
        try:
            while True:
                opcode, payload = await self._frame()
                if opcode in (_CONTINUATION, _TEXT, _BINARY):
                    if payload:
                        return payload
                elif opcode == _PING:
                    await self._send(_PONG, payload)
                elif opcode == _CLOSE:
                    await self.close(struct.unpack(">H", payload[:2])[0] if len(payload) >= 2 else NORMAL)
                    return b""
        except _Broken as error:
            await self.close(error.code, error.reason)
            return b""
        except ConnectionError:
            self._closed = True
            return b""

    async def send(self, data: bytes) -> None:
        """Sends one binary message. Raises ConnectionError."""
        await self._send(_BINARY, data)

    async def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Sends a close frame, once."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._send(_CLOSE, struct.pack(">H", code) + reason.encode()[:120])
            self._stream.write_eof()
        except ConnectionError:
            pass

    async def _send(self, opcode: int, payload: bytes) -> None:
        size = len(payload)
        if size < 126:
            head = struct.pack(">BB", _FINAL | opcode, size)
        elif size < 1 << 16:
            head = struct.pack(">BBH", _FINAL | opcode, 126, size)
        else:
            head = struct.pack(">BBQ", _FINAL | opcode, 127, size)
        await self._stream.write(head + payload)

    async def _frame(self) -> tuple[int, bytes]:
        first, second = await self._exactly(2)
        opcode, size = first & 0x0F, second & 0x7F
        if first & 0x70 or not second & _MASKED:
            raise _Broken(PROTOCOL_ERROR, "a reserved bit is set, or the frame is not masked")
        if opcode not in (_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG):
            raise _Broken(PROTOCOL_ERROR, "unknown opcode")
        if opcode >= _CLOSE and (size > 125 or not first & _FINAL):
            raise _Broken(PROTOCOL_ERROR, "a control frame is too long or fragmented")
        if size == 126:
            (size,) = struct.unpack(">H", await self._exactly(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", await self._exactly(8))
        if size > MAX_FRAME:
            raise _Broken(TOO_BIG, f"a frame has more than {MAX_FRAME} bytes")
        mask = await self._exactly(4)
        return opcode, _unmask(await self._exactly(size), mask)

    async def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            data = await self._stream.read()
            if not data:
                raise ConnectionError("the client went away without a close frame")
            self._buffer += data
        data = bytes(memoryview(self._buffer)[:count])
        del self._buffer[:count]
        return data


def _unmask(data: bytes, mask: bytes) -> bytes:
    """XOR with the repeated mask, as one operation on long integers."""
    size = len(data)
    repeated = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(repeated, "little")).to_bytes(size, "little")
