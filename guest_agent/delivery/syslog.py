"""Syslog: RFC 3164 and RFC 5424 over UDP, TCP, TLS (RFC 5425) and this host's own socket."""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from guest_agent.delivery import addresses
from guest_agent.delivery.connection import dial, hung_up
from guest_agent.delivery.entries import Entry
from guest_agent.delivery.target import Target

if TYPE_CHECKING:
    import ssl

_LOCAL = ("/dev/log", "/var/run/syslog", "/var/run/log")
_ERROR, _INFORMATIONAL = 3, 6  # severities, RFC 5424 6.2.1
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Syslog(Target):
    """`--log-driver syslog`."""

    def __init__(self, spec: dict[str, Any]) -> None:
        options = spec["options"]
        self._address = addresses.syslog(options.get("syslog-address", ""))
        self._facility = addresses.facility(options.get("syslog-facility", ""))
        self._format: str = options.get("syslog-format", "")
        self._tag: str = spec["tag"]
        self._hostname = socket.gethostname()
        self._socket: socket.socket | None = None
        secure = self._address is not None and self._address[0] == "tcp+tls"
        self._context = tls_context(options) if secure else None
        self._counted = secure and self._format.startswith("rfc5424")

    def open(self) -> None:
        """Connect."""
        if self._address is not None:
            self._socket = dial(self._address, self._context)
            return
        for path in _LOCAL:
            for scheme in ("unixgram", "unix"):
                try:
                    self._socket = dial((scheme, path, 0))
                    return
                except OSError:
                    continue
        raise OSError("Unix syslog delivery error")

    def send(self, entries: Sequence[Entry]) -> int:
        """One message an entry."""
        assert self._socket is not None
        datagrams = self._socket.type == socket.SOCK_DGRAM
        if not datagrams and hung_up(self._socket):
            raise ConnectionResetError("the receiver has hung up")
        sent = 0
        for entry in entries:
            if entry.log:
                try:
                    self._socket.sendall(self.message(entry))
                except ConnectionRefusedError:
                    if not datagrams or self._socket.family == socket.AF_UNIX:
                        raise
                    # The answer to an earlier datagram: nobody listened then, and UDP promises nothing.
                except OSError:
                    if sent:
                        return sent
                    raise
            sent += 1
        return sent

    def message(self, entry: Entry) -> bytes:
        """An entry as it is sent."""
        priority = self._facility * 8 + (_ERROR if entry.error else _INFORMATIONAL)
        text = entry.log.encode("utf-8", "replace")
        pid, tag, host = os.getpid(), self._tag, self._hostname
        moment = datetime.datetime.fromtimestamp(entry.nanoseconds // 1000 / 1e6).astimezone()
        if self._format.startswith("rfc5424"):
            precision = "microseconds" if self._format == "rfc5424micro" else "seconds"
            stamp = moment.isoformat(timespec=precision).replace("+00:00", "Z")
            head = f"<{priority}>1 {stamp} {host} {tag} {pid} {tag} - "
        else:
            stamp = f"{_MONTHS[moment.month - 1]} {moment.day:2d} {moment:%H:%M:%S}"
            middle = f"{host} {tag}" if self._format == "rfc3164" else tag
            head = f"<{priority}>{stamp} {middle}[{pid}]: "
        message = head.encode() + text + b"\n"
        return b"%d " % len(message) + message if self._counted else message

    def close(self) -> None:
        """Disconnect."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def tls_context(options: dict[str, str]) -> ssl.SSLContext:
    """TLS as the options want it. Raises ValueError for files that cannot be read."""
    import ssl

    try:
        context = ssl.create_default_context(cafile=options.get("syslog-tls-ca-cert") or None)
        if options.get("syslog-tls-cert") or options.get("syslog-tls-key"):
            context.load_cert_chain(options.get("syslog-tls-cert", ""), options.get("syslog-tls-key") or None)
    except OSError as error:
        raise ValueError(f"could not load the TLS files of syslog: {error.strerror or error}")
    if "syslog-tls-skip-verify" in options:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
