"""Log drivers, against real receivers: sockets that speak each protocol from the other side."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support import certificates, images
from tests.support.cli import Cli, eventually
from tests.support.engine import OurEngine

pytestmark = [pytest.mark.root, pytest.mark.ours]

LINES = "echo first; sleep 0.1; echo second >&2; sleep 0.1; printf third"


class Receiver:
    """Takes what is sent to a port, or to a unix socket, and keeps it."""

    def __init__(self, kind: str = "tcp", path: str = "", context: ssl.SSLContext | None = None) -> None:
        datagrams = kind in ("udp", "unixgram")
        self.socket = socket.socket(
            socket.AF_UNIX if path else socket.AF_INET,
            socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM,
        )
        self.socket.bind(path or ("127.0.0.1", 0))
        self.port = 0 if path else self.socket.getsockname()[1]
        self.datagrams: list[bytes] = []
        self.data = b""
        self.peers: list[socket.socket] = []
        self._context = context
        self.reply: Callable[[bytes], bytes] = lambda data: b""
        self.taking = threading.Event()
        self.taking.set()
        if not datagrams:
            self.socket.listen()
        threading.Thread(target=self._take_datagrams if datagrams else self._accept, daemon=True).start()

    def _take_datagrams(self) -> None:
        try:
            while True:
                self.datagrams.append(self.socket.recv(1 << 20))
        except OSError:
            return

    def _accept(self) -> None:
        try:
            while True:
                peer, _ = self.socket.accept()
                self.peers.append(peer)
                threading.Thread(target=self._read, args=(peer,), daemon=True).start()
        except OSError:
            return

    def _read(self, peer: socket.socket) -> None:
        try:
            if self._context is not None:
                peer = self._context.wrap_socket(peer, server_side=True)
            while self.taking.wait() and (data := peer.recv(65536)):
                self.data += data
                if answer := self.reply(data):
                    peer.sendall(answer)
        except OSError:
            return

    def hang_up(self) -> None:
        """Close every connection."""
        for peer in self.peers:
            with suppress(OSError):  # TLS has taken it over
                peer.shutdown(socket.SHUT_RDWR)
            peer.close()
        self.peers.clear()

    def close(self) -> None:
        self.hang_up()
        with suppress(OSError):  # datagrams: not connected; but who waits for one is woken
            self.socket.shutdown(socket.SHUT_RDWR)  # else it listens as long as a thread accepts
        self.socket.close()

    @property
    def lines(self) -> list[str]:
        return [line.decode() for line in self.data.split(b"\n") if line]


@pytest.fixture
def receive() -> Iterator[Callable[..., Receiver]]:
    """Makes receivers; they are closed at the end."""
    made: list[Receiver] = []

    def start(*arguments: Any, **named: Any) -> Receiver:
        made.append(Receiver(*arguments, **named))
        return made[-1]

    yield start
    for each in made:
        each.close()


def run(docker: Cli, driver: str, *options: str, script: str = LINES, name: str = "one") -> str:
    words = [word for option in options for word in ("--log-opt", option)]
    docker.ok("run", "--name", name, "--log-driver", driver, *words, "busybox", "sh", "-c", script)
    return docker.ok("inspect", "-f", "{{.Id}}", name)


def readable(docker: Cli, name: str = "one") -> None:
    """`logs` shows what was logged, whatever the driver."""
    result = docker("logs", name)
    assert (result.code, result.out, result.err) == (0, "first\nthird", "second\n")


# --- local files


def test_local(docker: Cli, busybox: str) -> None:
    run(docker, "local", "max-size=10k", "max-file=3")
    readable(docker)
    assert docker.ok("logs", "--tail", "1", "one") == "third"
    assert docker.ok("inspect", "-f", "{{.LogPath}}", "one") == ""


def test_local_rotates_and_compresses(own_engine: OurEngine) -> None:
    docker = own_engine.docker
    script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); "
    script += "[ $((i % 250)) = 0 ] && sleep 0.3; done; sleep 0.5; echo end"
    identity = run(docker, "local", "max-size=20k", "max-file=3", script=script)
    directory = own_engine.data / "containers" / identity
    eventually(lambda: sorted(each.name for each in directory.glob("*.gz")))
    shown = docker.ok("logs", "one").splitlines()
    assert shown[-1] == "end"
    assert 100 < len(shown) < 2000
    numbers = [int(line.split()[1]) for line in shown[:-1]]
    assert numbers == list(range(numbers[0], 2000))


def test_non_blocking_files(docker: Cli, busybox: str) -> None:
    run(docker, "json-file", "mode=non-blocking", "max-buffer-size=4m")
    readable(docker)


def test_default_driver(start_engine: Callable[..., OurEngine], busybox: str) -> None:
    engine = start_engine("--log-driver", "local", "--log-opt", "max-size=1m")
    engine.docker.ok("load", "--quiet", "--input", images.image("busybox:latest").archive())
    engine.docker.ok("run", "--name", "one", busybox, "sh", "-c", LINES)
    readable(engine.docker)
    assert engine.docker.ok("info", "-f", "{{.LoggingDriver}}") == "local"


# --- syslog


def test_syslog_tcp(docker: Cli, busybox: str, receive: Callable[..., Receiver]) -> None:
    server = receive()
    run(
        docker,
        "syslog",
        f"syslog-address=tcp://127.0.0.1:{server.port}",
        "syslog-format=rfc5424micro",
        "syslog-facility=local3",
        "tag={{.Name}}",
    )
    eventually(lambda: len(server.lines) == 3)
    assert [line.split(">", 1)[0] for line in server.lines] == ["<158", "<155", "<158"]
    words = server.lines[0].split()
    assert words[0] == "<158>1"
    assert (words[3], words[5:]) == ("one", ["one", "-", "first"])
    readable(docker)


def test_syslog_udp(docker: Cli, busybox: str, receive: Callable[..., Receiver]) -> None:
    server = receive("udp")
    identity = run(docker, "syslog", f"syslog-address=udp://127.0.0.1:{server.port}", "syslog-format=rfc3164")
    eventually(lambda: len(server.datagrams) == 3)
    text = server.datagrams[1].decode()
    assert text.startswith("<27>")
    assert text.endswith(": second\n")
    assert f" {socket.gethostname()} {identity[:12]}[" in text


@pytest.mark.parametrize("kind", ["unix", "unixgram"])
def test_syslog_unix(
    docker: Cli, busybox: str, receive: Callable[..., Receiver], tmp_path: Path, kind: str
) -> None:
    path = str(tmp_path / "log")
    server = receive(kind, path)
    run(docker, "syslog", f"syslog-address={kind}://{path}")
    eventually(lambda: len(server.lines) + len(server.datagrams) == 3)
    first = (server.data.splitlines() or server.datagrams)[0]
    assert first.startswith(b"<30>")
    assert b"]: first" in first


def test_syslog_tls(docker: Cli, busybox: str, receive: Callable[..., Receiver], tmp_path: Path) -> None:
    """Messages are counted (RFC 5425); a certificate nobody vouches for is refused unless that is wanted."""
    authority = certificates.Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("localhost", "127.0.0.1"))
    server = receive(context=context)
    address = f"syslog-address=tcp+tls://127.0.0.1:{server.port}"
    run(docker, "syslog", address, f"syslog-tls-ca-cert={authority.path}", "syslog-format=rfc5424")
    eventually(lambda: server.data.count(b" - ") == 3)
    length, _, rest = server.data.partition(b" ")
    assert rest[: int(length)].endswith(b" - first\n")
    refused = docker(
        *("run", "--rm", "--log-driver", "syslog", "--log-opt", address, busybox, "true"),
    )
    assert refused.code == 125
    assert "failed to initialize logging driver" in refused.err
    run(docker, "syslog", address, "syslog-tls-skip-verify=1", name="two")


def test_nobody_receives(docker: Cli, busybox: str, receive: Callable[..., Receiver]) -> None:
    server = receive()
    server.close()
    words = ("--log-driver", "syslog", "--log-opt", f"syslog-address=tcp://127.0.0.1:{server.port}")
    result = docker("run", "--rm", *words, busybox, "true")
    assert result.code == 125
    assert (
        "failed to create task for container: failed to initialize logging driver: "
        f"dial tcp 127.0.0.1:{server.port}: connect: connection refused" in result.err
    )


# --- GELF


def test_gelf_udp(docker: Cli, busybox: str, receive: Callable[..., Receiver]) -> None:
    """Compressed, and in chunks where one datagram does not hold it."""
    server = receive("udp")
    address = f"gelf-address=udp://127.0.0.1:{server.port}"
    identity = run(docker, "gelf", address, "labels=a", "tag=t", script=LINES)
    eventually(lambda: len(server.datagrams) == 3)
    first, second, _ = (json.loads(gzip.decompress(data)) for data in server.datagrams)
    assert (first["version"], first["short_message"], first["level"]) == ("1.1", "first", 6)
    assert (second["short_message"], second["level"]) == ("second", 3)
    assert (first["_container_id"], first["_container_name"], first["_tag"]) == (identity, "one", "t")
    assert first["_image_name"] == busybox
    assert first["_command"] == f"sh -c {LINES}"
    assert abs(first["timestamp"] - time.time()) < 60
    readable(docker)
    server.datagrams.clear()
    long = "head -c 3000 /dev/urandom | base64 -w0"
    run(docker, "gelf", address, "gelf-compression-type=none", script=long, name="two")
    eventually(lambda: server.datagrams and len(server.datagrams) == server.datagrams[0][11])
    assert all(data.startswith(b"\x1e\x0f") for data in server.datagrams)
    whole = b"".join(data[12:] for data in sorted(server.datagrams, key=lambda data: data[10]))
    assert json.loads(whole)["short_message"] == docker.ok("logs", "two")


def test_gelf_tcp(docker: Cli, busybox: str, receive: Callable[..., Receiver]) -> None:
    server = receive()
    run(docker, "gelf", f"gelf-address=tcp://127.0.0.1:{server.port}")
    eventually(lambda: server.data.count(b"\0") == 3)
    found = [json.loads(part)["short_message"] for part in server.data.split(b"\0") if part]
    assert found == ["first", "second", "third"]


# --- fluentd


def unpacked(data: bytes) -> list[list[Any]]:
    """The messages of a stream of msgpack."""
    found, start = [], 0
    for end in range(1, len(data) + 1):
        try:
            value = msgspec.msgpack.decode(data[start:end])
        except msgspec.MsgspecError:
            continue
        if isinstance(value, list) and len(value) == 4:
            found.append(value)
            start = end
    return found


def test_fluentd(docker: Cli, busybox: str, receive: Callable[..., Receiver]) -> None:
    server = receive()
    identity = run(
        docker,
        "fluentd",
        f"fluentd-address=127.0.0.1:{server.port}",
        "tag=docker.{{.Name}}",
        "env=HOME",
        "fluentd-sub-second-precision=true",
    )
    eventually(lambda: len(unpacked(server.data)) == 3)
    tag, moment, record, option = unpacked(server.data)[1]
    assert (tag, option) == ("docker.one", {})
    seconds, _ = struct.unpack(">II", moment.data)
    assert (moment.code, abs(seconds - time.time()) < 60) == (0, True)
    assert record == {
        "container_id": identity,
        "container_name": "/one",
        "source": "stderr",
        "log": "second",
    }
    readable(docker)


def test_fluentd_acknowledges(docker: Cli, busybox: str, receive: Callable[..., Receiver]) -> None:
    server = receive()

    def acknowledge(data: bytes) -> bytes:
        return b"".join(msgspec.msgpack.encode({"ack": each[3]["chunk"]}) for each in unpacked(data))

    server.reply = acknowledge
    run(docker, "fluentd", f"fluentd-address=127.0.0.1:{server.port}", "fluentd-request-ack=true")
    eventually(lambda: [each[2]["log"] for each in unpacked(server.data)] == ["first", "second", "third"])


def test_fluentd_later(docker: Cli, busybox: str, receive: Callable[..., Receiver], tmp_path: Path) -> None:
    """With fluentd-async nobody has to be there yet; long lines come in pieces that say so."""
    path = str(tmp_path / "fluent")
    script = "head -c 30000 /dev/zero | tr '\\0' x; echo; sleep 5"
    docker.ok(
        *(
            "run",
            "-d",
            "--name",
            "one",
            "--log-driver",
            "fluentd",
            "--log-opt",
            f"fluentd-address=unix://{path}",
        ),
        *("--log-opt", "fluentd-async=true", "--log-opt", "fluentd-retry-wait=100ms"),
        *(busybox, "sh", "-c", script),
    )
    time.sleep(0.3)
    server = receive("unix", path)
    eventually(lambda: len(unpacked(server.data)) == 2)
    first, last = (each[2] for each in unpacked(server.data))
    assert (first["partial_message"], first["partial_ordinal"], first["partial_last"]) == (
        "true",
        "1",
        "false",
    )
    assert (last["partial_ordinal"], last["partial_last"]) == ("2", "true")
    assert first["partial_id"] == last["partial_id"]
    assert len(first["log"]) + len(last["log"]) == 30000


def test_fluentd_buffer_limit(
    docker: Cli, busybox: str, receive: Callable[..., Receiver], tmp_path: Path
) -> None:
    """So many entries wait for who is not there, beside those that are being sent; the newest are kept."""
    path = str(tmp_path / "fluent")
    words = [f"fluentd-address=unix://{path}", "fluentd-async=true", "fluentd-retry-wait=100ms"]
    options = [word for option in (*words, "fluentd-buffer-limit=5") for word in ("--log-opt", option)]
    script = "echo 0; sleep 1; seq 1 20; sleep 5"
    docker.ok(
        *("run", "-d", "--name", "one", "--log-driver", "fluentd", *options, busybox, "sh", "-c", script)
    )
    eventually(lambda: docker.ok("logs", "one").endswith("20"))
    server = receive("unix", path)
    eventually(lambda: unpacked(server.data) and unpacked(server.data)[-1][2]["log"] == "20")
    assert [each[2]["log"] for each in unpacked(server.data)] == ["0", "16", "17", "18", "19", "20"]
    assert docker.ok("logs", "one").splitlines() == [str(number) for number in range(21)]


# --- how it is sent


def test_cache_disabled(docker: Cli, busybox: str, receive: Callable[..., Receiver]) -> None:
    server = receive()
    run(docker, "syslog", f"syslog-address=tcp://127.0.0.1:{server.port}", "cache-disabled=true")
    eventually(lambda: len(server.lines) == 3)
    assert "configured logging driver does not support reading" in docker("logs", "one").err


def test_the_last_words_of_a_removed_container(
    docker: Cli, busybox: str, receive: Callable[..., Receiver]
) -> None:
    server = receive()
    words = ("--log-driver", "syslog", "--log-opt", f"syslog-address=tcp://127.0.0.1:{server.port}")
    for number in range(5):
        docker.ok("run", "--rm", *words, busybox, "echo", f"words {number}")
    eventually(lambda: len(server.lines) == 5)
    assert [line[-7:] for line in server.lines] == [f"words {number}" for number in range(5)]


def test_a_receiver_that_hangs_up(docker: Cli, busybox: str, receive: Callable[..., Receiver]) -> None:
    """It is connected to again, and nothing is lost."""
    server = receive()
    words = ("--log-driver", "syslog", "--log-opt", f"syslog-address=tcp://127.0.0.1:{server.port}")
    script = "echo before; sleep 1; echo after; sleep 5"
    docker.ok("run", "-d", "--name", "one", *words, busybox, "sh", "-c", script)
    eventually(lambda: server.data.endswith(b": before\n"))
    server.hang_up()
    eventually(lambda: server.data.endswith(b": after\n"))


@pytest.mark.parametrize("mode", ["blocking", "non-blocking"])
def test_a_slow_receiver_holds_nobody_up(
    docker: Cli, busybox: str, receive: Callable[..., Receiver], mode: str
) -> None:
    """The container ends in its own time. In blocking mode all is sent later, else what the buffer holds."""
    server = receive()
    server.taking.clear()
    options = [f"syslog-address=tcp://127.0.0.1:{server.port}", f"mode={mode}"]
    if mode == "non-blocking":
        options.append("max-buffer-size=100k")
    script = "i=0; while [ $i -lt 100 ]; do head -c 100000 /dev/zero | tr '\\0' x; echo; i=$((i+1)); done; echo end"
    started = time.monotonic()
    run(docker, "syslog", *options, script=script)
    assert time.monotonic() - started < 20
    assert docker.ok("logs", "--tail", "1", "one") == "end"
    server.taking.set()
    eventually(lambda: server.data.endswith(b": end\n"))
    assert (len(server.data) > 10_000_000) == (mode == "blocking")


def test_agents_and_senders_come_and_go(own_engine: OurEngine, receive: Callable[..., Receiver]) -> None:
    """Logs are sent while there is no agent; what a killed sender had not sent yet, the next one sends."""
    docker = own_engine.docker
    server = receive()
    words = ("--log-driver", "syslog", "--log-opt", f"syslog-address=tcp://127.0.0.1:{server.port}")
    script = "i=0; while true; do echo n $i; i=$((i+1)); sleep 0.05; done"
    docker.ok("run", "-d", "--name", "one", *words, "busybox", "sh", "-c", script)
    eventually(lambda: len(server.lines) > 3)
    own_engine.kill()
    count = len(server.lines)
    eventually(lambda: len(server.lines) > count + 5)
    own_engine.start()
    sender = _sender(own_engine)
    os.kill(sender, signal.SIGKILL)
    count = len(server.lines)
    eventually(lambda: len(server.lines) > count + 20)
    assert _sender(own_engine) != sender
    docker.ok("rm", "-f", "one")
    eventually(lambda: not os.listdir(own_engine.run / "sent"))  # the sender has no more to send
    numbers = [int(line.split()[-1]) for line in server.lines]
    assert sorted(set(numbers)) == list(range(len(set(numbers))))  # none is missing


def _sender(engine: OurEngine) -> int:
    """The process id of an engine's log sender."""
    path = str(engine.run / "sender.sock").encode()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path in entry.read_bytes():
                return int(entry.parent.name)
        except OSError:
            continue
    raise AssertionError("no log sender runs")
