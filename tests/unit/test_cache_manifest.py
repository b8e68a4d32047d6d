"""Build caches as documents: what was written is read, what does not hold together is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.errors import InvalidParameter
from guest_agent.images import cache_manifest
from guest_agent.images.cache_manifest import CachedLayer, CacheDocument, CachedStep
from guest_agent.images.manifest import OCI_LAYER, Descriptor
from guest_agent.images.snapshots import chain_id

BASE, DIFF, BLOB = ("sha256:" + letter * 64 for letter in "abc")
CHAIN = chain_id(BASE, DIFF)


def document() -> CacheDocument:
    steps = [
        CachedStep("sha256:k2", CHAIN, False, "2026-01-01T00:00:00Z", "RUN x", "regular"),
        CachedStep("sha256:k1", BASE, True, "2026-01-01T00:00:00Z", "ENV a=b", "regular"),
    ]
    layers = [CachedLayer(CHAIN, BASE, DIFF, 7, BLOB)]
    return cache_manifest.make(steps, layers, [Descriptor(OCI_LAYER, BLOB, 9)] * 2)


def test_what_is_written_is_read() -> None:
    made = document()
    assert made.blobs == [Descriptor(OCI_LAYER, BLOB, 9)]
    assert json.loads(made.manifest)["config"] == made.config_descriptor.json()
    assert cache_manifest.read(made.config, made.manifest, made.blobs) == made
    assert document() == made
    assert made.blob(made.layers[CHAIN]).size == 9


def _layer(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda value: value["layers"][0].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        _layer(chain=BASE),
        _layer(parent=""),
        _layer(blob=DIFF),
        _layer(blob="../../etc"),
        _layer(size=-1),
        _layer(size="1"),
        lambda value: value["layers"].clear(),
        lambda value: value["steps"][0].pop("key"),
        lambda value: value.pop("steps"),
    ],
)
def test_what_does_not_hold_together_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    made = document()
    value = json.loads(made.config)
    change(value)
    with pytest.raises(InvalidParameter):
        cache_manifest.read(json.dumps(value).encode(), made.manifest, made.blobs)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(data: bytes) -> None:
    made = document()
    try:
        cache_manifest.read(data, made.manifest, made.blobs)
    except InvalidParameter:
        pass
