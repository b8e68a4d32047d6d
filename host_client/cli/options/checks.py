"""Checks of single values of container options, as docker's CLI makes them before it asks the engine.

Every function raises ValueError with docker's words.
"""

from __future__ import annotations

import os

from host_client.cli.values import SPACE, address, csv_fields, integer, quoted, size, unsigned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAMESPACED_SYSCTLS = frozenset(
    f"kernel.{name}"
    for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)
ULIMITS = frozenset(
    [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ]
)
LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
LABEL_CHARACTERS = LETTERS | frozenset("0123456789-")


def attach_stream(text: str) -> str:
    """stdin, stdout or stderr, in any case."""
    if text.lower() in ("stdin", "stdout", "stderr"):
        return text.lower()
    raise ValueError("valid streams are STDIN, STDOUT and STDERR")


def environment(text: str) -> str:
    """`NAME=value`; a bare NAME takes the value from this process's environment, if it is there."""
    name, equals, _ = text.partition("=")
    if not name:
        raise ValueError(f"invalid environment variable: {text}")
    if not equals and name in os.environ:
        return f"{name}={os.environ[name]}"
    return text


def label(text: str) -> str:
    """`key[=value]`; the key without white space."""
    key = text.partition("=")[0].lstrip(SPACE)
    if not key:
        raise ValueError(f"invalid label '{text}': empty name")
    if any(character in SPACE for character in key):
        raise ValueError(f"label '{key}' contains whitespaces")
    return text


def extra_host(text: str) -> str:
    """`host:ip` or `host=ip`; the address may stand in brackets or be `host-gateway`."""
    name, equals, target = text.partition("=")
    if not equals:
        name, equals, target = text.partition(":")
    if not equals or not name or ":" in name:
        raise ValueError(f"bad format for add-host: {quoted(text)}")
    if target != "host-gateway":
        if len(target) > 2 and target[0] == "[" and target[-1] == "]":
            target = target[1:-1]
        if not address(target.strip()):
            raise ValueError(f"invalid IP address in add-host: {quoted(target)}")
    return f"{name}:{target}"


def dns_server(text: str) -> str:
    """An IP address."""
    found = address(text.strip())
    if not found:
        raise ValueError(f"IP address is not correctly formatted: {text}")
    return found


def dns_search(text: str) -> str:
    """A domain, or `.` for none."""
    text = text.strip(" ")
    if text == ".":
        return text
    domain = text.strip().removesuffix(".")
    labels = domain.split(".")
    good = len(domain) < 255 and any(character in LETTERS for character in text)
    if not good or not all(
        part and LABEL_CHARACTERS.issuperset(part) and part.strip("-") == part for part in labels
    ):
        raise ValueError(f"{text} is not a valid domain")
    return domain


def link(text: str) -> str:
    """`container[:alias]`."""
    if not text:
        raise ValueError("empty string specified for links")
    if text.count(":") > 1:
        raise ValueError(f"bad format for links: {text}")
    return text


def sysctl(text: str) -> tuple[str, str]:
    """`name=value` for a setting that belongs to a namespace."""
    name, equals, value = text.partition("=")
    if equals and (name in NAMESPACED_SYSCTLS or name.startswith(("net.", "fs.mqueue."))):
        return name, value
    raise ValueError(
        f"sysctl '{name if equals else text}' is not allowed"
        if not equals
        else f"sysctl '{text}' is not allowed"
    )


def device_rule(text: str) -> str:
    """A rule of the devices cgroup: `type major:minor access`."""
    kind, _, rest = text.partition(" ")
    numbers, _, access = rest.partition(" ")
    major, colon, minor = numbers.partition(":")
    numeric = all(number == "*" or (number.isascii() and number.isdigit()) for number in (major, minor))
    if kind in ("a", "c", "b") and colon and numeric and 1 <= len(access) <= 3 and not access.strip("rwm"):
        return text
    raise ValueError(f"invalid device cgroup format '{text}'")


