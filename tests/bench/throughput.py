"""Bytes between the host and a container, by a published port and outwards: without root as a ratio to with root."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable

from tests.support.engine import Engine

IMAGE = "busybox"
MEGABYTES = 400
_PIECE = bytes(1 << 20)


def own_address() -> str:
    """The host's address towards others, by which containers of both engines reach it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("198.51.100.1", 9))
        return str(probe.getsockname()[0])


def _connected(address: str, port: int) -> socket.socket:
    """A connection as soon as the container takes one: those that the kernel redirects may come too early."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection((address, port), 30)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def published(engine: Engine, address: str) -> float:
    """Seconds until a container has taken it all by a published port."""
    script = "nc -l -p 80 > /dev/null"
    id = engine.docker.ok("run", "-d", "-p", "0.0.0.0::80", IMAGE, "sh", "-c", script)
    try:
        port = int(engine.docker.ok("port", id, "80").rpartition(":")[2])
        with _connected(address, port) as connection:
            started = time.perf_counter()
            for _ in range(MEGABYTES):
                connection.sendall(_PIECE)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)  # the end of nc
            return time.perf_counter() - started
    finally:
        engine.docker.ok("rm", "-f", id)


def outgoing(engine: Engine, address: str) -> float:
    """Seconds until the host has taken it all from a container."""
    with socket.socket() as listener:
        listener.bind((address, 0))
        listener.listen()
        listener.settimeout(30)
        port = listener.getsockname()[1]
        script = f"dd if=/dev/zero bs=1M count={MEGABYTES} 2>/dev/null | nc {address} {port}"
        id = engine.docker.ok("run", "-d", IMAGE, "sh", "-c", script)
        try:
            connection, _ = listener.accept()
            with connection:
                started, buffer = time.perf_counter(), bytearray(1 << 20)
                while connection.recv_into(buffer):
                    pass
                return time.perf_counter() - started
        finally:
            engine.docker.ok("rm", "-f", id)


def figures(rootless: Engine, rootful: Engine, rounds: int) -> list[tuple[str, float, float]]:
    """What, and the medians of both in milliseconds, measured in turn."""
    address = own_address()
    found = []
    kinds: tuple[tuple[str, Callable[[Engine, str], float]], ...] = (
        ("published port", published),
        ("outgoing", outgoing),
    )
    for what, measure in kinds:
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds):
            for taken, engine in zip(times, (rootless, rootful), strict=True):
                taken.append(measure(engine, address) * 1000)
        first, second = map(statistics.median, times)
        found.append((f"{what}, {MEGABYTES} MiB, no root", first, second))
    return found
