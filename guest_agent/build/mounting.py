"""What `RUN --mount=…` puts into the container of a build step."""

from __future__ import annotations

import os
import posixpath
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from guest_agent.build import copies
from guest_agent.build.dockerfile import types
from guest_agent.build.placing import Placement, place, remove
from guest_agent.build.selection import Selection, digest, select
from guest_agent.build.settings import working_directory
from guest_agent.engine import host_mounts
from guest_agent.engine.container_config import Mount, MountPoint, TmpfsOptions
from guest_agent.engine.launch import mounts_directory
from guest_agent.engine.unlisted import Step
from guest_agent.errors import InvalidParameter, NotFound
from guest_agent.kernel.paths import RootFd
from guest_agent.kernel.syscalls import AT_FDCWD, MOVE_MOUNT_F_EMPTY_PATH, move_mount
from guest_agent.runtime.layers import open_layers
from guest_agent.runtime.types import Overlay
from guest_agent.runtime.view import with_view
from guest_agent.threads import to_the_end

if TYPE_CHECKING:
    from guest_agent.build.steps import StageRun

_SECRETS = "/run/secrets"
_AGENT = "/run/buildkit/ssh_agent.{}"


class Mounting:
    """The mounts of one RUN."""

    def __init__(self, stage: StageRun, instruction: types.Run) -> None:
        self._stage = stage
        self._mounts = instruction.mounts
        self._missing: list[str] = []  # mount points that the stage does not have

    def _target(self, mount: types.Mount, default: str = "") -> str:
        target = mount.target or default
        if not target:
            raise InvalidParameter(f"--mount={mount.flag}: target is required")
        return working_directory(self._stage.state, target)

    async def keys(self) -> list[Any]:
        """What the result depends on: of binds their content, of the others that they are there."""
        found: list[Any] = []
        for mount in self._mounts:
            if mount.type == "bind":
                source = await copies.source_of(self._stage, mount.from_)
                content = await copies.with_source(self._stage, source, partial(_content, mount))
                found.append(["bind", self._target(mount), mount.read_only, content])
            elif mount.type in ("cache", "tmpfs"):
                found.append([mount.type, self._target(mount)])
            else:
                found.append([mount.type, mount.flag])
        return found

    async def enter(self, stack: AsyncExitStack, step: Step) -> None:
        """Makes the mounts ready; they are undone with the step, or by `stack`."""
        self._directory = mounts_directory(self._stage.around.engine, step.id)
        for index, mount in enumerate(self._mounts):
            path = os.path.join(self._directory, f"build{index}")
            if mount.type == "bind":
                await self._bind(step, mount, path)
            elif mount.type == "cache":
                await self._cache(stack, step, mount, path)
            elif mount.type == "tmpfs":
                self._add_tmpfs(step, mount)
            elif mount.type == "secret":
                await self._secret(step, mount, path)
            else:
                await self._agent(step, mount)
        self._missing = await to_the_end(lambda: self._not_there(step), "build-mounts")

    def script(self, step: Step, target: str, content: str) -> None:
        """A heredoc that is a program of its own."""
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        path = os.path.join(self._directory, "script")
        _write(path, content.encode("utf-8", "surrogateescape"), 0o755, (0, 0))
        _add(step, path, target, writable=False)

    async def leave(self, step: Step) -> None:
        """Removes the mount points that were made, so that they are not in the layer."""
        if not self._missing:
            return
        overlay = self._stage.around.engine.images.overlay(step.id)
        scratch = copies.view_directory(self._stage.around.engine)
        missing = self._missing
        await to_the_end(
            lambda: with_view(overlay, (), scratch, lambda root: remove(root, missing)), "build-mounts"
        )

    def _not_there(self, step: Step) -> list[str]:
        overlay = self._stage.around.engine.images.overlay(step.id)
        targets = [point.destination for point in step.mounts]
        scratch = copies.view_directory(self._stage.around.engine)
        return with_view(Overlay(overlay.lower), (), scratch, lambda root: _absent(root, targets))

    async def _bind(self, step: Step, mount: types.Mount, path: str) -> None:
        around = self._stage.around
        source = await copies.source_of(self._stage, mount.from_)
        lower: tuple[str, ...]
        if isinstance(source, str):
            lower = (await self._mountable(source),)
        else:
            lower = around.engine.images.snapshots.lower(source.chains)
        if mount.read_only:
            overlay = Overlay(lower)
        else:  # what is written goes with the build, and never into the source
            overlay = Overlay(lower, around.scratch.directory(), around.scratch.directory())

        def make() -> None:
            top = path + ".whole"
            os.makedirs(top, mode=0o700)
            if mount.read_only:
                host_mounts.mount_layers(overlay, top)
            else:
                tree = open_layers(overlay.lower, overlay.upper, overlay.work, top)
                try:
                    move_mount(tree, "", AT_FDCWD, top, MOVE_MOUNT_F_EMPTY_PATH)
                finally:
                    os.close(tree)
            host_mounts.mount_subpath(top, mount.source or ".", path)

        await to_the_end(make, "build-mounts")
        _add(step, path, self._target(mount), writable=not mount.read_only)

    async def _mountable(self, directory: str) -> str:
        """A directory with the same content that can be bind-mounted."""
        scratch = self._stage.around.scratch
        if scratch.on_disk(directory):
            return directory
        target = scratch.directory()

        def copy() -> None:
            with RootFd.at(directory) as source, RootFd.at(target) as root, Selection() as selection:
                select(selection, source, ["."])
                place(root, selection, Placement("/"))

        await to_the_end(copy, "build-mounts")
        return target

    async def _cache(self, stack: AsyncExitStack, step: Step, mount: types.Mount, path: str) -> None:
        target = self._target(mount)
        locks = self._stage.around.locks
        mode = 0o755 if mount.mode is None else mount.mode
        owner = (mount.uid or 0, mount.gid or 0)
        top = await stack.enter_async_context(
            locks.use(mount.id or target, mount.sharing or "shared", mode, owner)
        )
        if mount.source:
            await to_the_end(lambda: host_mounts.mount_subpath(top, mount.source, path), "build-mounts")
            top = path
        _add(step, top, target, writable=not mount.read_only)

    def _add_tmpfs(self, step: Step, mount: types.Mount) -> None:
        options = TmpfsOptions(size_bytes=mount.size, options=[["exec"]])
        spec = Mount(type="tmpfs", target=self._target(mount), tmpfs_options=options)
        step.mounts.append(MountPoint(type="tmpfs", destination=spec.target, spec=spec))

    async def _secret(self, step: Step, mount: types.Mount, path: str) -> None:
        id = mount.id or posixpath.basename(mount.source or mount.target)
        secret = self._stage.around.request.secret
        value = await secret(id) if secret else None
        if value is None:
            if mount.required:
                raise NotFound(f"secret {id}: not found", f"Give it with --secret id={id},src=FILE.")
            return
        if mount.env is not None:
            step.container.config.env = [
                *(step.container.config.env or ()),
                f"{mount.env or id}={value.decode('utf-8', 'surrogateescape')}",
            ]
            if not mount.target:
                return
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        mode = 0o400 if mount.mode is None else mount.mode
        _write(path, value, mode, (mount.uid or 0, mount.gid or 0))
        _add(step, path, self._target(mount, f"{_SECRETS}/{id}"), writable=False)

    async def _agent(self, step: Step, mount: types.Mount) -> None:
        ssh = self._stage.around.request.ssh
        if ssh is None:
            if mount.required:
                raise NotFound(f"no SSH key {mount.id or 'default'} forwarded from the client")
            return
        socket = await ssh(mount.id or "default")
        number = sum(1 for point in step.mounts if "ssh_agent" in point.destination)
        target = self._target(mount, _AGENT.format(number))
        _add(step, socket, target, writable=True)
        env = step.container.config.env or []
        step.container.config.env = [*env, f"SSH_AUTH_SOCK={target}"]


def _add(step: Step, source: str, target: str, writable: bool) -> None:
    point = MountPoint(
        type="bind",
        source=source,
        destination=target,
        rw=writable,
        propagation="rprivate",
        skip_creation=True,
    )
    step.mounts.append(point)


def _write(path: str, data: bytes, mode: int, owner: tuple[int, int]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(data)
        os.fchown(fd, *owner)
        os.fchmod(fd, mode)


def _content(mount: types.Mount, root: RootFd) -> str:
    with Selection() as selection:
        select(selection, root, [mount.source or "."], verb="RUN --mount")
        return digest(selection)


def _absent(root: RootFd, targets: list[str]) -> list[str]:
    """The targets, and directories to them, that the tree does not have."""
    found: dict[str, None] = {}
    for target in targets:
        path = target.rstrip("/")
        while path and not root.exists(path):
            found[path] = None
            path = path.rpartition("/")[0]
    return list(found)
