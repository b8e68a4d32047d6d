"""The options of log drivers: which there are, and which values make sense. Pure; messages are dockerd's."""

from __future__ import annotations

import re
from collections.abc import Callable

from guest_agent.delivery import addresses
from guest_agent.errors import InvalidParameter

from .units import ram_in_bytes

FILES = ("json-file", "local")  # logs that stay on this host
REMOTE = ("fluentd", "gelf", "journald", "syslog")  # logs that are sent on
DRIVERS = (*FILES, *REMOTE, "none")
_ELSEWHERE = ("awslogs", "etwlogs", "gcplogs", "splunk")  # drivers of Docker's that we do not have

_COMMON = frozenset(("env", "env-regex", "labels", "labels-regex", "tag"))
_CACHE = frozenset(("cache-disabled", "cache-max-size", "cache-max-file", "cache-compress"))
_BUILT_IN = _CACHE | {"mode", "max-buffer-size"}
_ROTATION = frozenset(("max-size", "max-file", "compress"))
_OWN: dict[str, frozenset[str]] = {
    "json-file": _COMMON | _ROTATION,
    "local": _ROTATION,
    "journald": _COMMON,
    "syslog": _COMMON
    | {
        "syslog-address",
        "syslog-facility",
        "syslog-format",
        "syslog-tls-ca-cert",
        "syslog-tls-cert",
        "syslog-tls-key",
        "syslog-tls-skip-verify",
    },
    "gelf": _COMMON
    | {
        "gelf-address",
        "gelf-compression-level",
        "gelf-compression-type",
        "gelf-tcp-max-reconnect",
        "gelf-tcp-reconnect-delay",
    },
    "fluentd": _COMMON
    | {
        "fluentd-address",
        "fluentd-async",
        "fluentd-async-reconnect-interval",
        "fluentd-buffer-limit",
        "fluentd-max-retries",
        "fluentd-read-timeout",
        "fluentd-request-ack",
        "fluentd-retry-wait",
        "fluentd-sub-second-precision",
        "fluentd-write-timeout",
    },
}
# How each driver says that it does not know an option.
_UNKNOWN = {
    "local": "unknown log opt '{}' for log driver local",
    "gelf": 'unknown log opt "{}" for gelf log driver',
}

_TRUE, _FALSE = ("1", "t", "T", "TRUE", "true", "True"), ("0", "f", "F", "FALSE", "false", "False")
_RECONNECT_SECONDS = (0.1, 10.0)


def check(driver: str, options: dict[str, str]) -> None:
    """Refuses a driver that does not exist, and options it does not have. Raises InvalidParameter."""
    mode = options.get("mode", "")
    if mode not in ("", "blocking", "non-blocking"):
        raise InvalidParameter(f"logger: logging mode not supported: {mode}", "Use blocking or non-blocking.")
    if "max-buffer-size" in options:
        if mode != "non-blocking":
            raise InvalidParameter(
                "logger: max-buffer-size option is only supported with 'mode=non-blocking'",
                "Leave it out, or add mode=non-blocking.",
            )
        try:
            ram_in_bytes(options["max-buffer-size"])
        except ValueError as error:
            raise InvalidParameter(f"error parsing option max-buffer-size: {error}")
    if options.get("cache-disabled"):
        try:
            flag(options["cache-disabled"])
        except ValueError:
            raise InvalidParameter(f"invalid value for option cache-disabled: {options['cache-disabled']}")
    if driver not in DRIVERS:
        # A name of none of Docker's own drivers is that of a plugin.
        text = (
            f"logger: no log driver named '{driver}' is registered"
            if driver in _ELSEWHERE
            else f'error looking up logging plugin {driver}: plugin "{driver}" not found'
        )
        raise InvalidParameter(text, f"Use one of {', '.join(DRIVERS)}.")
    for name in options:
        if name not in _OWN[driver] and name not in _BUILT_IN:
            text = _UNKNOWN.get(driver, f"unknown log opt '{{}}' for {driver} log driver")
            raise InvalidParameter(text.format(name))
    if (checker := _CHECKS.get(driver)) is not None:
        try:
            checker(options)
        except ValueError as error:
            raise InvalidParameter(str(error))


def _check_syslog(options: dict[str, str]) -> None:
    addresses.syslog(options.get("syslog-address", ""))
    addresses.facility(options.get("syslog-facility", ""))
    if options.get("syslog-format", "") not in ("", "rfc3164", "rfc5424", "rfc5424micro"):
        raise ValueError("Invalid syslog format")


def _check_gelf(options: dict[str, str]) -> None:
    scheme, _, _ = addresses.gelf(options.get("gelf-address", ""))
    for name, value in options.items():
        if name.startswith("gelf-compression"):
            if scheme != "udp":
                raise ValueError("compression is only supported on UDP")
            level = name == "gelf-compression-level"
            number = _number(value)
            if not (-1 <= number <= 9 if level and number is not None else value in ("gzip", "zlib", "none")):
                raise ValueError(f'unknown value "{value}" for log opt "{name}" for gelf log driver')
        elif name.startswith("gelf-tcp"):
            if scheme != "tcp":
                raise ValueError(f'"{name}" is only valid for TCP')
            if (_number(value) or 0) < 0 or _number(value) is None:
                raise ValueError(f'"{name}" must be a positive integer')


def _check_fluentd(options: dict[str, str]) -> None:
    address = options.get("fluentd-address", "")
    try:
        addresses.fluentd(address)
    except ValueError as error:
        raise ValueError(f"invalid fluentd-address ({address}): {error}")
    if options.get("fluentd-buffer-limit"):
        ram_in_bytes(options["fluentd-buffer-limit"])
    if options.get("fluentd-retry-wait"):
        addresses.duration(options["fluentd-retry-wait"])
    if retries := options.get("fluentd-max-retries", ""):
        if not (retries.isascii() and retries.isdigit()):
            raise ValueError(f'strconv.ParseUint: parsing "{retries}": invalid syntax')
        if int(retries) > 0x7FFFFFFF:
            raise ValueError("invalid fluentd-max-retries: value out of range")
    for name in ("fluentd-async", "fluentd-sub-second-precision", "fluentd-request-ack"):
        if options.get(name):
            flag(options[name])
    name = "fluentd-async-reconnect-interval"
    if text := options.get(name, ""):
        try:
            seconds = addresses.duration(text)
        except ValueError as error:
            raise ValueError(f"invalid value for {name}: {error}")
        if seconds and not _RECONNECT_SECONDS[0] <= seconds <= _RECONNECT_SECONDS[1]:
            raise ValueError(f'invalid value for {name}: value ("{text}") must be between 100ms and 10s')
    for name in ("fluentd-write-timeout", "fluentd-read-timeout"):
        if text := options.get(name, ""):
            try:
                seconds = addresses.duration(text)
            except ValueError:
                raise ValueError(f"invalid value for {name}: value must be a duration")
            if seconds < 0:
                raise ValueError(f"invalid value for {name}: value must be a duration that is non-negative")


_CHECKS: dict[str, Callable[[dict[str, str]], None]] = {
    "syslog": _check_syslog,
    "gelf": _check_gelf,
    "fluentd": _check_fluentd,
}


def flag(text: str) -> bool:
    """A boolean in Go's spelling. Raises ValueError with Go's words."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError(f'strconv.ParseBool: parsing "{text}": invalid syntax')


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else None