def _device(text: str) -> tuple[str, str]:
    path, colon, value = text.partition(":")
    if not colon or not path:
        raise ValueError(f"bad format: {text}")
    if not path.startswith("/dev/"):
        raise ValueError(f"bad format for device path: {text}")
    return path, value


def device_weight(text: str) -> dict[str, Any]:
    """`/dev/x:weight`, 10 to 1000 or 0."""
    path, value = _device(text)
    try:
        weight = unsigned(value, 16, 10)
    except ValueError:
        weight = -1
    if weight != 0 and not 10 <= weight <= 1000:
        raise ValueError(f"invalid weight for device: {text}")
    return {"Path": path, "Weight": weight}


_RATE_FORMAT = (
    "The correct format is <device-path>:<number>[<unit>]. Number must be a positive integer. "
    "Unit is optional and can be kb, mb, or gb"
)


def device_rate(text: str) -> dict[str, Any]:
    """`/dev/x:bytes a second`."""
    path, value = _device(text)
    try:
        return {"Path": path, "Rate": size(value)}
    except ValueError:
        raise ValueError(f"invalid rate for device: {text}. {_RATE_FORMAT}")


def device_operations(text: str) -> dict[str, Any]:
    """`/dev/x:operations a second`."""
    path, value = _device(text)
    try:
        return {"Path": path, "Rate": unsigned(value, 64, 10)}
    except ValueError:
        raise ValueError(
            f"invalid rate for device: {text}. The correct format is <device-path>:<number>. "
            "Number must be a positive integer"
        )


def ulimit(text: str) -> tuple[str, dict[str, Any]]:
    """`name=soft[:hard]`."""
    name, equals, limits = text.partition("=")
    if not equals:
        raise ValueError(f"invalid ulimit argument: {text}")
    if name not in ULIMITS:
        raise ValueError(f"invalid ulimit type: {name}")
    parts = limits.split(":")
    if len(parts) > 2:
        raise ValueError(f"too many limit value arguments - {limits}, can only have up to two, `soft[:hard]`")
    hard = integer(parts[-1], 64, 10)
    soft = integer(parts[0], 64, 10)
    if hard != -1:
        rule = "ulimit soft limit must be less than or equal to hard limit"
        if soft == -1:
            raise ValueError(f"{rule}: soft: -1 (unlimited), hard: {hard}")
        if soft > hard:
            raise ValueError(f"{rule}: {soft} > {hard}")
    return name, {"Name": name, "Hard": hard, "Soft": soft}


def gpus(text: str) -> dict[str, Any]:
    """A device request for GPUs: `all`, a count, or `key=value` fields."""
    request: dict[str, Any] = {
        "Driver": "",
        "Count": 0,
        "DeviceIDs": None,
        "Capabilities": None,
        "Options": {},
    }
    seen = set()
    for field in csv_fields(text):
        key, equals, value = field.partition("=")
        if key in seen:
            raise ValueError(f"gpu request key '{key}' can be specified only once")
        seen.add(key)
        if not equals:
            seen.add("count")
            request["Count"] = _count(key)
        elif key == "driver":
            request["Driver"] = value
        elif key == "count":
            request["Count"] = _count(value)
        elif key == "device":
            request["DeviceIDs"] = value.split(",")
        elif key == "capabilities":
            request["Capabilities"] = [[*value.split(","), "gpu"]]
        elif key == "options":
            request["Options"] = dict(part.partition("=")[::2] for part in csv_fields(value))
        else:
            raise ValueError(f"unexpected key '{key}' in '{field}'")
    if "count" not in seen and request["DeviceIDs"] is None:
        request["Count"] = 1
    if request["Capabilities"] is None:
        request["Capabilities"] = [["gpu"]]
    return request


def _count(text: str) -> int:
    if text == "all":
        return -1
    try:
        return integer(text, 64, 10)
    except ValueError:
        raise ValueError(f'invalid count ({text}): value must be either "all" or an integer: invalid syntax')
