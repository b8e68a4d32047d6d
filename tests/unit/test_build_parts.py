"""Parts of the builder without an engine: plans, what COPY takes and where it goes, the classic stream, contexts."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from guest_agent.build import context
from guest_agent.build.classic import ClassicListener
from guest_agent.build.dockerfile import parse
from guest_agent.build.dockerfile.types import Lines
from guest_agent.build.failure import excerpt
from guest_agent.build.placing import Placement, place
from guest_agent.build.plan import make_plan
from guest_agent.build.request import BuildResult, StepInfo
from guest_agent.build.selection import Selection, digest, select
from guest_agent.build.state import State
from guest_agent.errors import EngineError, InvalidParameter
from guest_agent.images.platforms import host
from guest_agent.kernel.paths import RootFd
from host_client.cli.context import from_folder
from host_client.cli.ignore import Patterns, read


def tree(top: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return top


def taken(top: Path, *patterns: str, parents: bool = False) -> list[str]:
    from guest_agent.build.selection import walk

    with RootFd.at(top) as root, Selection() as selection:
        select(selection, root, patterns, parents)
        return [item.path for item in walk(selection)]


def test_only_needed_stages_are_planned() -> None:
    dockerfile = parse(
        "FROM a AS one\nRUN x\nFROM b AS two\nRUN y\nFROM one AS three\nCOPY --from=0 /x /x\n"
        "FROM c\nRUN --mount=from=three true\n"
    )
    plan = make_plan(dockerfile, "", {})
    assert list(plan.stages) == [0, 2, 3]
    assert [stage.first for stage in plan.stages.values()] == [1, 3, 5]
    assert plan.total == 6
    assert plan.stages[2].needs == {0}
    assert list(make_plan(dockerfile, "TWO", {}).stages) == [1]
    with pytest.raises(InvalidParameter, match='target stage "four" could not be found'):
        make_plan(dockerfile, "four", {})


def test_selection(tmp_path: Path) -> None:
    top = tree(tmp_path, {"a.txt": "1", "b.md": "2", "d/c.txt": "3", "d/e/f.txt": "4"})
    assert taken(top, "*.txt") == ["a.txt"]
    assert taken(top, "d") == ["c.txt", "e", "e/f.txt"]
    assert taken(top, "d/*/f.txt") == ["f.txt"]
    assert taken(top, "**/*.txt", parents=True) == ["a.txt", "d/c.txt", "d/e/f.txt"]
    assert taken(top, "d/./e/f.txt", parents=True) == ["e/f.txt"]
    with pytest.raises(InvalidParameter, match="forbidden path"):
        taken(top, "../x")
    with pytest.raises(EngineError, match="no source files"):
        taken(top, "*.c")


def test_a_context_cannot_lead_out(tmp_path: Path) -> None:
    outside = tree(tmp_path / "outside", {"secret": "s"})
    top = tree(tmp_path / "context", {"a": "1"})
    (top / "absolute").symlink_to(outside / "secret")
    (top / "up").symlink_to("../outside/secret")
    (top / "directory").symlink_to(outside)
    for name in ("absolute", "up", "directory/secret", "directory"):
        with pytest.raises(EngineError, match="file not found in build context"):
            taken(top, name)
    with pytest.raises(InvalidParameter):
        context.read_dockerfile(str(top), "up")


def test_a_destination_cannot_lead_out(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    source = tree(tmp_path / "source", {"f": "new"})
    target = tmp_path / "target"
    target.mkdir()
    (target / "link").symlink_to(outside)
    (target / "f").symlink_to(outside / "f")
    with RootFd.at(source) as root, RootFd.at(target) as into:
        for destination in ("/link/", "/link/../../x/", "/"):
            with Selection() as selection:
                select(selection, root, ["f"])
                place(into, selection, Placement(destination, (os.getuid(), os.getgid())))
    assert list(outside.iterdir()) == []
    assert (target / "f").read_text() == "new"
    assert not (target / "f").is_symlink()


def test_digest_is_of_content_and_not_of_times(tmp_path: Path) -> None:
    top = tree(tmp_path, {"a": "1", "d/b": "2"})

    def now() -> str:
        with RootFd.at(top) as root, Selection() as selection:
            select(selection, root, ["."])
            return digest(selection)

    first = now()
    os.utime(top / "a", (1, 1))
    assert now() == first
    (top / "a").write_text("3")
    assert now() != first
    (top / "a").write_text("1")
    assert now() == first
    (top / "a").chmod(0o755)
    assert now() != first


@pytest.mark.parametrize("name", ["../out", "d/../../out", "/../../out"])
def test_hostile_archives_stay_inside(tmp_path: Path, name: str) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        link = tarfile.TarInfo("l")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        archive.addfile(link)
        for entry in ("l/through", name):
            archive.addfile(tarfile.TarInfo(entry))
    data.seek(0)
    target = tmp_path / "a" / "b"
    target.mkdir(parents=True)
    try:
        context.extract(data.read, str(target))
    except EngineError:
        pass
    assert not (tmp_path / "through").exists()
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "a" / "out").exists()


def step(stage: int, number: int) -> StepInfo:
    return StepInfo(f"s{stage}.{number}", f"RUN {number}", stage, number, 4)


def test_stages_are_told_one_after_the_other() -> None:
    said: list[dict[str, Any]] = []
    listener = ClassicListener(said.append)
    listener.stages([0, 1])
    listener.begun(step(1, 3))
    listener.begun(step(0, 1))
    listener.output(step(1, 3), 1, b"two")
    listener.output(step(0, 1), 2, b"one")
    listener.ended(step(0, 1), False, "sha256:" + "a" * 64, "")
    listener.stage_ended(0)
    listener.ended(step(1, 3), True, "sha256:" + "b" * 64, "")
    listener.finished(BuildResult("sha256:" + "b" * 64, State(host()), True, ("x:latest",), (), ("NOPE",)))
    text = "".join(message.get("stream", "") for message in said)
    assert text == (
        "Step 1/4 : RUN 1\n\x1b[91mone\x1b[0m ---> aaaaaaaaaaaa\n"
        "Step 3/4 : RUN 3\ntwo ---> Using cache\n ---> bbbbbbbbbbbb\n"
        "[Warning] One or more build-args [NOPE] were not consumed\n"
        "Successfully built bbbbbbbbbbbb\nSuccessfully tagged x:latest\n"
    )


def test_quiet_builds_speak_up_when_they_fail() -> None:
    said: list[dict[str, Any]] = []
    listener = ClassicListener(said.append, quiet=True)
    listener.stages([0])
    listener.begun(step(0, 1))
    assert said == []
    listener.ended(step(0, 1), False, "", "failed")
    listener.failed("")
    assert said[0] == {"stream": "Step 1/4 : RUN 1"}


def test_excerpt_marks_the_lines() -> None:
    assert excerpt("Dockerfile", "FROM a\nRUN b \\\n  c\nRUN d\n", Lines(2, 3)) == (
        "Dockerfile:2\n--------------------\n   1 |     FROM a\n   2 | >>> RUN b \\\n   3 | >>>   c\n"
        "   4 |     RUN d\n--------------------\n"
    )


def test_the_clients_ignore_file() -> None:
    patterns = Patterns(read("# comment\n*.md\n!README.md\n/build\n**/tmp*\ndocs/*\n!docs/keep\n"))
    ignored = ["x.md", "build", "build/a/b", "a/tmp1", "tmp", "docs/other"]
    kept = ["README.md", "a/x.md", "src/build", "docs/keep", "docs"]
    assert [name for name in ignored if not patterns.ignores(name)] == []
    assert [name for name in kept if patterns.ignores(name)] == []


def test_the_clients_context(tmp_path: Path) -> None:
    top = tree(
        tmp_path / "c",
        {"Dockerfile": "FROM x", ".dockerignore": "*\n!src\nsrc/no\n", "src/a": "1", "src/no": "2"},
    )
    (top / "src" / "l").symlink_to("a")
    pieces, name = from_folder(str(top), "")
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
        names = archive.getnames()
        assert {member.uid for member in archive} == {0}
    assert name == "Dockerfile"
    assert names == [".dockerignore", "Dockerfile", "src", "src/a", "src/l"]
    (tmp_path / "Other").write_text("FROM y")
    pieces, name = from_folder(str(top), str(tmp_path / "Other"))
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
        found = archive.extractfile(name)
        assert found is not None
        assert found.read() == b"FROM y"
