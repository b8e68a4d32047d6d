"""IP forwarding: turned on when it is off, without making the host a router for others."""

from __future__ import annotations

import json
import os

from guest_agent.kernel import netlink
from guest_agent.kernel.netlink import Netlink
from guest_agent.network.bridge import set_sysctl
from guest_agent.network.hosts import write_file
from guest_agent.roots import Roots


class Forwarding:
    """Remembers, in `RUN/forwarding.json`, the links between which the host did not forward before us."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots

    def enable(self) -> list[str]:
        """Turn forwarding on. Returns the links that nothing may be forwarded between. Blocking."""
        with open("/proc/sys/net/ipv4/ip_forward") as file:
            on = file.read().strip() == "1"
        if on:
            return self._remembered()
        with Netlink() as kernel:
            uplinks = [link.name for link in netlink.get_links(kernel) if link.name != "lo"]
        write_file(self._roots.run, "forwarding.json", json.dumps(uplinks))
        set_sysctl("ipv4/ip_forward", "1")
        return uplinks

    def _remembered(self) -> list[str]:
        try:
            with open(os.path.join(self._roots.run, "forwarding.json")) as file:
                return [str(name) for name in json.load(file)]
        except (OSError, ValueError):
            return []
