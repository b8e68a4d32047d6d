"""Changing a container's limits and restart policy, also while it runs; renaming; pruning."""

from __future__ import annotations

import asyncio
import copy
from typing import TYPE_CHECKING, Any

from guest_agent.errors import Conflict, EngineError, InternalError, InvalidParameter, NotFound

from . import removal
from .container_config import Resources, RestartPolicy
from .container_events import publish
from .host import facts
from .listing import Filters, has_labels
from .pausing import GONE, cgroup
from .resources import linux_resources
from .signalling import cancel_restart
from .sizes import container_size
from .validate import check_resources, check_restart_policy
from .wait import Outcome

if TYPE_CHECKING:
    from .container import Container
    from .engine import Engine

# What an update may change; other fields of a request are ignored, as dockerd ignores them.
_NUMBERS = (
    "blkio_weight",
    "cpu_shares",
    "nano_cpus",
    "cpu_period",
    "cpu_quota",
    "memory_swap",
    "memory_reservation",
    "cpu_realtime_period",
    "cpu_realtime_runtime",
)
PRUNE_FILTERS = frozenset(("label", "label!", "until"))


async def update(engine: Engine, container: Container, wanted: Resources, policy: RestartPolicy) -> list[str]:
    """Changes limits (0, "" and None: unchanged) and the restart policy (name "": unchanged); returns
    warnings.

    Raises InvalidParameter or Conflict; then nothing has changed.
    """
    limits = facts().limits
    warnings = check_resources(wanted, limits, update=True)
    check_restart_policy(policy)
    async with container.lock:
        if container.removing or container.state.dead:
            raise Conflict(
                f"Cannot update container {container.id}: "
                'container is marked for removal and cannot be "update"'
            )
        host = container.host_config
        before = copy.copy(host)
        try:
            _apply(wanted, container)
            if policy.name:
                if host.auto_remove and policy.name != "no":
                    raise Conflict(
                        "Restart policy cannot be updated because AutoRemove is enabled for the container"
                    )
                host.restart_policy = policy
            if container.state.running and not container.state.restarting:
                await _enforce(engine, container, wanted)
            await engine.containers.save(container)
        except EngineError as error:
            container.record.host_config = before
            raise type(error)(f"Cannot update container {container.id}: {error.message}", error.hint)
        except BaseException:
            container.record.host_config = before
            raise
        if policy.name == "no" and container.state.restarting:
            cancel_restart(container)
            container.state.set_stopped(container.state.exit_code, container.state.finished_at)
            container.waiters.stopped(Outcome(container.state.exit_code))
    publish(engine, container, "update")
    return warnings


def _apply(wanted: Resources, container: Container) -> None:
    host = container.host_config
    for new, old, text in (
        (wanted.nano_cpus, host.cpu_period, "Nano CPUs cannot be updated as CPU Period has already been set"),
        (wanted.nano_cpus, host.cpu_quota, "Nano CPUs cannot be updated as CPU Quota has already been set"),
        (wanted.cpu_period, host.nano_cpus, "CPU Period cannot be updated as NanoCPUs has already been set"),
        (wanted.cpu_quota, host.nano_cpus, "CPU Quota cannot be updated as NanoCPUs has already been set"),
    ):
        if new > 0 and old > 0:
            raise Conflict(f"Conflicting options: {text}")
    if wanted.memory:
        if host.memory_swap > 0 and wanted.memory > host.memory_swap and not wanted.memory_swap:
            raise Conflict(
                "Memory limit should be smaller than already set memoryswap limit, "
                "update the memoryswap at the same time"
            )
        host.memory = wanted.memory
    for name in _NUMBERS:
        if getattr(wanted, name):
            setattr(host, name, getattr(wanted, name))
    host.cpuset_cpus = wanted.cpuset_cpus or host.cpuset_cpus
    host.cpuset_mems = wanted.cpuset_mems or host.cpuset_mems
    if wanted.pids_limit is not None:
        host.pids_limit = max(wanted.pids_limit, 0)


async def _enforce(engine: Engine, container: Container, wanted: Resources) -> None:
    resources: dict[str, Any] = linux_resources(wanted)
    if not resources:
        return
    # The kernel's rules couple memory and swap: whoever changes one says both.
    if memory := resources.get("memory"):
        host = container.host_config
        if "limit" in memory or "swap" in memory:
            if host.memory > 0:
                memory["limit"] = host.memory
            if host.memory_swap:
                memory["swap"] = host.memory_swap
    try:
        await asyncio.to_thread(cgroup(engine, container).set, resources)
    except OSError as error:
        if error.errno not in GONE:  # the next start has them
            raise InternalError(f"{error.strerror or error}")


async def rename(engine: Engine, container: Container, new_name: str) -> None:
    """Gives a container another name. Raises InvalidParameter, Conflict."""
    name = new_name.strip()
    if not name.removeprefix("/"):
        raise InvalidParameter("Neither old nor new names may be empty")
    if name.removeprefix("/") == container.name:
        raise InvalidParameter("Renaming a container with the same name as its current name")
    async with container.lock:
        try:
            bare = engine.containers.reserve_name("/" + name.removeprefix("/"), container.id)
        except EngineError as error:
            raise type(error)(f"Error when allocating new name: {error.message}", error.hint)
        old = container.name
        container.record.name = bare
        try:
            await engine.containers.save(container)
        except BaseException:
            container.record.name = old
            engine.containers.release_name(bare)
            raise
        engine.containers.release_name(old)
    publish(engine, container, "rename", oldName=f"/{old}")


async def remove_link(engine: Engine, name: str) -> None:
    """Ends the link `PARENT/ALIAS`; the containers stay. Raises InvalidParameter, NotFound."""
    parent_name, slash, alias = name.removeprefix("/").rpartition("/")
    if not slash:
        engine.containers.get(name)
        raise InvalidParameter(
            "Conflict, cannot remove the default link name of the container",
            hint="Name the link as CONTAINER/ALIAS.",
        )
    parent: Container = engine.containers.get(parent_name)
    async with parent.lock:
        if not engine.containers.links.remove(parent.id, alias):
            raise NotFound(f"No such container: {name}")
        parent.record.links = [link for link in parent.record.links if link.alias != alias]
        await engine.containers.save(parent)


async def prune(engine: Engine, filters: Filters, until: int | None) -> dict[str, Any]:
    """Removes what does not run and passes the filters; `until` is in nanoseconds since the epoch.

    Raises Conflict while another prune is under way.
    """
    if engine.containers.prune_lock.locked():
        raise Conflict("a prune operation is already running")
    async with engine.containers.prune_lock:
        removed: list[str] = []
        reclaimed = 0
        for container in engine.containers:
            labels = container.config.labels or {}
            if (
                container.state.running
                or (until is not None and container.record.created > until)
                or not has_labels(labels, filters.get("label", []))
                or (filters.get("label!") and has_labels(labels, filters["label!"]))
            ):
                continue
            size, _ = await asyncio.to_thread(container_size, engine, container)
            try:
                await removal.remove(engine, container, container.id)
            except EngineError:
                continue  # started or removed by somebody else meanwhile
            reclaimed += size
            removed.append(container.id)
    engine.events.publish("container", "prune", "", {"reclaimed": str(reclaimed)})
    return {"ContainersDeleted": removed or None, "SpaceReclaimed": reclaimed}
