"""What the builder does beyond the classic one: the whole language, content cache, `wherry build`, clean-up."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.support.cli import Cli, Result, eventually
from tests.support.engine import Engine

pytestmark = [pytest.mark.root, pytest.mark.ours]


@pytest.fixture
def build(wherry: Cli, loaded: Callable[[str], str], tmp_path: Path) -> Callable[..., Result]:
    """`wherry build` of a Dockerfile with these files beside it."""
    loaded("busybox:latest")

    def run(dockerfile: str, *options: str, files: Mapping[str, str] | None = None) -> Result:
        context = tmp_path / "context"
        context.mkdir(exist_ok=True)
        (context / "Dockerfile").write_text(dockerfile)
        for name, content in (files or {}).items():
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            (context / name).write_text(content)
        return wherry("build", *options, str(context), timeout=120)

    return run


def image(result: Result) -> str:
    assert result.code == 0, result
    return result.out.rpartition("Successfully built ")[2].split()[0]


@pytest.fixture(autouse=True)
def no_build_cache(wherry: Cli, loaded: Callable[[str], str]) -> Iterator[None]:
    yield
    wherry.ok("builder", "prune", "-af")


def test_mounts(build: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hidden")
    result = build(
        "FROM busybox AS one\nRUN mkdir /o && echo from-stage > /o/f\n"
        "FROM busybox\n"
        "RUN --mount=from=one,source=/o,target=/m cat /m/f\n"
        "RUN --mount=target=/ctx cat /ctx/a\n"
        "RUN --mount=target=/ctx,rw echo changed > /ctx/a && cat /ctx/a\n"
        "RUN --mount=type=cache,target=/c echo kept >> /c/f\n"
        "RUN --mount=type=cache,target=/c echo again >> /c/f; cat /c/f\n"
        "RUN --mount=type=tmpfs,target=/t touch /t/x && mount | grep -c ' /t '\n"
        "RUN --mount=type=secret,id=token cat /run/secrets/token; ls -l /run/secrets/token\n"
        "RUN --mount=type=secret,id=token,env=TOKEN echo in-$TOKEN\n"
        "RUN ls -d /m /ctx /c /t /run 2>&1 | grep -c 'No such'\n",
        "--secret",
        f"id=token,src={tmp_path / 'token'}",
        files={"a": "in-context"},
    )
    assert result.code == 0, result
    for expected in (
        "from-stage",
        "in-context",
        "changed",
        "kept\nagain",
        "hidden",
        "-r--------",
        "in-hidden",
    ):
        assert expected in result.out
    assert "\n5\n" in result.out
    assert (tmp_path / "context" / "a").read_text() == "in-context"


def test_required_secret(build: Callable[..., Result]) -> None:
    result = build("FROM busybox\nRUN --mount=type=secret,id=x,required true\n")
    assert result.code == 1
    assert "secret x: not found" in result.err


def test_heredocs_and_copy_flags(build: Callable[..., Result], wherry: Cli) -> None:
    made = image(
        build(
            "FROM busybox\n"
            "ENV WHO=world\n"
            "RUN <<EOF\necho one > /one\necho two >> /one\nEOF\n"
            "RUN <<EOF\n#!/bin/sh\necho $0 > /script\nEOF\n"
            'COPY <<a <<"b" /h/\n$WHO\na\n$WHO\nb\n'
            "COPY --parents d/e/x.txt d/./y.txt /p/\n"
            "COPY --exclude=*.md d /ex\n"
            "COPY --chmod=640 --chown=5:6 d/y.txt /mode\n",
            files={"d/e/x.txt": "x", "d/y.txt": "y", "d/z.md": "z"},
        )
    )
    out = wherry.ok(
        "run",
        "--rm",
        made,
        "sh",
        "-c",
        "cat /one /script /h/a /h/b; find /p /ex -type f | sort; ls -ln /mode",
    )
    lines = out.splitlines()
    assert lines[:5] == ["one", "two", "/dev/pipes/EOF", "world", "$WHO"]
    assert lines[5:9] == ["/ex/e/x.txt", "/ex/y.txt", "/p/d/e/x.txt", "/p/y.txt"]
    assert lines[9].split()[:4] == ["-rw-r-----", "1", "5", "6"]


def test_network_and_security(build: Callable[..., Result]) -> None:
    result = build("FROM busybox\nRUN --network=none ip addr | grep -c mtu\n")
    assert result.code == 0
    assert "\n1\n" in result.out
    result = build("FROM busybox\nRUN --security=insecure true\n")
    assert result.code == 1
    assert "granting entitlement security.insecure is not allowed" in result.err


def test_stages_run_side_by_side_and_only_when_needed(build: Callable[..., Result]) -> None:
    """Each of the two waits for the other: by a shared cache mount they see each other."""
    wait = "for i in $(seq 100); do [ -e /c/{other} ] && exit 0; sleep 0.1; done; exit 1"
    result = build(
        "FROM busybox AS never\nRUN exit 9\n"
        f"FROM busybox AS a\nRUN --mount=type=cache,target=/c touch /c/a /a; {wait.format(other='b')}\n"
        f"FROM busybox AS b\nRUN --mount=type=cache,target=/c touch /c/b /b; {wait.format(other='a')}\n"
        "FROM busybox\nCOPY --from=a /a /a\nCOPY --from=b /b /b\n"
    )
    assert result.code == 0, result


def test_cache_is_by_content(build: Callable[..., Result]) -> None:
    text = "FROM busybox AS a\nRUN {}echo same > /f\nFROM busybox\nCOPY --from=a /f /f\nRUN cat /f\n"
    first = build(text.format(""))
    again = build(text.format("true; "))  # another command, the same file
    assert image(first) == image(again)
    assert again.out.count("Using cache") == 2
    labelled = build("FROM busybox\nLABEL a=1\nRUN echo x > /x\n")
    relabelled = build("FROM busybox\nLABEL a=2\nRUN echo x > /x\n")
    assert image(labelled) != image(relabelled)
    assert relabelled.out.count("Using cache") == 1


@pytest.mark.native
def test_cache_survives_a_restart_and_is_pruned(
    build: Callable[..., Result], wherry: Cli, engine: Engine, loaded: Callable[[str], str]
) -> None:
    text = "FROM busybox\nRUN head -c 5000 /dev/zero > /f\n"
    made = image(build(text))
    wherry.ok("rmi", made)
    engine.restart()  # type: ignore[attr-defined]
    assert image(build(text)) == made
    assert "Using cache" in build(text).out
    wherry.ok("rmi", made)
    kept = json.loads(wherry.ok("system", "df", "-v", "--format", "json"))["BuildCache"]
    assert any("head -c 5000" in item["Description"] for item in kept), kept
    out = wherry.ok("builder", "prune", "-f")
    assert "Total reclaimed space: 5kB" in out
    assert "Using cache" not in build(text).out


def test_same_inputs_same_digest(build: Callable[..., Result], wherry: Cli) -> None:
    text = "FROM busybox\nARG SOURCE_DATE_EPOCH\nRUN mkdir /d && date > /dev/null && echo a > /d/f\nCOPY a /a\nCMD x\n"
    options = ("--build-arg", "SOURCE_DATE_EPOCH=1700000000", "--no-cache")
    first = image(build(text, *options, files={"a": "1"}))
    time.sleep(1.1)
    assert image(build(text, *options, files={"a": "1"})) == first
    assert wherry.ok("image", "inspect", "-f", "{{.Created}}", first) == "2023-11-14T22:13:20Z"
    assert wherry.ok("run", "--rm", first, "stat", "-c", "%Y", "/d/f", "/d") == "1700000000\n1700000000"


def test_cache_from_an_image(build: Callable[..., Result], wherry: Cli, tmp_path: Path) -> None:
    text = "FROM busybox\nRUN date +%N > /f\nRUN echo 2 > /g\n"
    assert build(text, "-t", "built:cache").code == 0
    wherry.ok("save", "-o", str(tmp_path / "image.tar"), "built:cache")
    wherry.ok("rmi", "built:cache")
    wherry.ok("builder", "prune", "-af")
    wherry.ok("load", "-i", str(tmp_path / "image.tar"))
    assert build(text, "--cache-from", "built:cache").out.count("Using cache") == 2
    wherry.ok("rmi", "-f", "built:cache")


@pytest.mark.native  # a server of this host's loopback
def test_add_from_a_url(build: Callable[..., Result], wherry: Cli) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("inside"))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data.getvalue() if self.path.endswith(".tar") else b"hello")

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        made = image(
            build(
                f"FROM busybox\nADD {url}/x.tar /packed/\nADD --unpack {url}/x.tar /unpacked/\n"
                "ADD --checksum=sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824 "
                f"{url}/f /f\n"
            )
        )
        out = wherry.ok("run", "--rm", made, "sh", "-c", "ls /packed /unpacked; ls -l /f")
        assert out.split()[:4] == ["/packed:", "x.tar", "/unpacked:", "inside"]
        assert "-rw-------" in out
        wrong = build(f"FROM busybox\nADD --checksum=sha256:{'0' * 64} {url}/f /f\n")
        assert "digest mismatch" in wrong.err
        server.shutdown()


@pytest.mark.native  # a machine has no git
def test_git(build: Callable[..., Result], wherry: Cli, tmp_path: Path) -> None:
    """A file address is none that git may fetch from."""
    result = wherry("build", f"git://127.0.0.1:1/{tmp_path}/x.git")
    assert result.code == 1
    assert "failed to load git repository" in result.err


@pytest.mark.native  # looks at this host's processes
def test_a_client_that_goes_ends_its_build(wherry: Cli, loaded: Callable[[str], str], tmp_path: Path) -> None:
    loaded("busybox:latest")
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo begun; sleep 4711\n")
    with wherry.spawn("build", str(tmp_path)) as client:
        assert client.stdout is not None
        while client.stdout.readline() != b"begun\n":
            pass
        eventually(sleeping, what="the step's process runs")
        client.kill()
        client.wait()
    eventually(lambda: not sleeping(), what="the step's process ended")


def sleeping() -> bool:
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return "sleep 4711" in found.splitlines()


def test_live_tree(wherry: Cli, loaded: Callable[[str], str], tmp_path: Path) -> None:
    loaded("busybox:latest")
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo said; sleep 0.5\n")
    terminal = wherry.terminal("build", "-t", "built:tree", str(tmp_path))
    terminal.expect("Building")
    terminal.expect("said")
    terminal.expect("Successfully tagged built:tree")
    terminal.wait()
    assert terminal.exitstatus == 0
    wherry.ok("rmi", "built:tree")


def test_ids_quiet_and_exit_status(build: Callable[..., Result], tmp_path: Path) -> None:
    result = build("FROM busybox\nRUN true > /x\n", "-q", "--compress", "--iidfile", str(tmp_path / "id"))
    assert (tmp_path / "id").read_text() == result.out.strip()
    assert build("FROM busybox\nRUN exit 7\n").code == 7


def test_squash(build: Callable[..., Result], wherry: Cli) -> None:
    text = (
        "FROM busybox\nRUN mkdir /d && echo secret > /d/gone && echo 1 > /d/kept && echo a > /etc/made\n"
        "RUN rm /d/gone && echo 2 >> /d/kept\nRUN rm -r /d && mkdir /d && echo 3 > /d/new && rm /bin/ls\n"
    )
    base = json.loads(wherry.ok("image", "inspect", "busybox"))[0]["RootFS"]["Layers"]
    made = image(build(text, "--squash"))
    assert len(json.loads(wherry.ok("image", "inspect", made))[0]["RootFS"]["Layers"]) == len(base) + 1
    look = "cat /d/* /etc/made; find /d /bin/ls; stat -c %a /d"
    squashed = wherry.ok("run", "--rm", made, "sh", "-c", f"{look} 2>&1")
    assert squashed == wherry.ok("run", "--rm", image(build(text)), "sh", "-c", f"{look} 2>&1")
    assert squashed.splitlines()[:2] == ["3", "a"]
    history = wherry.ok("history", "--no-trunc", "--format", "{{.Comment}}", made).splitlines()
    assert history[0].startswith("merge sha256:")
    assert build(text, "--squash").out.count("Using cache") == 3


@pytest.mark.native  # looks at this host's processes
def test_cancel(engine: Engine, loaded: Callable[[str], str]) -> None:
    loaded("busybox:latest")
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        text = b"FROM busybox\nRUN echo begun; sleep 4711\n"
        info = tarfile.TarInfo("Dockerfile")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text))
    api = engine.client.api
    url = f"{api.base_url}/v1.51/build"
    said = []
    with api.post(url, params={"buildid": "mine"}, data=data.getvalue(), stream=True) as answer:
        for line in answer.iter_lines():
            said.append(json.loads(line))
            if said[-1].get("stream") == "begun\n":
                assert api.post(f"{url}/cancel", params={"id": "mine"}).status_code == 200
    assert said[-1]["error"] == "build cancelled"
    eventually(lambda: not sleeping(), what="the step's process ended")
    assert api.post(f"{url}/cancel", params={"id": "other"}).status_code == 200
    assert api.post(f"{url}/cancel").status_code == 400


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"t": "UPPER"}, 400),
        ({"dockerfile": "../x"}, 400),
        ({"dockerfile": "none"}, 400),
        ({"buildargs": "["}, 400),
        ({"platform": "a/b/c/d"}, 400),
        ({"remote": "ftp://x"}, 400),
        ({"outputs": '[{"Type":"local"}]'}, 501),
        ({"version": "2"}, 501),
    ],
)
def test_requests_that_make_no_sense(engine: Engine, query: dict[str, str], status: int) -> None:
    api = engine.client.api
    answer = api.post(f"{api.base_url}/v1.51/build", params=query, data=b"")
    assert answer.status_code == status, answer.text
    assert answer.json()["message"]
