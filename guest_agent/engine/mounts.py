"""What a user asks to be mounted: `--volume` strings, `--mount` objects and `--volumes-from`, checked and
made alike.

Rules and error texts are dockerd's (its volume mounts parser for Linux).
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from guest_agent.errors import InvalidParameter

from .container_config import BindOptions, DriverConfig, Mount, MountPoint, TmpfsOptions, VolumeOptions

DEFAULT_PROPAGATION = "rprivate"
PROPAGATIONS = frozenset(("private", "rprivate", "slave", "rslave", "shared", "rshared"))
_MODE_KINDS = {
    **dict.fromkeys(("rw", "ro"), "access"),
    **dict.fromkeys(("z", "Z"), "label"),
    **dict.fromkeys(PROPAGATIONS, "propagation"),
    "nocopy": "copy",
    **dict.fromkeys(("consistent", "cached", "delegated", "default"), "consistency"),
}

# Mount flags that a tmpfs may have; of those in one group the last given wins.
_FLAG_GROUPS = (
    ("ro", "rw"),
    ("suid", "nosuid"),
    ("dev", "nodev"),
    ("exec", "noexec"),
    ("sync", "async"),
    ("dirsync",),
    ("mand", "nomand"),
    ("atime", "noatime"),
    ("diratime", "nodiratime"),
    ("relatime", "norelatime"),
    ("strictatime", "nostrictatime"),
    (*PROPAGATIONS, "unbindable", "runbindable"),
)
_FLAG_GROUP = {flag: group[0] for group in _FLAG_GROUPS for flag in group}
_TMPFS_VALUES = frozenset(("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"))


def valid_mode(mode: str) -> bool:
    """Whether a `--volume` mode has only known words, at most one of a kind."""
    if not mode:
        return True
    kinds = [_MODE_KINDS.get(word) for word in mode.split(",")]
    return None not in kinds and len(kinds) == len(set(kinds))


def clean_path(path: str) -> str:
    """The path without `.`, `..`, and doubled or trailing slashes, as Go's path.Clean; absolute stays
    absolute.
    """
    cleaned = os.path.normpath(path)
    return cleaned[1:] if cleaned.startswith("//") else cleaned


def parse_volume(text: str, driver: str = "") -> MountPoint:
    """A `--volume` argument: `[SOURCE:]DESTINATION[:MODE]`. Raises InvalidParameter."""
    parts = text.split(":", 3)
    mode, source, target = "", "", ""
    if len(parts) == 1:
        target = parts[0]
    elif len(parts) == 2 and not valid_mode(parts[1]):
        source, target = parts
    elif len(parts) == 3:
        source, target, mode = parts
    if not parts[0] or len(parts) > 3 or (len(parts) == 2 and not source):
        raise InvalidParameter(f"invalid volume specification: '{text}'")
    if not valid_mode(mode):
        raise InvalidParameter(f"invalid mode: {mode}")
    words = mode.split(",")
    mount = Mount(
        type="bind" if source.startswith("/") else "volume",
        source=source,
        target=target,
        read_only="ro" in words,
    )
    if mount.type == "volume" and (driver or "nocopy" in words):
        mount.volume_options = VolumeOptions(
            no_copy="nocopy" in words, driver_config=DriverConfig(name=driver) if driver else None
        )
    propagation = next((word for word in words if word in PROPAGATIONS), "")
    if propagation:
        if mount.type == "volume":
            raise InvalidParameter(
                f"invalid volume specification: '{text}': invalid mount config for type \"volume\": "
                "field BindOptions must not be specified"
            )
        mount.bind_options = BindOptions(propagation=propagation)
    try:
        point = mount_point(mount, source_must_exist=False)
    except InvalidParameter as error:
        raise InvalidParameter(f"invalid volume specification: '{text}': {error.message}")
    point.mode = mode
    return point


def mount_point(mount: Mount, source_must_exist: bool = True) -> MountPoint:
    """A `--mount` as the container will have it. Raises InvalidParameter."""
    check_mount(mount, source_must_exist)
    point = MountPoint(
        type=mount.type, destination=clean_path(mount.target), rw=not mount.read_only, spec=mount
    )
    if mount.type == "volume":
        options = mount.volume_options or VolumeOptions()
        point.name = mount.source
        point.copy_data = not options.no_copy
        if options.driver_config is not None:
            point.driver = options.driver_config.name
    elif mount.type == "bind":
        point.source = clean_path(mount.source)
        point.propagation = (mount.bind_options and mount.bind_options.propagation) or DEFAULT_PROPAGATION
    elif mount.type == "image":
        point.source, point.propagation, point.rw = mount.source, DEFAULT_PROPAGATION, False
    return point


def check_mount(mount: Mount, source_must_exist: bool = True) -> None:
    """Raises InvalidParameter when a `--mount` contradicts itself, or is to bind something that does not
    exist.
    """
    try:
        _check_mount(mount, source_must_exist)
    except ValueError as error:
        raise InvalidParameter(f'invalid mount config for type "{mount.type}": {error}')


def _check_mount(mount: Mount, source_must_exist: bool) -> None:
    for owner, name, value in (
        ("bind", "BindOptions", mount.bind_options),
        ("volume", "VolumeOptions", mount.volume_options),
        ("image", "ImageOptions", mount.image_options),
        ("tmpfs", "TmpfsOptions", mount.tmpfs_options),
        ("cluster", "ClusterOptions", mount.cluster_options),
    ):
        if mount.type != owner and value is not None:
            raise ValueError(f"field {name} must not be specified")
    if not mount.target:
        raise ValueError("field Target must not be empty")
    check_destination(mount.target)
    match mount.type:
        case "bind":
            _check_bind(mount, source_must_exist)
        case "volume":
            if not mount.source and mount.read_only:
                raise ValueError("must not set ReadOnly mode when using anonymous volumes")
            if mount.volume_options is not None and mount.volume_options.subpath:
                if not mount.source:
                    raise ValueError("must not set Subpath when using anonymous volumes")
                _check_subpath(mount.volume_options.subpath)
        case "tmpfs":
            if mount.source:
                raise ValueError("field Source must not be specified")
            tmpfs_options(mount.tmpfs_options, mount.read_only)
        case "image":
            if not mount.source:
                raise ValueError("field Source must not be empty")
            if mount.image_options is not None and mount.image_options.subpath:
                _check_subpath(mount.image_options.subpath)
        case _:
            raise ValueError("mount type unknown")


def check_destination(path: str) -> None:
    """Raises ValueError for a mount point that is the root or not absolute."""
    if clean_path(path.replace("\\", "/")) == "/":
        raise ValueError("invalid specification: destination can't be '/'")
    if not path.startswith("/"):
        raise ValueError(f"invalid mount path: '{path}' mount path must be absolute")


def _check_bind(mount: Mount, source_must_exist: bool) -> None:
    options = mount.bind_options or BindOptions()
    if not mount.source:
        raise ValueError("field Source must not be empty")
    if options.propagation and options.propagation not in PROPAGATIONS:
        raise ValueError(f"invalid propagation mode: {options.propagation}")
    if not mount.source.startswith("/"):
        raise ValueError(f"invalid mount path: '{mount.source}' mount path must be absolute")
    if source_must_exist and not options.create_mountpoint and not os.path.lexists(mount.source):
        raise ValueError(f"bind source path does not exist: {mount.source}")
    one, other = options.read_only_non_recursive, options.read_only_force_recursive
    if not mount.read_only and (one or other):
        name = "ReadOnlyNonRecursive" if one else "ReadOnlyForceRecursive"
        raise ValueError(f"mount options conflict: !ReadOnly && BindOptions.{name}")
    if one and other:
        raise ValueError("mount options conflict: ReadOnlyNonRecursive && BindOptions.ReadOnlyForceRecursive")


def _check_subpath(path: str) -> None:
    if path.startswith("/") or clean_path(path).split("/", 1)[0] == "..":
        raise ValueError("subpath must be a relative path within the volume")


def parse_volumes_from(text: str) -> tuple[str, bool]:
    """`CONTAINER[:MODE]` as (container, writable). Raises InvalidParameter."""
    if not text:
        raise InvalidParameter("volumes-from specification cannot be an empty string")
    name, _, mode = text.partition(":")
    words = mode.split(",") if mode else []
    if not valid_mode(mode) or "nocopy" in words or PROPAGATIONS.intersection(words):
        raise InvalidParameter(f"invalid mode: {mode}")
    return name, "ro" not in words


def tmpfs_options(options: TmpfsOptions | None, read_only: bool) -> str:
    """A tmpfs `--mount` as the options `--tmpfs` has. Raises ValueError for an option that is not allowed."""
    words = ["ro"] if read_only else []
    if options is not None:
        if options.mode:
            words.append(f"mode={options.mode:o}")
        if options.size_bytes:
            words.append(f"size={options.size_bytes}")
        for option in options.options or ():
            if not 1 <= len(option) <= 2:
                raise ValueError("invalid option array length")
            if option[0] not in ("exec", "noexec"):
                raise ValueError(f"invalid option: {option[0]}")
            words.append("=".join(option))
    return ",".join(words)


def merge_tmpfs_options(options: Iterable[str]) -> list[str]:
    """Of options that exclude each other the last one; the rest as given. Raises InvalidParameter."""
    chosen: dict[str, str] = {}
    for option in options:
        if option == "defaults":
            continue
        key = _FLAG_GROUP.get(option)
        if key is None:
            key, equals, _ = option.partition("=")
            if not equals or key not in _TMPFS_VALUES:
                raise InvalidParameter(f'invalid tmpfs option "{key}"')
        chosen.pop(key, None)
        chosen[key] = option
    return list(chosen.values())
