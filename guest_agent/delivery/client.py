"""The agent's side of the log sender: starts it when a container needs it, and tells it who runs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from guest_agent.errors import InternalError
from guest_agent.roots import Roots

log = logging.getLogger(__name__)

LINE_LIMIT = 1 << 22
_SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Delivery:
    """The log sender of one engine. Specifications are `engine.log_config.delivery`'s."""

    def __init__(self, roots: Roots) -> None:
        self._path = roots.run_path("sender.sock")
        self._log = roots.run_path("sender.log")
        self._lock = asyncio.Lock()
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0
        self._running: dict[str, dict[str, Any]] = {}
        self._closing = False

    async def start(self, running: Iterable[dict[str, Any]]) -> None:
        """Take over the containers that run, and have the logs of all others ended."""
        self._running = {spec["id"]: spec for spec in running}
        if self._running or os.path.exists(self._path):  # noqa: ASYNC240 - a stat
            await self._resume()

    async def _resume(self) -> None:
        try:
            await self._request({"op": "keep", "ids": list(self._running)})
            for spec in list(self._running.values()):
                await self._request({"op": "add", "log": {**spec, "adopted": True}})
        except InternalError as error:
            log.error("logs of containers are not sent on: %s", error.message)

    async def add(self, spec: dict[str, Any]) -> None:
        """A container is about to start. Raises InternalError with dockerd's text when nobody receives."""
        answer = await self._request({"op": "add", "log": spec})
        if "error" in answer:
            raise InternalError(
                "failed to create task for container: failed to initialize logging driver: "
                f"{answer['error']}",
                f"See that the receiver of {spec['driver']} runs, and whether the address is right.",
            )
        self._running[spec["id"]] = spec

    async def end(self, container_id: str) -> None:
        """A container has ended or never came to run; what it has logged is sent yet."""
        if self._running.pop(container_id, None) is None:
            return
        try:
            await self._request({"op": "end", "id": container_id})
        except InternalError as error:
            log.error("the log of container %s is not sent to its end: %s", container_id, error.message)

    async def _request(self, value: dict[str, Any]) -> dict[str, Any]:
        for _ in range(2):  # a sender that had nothing to do may end just as it is asked
            async with self._lock:
                writer = await self._connect()
                self._number += 1
                number = self._number
                answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
                self._waiting[number] = answer
                writer.write(json.dumps({"seq": number, **value}).encode() + b"\n")
            try:
                return await answer
            except ConnectionResetError:
                continue
            finally:
                self._waiting.pop(number, None)
        raise InternalError(
            "the log sender does not answer",
            f"{self._log} may say why; restarting the engine starts a new one.",
        )

    async def _connect(self) -> asyncio.StreamWriter:
        if self._writer is None:
            try:
                reader, writer = await asyncio.open_unix_connection(self._path, limit=LINE_LIMIT)
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.to_thread(self._launch)
                reader, writer = await asyncio.open_unix_connection(self._path, limit=LINE_LIMIT)
            self._writer = writer
            self._reading = asyncio.get_running_loop().create_task(self._read(reader, writer))
        return self._writer

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                value = json.loads(line)
                if (waiting := self._waiting.get(value["seq"])) is not None and not waiting.done():
                    waiting.set_result(value)
        except OSError:
            pass
        finally:
            writer.close()
            if self._writer is writer:
                self._writer = None
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(ConnectionResetError())
        if self._running and not self._closing:
            log.warning("the log sender has ended: starting another one")
            await self._resume()

    def _launch(self) -> None:
        # Isolated: neither the environment nor the working directory can slip it other code.
        paths = [_SOURCE, *(path for path in sys.path if path and path != _SOURCE)]
        code = f"import sys; sys.path[:] = {paths!r}; from guest_agent.delivery.sender import main; "
        command = [sys.executable, "-I", "-S", "-c", code + "main(*sys.argv[1:])", self._path, self._log]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode != 0:
            text = done.stderr.decode(errors="replace").strip().splitlines()
            raise InternalError(f"cannot start the log sender: {text[-1] if text else 'it died'}")

    async def close(self) -> None:
        """Leave the sender alone; it goes on while there are logs to send."""
        self._closing = True
        if self._writer is not None and not self._running:
            await self._request({"op": "quit"})
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait((self._reading,))
