"""What happens before a container's process starts, and what is undone after it has ended.

`prepare` makes network, volumes and mounts of this host ready and composes the `Launch`; `release` gives
all of it back. Both know only the container's record, so a later agent can release what an earlier one
prepared.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import TYPE_CHECKING, Any

from guest_agent.errors import Conflict, EngineError, InternalError, InvalidParameter, NotFound
from guest_agent.images import platforms
from guest_agent.kernel import userns
from guest_agent.network.types import Link as NetworkLink
from guest_agent.network.types import PortBinding, SandboxRequest
from guest_agent.runtime import layers, seccomp
from guest_agent.runtime.stage import StageError
from guest_agent.runtime.types import Launch, LaunchError, Overlay, Stdio

from . import host_mounts, user_namespaces
from .container_config import BindOptions, has_own_network, is_user_network, shared_container
from .container_config import PortBinding as DockerPortBinding
from .create import endpoint_config, root_of
from .host import facts
from .links import link_environment
from .log_config import delivery, log_spec, tag_values
from .mountinfo import propagation_of
from .mounts import DEFAULT_PROPAGATION
from .security import UNCONFINED, SecurityOptions, engine_profile, parse_security_options
from .spec import Surroundings, container_capabilities, oci_config
from .spec_mounts import BindMount
from .user_namespaces import Mapping

if TYPE_CHECKING:
    from .container import Container
    from .container_config import MountPoint
    from .engine import Engine


def log_path(engine: Engine, container: Container) -> str:
    """The log of a container, whichever the driver; its older parts are beside it."""
    return engine.roots.data_path("containers", container.id, f"{container.id}-json.log")


def exit_path(engine: Engine, container: Container) -> str:
    """Where the monitor notes the exit.

    A container that vanishes with the machine does not need a disk for it.
    """
    if container.host_config.auto_remove:
        return engine.roots.run_path("exits", container.id)
    return engine.roots.data_path("containers", container.id, "exit.json")


def mounts_directory(engine: Engine, id: str) -> str:
    """Where this container's own mounts on this host are: shared memory, subpaths, images."""
    return engine.roots.run_path("mounts", id)


async def prepare(engine: Engine, container: Container) -> Launch:
    """Makes everything ready for the start.

    Raises EngineError; what was made is released by the caller then.
    """
    record = container.record
    host, config = record.host_config, record.config
    _check_architecture(record.platform)
    host_facts = facts()
    security = parse_security_options(
        host.security_opt or (), host_facts.apparmor, engine.config.no_new_privileges
    )
    around = Surroundings(
        init=engine.config.init,
        apparmor=host_facts.apparmor,
        cgroup2=host_facts.cgroup2,
        cgroup_parent=engine.config.cgroup_parent,
        ulimits={
            name: (int(limit["Soft"]), int(limit["Hard"]))
            for name, limit in engine.config.default_ulimits.items()
        },
    )
    user_namespaces.check(host, engine.remap)
    donors = _join_namespaces(engine, container, around)
    around.ids = _ids(engine, container, donors, around)
    around.network_files = await _connect(engine, container, around)
    around.linked = linked_environment(engine, container)
    if host.ipc_mode in ("host", "shareable"):
        around.shm = _shared_memory(engine, container)
    if host.ipc_mode == "shareable":
        host_mounts.mount_shm(around.shm, host.shm_size, around.ids.root if around.ids else (0, 0))
    for point in record.mounts:
        if point.type != "tmpfs":
            around.binds.append(await _bind(engine, container, point, around))
    rootfs, mapped = await _root(engine, container, around.ids)
    path = log_path(engine, container)
    spec = oci_config(record, security, around)
    spec["root"]["mapped"] = mapped
    filter = _seccomp(engine, container, security)
    if filter is not None:
        spec["linux"]["seccomp"] = filter
    if (sent := delivery(record, path)) is not None:
        await engine.delivery.add(sent)
    return Launch(
        id=record.id,
        config=spec,
        rootfs=rootfs,
        stdio=Stdio(
            tty=config.tty,
            open_stdin=config.open_stdin,
            stdin_once=config.stdin_once,
            log=log_spec(host.log_config, config, path, tag_values(record)),
            console_size=host.console_size,
        ),
        exit_path=exit_path(engine, container),
    )


