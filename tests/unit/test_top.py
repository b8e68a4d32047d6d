"""`docker top` against the ps of this machine."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from guest_agent.engine.top import parse, top
from guest_agent.errors import InvalidParameter
from guest_agent.kernel.procfs import Process


@pytest.fixture
def sleeper() -> Iterator[int]:
    process = subprocess.Popen(["sleep", "1000"])
    while not (Process(process.pid).name == "sleep" and Process(process.pid).state == "S"):
        time.sleep(0.01)
    yield process.pid
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    ("arguments", "for_ps"),  # ps is asked for one process, so it must not be told to list all
    [
        ("-ef", "-f"),
        ("aux", "u"),
        ("-e", ""),
        ("-ej", "-j"),
        ("-eF", "-F"),
        ("-eo pid,ppid,pgid,sid,user,gid,vsz,rss,tty,stat,ni,nlwp,comm,args",) * 2,
        ("-o pid,uid,ruid,gid,lstart,etimes,bsdtime,cmd",) * 2,
        ("-A -o pid -o s,f,opri", "-o pid -o s,f,opri"),
    ],
)
def test_the_same_as_ps(sleeper: int, arguments: str, for_ps: str) -> None:
    ours = top([sleeper], arguments)
    command = ["ps", *for_ps.replace("-eo", "-o").split(), "-ww", "-q", str(sleeper)]
    titles, row = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert ours["Titles"] == titles.split()
    (our_row,) = ours["Processes"]
    assert len(our_row) == len(ours["Titles"])
    assert " ".join(our_row).split() == row.split()


def test_what_has_ended_is_left_out() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert len(top([os.getpid(), ended.pid], "-ef")["Processes"]) == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("-o comm", "Couldn't find PID field in ps output"),
        ("-o pid=x", 'specifying "pid=x" is not allowed'),
        ("-o pid,nosuch", 'unknown user-defined format specifier "nosuch"'),
        ("--forest", "unsupported option '--forest'"),
        ("-eLf", "unsupported option 'L'"),
        ("-o", "format specification must follow -o"),
    ],
)
def test_what_is_not_supported_is_named(arguments: str, text: str) -> None:
    with pytest.raises(InvalidParameter, match=text):
        top([os.getpid()], arguments)


def test_columns_may_be_given_to_one_option_or_several() -> None:
    assert [title for title, _ in parse("-o pid,comm -o args")] == ["PID", "COMMAND", "COMMAND"]
