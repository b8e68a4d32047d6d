"""`--userns=auto`: each container gets ids that no other running one has, as with podman.

They come from the ranges of the name `containers` in /etc/subuid and /etc/subgid (podman-run(1)). On disk
files have the image's owners, so a range is a container's only from its start to its end.
"""

from __future__ import annotations

from collections.abc import Iterable

from guest_agent.errors import Unavailable
from guest_agent.kernel import userns
from guest_agent.kernel.subids import SUBGID, SUBUID, entries

from .user_namespaces import Mapping, options_of

NAME = "containers"
SIZE = 65_536


class Ranges:
    """Which containers have which ids now."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[int, int]] = {}  # container id → first id, how many

    def release(self, container_id: str) -> None:
        """The container has ended, or did not start."""
        self._held.pop(container_id, None)

    def take(self, container_id: str, mode: str, running: Iterable[tuple[str, int]]) -> Mapping:
        """A range for a container about to start, with `mode` its `auto[:size=N]`.

        `running`: the id and the process of every container that may have a range, of an earlier agent's
        time, too. Raises Unavailable when none is free.
        """
        self._note(running)
        size = options_of(mode).get("size", SIZE)
        taken = sorted(held for key, held in self._held.items() if key != container_id)
        first = _first_free(size, taken)
        self._held[container_id] = (first, size)
        return Mapping(((0, first, size),), ((0, first, size),))

    def _note(self, running: Iterable[tuple[str, int]]) -> None:
        for key, pid in running:
            if key in self._held:
                continue
            try:
                _, first, size = userns.ids(f"/proc/{pid}/uid_map")[0]
            except (OSError, IndexError):
                continue  # it has ended
            self._held[key] = (first, size)


def _first_free(size: int, taken: list[tuple[int, int]]) -> int:
    pools = [(first, count) for name, first, count in entries(SUBUID) if name == NAME]
    groups = [(first, count) for name, first, count in entries(SUBGID) if name == NAME]
    if not pools or pools != groups:
        raise Unavailable(
            f"--userns=auto takes ids from the ranges of {NAME!r} in {SUBUID} and {SUBGID}, "
            "which must be there and alike",
            hint=f"As root: echo {NAME}:2147483648:1073741824 | tee -a {SUBUID} {SUBGID}",
        )
    for start, count in pools:
        first = start
        for other, more in taken:
            if other < first + size and first < other + more:
                first = other + more
        if first + size <= start + count:
            return first
    raise Unavailable(
        f"--userns=auto: no {size} ids in a row are free in the ranges of {NAME!r}",
        hint=f"Stop a container that has some, or add a range to {SUBUID} and {SUBGID}.",
    )
