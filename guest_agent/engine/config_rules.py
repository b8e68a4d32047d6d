"""What values settings may have, beyond their types. A wrong one ends the start, and not each container's."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from guest_agent.engine.log_drivers import DRIVERS

from .units import ram_in_bytes

_DOMAIN = re.compile(r"\.|[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")


def check(name: str, value: Any) -> None:
    """Raises ValueError when the setting `name`, a field of Config, cannot have this value."""
    rule = _RULES.get(name)
    if rule is None or value == "":  # empty is the default
        return
    for each in value if isinstance(value, list) else [value]:
        rule(each)


def _one_of(*words: str) -> Callable[[str], None]:
    def rule(value: str) -> None:
        if value not in words:
            raise ValueError(f"{value!r} is none of {', '.join(words)}")

    return rule


def _at_least(lowest: int) -> Callable[[int], None]:
    def rule(value: int) -> None:
        if value < lowest:
            raise ValueError(f"{value} is less than {lowest}")

    return rule


def _network(value: str) -> None:
    ipaddress.ip_network(value, strict=False)


def _pool(value: dict[str, Any]) -> None:
    base, size = ipaddress.ip_network(value.get("base", ""), strict=False), value.get("size")
    if not isinstance(size, int) or not base.prefixlen <= size <= base.max_prefixlen:
        raise ValueError(f"networks of size {size} cannot be cut from {base}")


def _label(value: str) -> None:
    if "=" not in value:
        raise ValueError(f"{value!r} is not KEY=VALUE")


def _mirrors(value: dict[str, list[str]]) -> None:
    for urls in value.values():
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"{url!r} is not an http:// or https:// URL")


def _insecure(value: str) -> None:
    if "://" in value:
        raise ValueError(f"insecure registry {value} should not contain '://'")
    if "/" in value:
        _network(value)


def _domain(value: str) -> None:
    if not _DOMAIN.fullmatch(value):
        raise ValueError(f"{value!r} is not a domain")


def _profile(value: str) -> None:
    if value not in ("builtin", "unconfined"):
        try:
            open(value, "rb").close()
        except OSError as error:
            raise ValueError(f"cannot read {value}: {error.strerror}")


def storage_size(options: list[str]) -> int:
    """Bytes a container may write, by `overlay2.size` in storage-opts; 0: no limit. Raises ValueError."""
    size = 0
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            raise ValueError(f"{option!r} is not KEY=VALUE")
        if key.lower() != "overlay2.size":
            raise ValueError(f"unknown option {key}: overlay2.size is the only one")
        size = ram_in_bytes(text)
    return size


_RULES: dict[str, Callable[[Any], object]] = {
    "bip": ipaddress.IPv4Interface,
    "default_address_pools": _pool,
    "default_cgroupns_mode": _one_of("host", "private"),
    "default_gateway": ipaddress.ip_address,
    "default_ipc_mode": _one_of("private", "shareable"),
    "dns": ipaddress.ip_address,
    "dns_search": _domain,
    "fixed_cidr": _network,
    "host_gateway_ip": ipaddress.ip_address,
    "insecure_registries": _insecure,
    "ip": ipaddress.ip_address,
    "labels": _label,
    "log_driver": _one_of(*DRIVERS),
    "max_concurrent_downloads": _at_least(0),
    "max_download_attempts": _at_least(1),
    "mtu": _at_least(0),
    "registry_mirrors": _mirrors,
    "seccomp_profile": _profile,
    "storage_opts": lambda option: storage_size([option]),
}
