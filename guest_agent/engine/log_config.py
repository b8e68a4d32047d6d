"""Log drivers and their options: json-file, local and none; others are refused by name.

`local` has its own defaults and no path for others to read at. Its format is the engine's own business; here
it is json-file's.
"""

from __future__ import annotations

import re

from guest_agent.errors import InvalidParameter
from guest_agent.runtime.types import LogSpec

from .config import Config
from .container import Record
from .container_config import ContainerConfig, LogConfig
from .units import human_size, ram_in_bytes

_DRIVERS_OF_DOCKER = frozenset(
    ("awslogs", "etwlogs", "fluentd", "gcplogs", "gelf", "journald", "splunk", "syslog")
)
_JSON_FILE_OPTIONS = frozenset(
    ("max-file", "max-size", "compress", "env", "env-regex", "labels", "labels-regex", "tag")
)
_LOCAL_OPTIONS = frozenset(("max-file", "max-size", "compress"))
_LOCAL_DEFAULTS = {"max-file": "5", "max-size": "20m", "compress": "true"}
# How output is handed to the driver. Ours neither holds a process up longer than its file takes nor drops
# anything, which is within what either mode promises.
_DELIVERY_OPTIONS = frozenset(("mode", "max-buffer-size"))
TAG_FIELDS = ("ID", "FullID", "Name", "ImageID", "ImageFullID", "ImageName", "DaemonName")
_TAG_FIELD = re.compile(r"\{\{\s*\.?([^{}]*?)\s*\}\}")


def settle_log_config(wanted: LogConfig, config: Config) -> LogConfig:
    """The container's log configuration over the engine's default. Raises InvalidParameter."""
    kind = wanted.type or config.log_driver
    options = dict(wanted.config or {})
    if kind == config.log_driver:
        options = {**config.log_opts, **options}
    if kind == "none":
        return LogConfig(kind, options)
    if options.get("mode", "") not in ("", "blocking", "non-blocking"):
        raise InvalidParameter(f"logger: logging mode not supported: {options['mode']}")
    if "max-buffer-size" in options:
        if options.get("mode") != "non-blocking":
            raise InvalidParameter(
                "logger: max-buffer-size option is only supported with 'mode=non-blocking'",
                hint="Leave it out.",
            )
        try:
            ram_in_bytes(options["max-buffer-size"])
        except ValueError as error:
            raise InvalidParameter(f"logger: error parsing option max-buffer-size: {error}")
    if kind not in ("json-file", "local"):
        # A name of none of Docker's own drivers is that of a plugin.
        text = (
            f"logger: no log driver named '{kind}' is registered"
            if kind in _DRIVERS_OF_DOCKER
            else f'error looking up logging plugin {kind}: plugin "{kind}" not found'
        )
        raise InvalidParameter(text, hint="Use json-file, local or none.")
    known = _JSON_FILE_OPTIONS if kind == "json-file" else _LOCAL_OPTIONS
    for option in options:
        if option not in known | _DELIVERY_OPTIONS:
            raise InvalidParameter(
                f"unknown log opt '{option}' for "
                + ("json-file log driver" if kind == "json-file" else "log driver local")
            )
    result = LogConfig(kind, options)
    log_spec(result, ContainerConfig(), "", dict.fromkeys(TAG_FIELDS, ""))  # finds what makes no sense
    return result


def tag_values(record: Record) -> dict[str, str]:
    """What the fields of a `tag` template stand for (Docker's log tags)."""
    image = record.image_id.rpartition(":")[2]
    values = (record.id[:12], record.id, record.name, image[:12], image, record.config.image, "wherry")
    return dict(zip(TAG_FIELDS, values, strict=True))


def log_spec(log: LogConfig, config: ContainerConfig, path: str, tags: dict[str, str]) -> LogSpec | None:
    """What the monitor is told; None for no log. Raises InvalidParameter for a value that makes no sense.

    `tags` are `tag_values` of the container.
    """
    if log.type == "none":
        return None
    options = (_LOCAL_DEFAULTS if log.type == "local" else {}) | (log.config or {})
    max_size, max_files = -1, 1
    if "max-size" in options:
        max_size = _bytes(options["max-size"])
        if max_size <= 0:
            raise InvalidParameter("max-size must be a positive number")
    if "max-file" in options:
        try:
            max_files = int(options["max-file"])
        except ValueError:
            raise InvalidParameter(f'max-file: "{options["max-file"]}" is not a number')
        if max_files < 1:
            raise InvalidParameter("max-file cannot be less than 1")
    compress = options.get("compress", "false").lower()
    if compress not in ("true", "false", "1", "0", "t", "f"):
        raise InvalidParameter(f'compress: "{compress}" is neither true nor false')
    if compress in ("true", "1", "t") and (max_files == 1 or max_size == -1):
        raise InvalidParameter("compress cannot be true when max-file is less than 2 or max-size is not set")
    attributes = _attributes(options, config)
    if options.get("tag"):
        attributes["tag"] = _tag(options["tag"], tags)
    return LogSpec(path, max_size, max_files, compress in ("true", "1", "t"), attributes)


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


def _bytes(text: str) -> int:
    try:
        return human_size(text)
    except ValueError as error:
        raise InvalidParameter(str(error))


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
