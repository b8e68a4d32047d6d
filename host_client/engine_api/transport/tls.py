"""TLS over TCP with client certificates, as DOCKER_TLS_VERIFY and DOCKER_CERT_PATH set it up."""

from __future__ import annotations

import select
import socket
import ssl

from host_client.engine_api.endpoint import Endpoint, Tls
from host_client.engine_api.errors import ConnectError

READ_SIZE = 65536


def context(settings: Tls) -> ssl.SSLContext:
    """The TLS settings for one engine.

    Raises:
        ConnectError: a certificate file is missing or unreadable; it names the file.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    current = ""
    try:
        if settings.verify:
            current = settings.ca
            if current:
                made.load_verify_locations(current)
            else:
                made.load_default_certs()
        else:
            made.check_hostname = False
            made.verify_mode = ssl.CERT_NONE
        if settings.certificate:
            current = f"{settings.certificate} and {settings.key}"
            made.load_cert_chain(settings.certificate, settings.key or None)
    except (OSError, ssl.SSLError) as error:
        raise ConnectError(
            f"cannot use the TLS certificate {current}: {error.strerror or error}",
            "DOCKER_CERT_PATH names the directory with ca.pem, cert.pem and key.pem",
        )
    return made


class TlsStream:
    """A TLS connection with a half-close, which `ssl.SSLSocket` lacks: its `unwrap` ends both directions.

    A container's input ends with our close_notify (RFC 8446 6.1), and its output goes on.
    """

    def __init__(self, plain: socket.socket, settings: ssl.SSLContext, name: str) -> None:
        self._plain = plain
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = settings.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                self._receive()
            except ssl.SSLError:
                self._flush()  # the alert that tells the other side why
                raise
        self._flush()

    def fileno(self) -> int:
        """The descriptor, for polling; `pending` tells of what polling cannot see."""
        return self._plain.fileno()

    def setblocking(self, blocking: bool) -> None:
        """Whether `recv` waits. Sending always takes everything, reading meanwhile, lest both sides wait."""
        self._plain.setblocking(blocking)

    def pending(self) -> bool:
        """Whether something has been received that `recv` has not given out."""
        return bool(self._tls.pending() or self._incoming.pending)

    def recv(self, size: int, _flags: int = 0) -> bytes:
        """What has come; empty at the end.

        Raises:
            BlockingIOError: nothing has, and waiting is off. The socket may be readable all the same: TLS has
                messages of its own.
        """
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLWantReadError:
                self._flush()
                if self._incoming.eof:
                    return b""
                self._receive()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""

    def send(self, data: bytes) -> int:
        """Send all of it."""
        self._tls.write(data)
        self._flush()
        return len(data)

    def sendall(self, data: bytes) -> None:
        """Send all of it."""
        view = memoryview(data)
        while view:
            self.send(bytes(view[:READ_SIZE]))
            view = view[READ_SIZE:]

    def close_write(self) -> None:
        """Tell the other side that nothing more will come."""
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            pass  # it would also wait for the other side's end
        self._flush()

    def close(self) -> None:
        """Close the connection."""
        self._plain.close()

    def _receive(self) -> None:
        data = self._plain.recv(READ_SIZE)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _flush(self) -> None:
        left = memoryview(self._outgoing.read())
        while left:
            readable, writable, _ = select.select(
                [] if self._incoming.eof else [self._plain], [self._plain], []
            )
            try:
                if readable:
                    self._receive()
                if writable:
                    left = left[self._plain.send(left[:READ_SIZE]) :]
            except BlockingIOError:
                pass


def connect(endpoint: Endpoint) -> TlsStream:
    """A connected TLS stream.

    Raises:
        ConnectError: not reachable, or one side does not trust the other.
    """
    assert endpoint.tls is not None
    settings = context(endpoint.tls)
    where = f"{endpoint.address}:{endpoint.port}"
    try:
        plain = socket.create_connection((endpoint.address, endpoint.port))
    except OSError as error:
        raise ConnectError(
            f"cannot connect to the engine at {where}: {error.strerror or error}",
            "is an engine listening there, and does a firewall let you through?",
            absent=True,
        )
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return TlsStream(plain, settings, endpoint.address)
    except ssl.SSLCertVerificationError as error:
        plain.close()
        raise ConnectError(
            f"the engine at {where} shows a certificate that is not trusted: {error.verify_message}",
            "put the CA that signed it into DOCKER_CERT_PATH as ca.pem, or name it with --tlscacert",
        )
    except (OSError, ssl.SSLError) as error:
        plain.close()
        raise ConnectError(f"no TLS connection to the engine at {where}: {error.strerror or error}")
