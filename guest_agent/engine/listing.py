"""The list of containers and its filters (`docker ps`)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from guest_agent.errors import InvalidParameter, NotFound

from .inspect import network_settings, ports, summary

if TYPE_CHECKING:
    from .container import Container
    from .engine import Engine

Filters = dict[str, list[str]]

FILTERS = frozenset(
    (
        *("ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation", "label", "name"),
        *("network", "publish", "since", "status", "volume"),
    )
)
_STATES = ("created", "running", "paused", "restarting", "removing", "exited", "dead")
_HEALTHS = ("none", "starting", "healthy", "unhealthy")
_PORTS = re.compile(r"(\d+)(?:-(\d+))?(?:/(tcp|udp|sctp))?")
_NEWEST = (1 << 16, 0)  # an API version that leaves nothing out


def list_containers(
    engine: Engine, version: tuple[int, int], filters: Filters, stopped: bool = False, limit: int = 0
) -> list[tuple[Container, dict[str, Any]]]:
    """Containers that pass the filters, newest first, each with its summary.

    Raises InvalidParameter, NotFound.
    """
    stopped = stopped or limit > 0 or bool(filters.get("status"))
    tests = _tests(engine, filters)
    newest_first = sorted(engine.containers, key=lambda each: each.record.created, reverse=True)
    before, since = (_named(engine, filters.get(name)) for name in ("before", "since"))
    result = []
    for container in newest_first:
        if before is not None:
            if container is before:
                before = None
            continue
        if container is since:
            break
        if not (stopped or container.state.running):
            continue
        if all(test(container) for test in tests):
            result.append((container, summary(engine, container, version)))
            if len(result) == limit:
                break
    return result


def _named(engine: Engine, names: list[str] | None) -> Container | None:
    """The container that `before` or `since` name; of several the last, as in dockerd."""
    found: Container | None = None
    for name in names or ():
        found = engine.containers.get(name)
    return found


def _tests(engine: Engine, filters: Filters) -> list[Callable[[Container], bool]]:
    """One test for each filter: any of its values is enough, but all labels must be there."""
    makers: dict[str, Callable[[Engine, list[str]], Callable[[Container], bool]]] = {
        "id": _by_id,
        "name": _by_name,
        "label": lambda _, values: lambda container: has_labels(container.config.labels or {}, values),
        "status": _by_status,
        "exited": _by_exit_code,
        "ancestor": _by_image,
        "health": _by_health,
        "network": _by_network,
        "volume": _by_volume,
        "publish": lambda engine, values: _by_port(engine, "publish", values),
        "expose": lambda engine, values: _by_port(engine, "expose", values),
        "is-task": _by_task,
        "isolation": lambda _, values: lambda container: container.host_config.isolation in values,
    }
    return [makers[name](engine, values) for name, values in filters.items() if name in makers and values]


def has_labels(labels: dict[str, str], wanted: list[str]) -> bool:
    """Whether all of `key` or `key=value` are among the labels."""
    for entry in wanted:
        key, equals, value = entry.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True


def _by_id(engine: Engine, values: list[str]) -> Callable[[Container], bool]:
    return lambda container: any(container.id.startswith(value) for value in values)


def _by_name(engine: Engine, values: list[str]) -> Callable[[Container], bool]:
    try:
        patterns = [re.compile(value) for value in values]
    except re.error as error:
        raise InvalidParameter(f"invalid filter 'name': {error}")

    def test(container: Container) -> bool:
        names = engine.containers.names_of(container)
        names += [name[1:] for name in names]
        return any(pattern.search(name) for pattern in patterns for name in names) or any(
            value in names for value in values
        )

    return test


def _by_status(_: Engine, values: list[str]) -> Callable[[Container], bool]:
    for value in values:
        if value not in _STATES:
            raise InvalidParameter(
                f"invalid filter 'status={value}': invalid value for state ({value}): "
                f"must be one of {', '.join(_STATES)}"
            )
    return lambda container: container.status in values


def _by_exit_code(_: Engine, values: list[str]) -> Callable[[Container], bool]:
    try:
        codes = {int(value) for value in values}
    except ValueError:
        raise InvalidParameter(f"invalid filter 'exited={values[0]}'")
    return lambda container: (
        not container.state.running and container.state.started_at > 0 and container.state.exit_code in codes
    )


def _by_image(engine: Engine, values: list[str]) -> Callable[[Container], bool]:
    """Containers of these images and of images made from them, by the layers they share."""
    ids: set[str] = set()
    chains: set[str] = set()
    for value in values:
        try:
            image = engine.images.get(value)
        except (NotFound, InvalidParameter):
            continue
        ids.add(image.id)
        if image.chains:
            chains.add(image.chains[-1])
    if chains:
        ids |= {each.id for each in engine.images.images() if chains.intersection(each.chains)}
    return lambda container: container.record.image_id in ids


def _by_health(_: Engine, values: list[str]) -> Callable[[Container], bool]:
    for value in values:
        if value not in _HEALTHS:
            raise InvalidParameter(
                f"invalid filter 'health={value}': invalid value for health ({value}): "
                f"must be one of {', '.join(_HEALTHS)}"
            )
    return lambda container: (container.state.health.status if container.state.health else "none") in values


def _by_network(engine: Engine, values: list[str]) -> Callable[[Container], bool]:
    def test(container: Container) -> bool:
        networks = network_settings(engine, container, _NEWEST)["Networks"]
        ids = [endpoint["NetworkID"] or _network_id(engine, name) for name, endpoint in networks.items()]
        return any(value in networks or any(id.startswith(value) for id in ids) for value in values)

    return test


def _network_id(engine: Engine, name: str) -> str:
    try:
        return str(engine.networks.get(name).id)
    except (NotFound, InvalidParameter):
        return ""


def _by_volume(_: Engine, values: list[str]) -> Callable[[Container], bool]:
    return lambda container: any(
        value in (point.destination, point.name or point.source)
        for point in container.record.mounts
        for value in values
    )


def _by_port(engine: Engine, kind: str, values: list[str]) -> Callable[[Container], bool]:
    wanted: set[tuple[int, str]] = set()
    for value in values:
        if ":" in value:
            raise InvalidParameter(f"filter for '{kind}' should not contain ':': {value}")
        match = _PORTS.fullmatch(value)
        if match is None or int(match[2] or match[1]) > 65535:
            raise InvalidParameter(f"error while looking up for {kind} {value}: invalid port")
        first, last = int(match[1]), int(match[2] or match[1])
        wanted |= {(number, match[3] or "tcp") for number in range(first, last + 1)}
    key = "PublicPort" if kind == "publish" else "PrivatePort"

    def test(container: Container) -> bool:
        entries = ports(network_settings(engine, container, _NEWEST)["Ports"])
        return any((entry.get(key), entry["Type"]) in wanted for entry in entries)

    return test


def _by_task(_: Engine, values: list[str]) -> Callable[[Container], bool]:
    wanted = values[0].lower()
    if wanted not in ("true", "1", "false", "0"):
        raise InvalidParameter(f"invalid filter 'is-task=[{values[0]}]'")
    return lambda container: wanted in ("false", "0")  # there is no swarm, so no container is a task
