"""`--userns=auto`: containers whose ids no other one has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import docker as docker_py
import pytest

from guest_agent.engine import userns_ranges
from guest_agent.errors import Unavailable
from guest_agent.kernel import subids
from tests.support import images
from tests.support.engine import OurEngine

pytestmark = [pytest.mark.root, pytest.mark.ours]

FIRST, COUNT = 1_600_000_000, 200_000
LINE = f"containers:{FIRST}:{COUNT}\n"
FILES = (Path("/etc/subuid"), Path("/etc/subgid"))


@pytest.fixture
def ranges() -> Iterator[None]:
    """Ids for `auto`: room for three containers of the usual size."""
    before = {
        path: [line for line in path.read_text().splitlines(True) if "containers:" in line] for path in FILES
    }
    for path in FILES:
        others = [line for line in path.read_text().splitlines(True) if "containers:" not in line]
        path.write_text("".join([*others, LINE]))
    yield
    for path in FILES:
        others = [line for line in path.read_text().splitlines(True) if line != LINE]
        path.write_text("".join([*others, *before[path]]))


@pytest.fixture
def auto(ranges: None, own_engine: OurEngine) -> OurEngine:
    own_engine.docker.ok("load", "--quiet", "--input", images.image("busybox:latest").archive())
    return own_engine


def start(engine: OurEngine, name: str, mode: str = "auto", *options: str) -> None:
    engine.wherry.ok("run", "-d", f"--userns={mode}", "--name", name, *options, "busybox", "sleep", "1000")


def held(engine: OurEngine, name: str) -> tuple[int, int, int]:
    inside, outside, size = map(int, engine.docker.ok("exec", name, "cat", "/proc/self/uid_map").split())
    return inside, outside, size


def test_ranges_are_disjoint(auto: OurEngine) -> None:
    for name in ("one", "two", "small"):
        start(auto, name, "auto:size=1000" if name == "small" else "auto")
    assert held(auto, "one") == (0, FIRST, 65_536)
    assert held(auto, "two") == (0, FIRST + 65_536, 65_536)
    assert held(auto, "small") == (0, FIRST + 2 * 65_536, 1000)
    assert auto.inspect("small")["HostConfig"]["UsernsMode"] == "auto:size=1000"
    # An agent that has started none of them knows who has what.
    auto.kill()
    auto.start()
    start(auto, "three")
    assert held(auto, "three") == (0, FIRST + 2 * 65_536 + 1000, 65_536)
    result = auto.wherry("run", "--rm", "--userns=auto", "busybox", "true")
    assert "no 65536 ids in a row are free in the ranges of 'containers'" in result.err
    assert "hint: Stop a container that has some" in result.err
    auto.docker.ok("kill", "one")
    auto.docker.ok("restart", "--timeout=0", "two")
    start(auto, "four")
    assert {held(auto, name)[1] for name in ("two", "four")} == {FIRST, FIRST + 65_536}


def test_files_are_the_same_for_all(auto: OurEngine) -> None:
    script = "stat -c %u /data/file; touch /data/file; chown 5 /data/file; id -u"
    for expected in ("", "5"):
        result = auto.wherry(
            "run", "--rm", "--userns=auto", "-v", "data:/data", "busybox", "sh", "-c", script
        )
        assert result.out.split() == [*([expected] if expected else []), "0"]


def test_whoever_joins_another_has_its_ids(auto: OurEngine) -> None:
    start(auto, "donor")
    start(auto, "guest", "auto", "--network=container:donor", "--pid=container:donor")
    assert held(auto, "guest") == held(auto, "donor")
    start(auto, "other")
    joined = ("--network=container:donor", "--pid=container:other")
    result = auto.wherry("run", "--rm", "--userns=auto", *joined, "busybox", "true")
    assert "cannot join namespaces of donor and other: they are in different user namespaces" in result.err


def test_over_the_api(auto: OurEngine) -> None:
    """The docker CLI and docker-py's own options know `host` only; what posts a HostConfig has all modes."""
    api = auto.client.api
    assert "invalid USER mode" in auto.docker("run", "--userns=auto", "busybox", "true").err
    config = {
        "Image": "busybox",
        "Cmd": ["cat", "/proc/self/uid_map"],
        "HostConfig": {"UsernsMode": "auto:size=7"},
    }
    id = api.create_container_from_config(config)["Id"]
    api.start(id)
    api.wait(id)
    assert api.logs(id).split() == [b"0", str(FIRST).encode(), b"7"]
    for mode in ("auto:size=0", "auto:size=x", "auto:", "auto:more=1", "auto:size=4294967296", "private"):
        config["HostConfig"] = {"UsernsMode": mode}
        with pytest.raises(docker_py.errors.APIError, match="invalid user namespace mode") as error:
            api.create_container_from_config(config)
        assert error.value.status_code == 400


def test_without_a_range(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for line, other in (("", ""), ("containers:5:100000\n", "containers:6:100000\n")):
        (tmp_path / "subuid").write_text(line)
        (tmp_path / "subgid").write_text(other)
        monkeypatch.setattr(userns_ranges, "SUBUID", str(tmp_path / "subuid"))
        monkeypatch.setattr(userns_ranges, "SUBGID", str(tmp_path / "subgid"))
        with pytest.raises(Unavailable, match="must be there and alike"):
            userns_ranges.Ranges().take("x", "auto", ())


def test_ranges_that_are_not_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "ids"
    path.write_text(
        "# a comment\nother:1:9\ncontainers:500:100\nnonsense\ncontainers:200:150\ncontainers:x:1\n"
    )
    assert subids.ranges(str(path), "containers", None, 0) == [(0, 500, 100), (100, 200, 150)]
    monkeypatch.setattr(userns_ranges, "SUBUID", str(path))
    monkeypatch.setattr(userns_ranges, "SUBGID", str(path))
    ranges = userns_ranges.Ranges()

    def take(name: str, size: int) -> int:
        return ranges.take(name, f"auto:size={size}", ()).uids[0][1]

    assert [take("a", 60), take("b", 60), take("c", 60), take("d", 40)] == [500, 200, 260, 560]
    ranges.release("b")
    assert take("e", 30) == 200
    assert take("e", 60) == 200  # one that starts again may have its own
    with pytest.raises(Unavailable, match="no 91 ids in a row"):
        take("f", 91)
    ranges.release("nobody")
