"""Who is called what on which network: what containers' resolvers answer from. In the proxy's process."""

from __future__ import annotations

Group = tuple[list[str], list[bytes]]  # one container: its names, the first for reverse look-ups; addresses


class Zone:
    """One network's names."""

    def __init__(self, name: str, groups: list[Group]) -> None:
        self.name = name
        # Of each name and address the groups that have it, in their order.
        self._named: dict[str, list[Group]] = {}
        self._at: dict[bytes, list[Group]] = {}
        for group in groups:
            self.join(group)

    def join(self, group: Group) -> None:
        """A container has come, if it is not there."""
        names, addresses = group
        for name in names:
            if group not in (found := self._named.setdefault(name.lower(), [])):
                found.append(group)
        for address in addresses:
            if group not in (there := self._at.setdefault(address, [])):
                there.append(group)

    def leave(self, group: Group) -> None:
        """A container has gone, if it was there."""
        names, addresses = group
        for name in map(str.lower, names):
            if group in (found := self._named.get(name, [])):
                found.remove(group)
                if not found:
                    del self._named[name]
        for address in addresses:
            if group in (there := self._at.get(address, [])):
                there.remove(group)
                if not there:
                    del self._at[address]

    def addresses(self, name: str) -> list[bytes] | None:
        """The packed addresses of a name, all IP versions; None when nobody is called so."""
        found = self._named.get(name.lower())
        return None if found is None else [address for _, addresses in found for address in addresses]

    def name_of(self, address: bytes) -> str | None:
        """The name of an address, with the network's."""
        found = self._at.get(address)
        return None if found is None else f"{found[0][0][0]}.{self.name}"


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
