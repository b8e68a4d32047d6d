"""Fixtures shared by the whole suite. What they stand on lives in tests/support."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import docker as docker_py
import hypothesis
import pytest

from guest_agent.kernel import syscalls
from tests.support import images, registry
from tests.support.cli import Cli, eventually
from tests.support.engine import Engine, OtherEngine, OurEngine
from tests.support.images import Image
from tests.support.rootless import RootlessEngine, User, leftovers


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rootless", action="store_true", help="run tests/conformance against an engine of an ordinary user"
    )
    parser.addoption(
        "--storage-driver",
        metavar="DRIVER",
        help="the storage driver of the engine that tests/conformance runs against (also with --rootless)",
    )
    parser.addoption(
        "--oracle",
        metavar="DOCKER_HOST",
        help="run tests/conformance against this Docker engine, to check the tests themselves",
    )
    parser.addoption(
        "--kills",
        type=int,
        default=3,
        metavar="N",
        help="how often tests/chaos takes a virtual machine's power",
    )
    parser.addoption(
        "--machine",
        action="store_true",
        help="run tests/conformance through a virtual machine, but what looks at this computer's own kernel",
    )


def pytest_configure() -> None:
    # How long an example takes says how busy the machine is.
    hypothesis.settings.register_profile("suite", deadline=None)
    hypothesis.settings.load_profile("suite")
    # A shell without job control starts what it puts in the background deaf to Ctrl-C, and so would be all that
    # the tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # What a failed test leaves mounted below its temporary directory goes with this process, before anybody removes
    # that directory with all that is in it.
    if os.geteuid() == 0:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--oracle"):
        items[:] = [item for item in items if not item.get_closest_marker("ours")]
    if config.getoption("--rootless"):
        rootful = [item for item in items if item.get_closest_marker("rootful")]
        config.hook.pytest_deselected(items=rootful)
        items[:] = [item for item in items if item not in rootful]
    if config.getoption("--machine"):
        native = [item for item in items if _is_native(item)]
        config.hook.pytest_deselected(items=native)
        items[:] = [item for item in items if item not in native]


def _is_native(item: pytest.Item) -> bool:
    """Whether a test needs this computer's kernel or loopback: by its marker, or by what it starts there."""
    fixtures: list[str] = getattr(item, "fixturenames", [])
    here = any(name in ("start_engine", "own_engine") or name.endswith("_registry") for name in fixtures)
    return here or item.get_closest_marker("native") is not None


@pytest.fixture(scope="session")
def oracle(request: pytest.FixtureRequest) -> str | None:
    host: str | None = request.config.getoption("--oracle")
    return host


@pytest.fixture(scope="session")
def _needs_root() -> None:
    if os.geteuid() != 0:
        pytest.fail("runs real containers: become root, or deselect with -m 'not root'", pytrace=False)


@pytest.fixture(scope="session")
def user(_needs_root: None) -> Iterator[User]:
    """An ordinary user with subordinate ids; nothing runs in this user's name in the end."""
    user = User()
    try:
        yield user
        eventually(lambda: not leftovers(user), what="the user's processes ended")
    finally:
        user.close()


