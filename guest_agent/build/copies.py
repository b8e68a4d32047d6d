"""COPY, ADD and WORKDIR: files into the stage, from the context, another stage, an image, a URL or git."""

from __future__ import annotations

import email.utils
import hashlib
import os
import posixpath
import re
import urllib.parse
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from guest_agent.build import context, settings
from guest_agent.build.dockerfile import types
from guest_agent.build.dockerfile.ignore import Patterns
from guest_agent.build.placing import Placement, place
from guest_agent.build.request import StepInfo
from guest_agent.build.selection import Selection, digest, select
from guest_agent.build.state import State, key_of
from guest_agent.engine.ids import new_id
from guest_agent.errors import InvalidParameter
from guest_agent.images.step_layer import take_layer
from guest_agent.images.store import LayerRow
from guest_agent.kernel.paths import RootFd
from guest_agent.runtime import users
from guest_agent.runtime.stage import StageError
from guest_agent.runtime.types import Overlay
from guest_agent.runtime.view import with_view
from guest_agent.threads import to_the_end

if TYPE_CHECKING:
    from guest_agent.build.steps import Outcome, StageRun
    from guest_agent.engine.engine import Engine

T = TypeVar("T")
_REMOTE = re.compile(r"https?://", re.IGNORECASE)
_MODE = re.compile(r"[0-7]{1,4}")

Origin = str | State  # a directory of ours, or a stage's layers


async def source_of(stage: StageRun, name: str) -> Origin:
    """What --from names: a further context, a stage, an image; "" is the build's context."""
    request = stage.around.request
    if not name:
        return await request.context.directory()
    if name in request.contexts:
        return await request.context.directory(name)
    return await stage.around.state_of(name, stage.planned.index, str(stage.platform))


def view_directory(engine: Engine) -> str:
    """The directory where a thread has a view of a stage, in a mount namespace of its own."""
    path = engine.roots.run_path("view")
    os.makedirs(path, 0o700, exist_ok=True)
    return path


async def with_source(stage: StageRun, source: Origin, function: Callable[[RootFd], T]) -> T:
    """Calls `function` with the tree of a source, in a thread."""
    return await to_the_end(lambda: look(stage.around.engine, source, function), "build-files")


def look(engine: Engine, source: Origin, function: Callable[[RootFd], T]) -> T:
    """The same, blocking."""
    if isinstance(source, str):
        with RootFd.at(source) as root:
            return function(root)
    overlay = Overlay(engine.images.snapshots.lower(source.chains))
    return with_view(overlay, (), view_directory(engine), function, read_only=True)


