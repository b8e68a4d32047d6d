"""Composes one engine and serves its API until a signal."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import socket
import sys

from guest_agent.api.router import Router
from guest_agent.api.server import Server
from guest_agent.engine.config import merge, parse_options
from guest_agent.engine.engine import Engine
from guest_agent.roots import Roots

ROUTES = ("system", "containers", "exec", "images", "networks", "volumes")


def main(arguments: list[str]) -> int:
    """`serve` of the agent's command line; returns the exit status."""
    values, _ = parse_options(arguments)
    config = merge({}, values)
    engine = Engine(Roots(config.data_root, config.exec_root), config)
    asyncio.run(_serve(engine))
    return 0


async def _serve(engine: Engine) -> None:
    for path in (engine.roots.data, engine.roots.run):
        os.makedirs(path, 0o710, exist_ok=True)
    router = Router()
    for name in ROUTES:
        try:
            module = importlib.import_module(f"guest_agent.api.routes.{name}")
        except ModuleNotFoundError:
            continue
        module.register(router, engine)
    server = Server(router)
    for host in engine.config.hosts or ["unix://" + engine.roots.run_path("wherry.sock")]:
        path = host.removeprefix("unix://")
        if os.path.exists(path):
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(128)
        server.listen(listener)
    done = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, done.set)
    await done.wait()
    await server.close(5)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
