"""An engine of an ordinary user, and that user's command lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import images
from tests.support.cli import Cli
from tests.support.rootless import RootlessEngine, User


@pytest.fixture(scope="session")
def _engine(user: User) -> Iterator[RootlessEngine]:
    engine = RootlessEngine(user).start()
    try:
        engine.docker.ok("load", "--quiet", "--input", images.image("busybox:latest").archive())
        yield engine
    finally:
        engine.close()


@pytest.fixture
def rootless(_engine: RootlessEngine) -> Iterator[RootlessEngine]:
    """The session's engine without root, with the busybox image."""
    _engine.check()
    yield _engine
    _engine.check()
    _engine.forget()


@pytest.fixture
def docker(rootless: RootlessEngine) -> Cli:
    """The docker CLI on it."""
    return rootless.docker


@pytest.fixture
def start_rootless(user: User) -> Iterator[Callable[..., RootlessEngine]]:
    """Starts engines of a test's own."""
    with ExitStack() as stack:

        def start(
            *arguments: str, env: dict[str, str] | None = None, by: User = user, path: Path | None = None
        ) -> RootlessEngine:
            engine = RootlessEngine(by, *arguments, env=env)
            if path is not None:  # where the agent finds programs
                engine.agent = by.command(
                    "/usr/bin/env", f"PATH={path}", str(by.python), "-I", "-m", "guest_agent"
                )
            stack.callback(engine.close)
            engine.start()
            engine.docker.ok("load", "--quiet", "--input", images.image("busybox:latest").archive())
            return engine

        yield start
