"""A machine's saved state ("template"): the guest has loaded its kernel and the agent's code, and waits.

It is written once, by a first boot on its way, and later starts go on from it. It has no keys, nothing of the
data disk and no open connection: those come after it (`handover`). It can only be used by exactly what wrote
it, so it has a key made of everything that must agree, and with another key it is thrown away.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import replace

from host_client.machine import system
from host_client.machine.command import Channel, Machine, Platform, flags
from host_client.machine.errors import MachineError
from host_client.machine.image import Image
from host_client.machine.layout import Layout, write_whole
from host_client.machine.qemu import Qemu
from host_client.machine.qmp import Qmp, State

log = logging.getLogger("template")

FORMAT = 1
FAILURES_MAX = 2
SAVE_SECONDS = 30.0  # it takes less than one; a disk that is so slow is no place to start from
# QEMU's versions: from this one on it opens the file itself; before, it is given a descriptor.
FILE_URI = (8, 2, 0)
# The first that others have seen to save and resume a machine under HVF, on Apple's processors: it has the
# state of the timer and the interrupt controller, which are Apple's.
HVF_STATE = (11, 1, 0)


def unsupported(platform: Platform) -> str:
    """Why a machine's state cannot be saved there; "" where it can."""
    if platform.accelerator == "whpx":
        return "QEMU refuses to save the state of a machine under WHPX: it cannot read all of the processor's"
    if platform.accelerator == "hvf" and platform.arch == "amd64":
        return "QEMU's saved states are not known to work under HVF on Macs with Intel processors"
    if platform.accelerator == "hvf" and platform.version < HVF_STATE:
        return "QEMU before 11.1 is not known to save all of a machine under HVF"
    if platform.system == "win32" and platform.version < FILE_URI:
        return "QEMU before 8.2 cannot write a machine's state to a file on Windows"
    return ""


def key(platform: Platform, machine: Machine, qemu: Qemu, image: Image, archive: bytes) -> str:
    """What a state depends on, as one number: it is used only where all of it is the same."""
    status = os.stat(os.path.realpath(qemu.program))
    nowhere = {name: Channel(name, descriptor=0) for name in machine.channels}
    words = [word for flag in flags(platform, replace(machine, channels=nowhere)) for word in flag[1:]]
    parts = [FORMAT, qemu.program, status.st_size, status.st_mtime_ns, platform.version, words]
    parts += [image.identity, hashlib.sha256(archive).hexdigest()]
    if platform.accelerator != "tcg":
        parts.append(system.processor_identity())
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Template:
    """One machine's saved state, on disk or not."""

    def __init__(self, layout: Layout, version: tuple[int, int, int], wanted: str) -> None:
        """`wanted`: the key of the machine that is about to start."""
        self.layout = layout
        self._by_descriptor = version < FILE_URI
        self._wanted = wanted
        self._failures = 0
        self._keeping: asyncio.Task[None] | None = None

    @property
    def given_up(self) -> bool:
        """States of this key have failed too often: none is worth the time it takes to find out again."""
        return self._failures >= FAILURES_MAX

    def find(self) -> int | None:
        """The guest's milliseconds since its kernel started, in a state that can be used.

        One that cannot, or was not written to its end, is removed.
        """
        try:
            with open(self.layout.template_about) as file:
                about = json.load(file)
            if about["key"] != self._wanted:
                log.info("the saved state is of another machine, QEMU or version: it is not used")
            else:
                self._failures = int(about["failures"])
                if about["size"] == os.path.getsize(self.layout.template):
                    return int(about["milliseconds"])
                log.warning("the saved state is damaged: it is not used")
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the saved state cannot be read: %r", error)
        self._remove()
        return None

    def failed(self) -> None:
        """A machine did not come to serve from it: it is removed, and how often that was is kept."""
        self._failures += 1
        self._remove()
        try:
            self._write_about(0, 0)
        except OSError as error:
            log.warning("cannot keep how often saved states failed: %s", error)
        if self.given_up:
            log.warning("no state is saved any more until the machine, QEMU or Wherry is another")

    async def resume(self, qmp: Qmp) -> None:
        """Lets QEMU, started to wait for it, go on from the state. Raises MachineError and OSError."""
        with self.opened(self.layout.template, os.O_RDONLY) as state:
            await qmp.migrate_incoming(state)
        await qmp.execute("cont")

    async def save(self, qmp: Qmp, milliseconds: int) -> None:
        """Writes the state of a guest that waits, which then goes on; what goes wrong is only logged.

        `milliseconds`: since the guest's kernel started. Raises MachineError when the guest does not go on.
        """
        partial = self.layout.template + ".new"
        self._remove()
        await qmp.execute("stop")
        written = False
        try:
            with self.opened(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as state:
                async with asyncio.timeout(SAVE_SECONDS):
                    await qmp.migrate(state)
            written = True
        except (MachineError, OSError, TimeoutError) as error:
            log.warning("the machine's state is not saved: %r", error)
            await qmp.execute("migrate_cancel")
            self._remove()
        await qmp.execute("cont")
        if written:  # the disk may take its time: the guest goes on meanwhile
            self._keeping = asyncio.create_task(asyncio.to_thread(self.keep, milliseconds))

    async def settle(self) -> None:
        """Returns when nothing of this machine's state is being written any more."""
        if self._keeping is not None:
            await self._keeping

    def keep(self, milliseconds: int) -> None:
        """Takes over the new state that was written; what goes wrong is only logged."""
        partial = self.layout.template + ".new"
        try:
            fd = os.open(partial, os.O_RDWR)
            try:
                os.fsync(fd)
                size = os.fstat(fd).st_size
            finally:
                os.close(fd)
            os.replace(partial, self.layout.template)
            self._write_about(size, milliseconds)
            log.info("the machine's state is saved: %.1f MiB", size / (1 << 20))
        except OSError as error:
            log.warning("the machine's state is not saved: %s", error)
            self._remove()

    def _remove(self) -> None:
        try:
            discard(self.layout, but_failures=self._failures > 0)
        except OSError as error:
            log.warning("cannot remove the saved state: %s", error)

    def _write_about(self, size: int, milliseconds: int) -> None:
        about = {"key": self._wanted, "size": size, "milliseconds": milliseconds, "failures": self._failures}
        write_whole(self.layout.template_about, json.dumps(about).encode(), 0o600)

    @contextlib.contextmanager
    def opened(self, path: str, mode: int) -> Iterator[State]:
        """A file of a state; made here also where QEMU opens it by its name: only this user can read it."""
        fd = os.open(path, mode | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0), 0o600)
        try:
            yield State(path, fd if self._by_descriptor else None)
        finally:
            os.close(fd)


def discard(layout: Layout, but_failures: bool = False) -> None:
    """Removes a machine's saved state, if there is one, and what is known of earlier ones."""
    files = (layout.template, layout.template + ".new", *(() if but_failures else (layout.template_about,)))
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