class _Files:
    """The sources of one instruction: `parts` are trees with the patterns to take from each."""

    def __init__(self, stage: StageRun, instruction: types.Copy | types.Add) -> None:
        self.stage = stage
        self.instruction = instruction
        self.parts: list[tuple[Origin, list[str], bool]] = []  # tree, patterns, archives in it are unpacked
        self.remote_mode: int | None = None

    async def gather(self) -> None:
        """Finds, downloads and writes down what is to be copied."""
        instruction, stage = self.instruction, self.stage
        local: list[str] = []
        if isinstance(instruction, types.Copy):
            if instruction.sources:
                source = await source_of(stage, instruction.from_)
                self.parts.append((source, list(instruction.sources), False))
        else:
            for name in instruction.sources:
                if context.is_git(name):
                    await self._git(name, bool(instruction.keep_git_dir))
                elif _REMOTE.match(name):
                    await self._download(name, instruction)
                else:
                    local.append(name)
            if local:
                unpack = instruction.unpack is not False
                self.parts.append((await source_of(stage, ""), local, unpack))
        if instruction.inline:
            self._write_inline()

    def _write_inline(self) -> None:
        directory = self.stage.around.scratch.directory()
        names = []
        for file in self.instruction.inline:
            name = posixpath.basename(file.name)
            fd = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            with open(fd, "wb") as written:
                written.write(file.content.encode("utf-8", "surrogateescape"))
            os.chmod(os.path.join(directory, name), 0o644)
            names.append(name)
        self.parts.append((directory, names, False))

    async def _git(self, address: str, keep: bool) -> None:
        directory = self.stage.around.scratch.directory()
        top = await to_the_end(lambda: context.fetch_git(address, directory, keep), "build-git")
        self.parts.append((top, ["."], False))

    async def _download(self, address: str, instruction: types.Add) -> None:
        name = posixpath.basename(urllib.parse.unquote(urllib.parse.urlsplit(address).path))
        if not name and instruction.destination.endswith("/"):
            raise InvalidParameter(f"cannot determine filename from url: {address}")
        directory = self.stage.around.scratch.directory()
        path = os.path.join(directory, name or "file")
        wanted = instruction.checksum

        def work() -> None:
            checked = hashlib.new(wanted.partition(":")[0] or "sha256")
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:

                def write(data: bytes) -> None:
                    checked.update(data)
                    file.write(data)

                modified = context.download(address, write, lambda done, total: None)
                os.fchmod(fd, 0o600)
            if wanted and wanted.partition(":")[2] != checked.hexdigest():
                raise InvalidParameter(
                    f"digest mismatch {checked.name}:{checked.hexdigest()}: {wanted}",
                    "The file has changed or was tampered with.",
                )
            when = email.utils.parsedate_to_datetime(modified).timestamp() if modified else 0.0
            os.utime(path, (when, when))

        try:
            await to_the_end(work, "build-download")
        except ValueError:
            raise InvalidParameter(f"invalid checksum: {wanted}", "Write it as sha256:HEX.")
        self.parts.append((directory, [name or "file"], bool(instruction.unpack)))

    def selected(self, function: Callable[[Selection], T], index: int) -> T:
        """Calls `function` with what one part takes. Blocks."""
        source, patterns, _ = self.parts[index]
        instruction = self.instruction
        verb = instruction.name
        ignores = Patterns(instruction.exclude).ignores if instruction.exclude else None
        parents = isinstance(instruction, types.Copy) and instruction.parents

        def work(root: RootFd) -> T:
            with Selection() as selection:
                if ignores is not None:
                    selection.ignored = ignores
                select(selection, root, patterns, parents, verb)
                return function(selection)

        return look(self.stage.around.engine, source, work)

    def count(self) -> int:
        """How many things were named; several must go to a directory."""
        return sum(len(patterns) for _, patterns, _ in self.parts)


async def prepare(stage: StageRun, instruction: types.Copy | types.Add) -> Outcome:
    """What a COPY or ADD is to do. Raises NotFound, InvalidParameter."""
    from guest_agent.build.steps import Outcome

    verb = instruction.name
    files = _Files(stage, instruction)
    several = len(instruction.sources) + len(instruction.inline) > 1
    if several and not instruction.destination.endswith("/") and instruction.destination not in (".", ".."):
        raise InvalidParameter(
            f"When using {verb} with more than one source file, the destination must be a directory "
            "and end with a /"
        )
    if instruction.chmod and not _MODE.fullmatch(instruction.chmod):
        raise InvalidParameter(
            f"invalid chmod parameter: '{instruction.chmod}'. it should be octal string and between "
            "0 and 07777"
        )
    _check_checksum(instruction)
    await files.gather()
    digests = [
        await to_the_end(partial(files.selected, digest, index), "build-digest")
        for index in range(len(files.parts))
    ]
    content = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    destination = _destination(stage.state, instruction.destination)
    options = [instruction.chown, instruction.chmod, [unpack for _, _, unpack in files.parts]]
    key = key_of(
        "copy", stage.state.chain, destination, content, options, files.count() > 1, stage.around.epoch
    )
    flags = "".join(
        f"--{name}={value} "
        for name, value in (("chown", instruction.chown), ("chmod", instruction.chmod))
        if value
    )
    kind = "file" if files.count() == 1 else "multi"
    created_by = (
        f"{' '.join(stage.state.shell)} #(nop) {verb} {flags}{kind}:{content} in {instruction.destination} "
    )

    async def made(step: StepInfo) -> LayerRow | None:
        return await to_the_end(lambda: _copy(stage, files, destination), "build-copy")

    return Outcome(stage.state, created_by, key, instruction.code, "regular", made)


