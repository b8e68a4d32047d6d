"""kill -9 of QEMU, for a machine what a power cut is for a computer: it boots, and what was committed is there."""

from __future__ import annotations

import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import eventually
from tests.support.images import image as container_image
from tests.support.machine import MachineEngine
from tests.support.registry import TlsRegistry
from tests.support.slow import Relay
from tests.vm.conftest import built_image

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3600)]  # with many --kills

# Says a row's number when it is on the disk. EXTRA: with FULL the journal's removal, which is the commit, is not yet.
COMMITTING = """\
import sqlite3
database = sqlite3.connect("/db/rows.sqlite", isolation_level=None)
database.execute("PRAGMA synchronous=EXTRA")
database.execute("CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, text TEXT)")
while True:
    cursor = database.execute("INSERT INTO rows (text) VALUES (hex(randomblob(2000)))")
    print(cursor.lastrowid, flush=True)
"""
CHECK = """\
import sqlite3
database = sqlite3.connect("/db/rows.sqlite")
print(*database.execute("PRAGMA integrity_check").fetchone(), *database.execute("SELECT max(id) FROM rows").fetchone())
"""
DOCKERFILE = """\
FROM busybox
RUN i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo $i > /file$i; done
RUN cp -r /bin /copy
RUN dd if=/dev/zero of=/big bs=1M count=40
CMD ls /file300 /copy/busybox
"""


class Committing:
    """A container that commits row after row; `last` is the latest of which its client has heard."""

    def __init__(self, engine: MachineEngine) -> None:
        self.last = 0
        command = ("run", "--rm", "-v", "db:/db", "python:3", "python3", "-c", COMMITTING)
        self.client = engine.docker.spawn(*command, stdin=subprocess.DEVNULL)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.client.stdout is not None
        for line in self.client.stdout:
            self.last = int(line)

    def end(self) -> None:
        """The machine was killed."""
        self.client.wait(30)
        self._reader.join(30)
        for stream in (self.client.stdout, self.client.stderr, self.client.stdin):
            if stream is not None:
                stream.close()


@pytest.fixture
def engine(tls_registry: TlsRegistry, monkeypatch: pytest.MonkeyPatch) -> Iterator[MachineEngine]:
    """A machine that trusts the registry's authority, with the images of busybox and Python."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_registry.authority.path))
    made = MachineEngine(built_image("amd64"))
    try:
        made.start()
        for name in ("busybox:latest", "python:3"):
            archive = container_image(name).archive()
            made.docker.ok("load", "--quiet", "--input", archive, timeout=200)
        yield made
    finally:
        made.close()


def test_a_machine_without_power(
    engine: MachineEngine, tls_registry: TlsRegistry, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """While a database commits, by turns an image is pulled or built."""
    rounds: int = request.config.getoption("--kills")
    tls_registry.push(container_image("debian:stable"))
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    engine.docker.ok("create", "--name", "kept", "-v", "kept:/v", "busybox", "echo", "still here")
    last = 0
    for number in range(rounds):
        chance = random.Random(number)
        relay = Relay(tls_registry.address, rate=3_000_000)
        try:
            database = Committing(engine)
            eventually(lambda last=last, database=database: database.last > last, 120)  # type: ignore[misc]
            if number % 2:
                work = engine.wherry.spawn(
                    "build", "--no-cache", "-t", "built", tmp_path, stdin=subprocess.DEVNULL
                )
                enough = database.last + chance.randrange(1, 60)
                eventually(lambda enough=enough, database=database: database.last > enough, 120)  # type: ignore[misc]
            else:
                reference = f"10.0.2.2:{relay.address.rpartition(':')[2]}/debian:stable"
                work = engine.docker.spawn("pull", reference, stdin=subprocess.DEVNULL)
                wanted = chance.randrange(100_000, 25_000_000)
                eventually(lambda wanted=wanted, relay=relay: relay.passed > wanted, 120)  # type: ignore[misc]
            engine.kill()
            database.end()
            work.communicate(timeout=30)
            assert database.last > last
            last = database.last
            engine.start()
        finally:
            relay.close()
        _whole(engine, last, f"kill {number}")
    reference = f"{tls_registry.address}/debian:stable"
    engine.docker.ok("pull", "--quiet", reference, timeout=200)
    assert "Debian" in engine.docker.ok("run", "--rm", reference, "cat", "/etc/os-release")
    engine.wherry.ok("build", "-t", "built", tmp_path, timeout=200)
    assert engine.docker.ok("run", "--rm", "built") == "/copy/busybox\n/file300"


def _whole(engine: MachineEngine, committed: int, when: str) -> None:
    """Every image that is shown runs, every committed row is there, containers are told as they are."""
    docker = engine.docker
    check = docker.ok("run", "--rm", "-v", "db:/db", "python:3", "python3", "-c", CHECK, timeout=120)
    word, _, rows = check.partition(" ")
    assert word == "ok", f"{when}: {check}"
    assert int(rows) >= committed, f"{when}: {committed} rows were committed, there are {rows}"
    assert docker.ok("start", "-a", "kept") == "still here", when
    for each in engine.client.api.containers(all=True):
        assert each["State"] in ("created", "exited"), f"{when}: {each}"
    for name in docker.ok("images", "--format", "{{.ID}}").split():
        assert docker.ok("run", "--rm", name, "echo", "runs", timeout=120) == "runs", f"{when}: {name}"
