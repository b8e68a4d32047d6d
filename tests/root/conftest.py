"""Fixtures of the tests that need a real kernel and root."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.oci import Driver, leftovers


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    """A monitor of the module's own, with a busybox root file system; nothing may be left of it."""
    with tempfile.TemporaryDirectory(prefix="wherry-runtime-", ignore_cleanup_errors=True) as top:
        driver = Driver(Path(top))
        try:
            yield driver
        finally:
            driver.close()
        assert leftovers(Path(top)) == []


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Checks that a test leaves this process no more open files than it found."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 1  # the listing's own