@pytest.fixture
def tmp_path(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """With `--rootless` it is the user's, who has no way into root's."""
    if not request.config.getoption("--rootless"):
        yield tmp_path
        return
    user: User = request.getfixturevalue("user")
    own = Path(tempfile.mkdtemp(prefix="test-", dir=user.home))
    os.chown(own, user.uid, user.gid)
    own.chmod(0o777)
    yield own


@pytest.fixture(scope="session")
def _session_engine(
    _needs_root: None, oracle: str | None, request: pytest.FixtureRequest
) -> Iterator[Engine]:
    wanted = request.config.getoption("--storage-driver")
    driver = ("--storage-driver", wanted) if wanted else ()
    if oracle:
        engine: Engine = OtherEngine(oracle)
    elif request.config.getoption("--machine"):
        from tests.support.machine import MachineEngine
        from tests.vm.conftest import built_image

        engine = MachineEngine(built_image("amd64")).start()
    elif request.config.getoption("--rootless"):
        engine = RootlessEngine(request.getfixturevalue("user"), *driver).start()
    else:
        engine = OurEngine(*driver).start()
    try:
        engine.docker.ok("load", "--quiet", "--input", images.image("busybox:latest").archive())
        yield engine
    finally:
        engine.close()


@pytest.fixture
def engine(_session_engine: Engine) -> Iterator[Engine]:
    """The session's engine, with the busybox image; what a test leaves in it is removed after the test."""
    _session_engine.check()
    yield _session_engine
    _session_engine.check()
    _session_engine.forget()


@pytest.fixture
def start_engine(_needs_root: None) -> Iterator[Callable[..., OurEngine]]:
    """Starts engines of a test's own: `start_engine("--option", …)`. Nothing may be left of them."""
    with ExitStack() as stack:

        def start(*arguments: str, env: dict[str, str] | None = None) -> OurEngine:
            engine = OurEngine(*arguments, env=env)
            stack.callback(engine.close)
            return engine.start()

        yield start


@pytest.fixture
def own_engine(start_engine: Callable[..., OurEngine]) -> OurEngine:
    """A fresh engine for one test, with the busybox image."""
    engine = start_engine()
    engine.docker.ok("load", "--quiet", "--input", images.image("busybox:latest").archive())
    return engine


@pytest.fixture
def docker(engine: Engine) -> Cli:
    """The real docker CLI on the session's engine."""
    return engine.docker


@pytest.fixture
def wherry(engine: Engine) -> Cli:
    """Our CLI on the session's engine."""
    return engine.wherry


@pytest.fixture
def client(engine: Engine) -> docker_py.DockerClient:
    """docker-py's client on the session's engine."""
    return engine.client


@pytest.fixture(scope="session")
def busybox() -> str:
    """The name of the image every engine of the suite has."""
    return "busybox"


@pytest.fixture(scope="session")
def image() -> Callable[[str], Image]:
    """Gives an image by its recipe's name in tests.support.images, made on first use."""
    return images.image


@pytest.fixture(scope="session")
def plain_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[registry.Registry]:
    """HTTP on loopback, with busybox in it."""
    running = registry.plain(tmp_path_factory.mktemp("plain"))
    running.push(images.image("busybox:latest"))
    yield running
    running.close()


@pytest.fixture(scope="session")
def tls_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[registry.TlsRegistry]:
    """HTTPS with its own certificate authority."""
    running = registry.TlsRegistry(tmp_path_factory.mktemp("tls"))
    running.push(images.image("busybox:latest"))
    yield running
    running.close()


@pytest.fixture(scope="session")
def basic_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[registry.BasicRegistry]:
    """Basic authentication: registry.USER, registry.PASSWORD."""
    running = registry.BasicRegistry(tmp_path_factory.mktemp("basic"))
    running.push(images.image("busybox:latest"))
    yield running
    running.close()


@pytest.fixture(scope="session")
def token_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[registry.TokenRegistry]:
    """Bearer tokens: `public/busybox` for anybody and `private/busybox` for registry.USER."""
    running = registry.TokenRegistry(tmp_path_factory.mktemp("token"))
    running.push(images.image("busybox:latest"), "public/busybox:latest")
    running.push(images.image("busybox:latest"), "private/busybox:latest")
    yield running
    running.close()


@pytest.fixture(scope="session")
def mirror_registry(
    tmp_path_factory: pytest.TempPathFactory, plain_registry: registry.Registry
) -> Iterator[registry.Registry]:
    """A pull-through cache of `plain_registry`."""
    running = registry.mirror(tmp_path_factory.mktemp("mirror"), plain_registry)
    yield running
    running.close()
