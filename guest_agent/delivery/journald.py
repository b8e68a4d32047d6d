"""The journal of systemd, by its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import secrets
import socket
from collections.abc import Sequence
from typing import Any

from guest_agent.delivery.entries import Entry
from guest_agent.delivery.target import Target

SOCKET = "/run/systemd/journal/socket"
_ERROR, _INFORMATIONAL = 3, 6
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Journald(Target):
    """`--log-driver journald`."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._path: str = spec.get("socket", SOCKET)
        self._ordinal = 0
        self._fields = {
            "CONTAINER_ID": spec["id"][:12],
            "CONTAINER_ID_FULL": spec["id"],
            "CONTAINER_NAME": spec["name"],
            "CONTAINER_TAG": spec["tag"],
            "IMAGE_NAME": spec["image_name"],
            "SYSLOG_IDENTIFIER": spec["tag"],
            "CONTAINER_LOG_EPOCH": secrets.token_hex(32),
        }
        self._fields |= {field_name(key): value for key, value in spec["extra"].items() if field_name(key)}
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Connect."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(self._path)
        except OSError:
            sock.close()
            raise OSError(errno.ENOENT, "journald is not enabled on this host")
        self._socket = sock

    def send(self, entries: Sequence[Entry]) -> int:
        """One datagram an entry, in a sealed memory file when it is too large for one."""
        assert self._socket is not None
        for number, entry in enumerate(entries):
            self._ordinal += 1
            message = self.message(entry)
            try:
                try:
                    self._socket.send(message)
                except OSError as error:
                    if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                        raise
                    self._send_file(message)
            except OSError:
                self._ordinal -= 1
                if number:
                    return number
                raise
        return len(entries)

    def _send_file(self, message: bytes) -> None:
        assert self._socket is not None
        file = os.memfd_create("journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.write(file, message)
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file]).tobytes())
            self._socket.sendmsg([b""], [rights])
        finally:
            os.close(file)

    def message(self, entry: Entry) -> bytes:
        """An entry as it is sent."""
        fields = {
            "MESSAGE": entry.log,
            "PRIORITY": str(_ERROR if entry.error else _INFORMATIONAL),
            **self._fields,
            "SYSLOG_TIMESTAMP": entry.time,
            "CONTAINER_LOG_ORDINAL": str(self._ordinal),
        }
        if (partial := entry.partial) is not None:
            fields["CONTAINER_PARTIAL_ID"] = partial.id
            fields["CONTAINER_PARTIAL_ORDINAL"] = str(partial.ordinal)
            fields["CONTAINER_PARTIAL_LAST"] = "true" if partial.last else "false"
            if not partial.last:
                fields["CONTAINER_PARTIAL_MESSAGE"] = "true"
        return b"".join(_field(key, value.encode("utf-8", "replace")) for key, value in fields.items())

    def close(self) -> None:
        """Disconnect."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _field(key: str, value: bytes) -> bytes:
    if b"\n" in value:
        return key.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
    return key.encode() + b"=" + value + b"\n"


def field_name(name: str) -> str:
    """A label or variable as a field of the journal: capitals, digits and underscores; empty: it has none."""
    text = "".join(char.upper() if char.isascii() and char.isalnum() else "_" for char in name)
    return text.lstrip("_")
