"""Making a container: its settings checked, merged with the image's and completed; its files and volumes
made.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from guest_agent.errors import InternalError, InvalidParameter, NotFound
from guest_agent.images import indexes, platforms, reference
from guest_agent.network.types import EndpointConfig

from . import user_namespaces, validate
from .container import Container, Record
from .container_config import (
    BindOptions,
    ContainerConfig,
    EndpointSettings,
    HostConfig,
    IpamConfig,
    MountPoint,
    VolumeOptions,
    is_user_network,
    shared_container,
)
from .container_events import publish
from .copy_up import copy_up
from .host import describe, facts
from .ids import new_id
from .kept_user import introduce
from .links import Link, parse_link
from .log_config import settle_log_config
from .merge import merge_image_config
from .mounts import clean_path, mount_point, parse_volume, parse_volumes_from
from .security import parse_security_options
from .spec import READONLY_PATHS, default_masked_paths
from .units import ram_in_bytes

if TYPE_CHECKING:
    from guest_agent.images.store import Image
    from guest_agent.runtime.types import Overlay

    from .engine import Engine


async def create(
    engine: Engine,
    name: str,
    config: ContainerConfig,
    host: HostConfig,
    endpoints: dict[str, EndpointSettings],
    wanted_platform: str = "",
    plain_read_only: bool = False,
) -> tuple[Container, list[str]]:
    """Makes a container and returns it with warnings. The settings are changed to what was made of them.

    `plain_read_only`: read-only binds are not so recursively (API before 1.44). Raises InvalidParameter,
    NotFound (image, volume driver, other container), Conflict (name), NotSupported.
    """
    host.restart_policy.name = host.restart_policy.name or "no"
    if host.network_mode in ("", "default"):
        host.network_mode = "bridge"
        if "default" in endpoints:
            endpoints["bridge"] = endpoints.pop("default")
    host_facts = facts()
    validate.check_create(config, host)
    validate.check_config(config)
    warnings = validate.check_host_config(host, host_facts.limits)
    warnings += validate.network_warnings(host, engine.space is not None or host_facts.ip_forwarding)
    if not config.image:
        empty = config == ContainerConfig()
        raise InvalidParameter(
            "config cannot be empty in order to create a container" if empty else "no image specified"
        )
    image = _image(engine, config.image, wanted_platform)
    _check_platform(config.image, image, wanted_platform, warnings)
    complete(engine, host)
    user_namespaces.check(host, engine.remap)
    config.user = config.user or user_namespaces.default_user(host.userns_mode)
    merge_image_config(config, image.config.get("config") or {})
    validate.check_config(config)  # what the image says may be as wrong
    config.working_dir = clean_path(config.working_dir) if config.working_dir else ""
    host.log_config = settle_log_config(host.log_config, engine.config)
    warnings += parse_security_options(
        host.security_opt or (),
        host_facts.apparmor,
        engine.config.no_new_privileges,
        host_facts.selinux,
    ).discarded

    id = new_id()
    record = Record(
        id=id,
        name=engine.containers.reserve_name(name, id),
        created=time.time_ns(),
        image_id=image.id,
        config=config,
        host_config=host,
    )
    container = Container(record)
    try:
        _describe_image(record, image)
        _settle_names(record)
        _settle_links(engine, container)
        _settle_networks(engine, record, endpoints)
        await _settle_mounts(engine, record, plain_read_only)
        await _make_files(engine, container, image)
        await engine.containers.add(container)
    except OSError as error:
        await _undo(engine, container)
        raise InternalError(f"cannot create container: {describe(error)}")
    except BaseException:
        await _undo(engine, container)
        raise
    publish(engine, container, "create")
    return container, warnings


def _image(engine: Engine, name: str, wanted_platform: str) -> Image:
    """The image a name stands for; of several under one name the one for the platform."""
    image: Image = engine.images.get(name)
    if not wanted_platform or reference.image_id(name):
        return image
    platform = platforms.parse(wanted_platform)
    if platforms.fits(platform, platforms.of_config(image.config)):
        return image
    return indexes.member(engine.images, reference.parse(name).with_default_tag(), platform) or image


def _check_platform(name: str, image: Image, wanted: str, warnings: list[str]) -> None:
    """An image for another platform is an error when one was asked for, else worth a warning."""
    theirs, here = platforms.of_config(image.config), platforms.host()
    if wanted:
        if not platforms.fits(platforms.parse(wanted), theirs):
            raise NotFound(
                f"image with reference {name} was found but its platform ({image.platform}) does not match "
                f"the specified platform ({wanted})"
            )
    elif not platforms.fits(here, theirs):
        warnings.append(
            f"The requested image's platform ({image.platform}) does not match the detected host platform "
            f"({here}) and no specific platform was requested"
        )


def complete(engine: Engine, host: HostConfig) -> None:
    """Docker's defaults that depend on other settings or on the engine."""
    config = engine.config
    if host.memory > 0 and not host.memory_swap:
        host.memory_swap = host.memory * 2
    host.shm_size = host.shm_size or config.default_shm_size
    host.ipc_mode = host.ipc_mode or config.default_ipc_mode
    host.runtime = host.runtime or validate.RUNTIMES[0]
    if not host.cgroupns_mode:
        cgroup2 = facts().cgroup2
        if host.privileged and not cgroup2:
            host.cgroupns_mode = "host"
        else:
            host.cgroupns_mode = config.default_cgroupns_mode or ("private" if cgroup2 else "host")
    if host.oom_kill_disable is None:
        host.oom_kill_disable = False
    if host.pids_limit is not None and host.pids_limit <= 0:
        host.pids_limit = None
    # A container whose namespace is joined may be renamed later; its id stays.
    for name in ("pid_mode", "ipc_mode", "network_mode"):
        if other := shared_container(getattr(host, name)):
            try:
                setattr(host, name, "container:" + engine.containers.get(other).id)
            except NotFound as error:
                if name != "network_mode":
                    raise InvalidParameter(error.message)
                # the start says so; it may exist by then
    # Clients read from this that such containers are not confined by labels.
    unlabelled = host.privileged or host.ipc_mode == "host" or host.pid_mode == "host"
    if unlabelled and not any(option.startswith("label") for option in host.security_opt or ()):
        host.security_opt = [*(host.security_opt or ()), "label=disable"]
    if not host.privileged:
        if host.masked_paths is None:
            host.masked_paths = default_masked_paths()
        if host.readonly_paths is None:
            host.readonly_paths = list(READONLY_PATHS)


