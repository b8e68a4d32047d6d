"""Filters of BuildKit's cache records, as `buildx du` and `buildx prune` send them."""

from __future__ import annotations

from typing import Any

import pytest

from guest_agent.api.buildkit.cache_usage import filter_of
from guest_agent.errors import InvalidParameter

STEP: dict[str, Any] = {
    "ID": "abc123", "Type": "regular", "Description": "RUN a, b", "InUse": False, "Shared": True,
}  # fmt: skip
MOUNT: dict[str, Any] = STEP | {"ID": "def", "Type": "exec.cachemount", "Shared": False, "Description": ""}


@pytest.mark.parametrize(
    ("texts", "step", "mount"),
    [
        ([], True, True),
        ([""], True, True),
        (["id==abc123"], True, False),
        (["id~=c1"], True, False),
        (["id!=def"], True, False),
        (["type==exec.cachemount"], False, True),
        (['description=="RUN a, b"'], True, False),
        (["description"], True, False),
        (["shared"], True, False),
        (["private"], False, True),
        (["mutable"], False, True),
        (["immutable,type==regular"], True, False),
        (["immutable,type==exec.cachemount"], False, False),
        (["id==abc123", "id==def"], True, True),
        (["inuse"], False, False),
    ],
)
def test_records_that_fit(texts: list[str], step: bool, mount: bool) -> None:
    admits = filter_of(texts)
    assert (admits(STEP), admits(MOUNT)) == (step, mount)


@pytest.mark.parametrize("text", ["nonsense==1", "id~=(", "==", "id==a,,"])
def test_other_filters_are_refused(text: str) -> None:
    with pytest.raises(InvalidParameter):
        filter_of([text])
