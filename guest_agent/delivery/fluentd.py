"""Fluentd and Fluent Bit: Fluentd's forward protocol, version 1, over TCP, TLS and unix sockets."""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from guest_agent.delivery import addresses
from guest_agent.delivery.connection import SEND_SECONDS, dial, hung_up
from guest_agent.delivery.entries import Entry
from guest_agent.delivery.target import Retries, Target

if TYPE_CHECKING:
    import ssl

_EVENT_TIME = 0  # extension type of EventTime
_LONGEST_WAIT = 60.0
_ACK_SECONDS = 60.0


class Fluentd(Target):
    """`--log-driver fluentd`."""

    def __init__(self, spec: dict[str, Any]) -> None:
        options = spec["options"]
        self._address = addresses.fluentd(options.get("fluentd-address", ""))
        self.lazy = _flag(options, "fluentd-async")
        interval = addresses.duration(options.get("fluentd-async-reconnect-interval") or "0")
        wait = addresses.duration(options.get("fluentd-retry-wait") or "1s")
        times = int(options["fluentd-max-retries"]) if options.get("fluentd-max-retries") else None
        self.retries = Retries(times, interval or wait, 1.0 if interval else 1.5, _LONGEST_WAIT)
        self._precise = _flag(options, "fluentd-sub-second-precision")
        self._acknowledged = _flag(options, "fluentd-request-ack")
        self._send_seconds = addresses.duration(options.get("fluentd-write-timeout") or "0") or SEND_SECONDS
        self._ack_seconds = addresses.duration(options.get("fluentd-read-timeout") or "0") or _ACK_SECONDS
        self._tag: str = spec["tag"]
        self._record = {
            "container_id": spec["id"],
            "container_name": f"/{spec['name']}",
            **spec["extra"],
        }
        self._socket: socket.socket | None = None
        self._encode = msgspec.msgpack.Encoder().encode

    def open(self) -> None:
        """Connect."""
        context: ssl.SSLContext | None = None
        if self._address[0] == "tls":
            import ssl

            context = ssl.create_default_context()
        self._socket = dial(self._address, context, self._send_seconds)

    def send(self, entries: Sequence[Entry]) -> int:
        """Messages of the protocol's message mode; with acknowledgements one by one."""
        assert self._socket is not None
        if not self._acknowledged:
            if hung_up(self._socket):
                raise ConnectionResetError("the receiver has hung up")
            self._socket.sendall(b"".join(self.message(entry, {}) for entry in entries))
            return len(entries)
        for number, entry in enumerate(entries):
            chunk = base64.b64encode(os.urandom(16)).decode()
            try:
                self._socket.sendall(self.message(entry, {"chunk": chunk}))
                self._await(chunk)
            except OSError:
                if number:
                    return number
                raise
        return len(entries)

    def _await(self, chunk: str) -> None:
        assert self._socket is not None
        self._socket.settimeout(self._ack_seconds)
        data = b""
        try:
            while True:
                more = self._socket.recv(4096)
                if not more:
                    raise ConnectionResetError("the receiver has hung up")
                data += more
                try:
                    answer = msgspec.msgpack.decode(data)
                except msgspec.MsgspecError:
                    continue
                if not isinstance(answer, dict) or answer.get("ack") != chunk:
                    raise ConnectionResetError("the receiver acknowledges something else")
                return
        finally:
            self._socket.settimeout(self._send_seconds)

    def message(self, entry: Entry, option: dict[str, str]) -> bytes:
        """An entry as it is sent."""
        seconds, nanoseconds = divmod(entry.nanoseconds, 10**9)
        moment: object = seconds
        if self._precise:
            packed = seconds.to_bytes(4, "big") + nanoseconds.to_bytes(4, "big")
            moment = msgspec.msgpack.Ext(_EVENT_TIME, packed)
        record = {"source": entry.stream, "log": entry.log, **self._record}
        if (partial := entry.partial) is not None:
            record |= {
                "partial_message": "true",
                "partial_id": partial.id,
                "partial_ordinal": str(partial.ordinal),
                "partial_last": "true" if partial.last else "false",
            }
        return self._encode([self._tag, moment, record, option])

    def close(self) -> None:
        """Disconnect."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _flag(options: dict[str, str], name: str) -> bool:
    return options.get(name, "") in ("1", "t", "T", "true", "TRUE", "True")
