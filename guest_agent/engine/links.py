"""Links on the default bridge (`--link`): which container knows which other under what alias."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from guest_agent.errors import InvalidParameter


class Link(Struct):
    """One link: the container linked to, its name when that was said, and the alias it goes by."""

    container_id: str
    alias: str
    name: str = ""


def parse_link(text: str) -> tuple[str, str]:
    """`NAME[:ALIAS]` as (name, alias). Raises InvalidParameter."""
    if not text:
        raise InvalidParameter("empty string specified for links")
    parts = text.split(":")
    if len(parts) > 2:
        raise InvalidParameter(f"bad format for links: {text}")
    name = parts[0]
    if len(parts) == 1:
        return name, name.removeprefix("/")
    alias = parts[1]
    # inspect shows /name:/parent/alias; a client that sends that back means the alias.
    return name, alias.rpartition("/")[2] if name.startswith("/") else alias


def link_environment(name: str, address: str, ports: list[str], environment: list[str]) -> list[str]:
    """The variables that tell a container of one it is linked to (Docker's legacy links).

    `name` is "/parent/alias", `ports` are those the other exposes ("80/tcp"), `environment` is the other's.
    """
    prefix = name.rpartition("/")[2].upper().replace("-", "_")
    numbered = sorted(
        ((protocol or "tcp", int(number)) for number, _, protocol in (port.partition("/") for port in ports)),
        key=lambda port: (port[0] != "tcp", port),
    )
    values = []
    if numbered:
        values.append(f"{prefix}_PORT={numbered[0][0]}://{address}:{numbered[0][1]}")
    for index, (protocol, number) in enumerate(numbered):
        each = f"{prefix}_PORT_{number}_{protocol.upper()}"
        values += [f"{each}={protocol}://{address}:{number}", f"{each}_ADDR={address}"]
        values += [f"{each}_PORT={number}", f"{each}_PROTO={protocol}"]
        first = index
        while first > 0 and numbered[first - 1] == (protocol, numbered[first][1] - 1):
            first -= 1
        if first < index and (protocol, number + 1) not in numbered:
            start = numbered[first][1]
            each = f"{prefix}_PORT_{start}_{protocol.upper()}"
            values += [f"{each}_START={protocol}://{address}:{start}", f"{each}_PORT_START={start}"]
            values += [f"{each}_END={protocol}://{address}:{number}", f"{each}_PORT_END={number}"]
    values.append(f"{prefix}_NAME={name}")
    for entry in environment:
        variable, equals, value = entry.partition("=")
        if equals and variable not in ("HOME", "PATH"):
            values.append(f"{prefix}_ENV_{variable}={value}")
    return values


class Links:
    """Both directions of all links; parents know children by aliases."""

    def __init__(self) -> None:
        self._children: dict[str, dict[str, str]] = {}  # parent id → alias → child id

    def add(self, parent: str, child: str, alias: str) -> None:
        """`parent` reaches `child` as `alias`."""
        self._children.setdefault(parent, {})[alias] = child

    def remove(self, parent: str, alias: str) -> bool:
        """Ends one link; false when there is none."""
        return self._children.get(parent, {}).pop(alias, None) is not None

    def children(self, parent: str) -> dict[str, str]:
        """Alias → id of the containers `parent` is linked to."""
        return self._children.get(parent, {})

    def parents(self, child: str) -> list[tuple[str, str]]:
        """(id, alias) of the containers that are linked to `child`."""
        return [
            (parent, alias)
            for parent, aliases in self._children.items()
            for alias, id in aliases.items()
            if id == child
        ]

    def names_of(self, child: str, name_of: Callable[[str], str]) -> list[str]:
        """`/parent/alias` for each link to `child`."""
        return [f"/{name_of(parent)}/{alias}" for parent, alias in self.parents(child)]

    def forget(self, id: str) -> None:
        """Ends the links of a container that is gone.

        Those to it stay: they keep their parents from starting.
        """
        self._children.pop(id, None)