async def _root(engine: Engine, container: Container, ids: Mapping | None) -> tuple[Overlay | str, bool]:
    """What shows the container's root, and whether with its own ids: where mounts cannot be mapped."""
    overlay = root_of(engine, container)
    way = layers.way_of(overlay)
    shown = (ids.uids, ids.gids) if ids is not None and (userns.inside() or way == layers.FUSE) else None
    if shown is None and way == layers.OVERLAY:
        return overlay, False  # the launch child's work
    point = os.path.join(mounts_directory(engine, container.id), "root")
    try:
        root = await asyncio.to_thread(layers.container_root, overlay, point, shown)
    except OSError as error:
        raise InternalError(f"error creating overlay mount to {point}: {error.strerror or error}")
    return root, shown is not None


def _check_architecture(image: dict[str, str]) -> None:
    """Refuses what this processor cannot execute, unless the kernel has an emulator for it."""
    theirs = platforms.normalise(
        image.get("os") or "linux", image.get("architecture") or "", image.get("variant") or ""
    )
    if not platforms.can_run(theirs):
        raise InvalidParameter(
            f"the image is for {theirs}, which this host ({platforms.host()}) "
            "cannot execute: exec format error",
            hint=f"Use an image for {platforms.host()}, or register an emulator for "
            f"{theirs.architecture} with binfmt_misc.",
        )


def _join_namespaces(engine: Engine, container: Container, around: Surroundings) -> list[Container]:
    """Notes which namespaces of others the container joins; returns the others."""
    host = container.host_config
    donors = []
    for kind, mode, what in (("pid", host.pid_mode, "PID"), ("ipc", host.ipc_mode, "IPC")):
        if other := shared_container(mode):
            donor = _running(engine, other, f"failed to join {what} namespace")
            if kind == "ipc":
                around.shm = _shared_memory(engine, donor)
            around.namespaces[kind] = f"/proc/{donor.pid}/ns/{kind}"
            donors.append(donor)
    if other := shared_container(host.network_mode):
        if other == container.id:
            raise InvalidParameter("cannot join own network namespace")
        donor = _running(engine, other, "cannot join network namespace of container")
        around.namespaces["network"] = f"/proc/{donor.pid}/ns/net"
        donors.append(donor)
    return donors


def _ids(
    engine: Engine, container: Container, donors: list[Container], around: Surroundings
) -> Mapping | None:
    """The ids of the container's own user namespace, None when it has none; notes whose it shares."""
    mode = user_namespaces.mode_of(container.host_config, engine.remap)
    if mode == "host":
        return None
    if donors:
        around.namespaces["user"] = f"/proc/{donors[0].pid}/ns/user"
        return user_namespaces.shared_with(donors)
    if mode == "remap":
        return engine.remap
    if mode.startswith("keep-id"):
        return user_namespaces.kept(mode)
    others = [
        (other.id, other.pid)
        for other in engine.containers
        if other.pid and other.host_config.userns_mode.startswith("auto")
    ]
    return engine.user_ranges.take(container.id, mode, others)


def _running(engine: Engine, id: str, what: str) -> Container:
    try:
        other: Container = engine.containers.get(id)
    except NotFound as error:
        raise InvalidParameter(f"{what.replace('cannot join network', 'joining network')}: {error.message}")
    if not other.state.running:
        raise Conflict(f"{what}: container {other.id} is not running")
    if other.state.restarting:
        raise Conflict(f"{what}: Container {other.id} is restarting, wait until the container is running")
    return other


async def _connect(engine: Engine, container: Container, around: Surroundings) -> dict[str, str]:
    """Connects the container to its networks; the name files, by where they appear in the container."""
    record = container.record
    host, config = record.host_config, record.config
    if donor := shared_container(host.network_mode):
        files = engine.roots.data_path("containers", engine.containers.get(donor).id)
    else:
        files = engine.roots.data_path("containers", record.id)
        os.makedirs(files, mode=0o710, exist_ok=True)
        if config.network_disabled:
            mode = "none"
        else:
            mode = host.network_mode
        await engine.containers.releases.wait_for(container)
        request = _sandbox_request(engine, container, mode, files)
        if around.ids is None:
            sandbox = await engine.networks.attach(request)
        else:
            # A network that the container's root has a say in; it keeps the user namespace, too.
            namespace = await _own_network(engine, around)
            try:
                sandbox = await engine.networks.attach(request, namespace)
            finally:
                os.close(namespace)
            around.namespaces.setdefault("user", sandbox.netns_path)
        if sandbox.netns_path:
            around.namespaces["network"] = sandbox.netns_path
    paths = {f"/etc/{name}": os.path.join(files, name) for name in ("resolv.conf", "hostname", "hosts")}
    return {inside: path for inside, path in paths.items() if os.path.exists(path)}  # noqa: ASYNC240 - stats


