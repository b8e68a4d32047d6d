"""Fixtures of the conformance suite."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.cli import Cli
from tests.support.images import Image


@pytest.fixture
def loaded(docker: Cli, image: Callable[[str], Image]) -> Callable[[str], str]:
    """Loads an image of the suite; it stays for the rest of the session."""

    def load(name: str) -> str:
        if docker("image", "inspect", name).code:
            docker.ok("load", "-q", "-i", image(name).archive(), timeout=120)
        return name

    return load
