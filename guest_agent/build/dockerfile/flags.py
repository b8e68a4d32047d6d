"""The flags of one instruction: `--name=value`, as BuildKit checks them."""

from __future__ import annotations

from collections.abc import Sequence

from guest_agent.build.dockerfile.errors import DockerfileError
from guest_agent.build.dockerfile.text import suggestion


class Flags:
    """The values of the flags that were given. DockerfileError: an unknown one, twice the same, a value
    missing."""

    def __init__(
        self,
        given: Sequence[str],
        *,
        strings: Sequence[str] = (),
        lists: Sequence[str] = (),
        booleans: Sequence[str] = (),
    ) -> None:
        self._values: dict[str, list[str]] = {}
        for flag in given:
            shown, equals, value = flag.partition("=")
            name = shown[2:]
            known = (*strings, *lists, *booleans)
            if name not in known:
                raise DockerfileError(f"unknown flag: {shown}{suggestion(name, known)}")
            if name in self._values and name not in lists:
                raise DockerfileError(f"duplicate flag specified: {shown}")
            if (equals and not value) if name in booleans else not equals:
                raise DockerfileError(f"missing a value on flag: {shown}")
            if name in booleans and value.lower() not in ("", "true", "false"):
                raise DockerfileError(f"expecting boolean value for flag {shown}, not: {value}")
            self._values.setdefault(name, []).append(value)

    def string(self, name: str, default: str = "") -> str:
        return self._values.get(name, [default])[0]

    def strings(self, name: str) -> tuple[str, ...]:
        return tuple(self._values.get(name, ()))

    def boolean(self, name: str) -> bool | None:
        """None: not given."""
        return self.string(name).lower() != "false" if name in self._values else None