def _describe_image(record: Record, image: Image) -> None:
    config = image.config
    record.platform = {
        key: config[key] for key in ("os", "architecture", "variant") if isinstance(config.get(key), str)
    } or {"os": "linux"}


def _settle_names(record: Record) -> None:
    config = record.config
    if not config.hostname:
        if record.host_config.network_mode == "host" or record.host_config.uts_mode == "host":
            config.hostname = socket.gethostname()
        else:
            config.hostname = record.id[:12]
    command = [*(config.entrypoint or ()), *(config.cmd or ())]
    record.path, record.args = command[0], command[1:]


def _settle_links(engine: Engine, container: Container) -> None:
    host = container.host_config
    if is_user_network(host.network_mode):
        return  # a matter of that network, which knows them by its endpoint settings
    for text in host.links or ():
        name, alias = parse_link(text)
        try:
            other = engine.containers.get(name)
        except NotFound:
            raise InvalidParameter(f"could not get container for {name}: No such container: {name}")
        while mode := shared_container(other.host_config.network_mode):
            other = engine.containers.get(mode)
        if other.host_config.network_mode == "host":
            raise InvalidParameter(
                "conflicting options: host type networking can't be used with links. "
                "This would result in undefined behavior"
            )
        container.record.links.append(Link(other.id, alias, other.name))
        engine.containers.links.add(container.id, other.id, alias)