async def _own_network(engine: Engine, around: Surroundings) -> int:
    assert around.ids is not None
    try:
        return await engine.monitor.network_namespace(around.ids.oci(), around.namespaces.get("user", ""))
    except LaunchError as error:
        raise start_error(error)[1]


def _sandbox_request(engine: Engine, container: Container, mode: str, files: str) -> SandboxRequest:
    record = container.record
    host, config = record.host_config, record.config
    links = []
    for link in record.links:
        child = engine.containers.find(link.container_id)
        if child is None or not child.state.running:
            name = child.name if child else link.name
            raise InternalError(
                f"Cannot link to a non running container: /{name} AS /{record.name}/{link.alias}"
            )
        names = dict.fromkeys((link.alias, child.config.hostname, child.name))
        links.append(NetworkLink(child.id, tuple(names)))
    ports, exposed = _ports(container) if has_own_network(mode) and mode != "none" else ((), ())
    return SandboxRequest(
        container_id=record.id,
        name=record.name,
        hostname=config.hostname,
        domainname=config.domainname,
        files=files,
        network_mode=mode,
        endpoints={name: endpoint_config(settings) for name, settings in record.networks.items()},
        ports=ports,
        exposed=exposed,
        extra_hosts=tuple(host.extra_hosts or ()),
        links=tuple(links) if not is_user_network(mode) else (),
        dns=tuple(host.dns or ()),
        dns_search=tuple(host.dns_search or ()),
        dns_options=tuple(host.dns_options or ()),
    )


def linked_environment(engine: Engine, container: Container) -> list[str]:
    """The variables of the container's links, while those it is linked to are on the default bridge."""
    values: list[str] = []
    for alias, id in engine.containers.links.children(container.id).items():
        child, sandbox = engine.containers.find(id), engine.networks.sandbox(id)
        endpoint = sandbox.endpoints.get("bridge") if sandbox else None
        if child is not None and endpoint is not None:
            values += link_environment(
                f"/{container.name}/{alias}",
                endpoint.ipv4_address,
                list(child.config.exposed_ports or ()),
                child.config.env or [],
            )
    return values


def _ports(container: Container) -> tuple[tuple[PortBinding, ...], tuple[str, ...]]:
    host, config = container.host_config, container.config
    published: list[PortBinding] = []
    exposed = dict.fromkeys([*(config.exposed_ports or ()), *(host.port_bindings or ())])
    for name in exposed:
        number, _, protocol = name.partition("/")
        bindings = (host.port_bindings or {}).get(name)
        if name in (host.port_bindings or {}) or host.publish_all_ports:
            bindings = bindings or [DockerPortBinding()]  # any port of this host
        for binding in bindings or ():
            first, _, last = binding.host_port.partition("-")
            published.append(
                PortBinding(
                    int(number), protocol or "tcp", binding.host_ip, int(first or 0), int(last or first or 0)
                )
            )
    names = tuple(name if "/" in name else f"{name}/tcp" for name in exposed)
    return tuple(published), names


def _shared_memory(engine: Engine, container: Container) -> str:
    """The directory that a container which shares its IPC namespace has at /dev/shm."""
    mode = container.host_config.ipc_mode
    if mode == "host":
        return "/dev/shm"
    if mode == "shareable":
        return os.path.join(mounts_directory(engine, container.id), "shm")
    if other := shared_container(mode):
        return _shared_memory(engine, engine.containers.get(other))
    raise InvalidParameter(
        f"failed to join IPC namespace: container {container.id}: non-shareable IPC "
        "(hint: use IpcMode:shareable for the donor container)"
    )


