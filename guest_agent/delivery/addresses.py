"""Where logs are sent: the drivers' address options. Pure; messages are dockerd's, as ValueError."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

SYSLOG_PORT = 514
FLUENTD_PORT = 24224
FACILITIES = (
    *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"),
    *("", "", "", "", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7"),
)

Address = tuple[str, str, int]  # scheme, host or path, port
_DURATION = re.compile(r"([+-]?)((?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h))+")
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def syslog(text: str) -> Address | None:
    """`syslog-address`; None for this host's own syslog."""
    if not text:
        return None
    url = urlsplit(text)
    if url.scheme in ("unix", "unixgram"):
        if not os.path.exists(url.path):
            raise ValueError(f"stat {url.path}: no such file or directory")
        return url.scheme, url.path, 0
    if url.scheme not in ("udp", "tcp", "tcp+tls"):
        raise ValueError(f"unsupported scheme: '{url.scheme}'")
    return url.scheme, url.hostname or "", _port(url.netloc) or SYSLOG_PORT


def facility(text: str) -> int:
    """`syslog-facility`: its number (RFC 5424, 6.2.1)."""
    if not text:
        return FACILITIES.index("daemon")
    if text in FACILITIES:
        return FACILITIES.index(text)
    if text.isascii() and text.isdigit() and int(text) < len(FACILITIES):
        return int(text)
    raise ValueError("invalid syslog facility")


def gelf(text: str) -> Address:
    """`gelf-address`."""
    if not text:
        raise ValueError("gelf-address is a required parameter")
    url = urlsplit(text)
    if url.scheme not in ("udp", "tcp"):
        raise ValueError("gelf: endpoint needs to be TCP or UDP")
    port = _port(url.netloc)
    if port is None:
        raise ValueError("gelf: please provide gelf-address as proto://host:port")
    return url.scheme, url.hostname or "", port


def fluentd(text: str) -> Address:
    """`fluentd-address`."""
    if not text:
        return "tcp", "127.0.0.1", FLUENTD_PORT
    url = urlsplit(text if "://" in text else f"tcp://{text}")
    if url.scheme == "unix":
        if not url.path.strip("/"):
            raise ValueError("path is empty")
        return "unix", url.path, 0
    if url.scheme not in ("tcp", "tls"):
        raise ValueError(f"unsupported scheme: '{url.scheme}'")
    if url.path:
        raise ValueError("should not contain a path element")
    port = _port(url.netloc)
    return url.scheme, url.hostname or "127.0.0.1", FLUENTD_PORT if port is None else port


def _port(netloc: str) -> int | None:
    host, colon, text = netloc.rpartition(":")
    if not colon or host.count("[") > host.count("]"):
        return None
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f'parse "{netloc}": invalid port ":{text}" after host')
    if int(text) > 65535:
        raise ValueError(f'invalid port: strconv.ParseUint: parsing "{text}": value out of range')
    return int(text)


def duration(text: str) -> float:
    """A duration in Go's spelling ("1s", "100ms", "-1m30s"), in seconds."""
    if text in ("0", "+0", "-0"):
        return 0.0
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f'time: invalid duration "{text}"')
    total = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    return -total if match[1] == "-" else total