def _settle_networks(engine: Engine, record: Record, endpoints: dict[str, EndpointSettings]) -> None:
    """The networks the container is to join, by their names where they exist already."""
    host, config = record.host_config, record.config
    if config.network_disabled or shared_container(host.network_mode):
        return
    for asked, settings in endpoints.items():
        validate.check_endpoint(asked, settings)
        try:
            network = engine.networks.get(asked)
        except NotFound:
            record.networks[asked] = settings  # the start finds out whether it is there by then
            continue
        if not network.config_only:
            engine.networks.check(network, endpoint_config(settings))
        record.networks[network.name] = settings
    mode = _network_name(engine, host.network_mode)
    if not record.networks:
        record.networks[mode] = EndpointSettings()
    if is_user_network(host.network_mode) and mode in record.networks and host.links:
        record.networks[mode].links = (record.networks[mode].links or []) + host.links
    if config.mac_address and mode in record.networks:
        record.networks[mode].mac_address = record.networks[mode].mac_address or config.mac_address


def _network_name(engine: Engine, name_or_id: str) -> str:
    try:
        return str(engine.networks.get(name_or_id).name)
    except NotFound:
        return name_or_id


def endpoint_config(settings: EndpointSettings) -> EndpointConfig:
    """Endpoint settings as the network side takes them."""
    ipam = settings.ipam_config or IpamConfig()
    return EndpointConfig(
        aliases=tuple(settings.aliases or ()),
        links=tuple(settings.links or ()),
        ipv4_address=ipam.ipv4_address,
        ipv6_address=ipam.ipv6_address,
        mac_address=settings.mac_address.replace("-", ":"),
        driver_opts=settings.driver_opts or {},
        gw_priority=settings.gw_priority,
        link_local=tuple(ipam.link_local_ips or ()),
    )


async def _settle_mounts(engine: Engine, record: Record, plain_read_only: bool) -> None:
    """All mount points: those of other containers, under the binds, under the image's volumes where free."""
    host = record.host_config
    points: dict[str, MountPoint] = {}
    for text in host.volumes_from or ():
        other, writable = parse_volumes_from(text)
        try:
            source = engine.containers.get(other)
        except NotFound as error:
            raise InvalidParameter(error.message)
        for point in source.record.mounts:
            points[point.destination] = MountPoint(
                type=point.type,
                name=point.name,
                source=point.source,
                destination=point.destination,
                driver=point.driver,
                rw=point.rw and writable,
                propagation=point.propagation,
                spec=point.spec,
            )
    asked: list[MountPoint] = []
    for text in host.binds or ():
        point = parse_volume(text, host.volume_driver)
        if point.type == "bind" and not point.rw and plain_read_only:
            point.spec.bind_options = point.spec.bind_options or BindOptions()
            point.spec.bind_options.read_only_non_recursive = True
        asked.append(point)
    for mount in host.mounts or ():
        point = mount_point(mount)
        if point.type == "bind":
            options = mount.bind_options or BindOptions()
            point.skip_creation = not options.create_mountpoint
            if not point.rw and plain_read_only:
                point.spec.bind_options = options
                options.read_only_non_recursive = True
        elif point.type == "image":
            image = engine.images.get(mount.source)
            point.name, point.source = mount.source, image.id
        asked.append(point)
    seen = set(host.tmpfs or ())
    for point in asked:
        if point.type == "bind":
            _share_with_roots(engine, point)
        if point.destination in seen:
            raise InvalidParameter(f"Duplicate mount point: {point.destination}")
        seen.add(point.destination)
        points[point.destination] = point
    for destination in record.config.volumes or ():
        cleaned = clean_path(destination if destination.startswith("/") else "/" + destination)
        if cleaned == "/":
            raise InvalidParameter(f"invalid volume specification: '{destination}': destination can't be '/'")
        if cleaned not in points and cleaned not in (host.tmpfs or {}):
            points[cleaned] = MountPoint(
                type="volume", destination=cleaned, driver=host.volume_driver, copy_data=True
            )
    for point in points.values():
        if point.type == "volume":
            await _settle_volume(engine, record, point)
    record.mounts = list(points.values())


