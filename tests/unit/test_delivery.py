"""Logs on their way: addresses and options, entries, the file they wait in, the journal's protocol."""

from __future__ import annotations

import json
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.delivery import addresses
from guest_agent.delivery.entries import Reader
from guest_agent.delivery.journald import Journald, field_name
from guest_agent.delivery.spool import Spool
from guest_agent.engine import log_drivers
from guest_agent.errors import InvalidParameter


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("100ms", 0.1), ("1m30s", 90), ("-1.5h", -5400), ("0", 0), (".5s", 0.5), ("10us", 1e-5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert addresses.duration(text) == pytest.approx(seconds)


@given(st.text(max_size=12))
def test_durations_that_are_none(text: str) -> None:
    """It is a number or a ValueError, whatever it is."""
    with suppress(ValueError):
        assert isinstance(addresses.duration(text), float)


def test_addresses() -> None:
    assert addresses.syslog("") is None
    assert addresses.syslog("udp://log.example") == ("udp", "log.example", 514)
    assert addresses.syslog("tcp+tls://[::1]:6514") == ("tcp+tls", "::1", 6514)
    assert addresses.fluentd("") == ("tcp", "127.0.0.1", 24224)
    assert addresses.fluentd("log.example") == ("tcp", "log.example", 24224)
    assert addresses.fluentd("unix:///run/fluent") == ("unix", "/run/fluent", 0)
    assert addresses.gelf("udp://[::1]:12201") == ("udp", "::1", 12201)
    assert [addresses.facility(text) for text in ("", "kern", "local7", "16")] == [3, 0, 23, 16]


@pytest.mark.parametrize(
    ("driver", "options", "message"),
    [
        ("splunk", {}, "logger: no log driver named 'splunk' is registered"),
        ("nosuch", {}, 'error looking up logging plugin nosuch: plugin "nosuch" not found'),
        ("json-file", {"mode": "foo"}, "logger: logging mode not supported: foo"),
        ("local", {"foo": "bar"}, "unknown log opt 'foo' for log driver local"),
        (
            "local",
            {"max-buffer-size": "1m"},
            "max-buffer-size option is only supported with 'mode=non-blocking'",
        ),
        ("syslog", {"foo": "bar"}, "unknown log opt 'foo' for syslog log driver"),
        ("syslog", {"syslog-address": "foo://bar"}, "unsupported scheme: 'foo'"),
        ("syslog", {"syslog-facility": "foo"}, "invalid syslog facility"),
        ("syslog", {"syslog-format": "foo"}, "Invalid syslog format"),
        ("gelf", {}, "gelf-address is a required parameter"),
        ("gelf", {"gelf-address": "udp://x"}, "gelf: please provide gelf-address as proto://host:port"),
        (
            "gelf",
            {"gelf-address": "udp://x:1", "gelf-compression-level": "12"},
            'unknown value "12" for log opt "gelf-compression-level" for gelf log driver',
        ),
        (
            "gelf",
            {"gelf-address": "tcp://x:1", "gelf-compression-type": "none"},
            "compression is only supported on UDP",
        ),
        (
            "gelf",
            {"gelf-address": "tcp://x:1", "gelf-tcp-max-reconnect": "-1"},
            '"gelf-tcp-max-reconnect" must be a positive integer',
        ),
        ("fluentd", {"fluentd-address": "unix://"}, "invalid fluentd-address (unix://): path is empty"),
        ("fluentd", {"fluentd-async": "x"}, 'strconv.ParseBool: parsing "x": invalid syntax'),
        (
            "fluentd",
            {"fluentd-async-reconnect-interval": "1ms"},
            'value ("1ms") must be between 100ms and 10s',
        ),
        ("journald", {"foo": "bar"}, "unknown log opt 'foo' for journald log driver"),
    ],
)
def test_options_refused(driver: str, options: dict[str, str], message: str) -> None:
    """The words are those of dockerd 28."""
    with pytest.raises(InvalidParameter) as caught:
        log_drivers.check(driver, options)
    assert message in caught.value.message


def line(text: str, stream: str = "stdout", time: str = "2024-05-06T07:08:09.000000001Z") -> bytes:
    return json.dumps({"log": text, "stream": stream, "time": time}).encode()


def test_entries_and_their_pieces() -> None:
    reader = Reader()
    long = "x" * 16384
    found = reader.entries([line(long), line("err\n", "stderr"), b"{damaged", line("rest\n"), line("end")])
    assert [(each.log, each.stream) for each in found[1:]] == [
        ("err", "stderr"),
        ("rest", "stdout"),
        ("end", "stdout"),
    ]
    first, last = found[0].partial, found[2].partial
    assert first is not None
    assert last is not None
    assert (first.id, first.ordinal, first.last) == (last.id, 1, False)
    assert (last.ordinal, last.last) == (2, True)
    assert [found[1].partial, found[3].partial] == [None, None]
    assert found[0].nanoseconds == 1714979289000000001


class Writer:
    """A log file as the monitor writes and rotates it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "log"
        self.path.touch()

    def write(self, *texts: str) -> None:
        with self.path.open("a") as file:
            file.write("".join(f"{text}\n" for text in texts))

    def rotate(self) -> None:
        for number in (2, 1):
            if (old := self.path.with_name(f"log.{number}")).exists():
                old.rename(self.path.with_name(f"log.{number + 1}"))
        self.path.rename(self.path.with_name("log.1"))
        self.path.touch()


def everything(spool: Spool) -> list[str]:
    found: list[bytes] = []
    while lines := spool.read():
        found += lines
    return [each.decode() for each in found]


def test_spool_goes_on_where_it_was(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.write("before")
    spool = Spool(str(writer.path), str(tmp_path / "place"))
    writer.write("one", "two")
    assert everything(spool) == ["one", "two"]
    spool.commit()
    writer.write("three")
    assert everything(spool) == ["three"]  # but it is not committed
    spool.close()
    writer.rotate()
    writer.write("four")
    spool = Spool(str(writer.path), str(tmp_path / "place"))
    assert everything(spool) == ["three", "four"]
    spool.commit()
    writer.rotate()
    writer.write("five")
    spool.look()
    os.unlink(tmp_path / "log.1")  # compressed: it is open
    writer.rotate()
    writer.write("six")
    assert everything(spool) == ["five", "six"]
    spool.close()


def test_spool_half_a_line(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    spool = Spool(str(writer.path), str(tmp_path / "place"))
    with writer.path.open("a") as file:
        file.write("one\nha")
    assert everything(spool) == ["one"]
    spool.commit()
    spool.close()
    writer.write("lf")
    spool = Spool(str(writer.path), str(tmp_path / "place"))
    assert everything(spool) == ["half"]
    spool.close()


def test_spool_truncated(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    spool = Spool(str(writer.path), str(tmp_path / "place"))
    writer.write("one", "two")
    assert everything(spool) == ["one", "two"]
    os.truncate(writer.path, 0)
    writer.write("x")
    assert everything(spool) == ["x"]
    spool.close()


@pytest.mark.parametrize("rotations", [0, 1, 2])
def test_spool_passes_over_what_is_too_much(tmp_path: Path, rotations: int) -> None:
    writer = Writer(tmp_path)
    spool = Spool(str(writer.path), str(tmp_path / "place"), keep=1000)
    for number in range(300):
        writer.write(f"{number:09d}")
        if rotations and number % (200 // rotations) == 150 // rotations:
            writer.rotate()
            spool.look()
    found = [text for text in everything(spool) if "\0" not in text]
    assert found == [f"{number:09d}" for number in range(300 - len(found), 300)]
    assert 95 <= len(found) <= 100
    spool.close()


@pytest.mark.parametrize("rotations", [0, 1, 2])
def test_spool_passes_over_entries(tmp_path: Path, rotations: int) -> None:
    """`most` of them wait at any time, however they come; so it does after some have been sent."""
    writer = Writer(tmp_path)
    spool = Spool(str(writer.path), str(tmp_path / "place"), keep=100_000, most=100)
    for round in range(2):
        for number in range(300):
            writer.write(f"{round}-{number}")
            if rotations and number % (200 // rotations) == 150 // rotations:
                writer.rotate()
                spool.look()
        assert everything(spool) == [f"{round}-{number}" for number in range(200, 300)]
    writer.write("next")
    with writer.path.open("a") as file:
        file.write("ha")
    assert everything(spool) == ["next"]
    with writer.path.open("a") as file:
        file.write("lf\n")
        file.write("".join(f"{number}\n" for number in range(99)))
    assert everything(spool) == ["half", *map(str, range(99))]
    spool.close()


@given(
    most=st.integers(1, 5),
    steps=st.lists(st.sampled_from(["write", "half", "read", "rotate", "truncate"]), max_size=30),
)
def test_spool_gives_up_the_oldest_only(
    tmp_path_factory: pytest.TempPathFactory, most: int, steps: list[str]
) -> None:
    """What is given out is in order, and is what came last."""
    writer = Writer(tmp_path_factory.mktemp("spool"))
    spool = Spool(str(writer.path), str(writer.path.parent / "place"), most=most)
    written, number, open_line = list[str](), 0, ""
    for step in [*steps, "write", "read"]:
        match step:
            case "write":
                with writer.path.open("a") as file:
                    file.write(f"{number}\n")
                written.append(f"{open_line}{number}")
                open_line, number = "", number + 1
            case "half":
                with writer.path.open("a") as file:
                    file.write("x")
                open_line += "x"
            case "read":
                assert everything(spool) == written[-most:]
                spool.commit()
                written.clear()
            case "rotate" if not open_line:  # the monitor rotates between entries
                writer.rotate()
                spool.look()
            case "truncate" if not open_line and not written:
                os.truncate(writer.path, 0)
                assert spool.read() == []
    spool.close()


def test_spool_lets_go_of_files_that_are_too_much(tmp_path: Path) -> None:
    """A receiver that is gone must not keep the space of files that have been deleted since."""
    writer = Writer(tmp_path)
    spool = Spool(str(writer.path), str(tmp_path / "place"), keep=1000)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        writer.write("x" * 400)
        writer.rotate()
        spool.look()
        (tmp_path / "log.3").unlink(missing_ok=True)
    assert len(os.listdir("/proc/self/fd")) <= before + 3
    spool.close()


def fields(data: bytes) -> dict[str, str]:
    """A datagram of the journal's native protocol, taken apart."""
    found: dict[str, str] = {}
    while data:
        head, _, rest = data.partition(b"\n")
        if b"=" in head:
            key, _, value = head.partition(b"=")
            data = rest
        else:
            key = head
            (length,) = struct.unpack_from("<Q", rest)
            value, data = rest[8 : 8 + length], rest[8 + length + 1 :]
        found[key.decode()] = value.decode()
    return found


def test_journal(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "socket"))
        spec: dict[str, Any] = {
            "id": "a" * 64,
            "name": "web",
            "tag": "t",
            "image_name": "busybox",
            "extra": {"com.example.key": "v", "_x": "two\nlines"},
            "socket": str(tmp_path / "socket"),
        }
        target = Journald(spec)
        target.open()
        entries = Reader().entries([line("hello\n", "stderr"), line("x" * 300_000 + "\n")])
        assert target.send(entries) == 2
        found = fields(server.recv(1 << 20))
        assert found.pop("CONTAINER_LOG_EPOCH")
        assert found == {
            "MESSAGE": "hello",
            "PRIORITY": "3",
            "CONTAINER_ID": "a" * 12,
            "CONTAINER_ID_FULL": "a" * 64,
            "CONTAINER_NAME": "web",
            "CONTAINER_TAG": "t",
            "IMAGE_NAME": "busybox",
            "SYSLOG_IDENTIFIER": "t",
            "COM_EXAMPLE_KEY": "v",
            "X": "two\nlines",
            "SYSLOG_TIMESTAMP": "2024-05-06T07:08:09.000000001Z",
            "CONTAINER_LOG_ORDINAL": "1",
        }
        # What one datagram does not hold comes in a memory file.
        data, files, _, _ = socket.recv_fds(server, 1 << 20, 1)
        assert data == b""
        with open(files[0], "rb") as file:
            assert fields(os.pread(file.fileno(), 1 << 20, 0))["MESSAGE"] == "x" * 300_000
        target.close()
    with pytest.raises(OSError, match="journald is not enabled on this host"):
        Journald({**spec, "socket": str(tmp_path / "nowhere")}).open()


def test_names_of_journal_fields() -> None:
    assert field_name("__a.b-C9") == "A_B_C9"
    assert field_name("__") == ""
