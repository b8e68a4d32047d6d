"""`RUN --mount=…` and `--device=…`: CSV of `key=value`, whose values may hold variables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from guest_agent.build.dockerfile.errors import DockerfileError
from guest_agent.build.dockerfile.text import boolean, csv_fields, quote, size, suggestion
from guest_agent.build.dockerfile.types import Device, Mount

_TYPES = ("bind", "cache", "tmpfs", "secret", "ssh")
_SHARING = ("shared", "private", "locked")
_OPTIONAL_VALUE = ("readonly", "ro", "readwrite", "rw", "required")
_NAMES = {"from": "from_", "source": "source", "src": "source", "id": "id", "env": "env"} | dict.fromkeys(
    ("target", "dst", "destination"), "target"
)
_KEYS = (*_OPTIONAL_VALUE, *_NAMES, "type", "sharing", "size", "mode", "uid", "gid")
_OWNER_TYPES = ("secret", "ssh", "cache")


def declared(flag: str) -> Mount:
    """What can be said before variables are known: where it comes from, which the order of the stages
    needs."""
    mount = Mount(flag)
    for key, value, _ in _fields(flag, "mounts"):
        if key == "from" and value is not None:
            if 0 <= value.find("$") < len(value) - 1:
                raise DockerfileError("'from' doesn't support variable expansion, define alias stage instead")
            mount = replace(mount, from_=value)
    return mount


def expanded(flag: str, expand: Callable[[str], str]) -> Mount:
    """The mount with its variables replaced, checked as a whole."""
    values: dict[str, Any] = {}
    kind = "bind"
    for key, value, field in _fields(flag, "mounts"):
        if value is None:
            if key not in _OPTIONAL_VALUE:
                raise DockerfileError(f"invalid field '{field}' must be a key=value pair")
            value = "true"
        else:
            value = expand(value)
        if key == "type":
            kind = value.lower()
            if kind not in _TYPES:
                raise DockerfileError(f"unsupported mount type {quote(value)}{suggestion(value, _TYPES)}")
            values["type"] = kind
        elif key in _NAMES:
            values[_NAMES[key]] = value
        elif key in ("readonly", "ro"):
            values["read_only"] = _boolean(key, value)
        elif key in ("readwrite", "rw"):
            values["read_only"] = not _boolean(key, value)
        elif key == "required":
            _only(key, kind, "secret", "ssh")
            values["required"] = _boolean(key, value)
        elif key == "size":
            _only(key, kind, "tmpfs")
            try:
                values["size"] = size(value)
            except ValueError:
                raise DockerfileError(f"invalid value for {key}: {value}") from None
        elif key == "sharing":
            if value.lower() not in _SHARING:
                raise DockerfileError(
                    f"unsupported sharing value {quote(value)}{suggestion(value, _SHARING)}"
                )
            values["sharing"] = value.lower()
        elif key in ("mode", "uid", "gid"):
            values[key] = _number(key, value)
        else:
            raise DockerfileError(f"unexpected key '{key}' in '{field}'{suggestion(key, _KEYS)}")
    values.setdefault("read_only", kind not in ("cache", "tmpfs"))
    return _checked(Mount(flag, **values))


def device(flag: str) -> Device:
    name, required = "", False
    for key, value, field in _fields(flag, "devices"):
        if key == "required":
            required = value is None or _boolean(key, value)
        elif key == "name" and value is not None:
            if name:
                raise DockerfileError(f"device name already set to {name}")
            name = value
        elif not name:
            name = field
        elif value is None:
            raise DockerfileError(f"invalid field '{field}' must be a key=value pair")
        else:
            raise DockerfileError(
                f"unexpected key '{key}' in '{field}'{suggestion(key, ('name', 'required'))}"
            )
    return Device(name, required)


def _fields(flag: str, what: str) -> list[tuple[str, str | None, str]]:
    """Key in lower case, value (None: no `=`), the field as written."""
    try:
        fields = csv_fields(flag)
    except ValueError as error:
        raise DockerfileError(f"failed to parse csv {what}: {error}") from None
    cut = [(field.partition("="), field) for field in fields]
    return [(key.lower(), value if equals else None, field) for (key, equals, value), field in cut]


def _only(key: str, kind: str, *kinds: str) -> None:
    if kind not in kinds:
        raise DockerfileError(f"unexpected key '{key}' for mount type '{kind}'")


def _boolean(key: str, value: str) -> bool:
    try:
        return boolean(value)
    except ValueError:
        raise DockerfileError(f"invalid value for {key}: {value}") from None


def _number(key: str, value: str) -> int:
    base = 8 if key == "mode" else 10
    digits = "01234567" if base == 8 else "0123456789"
    if not value or len(value) > 16 or value.strip(digits) or int(value, base) > 0xFFFFFFFF:
        raise DockerfileError(f"invalid value {value} for {key}")
    return int(value, base)


def _checked(mount: Mount) -> Mount:
    if mount.type not in _OWNER_TYPES:
        for key in ("mode", "uid", "gid"):
            if getattr(mount, key) is not None:
                raise DockerfileError(f"{key} not allowed for {quote(mount.type)} type mounts")
    if mount.type == "secret":
        if mount.from_:
            raise DockerfileError("secret mount should not have a from")
        if mount.sharing:
            raise DockerfileError("secret mount should not define sharing")
        if not (mount.source or mount.target or mount.id):
            raise DockerfileError("invalid secret mount. one of source, target required")
        if mount.source and mount.id:
            raise DockerfileError("both source and id can't be set")
    if mount.sharing and mount.type != "cache":
        raise DockerfileError(f"invalid cache sharing set for {mount.type} mount")
    return mount