def _check_checksum(instruction: types.Copy | types.Add) -> None:
    if isinstance(instruction, types.Copy) or not instruction.checksum:
        return
    if len(instruction.sources) != 1:
        raise InvalidParameter("checksum can't be specified for multiple sources")
    if not _REMOTE.match(instruction.sources[0]) or context.is_git(instruction.sources[0]):
        raise InvalidParameter("checksum can't be specified for non-HTTP(S) sources")


def _destination(state: State, path: str) -> str:
    directory = path.endswith(("/", "/.")) or path in (".", "..")
    cleaned = settings.working_directory(state, path)
    return cleaned.rstrip("/") + "/" if directory else cleaned


def _copy(stage: StageRun, files: _Files, destination: str) -> LayerRow | None:
    """Writes the files and makes a layer of it. Blocks."""
    instruction = files.instruction

    def work(root: RootFd) -> None:
        owner = _owner(root, instruction.chown) if instruction.chown else None
        mode = int(instruction.chmod, 8) if instruction.chmod else None
        for index, (_, _, unpack) in enumerate(files.parts):
            placement = Placement(destination, owner, mode, unpack=unpack)
            files.selected(lambda selection: place(root, selection, placement), index)  # noqa: B023

    return write_layer(stage, work)


def write_layer(stage: StageRun, work: Callable[[RootFd], None]) -> LayerRow | None:
    """Calls `work` with the stage's tree; what it writes is a layer, None when that is nothing. Blocks."""
    around, state = stage.around, stage.state
    store = around.engine.images
    id = new_id()
    overlay = store.prepare_on(id, "", state.chains)
    try:
        try:
            with_view(overlay, (), view_directory(around.engine), work)
        except OSError as error:
            raise InvalidParameter(f"{(error.strerror or str(error)).lower()}: {error.filename or ''}")
        return take_layer(store, around.lease, id, state.diffs, around.epoch)
    finally:
        store.remove_now(id)


def _owner(root: RootFd, chown: str) -> tuple[int, int]:
    """--chown's ids. A user alone gives its number, or name, to the group, too, as dockerd has it."""
    user, colon, group = chown.partition(":")
    try:
        identity = users.resolve(root, f"{user}:{group or user}" if not colon or group else user, [])
    except StageError as error:
        if colon:
            raise InvalidParameter(f"unable to convert uid/gid chown string to host mapping: {error}")
        try:
            identity = users.resolve(root, user, [])
        except StageError:
            raise InvalidParameter(f"unable to convert uid/gid chown string to host mapping: {error}")
    return identity.uid, identity.gid


def prepare_directory(stage: StageRun, instruction: types.Workdir) -> Outcome:
    """WORKDIR: the directory is made when it is not there, for the stage's user."""
    from guest_agent.build.steps import Outcome

    state, text = settings.apply(stage.state, instruction)
    path = str(state.config["WorkingDir"])
    user = str(stage.state.config.get("User") or "")
    key = key_of("workdir", stage.state.chain, path, user, stage.around.epoch)

    async def made(step: StepInfo) -> LayerRow | None:
        return await to_the_end(make, "build-workdir")

    def make() -> LayerRow | None:
        def missing(root: RootFd) -> bool:
            return not root.exists(path)

        if not look(stage.around.engine, stage.state, missing):
            return None

        def work(root: RootFd) -> None:
            try:
                owner = _owner(root, user) if user else (0, 0)
            except InvalidParameter:
                owner = (0, 0)  # the next RUN will say that there is no such user
            os.close(root.mkdirs(path, 0o755, *owner))

        return write_layer(stage, work)

    return Outcome(state, settings.no_operation(stage.state, text), key, instruction.code, "regular", made)
