"""Composes one engine and serves its API until a signal.

The monitor takes as long to start as most of our modules to load, so it is begun first, and they are loaded
by the functions that use them.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import signal
import socket
import sqlite3
import sys
import time
import warnings
from contextlib import ExitStack

from guest_agent import __version__
from guest_agent.api.listeners import Listener, group_id, open_listeners
from guest_agent.engine.config import Config, merge, parse_options, read_file, usage
from guest_agent.errors import Conflict, EngineError, InternalError, InvalidParameter
from guest_agent.kernel.malloc import keep_small
from guest_agent.roots import Roots
from guest_agent.runtime.client import Begun, begin
from guest_agent.runtime.spawn import raise_descriptor_limit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from guest_agent.rootless.space import Space

log = logging.getLogger(__name__)

HANDLER_GRACE = 5.0  # seconds that running requests get at the end

USAGE = """Usage: python -m guest_agent serve [OPTIONS]

Runs a container engine in the foreground and serves the Docker Engine API.

Options (the same as keys in a daemon.json given by --config):
  --config                     daemon.json to read
  --ready-fd                   descriptor to write "ready" to when the API is served
"""


def without_charset_detection() -> None:
    """Keeps `requests` from loading what guesses the encoding of texts, 3 MB for good: nobody asks it to.

    Without, it takes texts of unknown encoding for UTF-8 (since its release 2.32.0).
    """
    for name in ("chardet", "charset_normalizer"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # "not there" to an import statement
    warnings.filterwarnings("ignore", "Unable to find acceptable character detection dependency")


def main(arguments: list[str], monitor: Begun | None = None) -> int:
    """`serve` of the agent's command line; returns the exit status. `monitor`: where it was begun already."""
    if "--help" in arguments or "-h" in arguments:
        print(USAGE + usage())
        return 0
    keep_small()
    without_charset_detection()
    gc.disable()  # what is made while loading lives as long as we do
    try:
        values, others = parse_options(arguments)
        config_file = others.pop("--config", others.pop("--config-file", ""))
        ready = _descriptor(others.pop("--ready-fd", ""))
        if others:
            raise InvalidParameter(f"unknown option: {next(iter(others))}", hint="See --help.")
        config = merge(read_file(config_file) if config_file else {}, values)
        _set_up_logging(config)
        with ExitStack() as stack:
            space = _without_root(config) if os.geteuid() != 0 else None
            roots, listeners = _prepare(config, stack)
            monitor = monitor or begin(roots)
            raise_descriptor_limit()
            asyncio.run(_run(roots, config, space, monitor, listeners, ready))
        return 0
    except EngineError as error:
        hint = f"\n({error.hint})" if error.hint else ""
        print(f"wherry: {error.message}{hint}", file=sys.stderr)
        return 1


def _without_root(config: Config) -> Space:
    """Becomes root of a user namespace; what follows is the same as for the host's."""
    from guest_agent.rootless import places
    from guest_agent.rootless.space import enter, name_servers
    from guest_agent.runtime import cgroups

    config.data_root = config.data_root if config.data_root != Config().data_root else places.data_root()
    config.exec_root = config.exec_root if config.exec_root != Config().exec_root else places.exec_root()
    try:
        os.makedirs(config.data_root, mode=0o700, exist_ok=True)
        os.makedirs(config.exec_root, mode=0o700, exist_ok=True)
    except OSError as error:
        raise InternalError(f"cannot use {error.filename}: {error.strerror}")
    space = enter(Roots(config.data_root, config.exec_root))
    cgroups.take_over()
    config.dns = config.dns or name_servers(space)
    return space


def _prepare(config: Config, stack: ExitStack) -> tuple[Roots, list[Listener]]:
    """Directories, locks and listening sockets; the stack undoes what has to be undone at the end."""
    os.umask(0o022)
    roots = Roots(config.data_root, config.exec_root)
    try:
        # Container files keep the image's owners and modes: nobody else may walk in (CVE-2021-41091).
        os.makedirs(roots.data, 0o710, exist_ok=True)
        os.chmod(roots.data, os.stat(roots.data).st_mode & 0o710)
        os.makedirs(roots.run, 0o710, exist_ok=True)
        group = group_id(config.group)
        if group is not None:
            os.chown(roots.run, 0, group)  # its members reach the socket in it, and nothing else
        _lock(roots.data_path("engine.lock"), f"the data root {roots.data}", stack)
        _lock(config.pidfile or roots.run_path("agent.pid"), f"the exec root {roots.run}", stack)
    except OSError as error:
        raise InternalError(f"cannot use {error.filename}: {error.strerror}")
    listeners = open_listeners(config.hosts or ["unix://" + roots.run_path("wherry.sock")], config)
    for listener in listeners:
        stack.callback(listener.remove)
    return roots, listeners


