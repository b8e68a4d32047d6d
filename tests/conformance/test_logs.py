"""`docker logs`, and the files behind it."""

from __future__ import annotations

import datetime
import json
import re
import time
from pathlib import Path

import pytest

from tests.support.cli import Cli, eventually

pytestmark = pytest.mark.root


def test_both_streams(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "talker", busybox, "sh", "-c", "echo one; echo two >&2; printf three")
    docker.ok("wait", "talker")
    result = docker("logs", "talker")
    assert (result.out, result.err) == ("one\nthree", "two\n")


def test_tail(docker: Cli, busybox: str) -> None:
    docker.ok("run", "--name", "counter", busybox, "seq", "1", "20000")
    assert docker.ok("logs", "--tail", "3", "counter") == "19998\n19999\n20000"
    assert docker.ok("logs", "-n", "0", "counter") == ""
    assert len(docker.ok("logs", "--tail", "all", "counter").splitlines()) == 20000


def test_timestamps(docker: Cli, busybox: str) -> None:
    docker.ok("run", "--name", "talker", busybox, "echo", "hello")
    stamp, text = docker.ok("logs", "-t", "talker").split(" ")
    assert text == "hello"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", stamp)
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(stamp[:26] + "+00:00")
    assert abs(age.total_seconds()) < 30


def test_since_and_until(docker: Cli, busybox: str) -> None:
    docker.ok("run", "--name", "talker", busybox, "sh", "-c", "echo a; sleep 1.2; echo b; sleep 1.2; echo c")
    stamps = [line.split()[0] for line in docker.ok("logs", "-t", "talker").splitlines()]
    assert docker.ok("logs", "--since", stamps[1], "talker") == "b\nc"
    assert docker.ok("logs", "--until", stamps[1], "talker") == "a\nb"
    assert docker.ok("logs", "--since", stamps[1], "--until", stamps[1], "talker") == "b"
    assert docker.ok("logs", "--since", "10m", "talker") == "a\nb\nc"
    assert docker.ok("logs", "--until", "10m", "talker") == ""


def test_follow(docker: Cli, busybox: str) -> None:
    docker.ok(
        "run",
        "-d",
        "--name",
        "slow",
        busybox,
        "sh",
        "-c",
        "echo first; sleep 1; echo second; sleep 0.5; echo third",
    )
    process = docker.spawn("logs", "-f", "slow")
    assert process.stdout is not None
    assert process.stdout.readline() == b"first\n"
    started = time.monotonic()
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, b"second\nthird\n")
    assert time.monotonic() - started < 10


def test_follow_across_a_restart(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "again", busybox, "sh", "-c", "echo up; sleep 600")
    eventually(lambda: docker.ok("logs", "again") == "up")
    docker.ok("restart", "-t", "0", "again")
    eventually(lambda: docker.ok("logs", "again") == "up\nup")


def test_follow_with_tail(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "slow", busybox, "sh", "-c", "seq 1 5; sleep 1; echo end")
    eventually(lambda: "5" in docker.ok("logs", "slow"))
    assert docker.ok("logs", "-f", "--tail", "2", "slow") == "4\n5\nend"


def test_terminal_output(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "-t", "--name", "tty", busybox, "echo", "line")
    docker.ok("wait", "tty")
    assert docker("logs", "tty").out == "line\r\n"


def test_details(docker: Cli, busybox: str) -> None:
    flags = (
        "--label",
        "colour=red",
        "--log-opt",
        "labels=colour",
        "--log-opt",
        "env=SHAPE",
        "-e",
        "SHAPE=round",
    )
    docker.ok("run", "--name", "labelled", *flags, busybox, "echo", "x")
    assert docker.ok("logs", "--details", "labelled") == "SHAPE=round,colour=red x"


def test_long_lines_come_back_whole(docker: Cli, busybox: str) -> None:
    docker.ok(
        "run", "--name", "wide", busybox, "sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x; echo; echo end"
    )
    assert docker.ok("logs", "wide") == "x" * 100000 + "\nend"


@pytest.mark.native
def test_file_format(docker: Cli, busybox: str) -> None:
    docker.ok("run", "--name", "talker", busybox, "sh", "-c", "echo out; sleep 0.1; echo err >&2")
    path = Path(docker.ok("inspect", "-f", "{{.LogPath}}", "talker"))
    assert path.name.endswith("-json.log")
    first, second = map(json.loads, path.read_text().splitlines())
    assert (first["log"], first["stream"]) == ("out\n", "stdout")
    assert (second["log"], second["stream"]) == ("err\n", "stderr")
    assert first["time"] < second["time"]


@pytest.mark.native
def test_rotation(docker: Cli, busybox: str) -> None:
    options = ("--log-opt", "max-size=10k", "--log-opt", "max-file=3")
    docker.ok("run", "--name", "rotating", *options, busybox, "seq", "1", "5000")
    path = Path(docker.ok("inspect", "-f", "{{.LogPath}}", "rotating"))
    assert sorted(each.name for each in path.parent.glob("*-json.log*")) == [
        path.name,
        f"{path.name}.1",
        f"{path.name}.2",
    ]
    assert all(each.stat().st_size < 11_000 for each in path.parent.glob("*-json.log*"))
    lines = docker.ok("logs", "rotating").splitlines()
    assert lines[-1] == "5000"
    assert lines == [str(number) for number in range(int(lines[0]), 5001)], "a gap between the files"
    assert docker.ok("logs", "--tail", "200", "rotating").splitlines() == lines[-200:]


def test_bad_options(docker: Cli, busybox: str) -> None:
    result = docker("run", "--rm", "--log-opt", "nosuch=1", busybox, "true")
    assert result.code == 125
    assert "unknown log opt 'nosuch' for json-file log driver" in result.err


def test_no_such_container(docker: Cli) -> None:
    result = docker("logs", "nosuch")
    assert (result.code, result.err) == (1, "Error response from daemon: No such container: nosuch\n")


def test_never_started(docker: Cli, busybox: str) -> None:
    docker.ok("create", "--name", "idle", busybox)
    assert docker("logs", "idle").code == 0
