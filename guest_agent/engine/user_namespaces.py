"""User namespaces of containers: who gets one (`--userns`, the setting `userns-remap`), and with which ids.

Files are seen through idmapped mounts, so that layers and volumes have the image's owners on disk whatever a
container's ids are outside.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guest_agent.errors import Conflict, InvalidParameter, NotSupported
from guest_agent.kernel import userns
from guest_agent.runtime import layers

from .container_config import HostConfig

if TYPE_CHECKING:
    from .container import Container

Map = tuple[tuple[int, int, int], ...]
"""First id inside, first id of the engine's namespace, how many."""


NOBODY = 65534
"""The kernel's id for who is not in a user namespace (/proc/sys/kernel/overflowuid)."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """The ids of a container's user namespace."""

    uids: Map
    gids: Map

    def oci(self) -> dict[str, Any]:
        """`uidMappings` and `gidMappings` of OCI's `linux`."""

        def entries(ids: Map) -> list[dict[str, int]]:
            return [{"containerID": inside, "hostID": first, "size": size} for inside, first, size in ids]

        return {"uidMappings": entries(self.uids), "gidMappings": entries(self.gids)}

    def inside(self, uid: int, gid: int) -> tuple[int, int]:
        """A file's owner as the container sees it; nobody for who is not in it."""
        return _inside(self.uids, uid), _inside(self.gids, gid)

    def outside(self, uid: int, gid: int) -> tuple[int, int]:
        """What an owner in the container is in the engine's namespace. Raises InvalidParameter."""
        return _outside(self.uids, uid), _outside(self.gids, gid)

    @property
    def root(self) -> tuple[int, int]:
        """The ids of the container's root, in the engine's namespace."""
        return self.outside(0, 0)

    @property
    def last_group(self) -> int:
        """The highest group id of the range that begins with 0."""
        last = -1
        for inside, _, size in sorted(self.gids):
            if inside != last + 1:
                break
            last = inside + size - 1
        return last


def _inside(ids: Map, id: int) -> int:
    return next((id - first + inside for inside, first, size in ids if first <= id < first + size), NOBODY)


def _outside(ids: Map, id: int) -> int:
    for inside, first, size in ids:
        if inside <= id < inside + size:
            return first + id - inside
    raise InvalidParameter(
        f"Container ID {id} cannot be mapped to a host ID",
        hint="The container's user namespace has fewer ids. Its ranges are in /etc/subuid and /etc/subgid.",
    )


def mode_of(host: HostConfig, remap: Mapping | None) -> str:
    """The mode a container gets: "host" (no namespace of its own), "remap", "auto…" or "keep-id…"."""
    return host.userns_mode or ("remap" if remap is not None else "host")


_OPTIONS = {"auto": {"size"}, "keep-id": {"uid", "gid"}}
_MOST_IDS = 1 << 31


def options_of(mode: str) -> dict[str, int]:
    """What is behind the colon of a mode. Raises InvalidParameter for modes and options that are unknown."""
    name, colon, text = mode.partition(":")
    found: dict[str, int] = {}
    for option in text.split(",") if colon else ():
        key, _, value = option.partition("=")
        if key not in _OPTIONS.get(name, ()) or not (value.isascii() and value.isdigit()):
            raise InvalidParameter(f"invalid user namespace mode: {mode}")
        found[key] = int(value)
    return found


def check_mode(mode: str) -> None:
    """Raises InvalidParameter for a `UsernsMode` that is none: host, or podman's auto and keep-id."""
    if mode not in ("", "host") and mode.partition(":")[0] not in _OPTIONS:
        raise InvalidParameter(f"invalid user namespace mode: {mode}")
    if not 1 <= options_of(mode).get("size", 1) <= _MOST_IDS:
        raise InvalidParameter(f"invalid user namespace mode: {mode}", hint="Write auto, or auto:size=65536.")


