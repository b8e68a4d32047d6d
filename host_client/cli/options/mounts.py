"""`--mount` and `--volume`, as docker's CLI reads them."""

from __future__ import annotations

import os

from host_client.cli.values import csv_fields, quoted, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FLAGS = ("readonly", "ro", "volume-nocopy", "bind-nonrecursive", "bind-create-src")
_KINDS = {
    "bind": "BindOptions", "volume": "VolumeOptions", "image": "ImageOptions", "tmpfs": "TmpfsOptions",
    "cluster": "ClusterOptions",
}  # fmt: skip


def parse_mount(text: str) -> dict[str, Any]:
    """The API's Mount for one `--mount type=…,source=…,target=…`.

    Raises:
        ValueError: an option that does not exist, has a wrong value, or belongs to another type of mount.
    """
    text = text.strip()
    if not text:
        raise ValueError("value is empty")
    mount: dict[str, Any] = {"Type": "volume"}
    for field in csv_fields(text):
        key, equals, value = field.partition("=")
        if key != key.strip():
            raise ValueError(
                f"invalid option '{key.strip()}' in '{field}': option should not have whitespace"
            )
        if equals:
            if not value.strip():
                raise ValueError(f"invalid value for '{key}': value is empty")
            if value != value.strip():
                raise ValueError(f"invalid value for '{key}' in '{field}': value should not have whitespace")
        key = key.lower()
        if not equals and key not in _FLAGS:
            raise ValueError(f"invalid field '{field}' must be a key=value pair")
        _set(mount, key, value, bool(equals), field)
    _check(mount)
    return mount


def _set(mount: dict[str, Any], key: str, value: str, equals: bool, field: str) -> None:
    if key == "type":
        mount["Type"] = value.lower()
    elif key in ("source", "src"):
        mount["Source"] = os.path.abspath(value) if value.startswith(".") else value
    elif key in ("target", "dst", "destination"):
        mount["Target"] = value
    elif key in ("readonly", "ro"):
        if _boolean(key, value, equals):
            mount["ReadOnly"] = True
    elif key == "consistency":
        mount["Consistency"] = value.lower()
    elif key == "bind-propagation":
        mount.setdefault("BindOptions", {})["Propagation"] = value.lower()
    elif key == "bind-nonrecursive":
        mount.setdefault("BindOptions", {})["NonRecursive"] = _boolean(key, value, equals)
    elif key == "bind-recursive":
        _recursive(mount.setdefault("BindOptions", {}) if value != "enabled" else {}, key, value)
    elif key == "bind-create-src":
        mount.setdefault("BindOptions", {})["CreateMountpoint"] = _boolean(key, value, equals)
    elif key == "volume-subpath":
        mount.setdefault("VolumeOptions", {})["Subpath"] = value
    elif key == "volume-nocopy":
        mount.setdefault("VolumeOptions", {})["NoCopy"] = _boolean(key, value, equals)
    elif key == "volume-label":
        _put(mount.setdefault("VolumeOptions", {}), "Labels", value)
    elif key == "volume-driver":
        mount.setdefault("VolumeOptions", {}).setdefault("DriverConfig", {})["Name"] = value
    elif key == "volume-opt":
        _put(mount.setdefault("VolumeOptions", {}).setdefault("DriverConfig", {}), "Options", value)
    elif key == "image-subpath":
        mount.setdefault("ImageOptions", {})["Subpath"] = value
    elif key == "tmpfs-size":
        try:
            mount.setdefault("TmpfsOptions", {})["SizeBytes"] = size(value)
        except ValueError:
            raise ValueError(f"invalid value for {key}: {value}")
    elif key == "tmpfs-mode":
        if value.strip("01234567"):
            raise ValueError(f"invalid value for {key}: {value}")
        mount.setdefault("TmpfsOptions", {})["Mode"] = int(value, 8)
    else:
        raise ValueError(f"unexpected key '{key}' in '{field}'")


def _recursive(options: dict[str, Any], key: str, value: str) -> None:
    if value == "disabled":
        options["NonRecursive"] = True
    elif value == "writable":
        options["ReadOnlyNonRecursive"] = True
    elif value == "readonly":
        options["ReadOnlyForceRecursive"] = True
    elif value != "enabled":
        raise ValueError(
            f'invalid value for {key}: {value} (must be "enabled", "disabled", "writable", or "readonly")'
        )


def _put(holder: dict[str, Any], name: str, text: str) -> None:
    key, _, value = text.partition("=")
    if key:
        holder.setdefault(name, {})[key] = value


def _boolean(key: str, value: str, equals: bool) -> bool:
    if not equals or value in ("1", "true"):
        return True
    if value in ("0", "false"):
        return False
    raise ValueError(
        f"invalid value for '{key}': invalid boolean value ({quoted(value)}): "
        'must be one of "true", "1", "false", or "0" (default "true")'
    )


def _check(mount: dict[str, Any]) -> None:
    kind = mount["Type"]
    if not kind:
        raise ValueError("type is required")
    for other, options in _KINDS.items():
        if other != kind and options in mount:
            raise ValueError(f"cannot mix '{other}-*' options with mount type '{kind}'")
    bind = mount.get("BindOptions") or {}
    if bind.get("ReadOnlyNonRecursive") and not mount.get("ReadOnly"):
        raise ValueError(
            "option 'bind-recursive=writable' requires 'readonly' to be specified in conjunction"
        )
    if bind.get("ReadOnlyForceRecursive"):
        if not mount.get("ReadOnly"):
            raise ValueError(
                "option 'bind-recursive=readonly' requires 'readonly' to be specified in conjunction"
            )
        if bind.get("Propagation") != "rprivate":
            raise ValueError(
                "option 'bind-recursive=readonly' requires 'bind-propagation=rprivate' "
                "to be specified in conjunction"
            )


def split_volume(spec: str) -> tuple[str | None, str | None]:
    """Sort one `--volume` into (bind, None) for a named volume or host path, or (None, target) for an
    anonymous one.

    A relative host path (`.` or `..` at its front) is made absolute here, since only the client knows where
    it is.

    Raises:
        ValueError: with docker's words.
    """
    if not spec:
        raise ValueError("invalid empty volume spec")
    if len(spec) <= 2:
        return None, spec
    parts = _sections(spec)
    if any(not part for part in parts):
        raise ValueError(f"invalid spec: {spec}: empty section between colons")
    if len(parts) > 3:
        raise ValueError(f"invalid spec: {spec}: too many colons")
    if len(parts) == 1:
        return None, spec
    host, _, rest = spec.partition(":")
    if host.startswith(".") and not os.path.isabs(host):
        return f"{os.path.abspath(host)}:{rest}", None
    return spec, None


def _sections(spec: str) -> list[str]:
    """Split at colons, but not at the one after a Windows drive letter."""
    parts, current = [], ""
    for character in spec:
        if character == ":" and not (len(current) == 1 and current.isalpha()):
            parts.append(current)
            current = ""
        else:
            current += character
    return [*parts, current]
