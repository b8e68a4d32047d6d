"""dockerd and our engine, each in a network namespace of its own with the same images on a registry there."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.bench.peers import Dockerd, network_namespace
from tests.support.engine import AGENT, Engine, OurEngine
from tests.support.registry import Registry


@dataclass
class Contender:
    """An engine under comparison. `inside` comes before a command line that is to see its published ports."""

    name: str
    engine: Engine
    inside: tuple[str, ...]


def mirror(stack: ExitStack, images: Path, path: str) -> str:
    """Serve a copy of a registry's files in a network namespace; URL for --registry-mirror."""
    directory = Path(tempfile.mkdtemp(prefix="wherry-compat-"))
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    shutil.copytree(images / "storage", directory / "storage")
    registry = Registry(directory, namespace=path)
    stack.callback(registry.close)
    return f"http://{registry.address}"


def dockerd(stack: ExitStack, images: Path) -> Contender:
    """dockerd as ./run-tests fetched it, with the mirror."""
    path = network_namespace(stack, Path(tempfile.mktemp(prefix="wherry-compat-")).name)
    engine = Dockerd(stack, options=("--registry-mirror", mirror(stack, images, path)), namespace=path)
    return Contender(f"dockerd {engine.version}", engine, ("nsenter", f"--net={path}"))


def ours(stack: ExitStack, images: Path) -> Contender:
    """An agent of this checkout, with the mirror."""
    path = network_namespace(stack, Path(tempfile.mktemp(prefix="wherry-compat-")).name)
    agent = (shutil.which("nsenter") or "nsenter", f"--net={path}", *AGENT)
    engine = OurEngine("--registry-mirror", mirror(stack, images, path), agent=agent)
    stack.callback(engine.close)
    engine.start()
    return Contender("wherry", engine, ("nsenter", f"--net={path}"))


def environment(contender: Contender, home: Path) -> dict[str, str]:
    """What a suite's processes see: the engine under test, and a home directory of their own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")} | {
        "DOCKER_HOST": contender.engine.host,
        "HOME": str(home),
    }
