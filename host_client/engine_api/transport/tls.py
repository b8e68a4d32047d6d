"""TLS over TCP with client certificates, as DOCKER_TLS_VERIFY and DOCKER_CERT_PATH set it up."""

from __future__ import annotations

import socket
import ssl

from host_client.engine_api.endpoint import Endpoint, Tls
from host_client.engine_api.errors import ConnectError


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


def connect(endpoint: Endpoint) -> socket.socket:
    """A connected TLS stream.

    Raises:
        ConnectError: not reachable, or one side does not trust the other.
    """
    assert endpoint.tls is not None
    wrapper = context(endpoint.tls)
    where = f"{endpoint.address}:{endpoint.port}"
    try:
        plain = socket.create_connection((endpoint.address, endpoint.port))
    except OSError as error:
        raise ConnectError(
            f"cannot connect to the engine at {where}: {error.strerror or error}",
            "is an engine listening there, and does a firewall let you through?",
            absent=True,
        )
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        return wrapper.wrap_socket(plain, server_hostname=endpoint.address)
    except ssl.SSLCertVerificationError as error:
        plain.close()
        raise ConnectError(
            f"the engine at {where} shows a certificate that is not trusted: {error.verify_message}",
            "put the CA that signed it into DOCKER_CERT_PATH as ca.pem, or name it with --tlscacert",
        )
    except (OSError, ssl.SSLError) as error:
        plain.close()
        raise ConnectError(f"no TLS connection to the engine at {where}: {error.strerror or error}")
