"""The process that owns one machine's QEMU, from its start to its end.

    python -I -m host_client.machine.supervisor NAME

Its stdout is a pipe to whoever started it: one JSON object a line, {"step": …} while the machine boots and at
last {"ready": …} or {"error": …, "hint": …}. After that it answers on its own socket, see `control`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

from host_client.engine_api.client import Client
from host_client.engine_api.endpoint import Endpoint, Tls
from host_client.engine_api.errors import EngineApiError
from host_client.machine import (
    accelerator,
    config,
    handover,
    image,
    keys,
    layout,
    qcow2,
    qemu,
    shares,
    system,
    template,
)
from host_client.machine.boot import Boot, Start, StateFailed
from host_client.machine.channels import NAMES, Channels
from host_client.machine.command import Files, Flag, Machine, Platform, command_line, flags
from host_client.machine.console import ConsoleLog
from host_client.machine.control import ControlServer
from host_client.machine.errors import MachineError
from host_client.machine.file_server import process as file_server
from host_client.machine.forwards import Forwards
from host_client.machine.guest import Guest, HandedFile
from host_client.machine.listener import listen
from host_client.machine.qmp import Qmp
from host_client.machine.relay import Relay, client_context

log = logging.getLogger("supervisor")

STOP_SECONDS = 20.0  # for init: it gives containers 10 s
QUIT_SECONDS = 5.0
CLOCK_CHECK_SECONDS = 15.0
CLOCK_JUMP_SECONDS = 0.5
IDLE_CHECK_SECONDS = 60.0  # between two looks at whether containers still run

Report = Callable[[dict[str, Any]], None]


class Supervisor:
    """One machine's run."""

    def __init__(self, name: str, report: Report) -> None:
        self.layout = layout.Layout(name)
        self.report = report
        self.config = config.load(self.layout)
        self.lock = system.Lock(self.layout.lock)
        self.stopping = asyncio.Event()
        self.api_port = 0
        self.boot_times: dict[str, int] = {}  # milliseconds since the kernel started, or was resumed
        self._start = Start("")
        self._process: subprocess.Popen[bytes] | None = None
        self._job: object | None = None
        self._files: file_server.FileServerProcess | None = None
        self._folders: tuple[str, ...] = ()  # of this host's, shared in this life of the machine
        self._parts: tuple[Guest, Qmp] | None = None  # while the machine is there to be asked
        self._relay: Relay | None = None
        self._serving: list[asyncio.Task[None]] = []
        self._woken = asyncio.Event()  # a client wants the machine
        self._awake = asyncio.Event()  # the engine answers

    async def run(self) -> None:
        """Boots, serves and ends the machine. Raises MachineError."""
        if not self.lock.take():
            raise MachineError(f"machine {self.layout.name} has a supervisor already")
        if not system.IS_WINDOWS:  # the host shuts down, or somebody ends us: the machine is stopped properly
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stopping.set)
        self._clear_leftovers()
        console = ConsoleLog(self.layout.console)
        try:
            async with asyncio.TaskGroup() as tasks:
                while await self._run_once(console, tasks):
                    await self._sleep()
                for task in self._serving:
                    task.cancel()
        finally:
            console.close()
            self._clear_leftovers()
            self.lock.release()

    async def _run_once(self, console: ConsoleLog, tasks: asyncio.TaskGroup) -> bool:
        """One life of the machine; whether it ended because nobody needed it: the next client wakes it."""
        while True:
            self._folders = shares.existing(self.config.shares)
            channels = Channels((*NAMES, *file_server.NAMES) if self._folders else NAMES)
            try:
                self._start = self._launch(channels)
                return await self._live(channels, console, tasks)
            except StateFailed as error:
                log.warning("the machine did not start with its saved state, which is removed: %s", error)
                if self._start.saved is not None:
                    self._start.saved.failed()
            finally:
                self._kill()
                channels.close()
                if self._start.saved is not None:
                    await self._start.saved.settle()
                if self._files is not None:
                    await asyncio.to_thread(self._files.close)
                    self._files = None

    async def _sleep(self) -> None:
        """Until a client or a stop comes."""
        log.info("asleep: nothing ran for %d minutes", self.config.idle_stop)
        self._write_state()
        events = [asyncio.create_task(event.wait()) for event in (self._woken, self.stopping)]
        await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
        for task in events:
            task.cancel()

    async def wake(self) -> None:
        """Boots the machine if it is asleep, and waits until its engine answers. Raises MachineError."""
        self._woken.set()
        await self._awake.wait()
        if self.stopping.is_set():
            raise MachineError(f"machine {self.layout.name} is being stopped")

    async def _engine_port(self) -> int:
        """For the relay: where the engine is. Raises OSError."""
        try:
            await self.wake()
        except MachineError as error:
            raise ConnectionRefusedError(error.message)
        return self.api_port

    def _clear_leftovers(self) -> None:
        """Sockets and state of a supervisor that was killed; we hold the lock, so nobody uses them.

        Windows' pipes end with who serves them.
        """
        sockets = () if system.IS_WINDOWS else (self.layout.api_socket, self.layout.control_socket)
        for path in (self.layout.state, *sockets):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass

    def _launch(self, channels: Channels) -> Start:
        """Starts QEMU and what serves it this host's folders."""
        self.report({"step": "Looking for QEMU"})
        program = qemu.find(self.config.arch)
        picture = image.open_image(self.config.image)
        self.report({"step": "Choosing an accelerator"})
        chosen, why = accelerator.choose(program, picture)
        if why:
            self.report({"warning": f"the machine is emulated, which is slow: {why}"})
        if not os.path.exists(self.layout.disk):
            qcow2.create(self.layout.disk, self.config.disk)
        elif qcow2.virtual_size(self.layout.disk) < self.config.disk:
            qcow2.grow(self.layout.disk, self.config.disk)
        if not os.path.exists(os.path.join(self.layout.tls, keys.FILES[-1])):
            keys.make_keys(self.layout.tls, self.layout.name)
        machine = Machine(
            name=self.layout.name,
            cpus=self.config.cpus,
            memory=self.config.memory,
            files=Files(
                picture.path("kernel"), self.layout.initrd, picture.path("root.erofs"), self.layout.disk
            ),
            channels=channels.for_qemu(),
            guest_port=handover.API_PORT,
        )
        platform = Platform(sys.platform, self.config.arch, chosen, program.version)
        unsaved = "it is not wanted" if not self.config.warm_start else template.unsupported(platform)
        archive = handover.boot_archive(picture, template=not unsaved)
        with open(picture.path("initrd"), "rb") as own:
            layout.write_whole(self.layout.initrd, own.read() + archive)
        start = Start(chosen)
        if unsaved:
            log.info("the machine's state is not saved: %s", unsaved)
            template.discard(self.layout)
        else:
            key = template.key(platform, machine, program, picture, archive)
            saved = template.Template(self.layout, program.version, key)
            resumed_at = saved.find()
            start = Start(chosen, None if saved.given_up else saved, resumed_at)
        machine = replace(machine, resumes=start.resumed_at is not None)
        verb = "Resuming" if machine.resumes else "Booting"
        self.report({"step": f"{verb} with {chosen.upper()}"})
        if self._folders:
            self._files = file_server.FileServerProcess(channels, self._folders)
        self._start_qemu(program.program, flags(platform, machine), channels)
        return start

    def _boot_files(self) -> list[HandedFile]:
        name = "wherry" if self.layout.name == layout.DEFAULT_NAME else f"wherry-{self.layout.name}"
        return handover.boot_files(name, self.layout.tls, self._folders)

    def _start_qemu(self, program: str, options: list[Flag], channels: Channels) -> None:
        command = command_line(program, options)
        log.info("starting %s", " ".join(command))
        self.boot_times = {}
        wanted: dict[str, Any] = {}
        if not system.IS_WINDOWS:
            wanted["pass_fds"] = channels.inherited()
            wanted["preexec_fn"] = system.tie_to_this_process()
            wanted["start_new_session"] = True  # Ctrl-C in the terminal that started us is not for QEMU
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **wanted
        )
        self._job = system.put_into_job(self._process)
        channels.started()

    async def _live(self, channels: Channels, console: ConsoleLog, tasks: asyncio.TaskGroup) -> bool:
        background = [tasks.create_task(console.follow(await channels.take("console")))]
        qmp = Qmp(await channels.take("qmp"))
        guest = Guest(await channels.take("control"), self._on_stage)
        background.append(tasks.create_task(guest.follow()))
        background.append(tasks.create_task(Forwards(qmp).follow(await channels.take("ports"))))
        ended = tasks.create_task(self._wait_for_process())
        if self._files is not None:
            background.append(tasks.create_task(self._watch_files(self._files)))
        try:
            boot = Boot(qmp, guest, ended, console, self.stopping)
            self.api_port, ready = await boot.run(self._start, self._boot_files, self._last_stage)
            self._on_stage(ready, "ready")
            await self._serve(tasks)
            background.append(tasks.create_task(self._keep_clock(guest)))
            self._parts = guest, qmp
            self._woken.clear()
            self._awake.set()
            self._write_state()
            self.report({"ready": self._status()})
            idle = await self._until_the_end(ended, console)
            if not ended.done():
                await self._stop(qmp, guest, ended)
            return idle and not self.stopping.is_set()
        finally:
            self._parts = None
            self._kill()
            for task in background:
                task.cancel()
            await qmp.close()

    async def _serve(self, tasks: asyncio.TaskGroup) -> None:
        """Listens for clients from the first boot on, before anybody is told so, and while it sleeps."""
        if self._serving:
            return
        self._relay = Relay(
            await listen(self.layout.api_socket), client_context(self.layout.tls), self._engine_port
        )
        socket = await listen(self.layout.control_socket)
        control = ControlServer(socket, self._status, self.stopping, self.wake, self._reachable)
        self._serving = [tasks.create_task(self._relay.serve()), tasks.create_task(control.serve())]

    def _reachable(self) -> tuple[Guest, Qmp]:
        if self._parts is None:
            raise MachineError(f"machine {self.layout.name} is asleep", "Any command that needs it wakes it.")
        return self._parts

    def _last_stage(self) -> str:
        return max(self.boot_times, key=lambda name: self.boot_times[name], default="")

    def _on_stage(self, milliseconds: int, name: str) -> None:
        milliseconds -= self._start.resumed_at or 0
        self.boot_times[name] = milliseconds
        self.report({"stage": name, "milliseconds": milliseconds})

    async def _wait_for_process(self) -> int:
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait)

    async def _watch_files(self, files: file_server.FileServerProcess) -> None:
        """Says so when folders cannot be reached any more, which the guest's programs see as errors."""
        status = await asyncio.to_thread(files.wait)
        if self._process is not None and self._process.poll() is None:
            log.error("the file server ended with status %d: shared folders are gone until a restart", status)

    async def _until_the_end(self, ended: asyncio.Task[int], console: ConsoleLog) -> bool:
        """Until a stop is asked for, nobody needs the machine, or QEMU ends by itself: a power-off from
        inside (0) or a crash. Whether it is that nobody needs it.
        """
        stop = asyncio.create_task(self.stopping.wait())
        idle = asyncio.create_task(self._until_idle())
        await asyncio.wait({stop, ended, idle}, return_when=asyncio.FIRST_COMPLETED)
        asleep = idle.done() and not ended.done()
        stop.cancel()
        idle.cancel()
        if asleep:
            self._awake.clear()  # from now on clients wait for the next boot
        if ended.done() and ended.result():
            said = " / ".join(console.last()[-3:])
            log.error("QEMU ended with status %d; the console said last: %s", ended.result(), said)
        return asleep

    async def _until_idle(self) -> None:
        """Until there has been no client for as long as the user wants, and no container runs."""
        assert self._relay is not None
        seconds = self.config.idle_stop * 60
        if not seconds:
            await asyncio.get_running_loop().create_future()
        while True:
            await self._relay.quiet(seconds)
            if not await asyncio.to_thread(self._anything_runs):
                return
            await asyncio.sleep(min(seconds, IDLE_CHECK_SECONDS))

    def _anything_runs(self) -> bool:
        """Whether the engine has running containers; also when it does not say."""
        ca, own, key = (os.path.join(self.layout.tls, name) for name in ("ca.pem", "cert.pem", "key.pem"))
        tls = Tls(ca, own, key, verify=True)
        client = Client(Endpoint("the machine", "tcp", "127.0.0.1", self.api_port, tls))
        try:
            return bool(client.get("/containers/json"))
        except EngineApiError as error:
            log.warning("cannot see whether containers run: %s", error.message)
            return True
        finally:
            client.close()

    async def _stop(self, qmp: Qmp, guest: Guest, ended: asyncio.Task[int]) -> None:
        """By the guest's init, then by QEMU, then by force, each for a bounded time."""
        steps: list[tuple[str, Callable[[], Awaitable[None]], float]] = [
            ("init", partial(guest.ask, "poweroff"), STOP_SECONDS),
            ("QEMU", qmp.quit, QUIT_SECONDS),
        ]
        for what, ask, seconds in steps:
            try:
                async with asyncio.timeout(seconds):
                    await ask()
                    await asyncio.shield(ended)
                return
            except (TimeoutError, OSError, MachineError):
                log.warning("%s did not stop the machine within %.0f s", what, seconds)
        self._kill()
        await ended

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    async def _keep_clock(self, guest: Guest) -> None:
        """Sets the guest's clock when the host's has jumped: it was set, or the host has slept.

        An emulated one is set regularly: it loses about a millisecond a second.
        """
        last = time.time() - time.monotonic()
        while True:
            await asyncio.sleep(CLOCK_CHECK_SECONDS)
            now = time.time() - time.monotonic()
            if self._start.accelerator == "tcg" or abs(now - last) > CLOCK_JUMP_SECONDS:
                last = now
                try:
                    await guest.set_clock()
                except (OSError, TimeoutError) as error:
                    log.warning("cannot set the guest's clock: %r", error)

    def _status(self) -> dict[str, Any]:
        """What there is to know. `qemu` and `api_port` are 0 while the machine sleeps."""
        awake = self._parts is not None and self._process is not None
        return {
            "name": self.layout.name,
            "supervisor": os.getpid(),
            "asleep": not awake,
            "qemu": self._process.pid if awake and self._process else 0,
            "accelerator": self._start.accelerator,
            "api_port": self.api_port if awake else 0,
            "socket": self.layout.api_socket,
            "boot_milliseconds": self.boot_times,
            "resumed": self._start.resumed_at is not None,
        }

    def _write_state(self) -> None:
        layout.write_whole(self.layout.state, (json.dumps(self._status(), indent=1) + "\n").encode(), 0o600)


