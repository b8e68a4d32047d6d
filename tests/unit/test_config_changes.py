"""Dockerfile instructions in `--change`; expectations are dockerd's."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from guest_agent.engine.config_changes import apply_changes, split_words
from guest_agent.engine.container_config import ContainerConfig
from guest_agent.errors import InvalidParameter


def changed(*changes: str) -> dict[str, Any]:
    """What differs from the container's configuration afterwards."""
    before = ContainerConfig(env=["A=1"], cmd=["sleep", "5"], working_dir="/w")
    after = msgspec.to_builtins(apply_changes(before, changes))
    assert before.env == ["A=1"]
    return {name: value for name, value in after.items() if value != msgspec.to_builtins(before)[name]}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ('CMD ["a","b"]', {"Cmd": ["a", "b"]}),
        ('cmd ["x"]', {"Cmd": ["x"]}),
        ("CMD a b", {"Cmd": ["/bin/sh", "-c", "a b"]}),
        ("CMD ['a']", {"Cmd": ["/bin/sh", "-c", "['a']"]}),
        ('ENTRYPOINT x "y z"', {"Entrypoint": ["/bin/sh", "-c", 'x "y z"'], "Cmd": None}),
        ('ENV A=2 B="c d" C=e\\ f', {"Env": ["A=2", "B=c d", "C=e f"]}),
        ("ENV D e f", {"Env": ["A=1", "D=e f"]}),
        (
            "ENV X=$A Y=${A}2 Z=${N:-d} W=${A:+set} V='$A'",
            {"Env": ["A=1", "X=1", "Y=12", "Z=d", "W=set", "V=$A"]},
        ),
        ('LABEL k=v "l m"=n', {"Labels": {"k": "v", "l m": "n"}}),
        (
            "EXPOSE 80 443/udp 1000-1001",
            {"ExposedPorts": {"80/tcp": {}, "443/udp": {}, "1000/tcp": {}, "1001/tcp": {}}},
        ),
        ("USER bob", {"User": "bob"}),
        ("VOLUME /a /b", {"Volumes": {"/a": {}, "/b": {}}}),
        ('VOLUME ["/c d"]', {"Volumes": {"/c d": {}}}),
        ("WORKDIR rel", {"WorkingDir": "/w/rel"}),
        ("WORKDIR /$A/..", {"WorkingDir": "/"}),
        ("ONBUILD RUN x", {"OnBuild": ["RUN x"]}),
        ("STOPSIGNAL SIGQUIT", {"StopSignal": "SIGQUIT"}),
        ("HEALTHCHECK NONE", {"Healthcheck": {"Test": ["NONE"]}}),
        (
            "HEALTHCHECK --interval=5s --start-period=1m30s --retries=2 CMD true",
            {
                "Healthcheck": {
                    "Test": ["CMD-SHELL", "true"],
                    "Interval": 5 * 10**9,
                    "StartPeriod": 90 * 10**9,
                    "Retries": 2,
                }
            },
        ),
    ],
)
def test_an_instruction(change: str, expected: dict[str, Any]) -> None:
    assert changed(change) == expected


def test_a_command_given_before_stays_with_an_entrypoint() -> None:
    assert changed('CMD ["c"]', 'ENTRYPOINT ["e"]') == {"Cmd": ["c"], "Entrypoint": ["e"]}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("RUN x", "run is not a valid change command"),
        ("nonsense", "nonsense is not a valid change command"),
        ("ENV", "ENV requires at least one argument"),
        ("ENV A", "ENV must have two arguments"),
        ("ENV A=1 B", "can't find = in 'B'"),
        ("ENV =x", "ENV names can not be blank"),
        ('ENV A="x', 'looking for matching "-quote'),
        ("LABEL k", "LABEL must have two arguments"),
        ("EXPOSE x", "Invalid containerPort: x"),
        ("EXPOSE 70000", "Invalid containerPort: 70000"),
        ("USER", "USER requires exactly one argument"),
        ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
        ("ONBUILD ONBUILD RUN", "isn't allowed"),
        ("HEALTHCHECK FOO x", 'unknown type "FOO" in HEALTHCHECK'),
        ("HEALTHCHECK --interval=soon CMD x", "not a duration"),
    ],
)
def test_a_bad_instruction_is_refused_in_dockerds_words(change: str, text: str) -> None:
    with pytest.raises(InvalidParameter, match=text):
        changed(change)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a  b\tc", ["a", "b", "c"]),
        ("'a b' \"c d\"e", ["a b", "c de"]),
        (r"a\ b \"q\"", ["a b", '"q"']),
        (r'"a\$V \n"', [r"a$V \n"]),
        ("''", [""]),
        ("$V${V}x$", ["vvx$"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert split_words(text, {"V": "v"}) == words