def _lock(path: str, what: str, stack: ExitStack) -> None:
    """Takes a lock file, which has our process id in it while we live. Raises Conflict."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    stack.callback(os.close, fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(fd, 20).decode().strip()
        raise Conflict(
            f"another engine{f' (process {owner})' if owner else ''} is using {what}",
            hint="Stop it, or choose other roots with --data-root and --exec-root.",
        )
    # Emptied and not removed: a waiting process may have it open already.
    stack.callback(os.ftruncate, fd, 0)
    os.ftruncate(fd, 0)
    os.write(fd, b"%d\n" % os.getpid())


async def _run(
    roots: Roots,
    config: Config,
    space: Space | None,
    monitor: Begun,
    listeners: list[Listener],
    ready: int | None,
) -> None:
    from msgspec import MsgspecError

    from guest_agent.api.routes import register
    from guest_agent.api.server import Server
    from guest_agent.engine.container_config import LogConfig
    from guest_agent.engine.engine import Engine
    from guest_agent.engine.log_config import settle_log_config

    # Threads unpack layers and talk to the kernel: do not wait 5 ms for a turn whenever one computes.
    sys.setswitchinterval(0.0005)
    stop = asyncio.Event()
    _handle_signals(stop)
    try:
        try:
            settle_log_config(LogConfig(), config)  # options that no container could be logged with
            engine = Engine(roots, config, space)
        except BaseException:
            monitor.abandon()
            raise
        await engine.start(monitor)
    except (sqlite3.Error, MsgspecError) as error:
        raise InternalError(
            f"what is kept in {roots.data} cannot be read: {error}",
            hint="Restore it from a backup, or move it away to start afresh.",
        )
    server = Server(register(engine))
    for listener in listeners:
        server.listen(listener.socket, listener.wrap)
        log.info("API listens on %s", listener.host)
    _tell_ready(ready)
    _notify_systemd("READY=1")
    # What is loaded now stays: the collector need not look at it again.
    gc.freeze()
    gc.enable()
    engine.start_containers()
    await stop.wait()
    _notify_systemd("STOPPING=1")
    server.stop_listening()
    await engine.stop_containers()  # whoever waits for them still hears of their end
    await server.close(HANDLER_GRACE)
    await engine.close()


def _handle_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def on_stop(number: int) -> None:
        if stop.is_set():
            log.warning("second %s: stopping at once", signal.Signals(number).name)
            os._exit(1)
        log.info("%s: stopping", signal.Signals(number).name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_stop, number)
    loop.add_signal_handler(signal.SIGHUP, log.warning, "SIGHUP: settings are read at the start only")


def _descriptor(text: str) -> int | None:
    if not text:
        return None
    if not text.isdigit():
        raise InvalidParameter(f"invalid value for --ready-fd: {text!r} is not a descriptor")
    fd = int(text)
    try:
        os.set_inheritable(fd, False)
    except OSError as error:
        raise InvalidParameter(f"cannot use descriptor {fd} of --ready-fd: {error.strerror}")
    return fd


def _tell_ready(ready: int | None) -> None:
    """Tells whoever started the agent; if the agent ends before, the descriptor's end of file tells."""
    if ready is None:
        return
    try:
        os.write(ready, b"ready\n")
        os.close(ready)
    except OSError:
        pass  # it waits no longer


def _notify_systemd(state: str) -> None:
    """sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        try:
            notify.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            log.warning("cannot notify systemd: %s", error.strerror)


_LEVELS = {"debug": "DEBUG", "info": "INFO", "warn": "WARNING", "error": "ERROR", "fatal": "CRITICAL"}


def _set_up_logging(config: Config) -> None:
    if config.log_level not in _LEVELS:
        raise InvalidParameter(f"invalid log level {config.log_level!r}: use one of {', '.join(_LEVELS)}")
    handler = logging.StreamHandler()
    formatter = logging.Formatter(
        "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.root.addHandler(handler)
    logging.root.setLevel("DEBUG" if config.debug else _LEVELS[config.log_level])
    logging.getLogger("asyncio").setLevel("WARNING")
    log.info("Wherry %s, process %d", __version__, os.getpid())
