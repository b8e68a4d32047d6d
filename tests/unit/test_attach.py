"""Detach keys: how they are written, and how they are found in what is typed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.engine.attach import DEFAULT_DETACH_KEYS, EscapeScanner, parse_detach_keys
from guest_agent.errors import InvalidParameter


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("", DEFAULT_DETACH_KEYS),
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("ctrl-a,d", b"\x01d"),
        ("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_", b"\x00\x1b\x1c\x1d\x1e\x1f"),
        ("x", b"x"),
    ],
)
def test_keys(text: str, keys: bytes) -> None:
    assert parse_detach_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-1", "shift-a", "a,,b", "€"])
def test_keys_that_are_none(text: str) -> None:
    with pytest.raises(InvalidParameter, match="Invalid detach keys"):
        parse_detach_keys(text)


def scan(*pieces: bytes, keys: bytes = DEFAULT_DETACH_KEYS) -> tuple[bytes, bool]:
    scanner = EscapeScanner(keys)
    passed = b""
    for piece in pieces:
        out, detached = scanner.feed(piece)
        passed += out
        if detached:
            return passed, True
    return passed, False


@pytest.mark.parametrize(
    ("pieces", "passed", "detached"),
    [
        ((b"ls\n",), b"ls\n", False),
        ((b"ls\x10\x11more",), b"ls", True),
        ((b"a\x10", b"\x11"), b"a", True),
        ((b"\x10x",), b"\x10x", False),
        ((b"\x10", b"x"), b"\x10x", False),
        ((b"\x10\x10\x11",), b"\x10", True),
        ((b"\x11\x10",), b"\x11", False),
    ],
)
def test_scanner(pieces: tuple[bytes, ...], passed: bytes, detached: bool) -> None:
    assert scan(*pieces) == (passed, detached)


@given(st.lists(st.binary(max_size=8), max_size=8))
def test_what_is_typed_without_the_keys_arrives_whole(pieces: list[bytes]) -> None:
    text = b"".join(pieces)
    passed, detached = scan(*pieces)
    end = text.find(DEFAULT_DETACH_KEYS)
    if end >= 0:
        assert detached
        assert passed == text[:end]
    else:
        assert not detached
        assert passed == text.removesuffix(DEFAULT_DETACH_KEYS[:1])