def check(host: HostConfig, remap: Mapping | None) -> None:
    """Refuses what contradicts a user namespace of the container's own, by dockerd's rules, in its words."""
    mode = mode_of(host, remap)
    if mode == "host":
        return
    if mode.startswith("auto") and userns.inside():
        raise NotSupported(
            "--userns=auto is for an engine of root's: without root layers cannot be shown with other owners",
            hint="All containers of this engine are in a user namespace already: leave the option out.",
        )
    if mode.startswith("keep-id"):
        if not userns.inside():
            raise NotSupported(
                "--userns=keep-id is for an engine without root: it keeps the id of the user who runs that",
                hint="Use --userns=auto, or run the engine as that user.",
            )
        kept(mode)
        if reason := layers.fuse_objection():
            raise NotSupported(
                f"--userns=keep-id needs fuse-overlayfs, to show layers with other owners: {reason}",
                hint="Install the package fuse-overlayfs, and open /dev/fuse to users.",
            )
    if host.privileged:
        raise InvalidParameter(
            "privileged mode is incompatible with user namespaces.  You must run the container in the host "
            "namespace when running privileged mode",
            hint="Add --userns=host.",
        )
    if host.network_mode == "host":
        raise InvalidParameter(
            "cannot share the host's network namespace when user namespaces are enabled",
            hint="Add --userns=host.",
        )
    if host.pid_mode == "host":
        raise InvalidParameter(
            "cannot share the host PID namespace when user namespaces are enabled", hint="Add --userns=host."
        )


def kept(mode: str) -> Mapping:
    """keep-id: who runs the engine, 0 in its namespace, has the same id inside as outside, or one asked for.

    All other ids follow in order, root the first. Raises InvalidParameter when there are not that many.
    """
    options = options_of(mode)
    maps: list[Map] = []
    for key, path in (("uid", "/proc/self/uid_map"), ("gid", "/proc/self/gid_map")):
        lines = userns.ids(path)
        count = sum(size for _, _, size in lines)
        same = options.get(key, lines[0][1])
        if same >= count:
            raise InvalidParameter(
                f"--userns={mode}: {key} {same} is beyond the {count} ids that this engine may use",
                hint="Give the user more subordinate ids, or name a smaller one: keep-id:uid=1000,gid=1000.",
            )
        parts = ((0, 1, same), (same, 0, 1), (same + 1, same + 1, count - same - 1))
        maps.append(tuple(part for part in parts if part[2] > 0))
    return Mapping(maps[0], maps[1])


def default_user(mode: str) -> str:
    """Whom a container runs as whose user nobody named: with keep-id who is kept; "" for the image's."""
    if not mode.startswith("keep-id"):
        return ""
    ids = kept(mode)
    uid, gid = ids.inside(0, 0)
    return f"{uid}:{gid}"


def shared_with(donors: list[Container]) -> Mapping:
    """The ids of the user namespace of those whose namespaces a container joins, which must be its own, too.

    Who has no rights over a namespace could not be set up in it. Raises Conflict.
    """
    paths = {f"/proc/{donor.pid}/ns/user": donor for donor in donors}
    found = {os.stat(path).st_ino: donor for path, donor in paths.items()}
    if os.stat("/proc/self/ns/user").st_ino in found:
        name = found[os.stat("/proc/self/ns/user").st_ino].name
        raise Conflict(
            f"cannot join a namespace of container {name}: it is in the host's user namespace",
            hint="Run this container with --userns=host as well.",
        )
    if len(found) > 1:
        names = " and ".join(sorted(donor.name for donor in donors))
        raise Conflict(f"cannot join namespaces of {names}: they are in different user namespaces")
    return _of_process(donors[0].pid)


def of_running(pid: int) -> Mapping | None:
    """The ids of a process in another user namespace than the engine's, else None.

    Raises ProcessLookupError.
    """
    try:
        if os.stat(f"/proc/{pid}/ns/user").st_ino == os.stat("/proc/self/ns/user").st_ino:
            return None
        return _of_process(pid)
    except FileNotFoundError:
        raise ProcessLookupError(pid)


def _of_process(pid: int) -> Mapping:
    return Mapping(tuple(userns.ids(f"/proc/{pid}/uid_map")), tuple(userns.ids(f"/proc/{pid}/gid_map")))