def _share_with_roots(engine: Engine, point: MountPoint) -> None:
    """A bind that shows the engine's own directories must follow what is unmounted there, or it keeps it
    busy.

    Raises InvalidParameter when the user asks for a propagation that does not (dockerd's rule).
    """
    source = point.source.rstrip("/") + "/"
    roots = [root + "/" for root in (engine.roots.data, engine.roots.run)]
    if not any(root.startswith(source) or source.startswith(root) for root in roots):
        return
    wanted = point.spec.bind_options.propagation if point.spec.bind_options else ""
    if not wanted:
        point.propagation = "rslave"
    elif wanted not in ("rslave", "rshared", "slave", "shared"):
        raise InvalidParameter(
            'invalid mount config: must use either propagation mode "rslave" or "rshared" when mount source '
            f'is within the daemon root, daemon root: "{engine.roots.data}", '
            f'bind mount source: "{point.source}", propagation: "{wanted}"'
        )


async def _settle_volume(engine: Engine, record: Record, point: MountPoint) -> None:
    options = point.spec.volume_options or VolumeOptions()
    volume = await engine.volumes.create(
        point.name,
        point.driver,
        options.driver_config.options if options.driver_config else None,
        options.labels,
        durable=bool(point.name) or not record.host_config.auto_remove,
    )
    point.name, point.driver, point.source = volume.name, volume.driver, engine.volumes.path(volume.name)
    engine.volumes.refer(volume.name, record.id)
    if not point.mode:
        point.mode = "z"  # what dockerd notes for a volume of the local driver


async def _make_files(engine: Engine, container: Container, image: Image) -> None:
    record = container.record
    directory = engine.roots.data_path("containers", record.id)
    os.makedirs(directory, mode=0o710)
    size = storage_size(record.host_config)
    overlay = container.overlay = await engine.images.prepare(record.id, image, size)
    kept = host_owners(record.host_config)
    if kept is not None:
        own = user_namespaces.kept(record.host_config.userns_mode).inside(0, 0)
        await asyncio.to_thread(introduce, overlay, *own, record.config.working_dir or "/")
    for point in record.mounts:
        if point.type == "volume" and point.copy_data:
            mounted = await engine.volumes.mount(point.name, record.id)
            try:
                await asyncio.to_thread(copy_up, overlay, point.destination, mounted, kept)
            finally:
                await engine.volumes.unmount(point.name, record.id)


def host_owners(host: HostConfig) -> Callable[[int, int], tuple[int, int]] | None:
    """What the image's owners are to be in volumes, where those cannot be mapped for the container."""
    return user_namespaces.kept(host.userns_mode).outside if host.userns_mode.startswith("keep-id") else None


def storage_size(host: HostConfig) -> int | None:
    """Bytes that the container may write by its `--storage-opt`; None when it has none. InvalidParameter."""
    for name, text in (host.storage_opt or {}).items():
        if name.lower() == "size":
            try:
                return ram_in_bytes(text)
            except ValueError as error:
                raise InvalidParameter(str(error), hint="Give a size such as --storage-opt size=10G.")
    return None


def root_of(engine: Engine, container: Container) -> Overlay:
    """The layers that make the container's root file system. Raises NotFound when they are gone."""
    if container.overlay is None:
        container.overlay = engine.images.overlay(container.id)
    return container.overlay


async def _undo(engine: Engine, container: Container) -> None:
    """Takes back what was made of a container that did not come to be."""
    record = container.record
    engine.containers.discard(container)
    for point in record.mounts:
        if point.type == "volume":
            engine.volumes.release(point.name, record.id)
            if not point.spec.source and not engine.volumes.users(point.name):
                await engine.volumes.remove(point.name, force=True)
    await engine.images.remove(record.id)
    shutil.rmtree(engine.roots.data_path("containers", record.id), ignore_errors=True)
