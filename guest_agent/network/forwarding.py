"""IP forwarding: turned on when it is off, without making the host a router for others."""

from __future__ import annotations

import json
import os

from guest_agent.kernel import netlink
from guest_agent.kernel.netlink import Netlink
from guest_agent.network.bridge import get_sysctl, set_sysctl
from guest_agent.network.hosts import write_file
from guest_agent.roots import Roots

SWITCHES = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}

# Links by IP version (4, 6).
Uplinks = dict[int, list[str]]


class Forwarding:
    """Remembers, in `RUN/forwarding.json`, the links between which the host did not forward before us."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots

    def enable(self, ipv6: bool, ours: list[str]) -> Uplinks:
        """Turn forwarding on, for IPv6 only if asked. Blocking.

        Returns the links between which nothing may be forwarded: those that were there, but for our bridges.
        """
        uplinks = self._remembered()
        off = [version for version in ((4, 6) if ipv6 else (4,)) if get_sysctl(SWITCHES[version]) == "0"]
        if off:
            with Netlink() as kernel:
                links = netlink.get_links(kernel)
            names = [link.name for link in links if link.name not in ("lo", *ours)]
            uplinks.update(dict.fromkeys(off, names))
            write_file(self._roots.run, "forwarding.json", json.dumps(uplinks))
            if 6 in off:
                _keep_listening(names)
            for version in off:
                set_sysctl(SWITCHES[version], "1")
        return uplinks

    def _remembered(self) -> Uplinks:
        try:
            with open(os.path.join(self._roots.run, "forwarding.json")) as file:
                return {
                    int(version): [str(name) for name in names] for version, names in json.load(file).items()
                }
        except (OSError, ValueError, AttributeError, TypeError):
            return {}


def _keep_listening(names: list[str]) -> None:
    """A forwarding host ignores router advertisements unless it is told 2: let it keep its own routes."""
    for name in names:
        if get_sysctl(f"ipv6/conf/{name}/accept_ra") == "1":
            set_sysctl(f"ipv6/conf/{name}/accept_ra", "2")
