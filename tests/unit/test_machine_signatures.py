"""The signature policy a machine is given, against what the agent makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guest_agent.images import policy as agent
from guest_agent.images.reference import parse
from host_client.machine import signatures
from host_client.machine.errors import MachineError


def test_the_users_policy_goes_before_that_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "wherry" / "policy.json"
    assert signatures.policy_file() in (None, "/etc/wherry/policy.json")
    path.parent.mkdir()
    path.symlink_to("missing")
    assert signatures.policy_file() == str(path), "one that cannot be read is none that is not there"
    with pytest.raises(MachineError, match=r"cannot read .*policy\.json for the signature policy"):
        signatures.policy(str(path))


def test_keys_stand_in_it_in_place_of_their_files(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(name.encode() * 3)
    path = tmp_path / "policy.json"
    one = {"type": "sigstoreSigned", "keyPath": str(tmp_path / "a")}
    two = {"type": "sigstoreSigned", "keyPaths": [str(tmp_path / "b"), str(tmp_path / "c")]}
    scopes = {"one.test": [one], "two.test": [two | {"signedIdentity": {"type": "matchRepository"}}]}
    path.write_text(json.dumps({"default": [{"type": "reject"}], "transports": {"docker": scopes}}))
    found = agent.parse(signatures.policy(str(path)), "policy")
    assert [each.keys for each in found.rules(parse("one.test/x")).signed] == [(b"aaa",)]
    (second,) = found.rules(parse("two.test/x")).signed
    assert (second.keys, second.identity.type) == ((b"bbb", b"ccc"), "matchRepository")
    assert [each.type for each in found.rules(parse("else.test/x")).requirements] == ["reject"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "invalid signature policy .*: Expecting"),
        ('{"default": [], "default": []}', "a key stands twice"),
        ('{"default": [{"type": "sigstoreSigned", "keyPath": 3}]}', "no text"),
        (
            '{"default": [{"type": "sigstoreSigned", "keyPath": "a", "keyData": ""}]}',
            "both keyPath and keyData",
        ),
        (
            '{"default": [{"type": "sigstoreSigned", "keyPath": "/missing/key"}]}',
            "cannot read /missing/key for",
        ),
        ("[" * 100_000, "invalid signature policy"),
    ],
)
def test_a_policy_that_cannot_be_handed_over_is_refused(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "policy.json"
    path.write_text(text)
    with pytest.raises(MachineError, match=why):
        signatures.policy(str(path))