def main() -> int:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    parent = os.fdopen(os.dup(1), "w", buffering=1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.close(null)

    def report(message: dict[str, Any]) -> None:
        log.info("%s", re.sub(r"\s+", " ", json.dumps(message)))
        try:
            if not parent.closed:
                parent.write(json.dumps(message) + "\n")
                if "ready" in message or "error" in message:
                    parent.close()
        except (OSError, ValueError):
            pass  # whoever started us waits no longer

    async def run() -> None:
        await Supervisor(sys.argv[1], report).run()

    try:
        asyncio.run(run())
    except MachineError as error:
        report({"error": error.message, "hint": error.hint})
        return 1
    except BaseExceptionGroup as group:
        errors = [e for e in _flatten(group) if isinstance(e, MachineError)]
        if not errors:
            log.exception("the supervisor failed")
            report({"error": f"the supervisor failed: {_flatten(group)[0]!r}", "hint": "Its log tells more."})
            return 1
        report({"error": errors[0].message, "hint": errors[0].hint})
        return 1
    except Exception as error:
        log.exception("the supervisor failed")
        report({"error": f"the supervisor failed: {error!r}", "hint": "Its log tells more."})
        return 1
    return 0


def _flatten(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _flatten(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


if __name__ == "__main__":
    sys.exit(main())
