"""Builds by the classic builder's protocol, ours and dockerd's in turn: ten steps cold and cached, many files."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.bench.measure import wall
from tests.support.engine import Engine

FILES = 10_000
_TEN = """FROM busybox
RUN echo 1 > /one
RUN echo 2 > /two
RUN mkdir /d && cp /one /two /d
ENV A=b
WORKDIR /work
COPY Dockerfile .
RUN cat Dockerfile > copy
LABEL kind=bench
CMD ["cat", "copy"]
"""


def builds(ours: Engine, peer: Engine, rounds: int) -> list[tuple[str, float, float]]:
    """What was built, and the median seconds of both. Each round of the cold ones is new to both engines."""
    with tempfile.TemporaryDirectory() as scratch:
        ten, many = Path(scratch, "ten"), Path(scratch, "many")
        ten.mkdir()
        many.mkdir()
        (ten / "Dockerfile").write_text(_TEN)
        (many / "Dockerfile").write_text("FROM busybox\nCOPY files /files\n")
        for number in range(FILES):
            path = many / "files" / str(number // 100) / str(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{number}\n" * 100)

        def change(number: int) -> None:
            (many / "files" / "changed").write_text(str(number))

        few = min(rounds, 3)
        return [
            ("docker build, 10 steps, cold", *_both(ours, peer, ten, rounds, "--no-cache")),
            ("docker build, 10 steps, cached", *_both(ours, peer, ten, rounds)),
            (f"docker build, COPY of {FILES} files", *_both(ours, peer, many, few, before=change)),
            (f"docker build, COPY of {FILES} files, cached", *_both(ours, peer, many, few)),
        ]


def _both(
    ours: Engine,
    peer: Engine,
    context: Path,
    rounds: int,
    *options: str,
    before: Callable[[int], None] = lambda number: None,
) -> tuple[float, float]:
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        before(number)
        for engine, taken in zip((ours, peer), times, strict=True):
            command = [*engine.docker.command, "build", "-q", *options, str(context)]
            seconds = wall((command, engine.docker.env | {"DOCKER_BUILDKIT": "0"}))
            if number:  # the first one warms up
                taken.append(seconds)
    for engine in (ours, peer):
        engine.docker.ok("image", "prune", "-f", timeout=300)
    return statistics.median(times[0]), statistics.median(times[1])
