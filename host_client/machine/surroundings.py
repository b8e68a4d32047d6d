"""What the guest is told of this host's network: its proxies, and the authorities it trusts."""

from __future__ import annotations

import ssl
import subprocess
import sys
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies

PROXIES = ("http", "https", "ftp", "all", "no")
LOOPBACK = ("localhost", "::1", "ip6-localhost")
KEYCHAINS = ("/Library/Keychains/System.keychain",)  # where a company's authorities are on a Mac
KEYCHAIN_SECONDS = 10.0


def proxies(gateway: str) -> dict[str, str]:
    """Environment variables for the guest: this user's, or what macOS and Windows have in their settings.

    A proxy on this host's loopback is one at `gateway`, the address by which the guest reaches this host.
    """
    found = {}
    for kind, value in getproxies().items():
        if kind in PROXIES and value and "\n" not in value:
            found[f"{kind.upper()}_PROXY"] = value if kind == "no" else _seen_from_guest(value, gateway)
    return found


def _seen_from_guest(url: str, gateway: str) -> str:
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return url  # what uses it says what is wrong with it
    if host not in LOOPBACK and not host.startswith("127."):
        return url
    user, at, _ = parts.netloc.rpartition("@")
    place = f"{user}{at}{gateway}" + (f":{port}" if port else "")
    return urlunsplit((parts.scheme, place, parts.path, parts.query, ""))


def authorities() -> bytes:
    """The certificates of all authorities that programs of this host trust, as PEM; empty without any."""
    context = ssl.create_default_context()  # with SSL_CERT_FILE, and on Windows with the system's store
    pem = "".join(ssl.DER_cert_to_PEM_cert(der) for der in context.get_ca_certs(binary_form=True))
    if sys.platform == "darwin":
        for keychain in KEYCHAINS:
            pem += _keychain(keychain)
    return pem.encode("ascii", "ignore")


def _keychain(path: str) -> str:
    try:
        command = ["security", "find-certificate", "-a", "-p", path]
        done = subprocess.run(command, capture_output=True, text=True, timeout=KEYCHAIN_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
