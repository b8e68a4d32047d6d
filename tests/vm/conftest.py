"""The VM image under test, built once and kept for as long as its recipe and builder stay the same."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from vm_images.build import build

SOURCES = Path(__file__).parents[2] / "vm_images"


def image_folder(arch: str) -> Path:
    cache = os.environ.get("WHERRY_TEST_CACHE") or os.path.expanduser("~/.cache/wherry-tests")
    digest = hashlib.sha256()
    for path in sorted(SOURCES.rglob("*")):
        if path.is_file() and path.suffix in (".py", ".c", ".h"):
            digest.update(path.read_bytes())
    return Path(cache, "vm-image", f"{arch}-{digest.hexdigest()[:16]}")


def built_image(arch: str) -> Path:
    folder = image_folder(arch)
    if not (folder / "manifest.json").exists():
        build(arch, str(folder), None, None)
    return folder


@pytest.fixture(scope="session")
def image() -> Path:
    """Folder of the amd64 image."""
    return built_image("amd64")


@pytest.fixture(scope="session")
def arm_image() -> Path:
    """Folder of the arm64 image."""
    return built_image("arm64")
