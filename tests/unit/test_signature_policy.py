"""Reading a signature policy: what it may say, and which part of it counts for an image."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.images import policy, reference

ACCEPT: list[dict[str, Any]] = [{"type": "insecureAcceptAnything"}]
KEY = {"type": "sigstoreSigned", "keyPath": "/k"}


def parse(document: Any) -> policy.Policy:
    return policy.parse(json.dumps(document).encode(), "/p")


def test_scopes_from_the_most_specific_on() -> None:
    assert policy.scopes(reference.parse("registry.example.com:5000/a/b:1")) == [
        "registry.example.com:5000/a/b:1",
        "registry.example.com:5000/a/b",
        "registry.example.com:5000/a",
        "registry.example.com:5000",
        "*.example.com",
        "*.com",
        "",
    ]
    assert policy.scopes(reference.parse("alpine").with_default_tag())[:3] == [
        "docker.io/library/alpine:latest",
        "docker.io/library/alpine",
        "docker.io/library",
    ]


def test_a_policy_of_podmans() -> None:
    document = {
        "default": [{"type": "reject"}],
        "transports": {
            "docker": {"docker.io": [KEY], "": ACCEPT},
            "docker-daemon": {"": ACCEPT},
            "containers-storage": {"": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}]},
        },
    }
    found = parse(document)
    assert found.rules(reference.parse("alpine")).signed[0].keys == ("/k",)
    assert found.rules(reference.parse("quay.io/x/y")).signed == ()


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "the policy is no object"),
        ({}, "default is missing"),
        ({"default": ACCEPT, "more": 1}, "unknown key 'more'"),
        ({"default": []}, "default is no list"),
        ({"default": [{}]}, "unknown type None"),
        ({"default": [{"type": "reject", "keyPath": "/k"}]}, "unknown key 'keyPath'"),
        ({"default": [{"type": "sigstoreSigned"}]}, "exactly one of"),
        ({"default": [KEY | {"keyData": "eA=="}]}, "exactly one of"),
        ({"default": [{"type": "sigstoreSigned", "keyPath": ""}]}, "keyPath is no text"),
        ({"default": [{"type": "sigstoreSigned", "keyPaths": []}]}, "keyPaths is no list of texts"),
        ({"default": [{"type": "sigstoreSigned", "keyData": "%"}]}, "is not base64"),
        ({"default": [KEY | {"signedIdentity": {"type": "any"}}]}, "unknown type 'any'"),
        ({"default": [KEY | {"signedIdentity": {"type": "exactReference"}}]}, "dockerReference is no text"),
        (
            {"default": [KEY | {"signedIdentity": {"type": "exactReference", "dockerReference": "a/b"}}]},
            "neither tag nor digest",
        ),
        (
            {"default": [KEY | {"signedIdentity": {"type": "exactRepository", "dockerRepository": "A B"}}]},
            "invalid reference format",
        ),
        ({"default": ACCEPT, "transports": {"docker": []}}, "transports.docker is no object"),
    ],
)
def test_what_is_no_policy(document: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(document)


def test_a_key_that_stands_twice() -> None:
    with pytest.raises(ValueError, match="twice"):
        policy.parse(
            b'{"default": [{"type": "reject"}], "default": [{"type": "insecureAcceptAnything"}]}', "/p"
        )


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.text(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(st.sampled_from(["default", "type", "transports", "docker", "reject"]), x)
        ),
    ).map(lambda x: json.dumps(x).encode())
)
def test_rubbish_is_an_error_of_its_own(data: bytes) -> None:
    try:
        policy.parse(data, "/p")
    except ValueError:
        pass
