"""What a container's log is to be: from driver and options to what the monitor and the sender are told."""

from __future__ import annotations

import re
from typing import Any

from guest_agent.errors import InternalError, InvalidParameter
from guest_agent.runtime.types import LogSpec

from . import log_drivers
from .config import Config
from .container import Record
from .container_config import ContainerConfig, LogConfig
from .units import human_size, ram_in_bytes

TAG_FIELDS = ("ID", "FullID", "Name", "ImageID", "ImageFullID", "ImageName", "DaemonName")
DEFAULT_TAG = "{{.ID}}"
_TAG_FIELD = re.compile(r"\{\{\s*\.?([^{}]*?)\s*\}\}")
# dockerd's for its driver `local`, and for the cache that drivers have which send logs on.
_LOCAL_SIZE, _LOCAL_FILES = 20_000_000, 5
_BUFFER = 1 << 20  # what may wait in non-blocking mode


def settle_log_config(wanted: LogConfig, config: Config) -> LogConfig:
    """The container's log configuration over the engine's default. Raises InvalidParameter."""
    kind = wanted.type or config.log_driver
    options = dict(wanted.config or {})
    if kind == config.log_driver:
        options = {**config.log_opts, **options}
    if kind == "none":
        return LogConfig(kind, options)
    log_drivers.check(kind, options)
    result = LogConfig(kind, options)
    tags = dict.fromkeys(TAG_FIELDS, "")
    if kind in log_drivers.REMOTE:
        _tag(options.get("tag") or DEFAULT_TAG, tags)
    log_spec(result, ContainerConfig(), "", tags)  # finds what makes no sense
    return result


def readable(log: LogConfig) -> bool:
    """Whether `logs` can show what was logged."""
    if log.type in log_drivers.FILES:
        return True
    return log.type != "none" and not log_drivers.flag((log.config or {}).get("cache-disabled") or "false")


def tag_values(record: Record) -> dict[str, str]:
    """What the fields of a `tag` template stand for (Docker's log tags)."""
    image = record.image_id.rpartition(":")[2]
    values = (record.id[:12], record.id, record.name, image[:12], image, record.config.image, "wherry")
    return dict(zip(TAG_FIELDS, values, strict=True))


def log_spec(log: LogConfig, config: ContainerConfig, path: str, tags: dict[str, str]) -> LogSpec | None:
    """What the monitor is told; None for no log. Raises InvalidParameter for a value that makes no sense.

    `tags` are `tag_values` of the container.
    """
    options = log.config or {}
    match log.type:
        case "none":
            return None
        case "json-file":
            size, files, compress = _rotation(options, "", -1, 1, False)
        case "local":
            size, files, compress = _rotation(options, "", _LOCAL_SIZE, _LOCAL_FILES, True)
        case _:
            size, files, compress = _rotation(options, "cache-", _LOCAL_SIZE, _LOCAL_FILES, True)
    if compress and (files == 1 or size == -1):
        if log.type == "json-file":
            raise InvalidParameter(
                "compress cannot be true when max-file is less than 2 or max-size is not set"
            )
        raise InvalidParameter(
            "compression cannot be enabled when max file count is 1", "Add compress=false."
        )
    attributes = _attributes(options, config)
    if options.get("tag"):
        attributes["tag"] = _tag(options["tag"], tags)
    return LogSpec(path, size, files, compress, attributes)


def _rotation(
    options: dict[str, str], prefix: str, max_size: int, max_files: int, compress: bool
) -> tuple[int, int, bool]:
    name = f"{prefix}max-size"
    if name in options:
        try:
            max_size = human_size(options[name])
        except ValueError as error:
            raise InvalidParameter(str(error))
        if max_size <= 0:
            raise InvalidParameter(f"{name} must be a positive number")
    name = f"{prefix}max-file"
    if name in options:
        try:
            max_files = int(options[name])
        except ValueError:
            raise InvalidParameter(f'{name}: "{options[name]}" is not a number')
        if max_files < 1:
            raise InvalidParameter(f"{name} cannot be less than 1")
    name = f"{prefix}compress"
    if name in options:
        try:
            compress = log_drivers.flag(options[name])
        except ValueError:
            raise InvalidParameter(f'{name}: "{options[name]}" is neither true nor false')
    return max_size, max_files, compress


def delivery(record: Record, path: str) -> dict[str, Any] | None:
    """What the sender is told of a container, None when its log stays here. Raises InternalError."""
    log, config = record.host_config.log_config, record.config
    if log.type not in log_drivers.REMOTE:
        return None
    options = log.config or {}
    most = None
    if options.get("fluentd-buffer-limit") and log_drivers.flag(options.get("fluentd-async") or "false"):
        most = ram_in_bytes(options["fluentd-buffer-limit"]) or None  # dockerd reads it as a size, too
    try:
        size, files, _ = _rotation(options, "cache-", _LOCAL_SIZE, _LOCAL_FILES, True)
        keep = size * files
        if options.get("mode") == "non-blocking":
            keep = ram_in_bytes(options.get("max-buffer-size") or "0") or _BUFFER
        return {
            "id": record.id,
            "driver": log.type,
            "path": path,
            "options": options,
            "keep": keep,
            "most": most,
            "name": record.name,
            "image_id": record.image_id,
            "image_name": config.image,
            "command": " ".join([record.path, *record.args]),
            "created": record.created,
            "tag": _tag(options.get("tag") or DEFAULT_TAG, tag_values(record)),
            "extra": _attributes(options, config),
        }
    except InvalidParameter as error:
        raise InternalError(
            f"failed to create task for container: failed to initialize logging driver: {error.message}",
            error.hint,
        )


def _tag(template: str, values: dict[str, str]) -> str:
    """Fills in `{{.Name}}` and the like; other actions of Go's templates are refused."""

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        if name not in values:
            raise InvalidParameter(
                f"invalid log tag: {match[0]} is not a field", hint=f"Use one of {', '.join(TAG_FIELDS)}."
            )
        return values[name]

    return _TAG_FIELD.sub(fill, template)


def _attributes(options: dict[str, str], config: ContainerConfig) -> dict[str, str]:
    """Labels and variables of the container that the options ask to be written with each line."""
    labels = config.labels or {}
    env = dict(entry.partition("=")[::2] for entry in config.env or () if "=" in entry)
    chosen: dict[str, str] = {}
    for option, values in (("labels", labels), ("env", env)):
        for name in filter(None, options.get(option, "").split(",")):
            if name in values:
                chosen[name] = values[name]
        if pattern := options.get(f"{option}-regex"):
            try:
                wanted = re.compile(pattern)
            except re.error as error:
                raise InvalidParameter(f"{option}-regex: {error}")
            chosen |= {name: value for name, value in values.items() if wanted.search(name)}
    return chosen
