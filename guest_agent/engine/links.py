"""Links on the default bridge (`--link`): which container knows which other under what alias."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from guest_agent.errors import InvalidParameter


class Link(Struct):
    """One link: the container linked to and the alias it goes by."""

    container_id: str
    alias: str


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
        """Ends all links from and to a container that is gone."""
        self._children.pop(id, None)
        for aliases in self._children.values():
            for alias in [alias for alias, child in aliases.items() if child == id]:
                del aliases[alias]
