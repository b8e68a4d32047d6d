"""Devices of a container: which nodes it gets, and what the device cgroup lets it do with devices."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from typing import Any

from guest_agent.errors import InvalidParameter
from guest_agent.kernel import userns

from .container_config import DeviceMapping

_RULE = re.compile(r"([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})")
_PERMISSIONS = re.compile(r"[rwm]{1,3}")
_PRIVATE = frozenset(
    ("pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev")
)  # made anew in each container


def _rule(allow: bool, type: str, major: int, minor: int, access: str = "rwm") -> dict[str, Any]:
    return {"allow": allow, "type": type, "major": major, "minor": minor, "access": access}


def device_rules(mapped: list[dict[str, Any]], rules: Iterable[str]) -> list[dict[str, Any]]:
    """Docker's default device rules, those of mapped devices, and `--device-cgroup-rule`s.

    Raises InvalidParameter for a malformed rule.
    """
    values: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    # zero, null, urandom, random, tty, console; /dev/fuse is refused
    values += [_rule(True, "c", 1, minor) for minor in (5, 3, 9, 8)]
    values += [_rule(True, "c", 5, minor) for minor in (0, 1)]
    values.append(_rule(False, "c", 10, 229))
    return values + mapped + [parse_rule(rule) for rule in rules]


def parse_rule(rule: str) -> dict[str, Any]:
    """`c 13:* rwm` as an OCI rule; -1 stands for any number. Raises InvalidParameter."""
    match = _RULE.fullmatch(rule)
    if match is None:
        raise InvalidParameter(f"invalid device cgroup rule format: '{rule}'")
    major, minor = (-1 if number == "*" else int(number) for number in match.group(2, 3))
    return _rule(True, match[1], major, minor, match[4])


def device_node(path: str, inside: str) -> dict[str, Any] | None:
    """The device node at `path` as OCI wants it at `inside`; None when `path` is no device."""
    info = os.stat(path)
    if stat.S_ISBLK(info.st_mode):
        kind = "b"
    elif stat.S_ISCHR(info.st_mode):
        kind = "c"
    elif stat.S_ISFIFO(info.st_mode):
        kind = "p"
    else:
        return None
    node: dict[str, Any] = {
        "path": inside,
        "type": kind,
        "fileMode": stat.S_IMODE(info.st_mode),
        "uid": info.st_uid,
        "gid": info.st_gid,
        "hostPath": path,
    }
    if kind != "p":
        node |= {"major": os.major(info.st_rdev), "minor": os.minor(info.st_rdev)}
    return node


def _walk(top: str) -> Iterable[str]:
    for directory, names, files in os.walk(top):
        names[:] = [name for name in names if name not in _PRIVATE]
        for name in files:
            path = os.path.join(directory, name)
            if not os.path.islink(path):
                yield path


def host_devices() -> list[dict[str, Any]]:
    """Every device below this host's /dev, for a privileged container, but those the runtime makes itself."""
    nodes = []
    for path in _walk("/dev"):
        if path in ("/dev/console", "/dev/ptmx"):
            continue
        try:
            node = device_node(path, path)
        except OSError:
            continue
        if node is not None and not (userns.inside() and not os.access(path, os.R_OK)):
            nodes.append(node)  # without root those that the user may open
    return nodes


def mapped_devices(
    mappings: Iterable[DeviceMapping], privileged: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """`--device`s as nodes and rules; a directory stands for all devices below it.

    Raises InvalidParameter when there is nothing to map.
    """
    nodes: list[dict[str, Any]] = []
    rules: list[dict[str, Any]] = []
    for mapping in mappings:
        host, inside = mapping.path_on_host, mapping.path_in_container or mapping.path_on_host
        permissions = mapping.cgroup_permissions or "rwm"
        if not _PERMISSIONS.fullmatch(permissions):
            raise InvalidParameter(
                f"invalid device permissions for {host}: {permissions!r} has more than r, w and m"
            )
        if privileged and host == inside:
            continue  # there already
        found = _mapped(os.path.realpath(host), inside, host)
        nodes += found
        rules += [
            _rule(True, node["type"], node["major"], node["minor"], permissions)
            for node in found
            if node["type"] != "p"
        ]
    return nodes, rules


def _mapped(real: str, inside: str, host: str) -> list[dict[str, Any]]:
    reason = "not a device node"
    try:
        if os.path.isdir(real):
            found = [device_node(path, inside + path.removeprefix(real)) for path in _walk(real)]
        else:
            found = [device_node(real, inside)]
    except OSError as error:
        found, reason = [], f"{error.strerror.lower() if error.strerror else error}"
    nodes = [node for node in found if node is not None]
    if not nodes:
        raise InvalidParameter(
            f'error gathering device information while adding custom device "{host}": {reason}'
        )
    return nodes
