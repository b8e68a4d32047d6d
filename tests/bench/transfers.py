"""A large image to a registry and from one, by both engines: seconds each, medians."""

from __future__ import annotations

import random
import shutil
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.bench.measure import wall
from tests.bench.peers import Dockerd
from tests.support.engine import OurEngine
from tests.support.images import Content, Image, Layer, write_layout
from tests.support.registry import Registry

LAYERS = 6
ROUNDS = 3
_FILES = 100  # of a layer


def large_image(directory: Path, megabytes: int) -> Image:
    """An image whose layers have `megabytes` of files, half of which compresses away, as in most images."""
    noise = random.Random(7)
    layers: list[bytes | Path] = []
    size = megabytes * 1_000_000 // LAYERS // _FILES
    for number in range(LAYERS):
        layer = Layer().directory(f"layer{number}/")
        for file in range(_FILES):
            text = f"{number} {file} a line of text that repeats\n".encode()
            half = (text * (size // 2 // len(text) + 1))[: size // 2]
            layer.file(f"layer{number}/{file}", noise.randbytes(size - len(half)) + half)
        path = directory / f"{number}.tar"
        path.write_bytes(layer.bytes())
        layers.append(path)
    write_layout(directory / "layout", "large:1", [Content(layers, {"Cmd": ["true"]})])
    for path in directory.glob("*.tar"):
        path.unlink()
    return Image("large:1", directory / "layout")


def transfers(ours: OurEngine, peer: Dockerd, megabytes: int) -> tuple[list[float], list[float]]:
    """Medians in seconds for both engines, ours first: of a pull, and of a push to an empty registry."""
    pulls: tuple[list[float], list[float]] = ([], [])
    pushes: tuple[list[float], list[float]] = ([], [])
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wherry-bench-")))
        full = registry(scratch / "full")
        stack.callback(full.close)
        full.push(large_image(scratch, megabytes))
        twin = registry(scratch / "twin", peer.namespace, full.directory / "storage")
        stack.callback(twin.close)
        sides = ((ours, full, ""), (peer, twin, peer.namespace))
        for number in range(ROUNDS):
            for side, (engine, source, namespace) in enumerate(sides):
                docker, name = engine.docker, f"{source.address}/large:1"
                pulls[side].append(wall(([*docker.command, "pull", "-q", name], docker.env)))
                empty = registry(scratch / f"empty-{side}-{number}", namespace)
                try:
                    copy = f"{empty.address}/large:1"
                    docker.ok("tag", name, copy)
                    pushes[side].append(wall(([*docker.command, "push", "-q", copy], docker.env)))
                finally:
                    empty.close()
                    shutil.rmtree(empty.directory)
                docker.ok("rmi", "-f", name, copy)
    return [statistics.median(each) for each in pulls], [statistics.median(each) for each in pushes]


def registry(directory: Path, namespace: str = "", storage: Path | None = None) -> Registry:
    """A registry, on the files of another one if need be."""
    directory.mkdir()
    if storage is not None:
        (directory / "storage").symlink_to(storage)
    return Registry(directory, namespace=namespace)
