"""Who is called what on which network: what containers' resolvers answer from. In the proxy's process."""

from __future__ import annotations

Group = tuple[list[str], list[bytes]]  # one container: its names, the first for reverse look-ups; addresses


class Zone:
    """One network's names."""

    def __init__(self, name: str, groups: list[Group]) -> None:
        self.name = name
        self._addresses: dict[str, list[bytes]] = {}
        self._names: dict[bytes, str] = {}
        for names, addresses in groups:
            for each in names:
                self._addresses.setdefault(each.lower(), []).extend(addresses)
            for address in addresses:
                self._names.setdefault(address, f"{names[0]}.{name}")

    def addresses(self, name: str) -> list[bytes] | None:
        """The packed addresses of a name, all IP versions; None when nobody is called so."""
        return self._addresses.get(name.lower())

    def name_of(self, address: bytes) -> str | None:
        """The name of an address, with the network's."""
        return self._names.get(address)


def candidates(name: str) -> list[tuple[str, str]]:
    """How a question may be meant, as (name, network): the whole on any network, then every split at a dot.

    Names and networks may have dots themselves (libnetwork: Sandbox.ResolveName).
    """
    found = [(name, "")]
    end = len(name)
    while (end := name.rfind(".", 0, end)) > 0:
        found.append((name[:end], name[end + 1 :]))
    return found


def resolve(zones: list[Zone], aliases: dict[str, str], name: str) -> list[bytes] | None:
    """The addresses of a name as a container on these networks sees it; None when it is not a container's.

    `aliases`: names from links, which only this container knows, to names on its networks.
    """
    for short, network in candidates(name):
        wanted = aliases.get(short.lower(), short) if not network else short
        for zone in zones:
            if network in ("", zone.name):
                addresses = zone.addresses(wanted)
                if addresses is not None:
                    return list(dict.fromkeys(addresses))
    return None
