"""GELF 1.1 (Graylog) over UDP, compressed and in chunks, and over TCP."""

from __future__ import annotations

import datetime
import json
import os
import socket
import zlib
from collections.abc import Sequence
from typing import Any

from guest_agent.delivery import addresses
from guest_agent.delivery.connection import dial, hung_up
from guest_agent.delivery.entries import Entry
from guest_agent.delivery.target import Retries, Target

_CHUNK = 1420 - 12  # what a datagram of dockerd's holds, without the chunk's header
_MOST_CHUNKS = 128
_MAGIC = b"\x1e\x0f"
_ERROR, _INFORMATIONAL = 3, 6
_WINDOW = {"gzip": 31, "zlib": 15}


class Gelf(Target):
    """`--log-driver gelf`."""

    def __init__(self, spec: dict[str, Any]) -> None:
        options = spec["options"]
        self._address = addresses.gelf(options.get("gelf-address", ""))
        self._compression = options.get("gelf-compression-type", "gzip")
        self._level = int(options.get("gelf-compression-level", "1"))
        self.retries = Retries(
            int(options.get("gelf-tcp-max-reconnect", "3")),
            float(options.get("gelf-tcp-reconnect-delay", "1")),
            factor=1.0,
        )
        self._host = socket.gethostname()
        seconds, nanoseconds = divmod(spec["created"], 10**9)
        created = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        self._extra = {
            "_container_id": spec["id"],
            "_container_name": spec["name"],
            "_image_id": spec["image_id"],
            "_image_name": spec["image_name"],
            "_command": spec["command"],
            "_tag": spec["tag"],
            "_created": f"{created:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z",
        }
        for key, value in spec["extra"].items():
            self._extra[key if key.startswith("_") else f"_{key}"] = value
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Connect."""
        try:
            self._socket = dial(self._address)
        except OSError as error:
            where = f"{self._address[1]}:{self._address[2]}"
            raise OSError(
                error.errno or 0, f"gelf: cannot connect to GELF endpoint: {where} {error.strerror}"
            )

    def send(self, entries: Sequence[Entry]) -> int:
        """One message an entry."""
        assert self._socket is not None
        stream = self._address[0] == "tcp"
        if stream and hung_up(self._socket):
            raise ConnectionResetError("the receiver has hung up")
        sent = 0
        for entry in entries:
            if entry.log:
                try:
                    if stream:
                        self._socket.sendall(self.message(entry) + b"\0")
                    else:
                        self._send_datagrams(self._packed(self.message(entry)))
                except OSError:
                    if sent:
                        return sent
                    raise
            sent += 1
        return sent

    def _send_datagrams(self, data: bytes) -> None:
        assert self._socket is not None
        pieces = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
        if len(pieces) > 1:
            if len(pieces) > _MOST_CHUNKS:
                return  # cannot be sent, as in dockerd
            head = _MAGIC + os.urandom(8)
            pieces = [head + bytes((number, len(pieces))) + piece for number, piece in enumerate(pieces)]
        for piece in pieces:
            try:
                self._socket.send(piece)
            except ConnectionRefusedError:
                pass  # the answer to an earlier datagram; UDP promises nothing

    def _packed(self, message: bytes) -> bytes:
        window = _WINDOW.get(self._compression)
        if window is None:
            return message
        packer = zlib.compressobj(self._level, zlib.DEFLATED, window)
        return packer.compress(message) + packer.flush()

    def message(self, entry: Entry) -> bytes:
        """An entry as JSON."""
        value = {
            "version": "1.1",
            "host": self._host,
            "short_message": entry.log,
            "timestamp": entry.nanoseconds // 10**6 / 1000,
            "level": _ERROR if entry.error else _INFORMATIONAL,
            **self._extra,
        }
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")

    def close(self) -> None:
        """Disconnect."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