async def _bind(engine: Engine, container: Container, point: MountPoint, around: Surroundings) -> BindMount:
    """The directory or file of this host that is to appear at a mount point."""
    name = hashlib.sha256(point.destination.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    target = os.path.join(mounts_directory(engine, container.id), name)
    bind = BindMount(point.source, point.destination, point.rw, point.propagation)
    bind.owners = _owners(engine, container, point)
    if point.type == "volume":
        bind.source = await engine.volumes.mount(point.name, container.id)
        options = point.spec.volume_options
        if options is not None and options.subpath:
            host_mounts.mount_subpath(bind.source, options.subpath, target)
            bind.source = target
        engine.events.publish(
            "volume",
            "mount",
            point.name,
            {
                "container": container.id,
                "destination": point.destination,
                "driver": point.driver,
                "propagation": point.propagation,
                "read/write": str(point.rw).lower(),
            },
        )
    elif point.type == "image":
        await _mount_image(engine, point, target, around)
        bind.source, bind.writable = target, False
        image_options = point.spec.image_options
        if image_options is not None and image_options.subpath:
            host_mounts.mount_subpath(target, image_options.subpath, target + ".subpath")
            bind.source = target + ".subpath"
    else:
        bind_options = point.spec.bind_options or BindOptions()
        bind.recursive = not bind_options.non_recursive
        bind.read_only_recursive = not bind_options.read_only_non_recursive
        if point.propagation == "rslave" and not bind_options.propagation:
            _, shared, slave = propagation_of(point.source)
            bind.propagation = "rslave" if shared or slave else DEFAULT_PROPAGATION
        if not point.skip_creation:
            _make_source(point.source, around.ids.root if around.ids is not None else None)
        elif not os.path.exists(point.source):  # noqa: ASYNC240 - a stat
            raise InvalidParameter(
                f'invalid mount config for type "bind": bind source path does not exist: {point.source}'
            )
    return bind


def _owners(engine: Engine, container: Container, point: MountPoint) -> str:
    """How a container with a user namespace of its own sees owners: the host's files it sees as they are."""
    if userns.inside():
        return ""  # only the host's root can map mounts of the host's file systems
    if engine.unlisted.has(container.id):
        return "idmap-if-possible"  # a build's own; several layers are overlay, which cannot be mapped
    if point.type == "volume" and not engine.volumes.get(point.name).has_device:
        return "idmap"
    return ""


async def _mount_image(engine: Engine, point: MountPoint, target: str, around: Surroundings) -> None:
    overlay = engine.images.image_overlay(engine.images.get(point.source))
    try:
        if around.ids is not None and (userns.inside() or layers.driver() == layers.FUSE):
            ids = (around.ids.uids, around.ids.gids)
            await asyncio.to_thread(layers.container_root, overlay, target, ids)
        else:
            path = around.namespaces.get("user", "")
            await asyncio.to_thread(host_mounts.mount_layers, overlay, target, path)
    except (OSError, StageError) as error:
        reason = error.text if isinstance(error, StageError) else error.strerror
        raise InternalError(f"cannot mount image {point.name} at {point.destination}: {reason}")


def _make_source(path: str, owner: tuple[int, int] | None) -> None:
    """A missing source of `--volume` becomes a directory of the container's root, as with dockerd."""
    try:
        if owner is None:
            os.makedirs(path, mode=0o755, exist_ok=True)
        elif not os.path.isdir(path):
            _make_source(os.path.dirname(path), owner)
            os.mkdir(path, 0o755)
            os.chown(path, *owner)
    except (FileExistsError, NotADirectoryError):
        pass  # a file, or a path through one: the mount says what is wrong with it
    except OSError as error:
        raise InternalError(
            f"error while creating mount source path '{path}': mkdir {path}: "
            f"{(error.strerror or str(error)).lower()}"
        )


def _seccomp(engine: Engine, container: Container, security: SecurityOptions) -> dict[str, Any] | None:
    """The container's system call filter; None for none."""
    if security.seccomp_unconfined:
        return None
    profile = security.seccomp
    if profile is None and not security.seccomp_builtin:
        if container.host_config.privileged or engine.config.seccomp_profile == UNCONFINED:
            return None
        profile = engine_profile(engine.config.seccomp_profile)
    return seccomp.resolve(profile, set(container_capabilities(container.record)))


def start_error(error: LaunchError) -> tuple[int, EngineError]:
    """A failed launch as dockerd tells it: the exit code `docker inspect` shows, and the error."""
    if error.stage == "user":  # dockerd looks it up before it asks runc
        return classify(error.text)
    if error.stage == "mkcwd":  # and makes this one
        return 128, InvalidParameter(error.text)
    text = (
        "failed to create task for container: failed to create shim task: OCI runtime create failed: "
        f"runc create failed: unable to start container process: {error.text}"
    )
    return classify(text)


def classify(text: str) -> tuple[int, EngineError]:
    """dockerd's exit code and error class for a failure text; the docker CLI reads the same words."""
    lower = text.lower()
    if "permission denied" in lower:
        return 126, InvalidParameter(text)
    if "is a directory" in lower:
        return 126, InvalidParameter(text + ": permission denied")
    if "not a directory" in lower:
        return 127, InvalidParameter(
            text + ": Are you trying to mount a directory onto a file (or vice-versa)? "
            "Check if the specified host path exists and is the expected type"
        )
    if "executable file not found" in lower or "no such file or directory" in lower:
        return 127, InvalidParameter(text)
    return 128, InternalError(text)
