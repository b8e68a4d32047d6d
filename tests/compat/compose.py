"""Docker Compose's own end-to-end tests, from a source tree of docker/compose, with a real Compose and docker CLI."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tests.compat.engines import Contender, environment
from tests.compat.results import Result
from tests.support.cli import buildx_directory, docker_binary

_SECONDS = 240  # for one test
_LINE = re.compile(r"^\s*--- (PASS|FAIL|SKIP): (\S+) \(", re.MULTILINE)
_OUTCOMES = {"PASS": "passed", "FAIL": "failed", "SKIP": "skipped"}


def run(
    contender: Contender, source: Path, program: Path, compose: Path, only: str = "", log: Path | None = None
) -> dict[str, Result]:
    """Run the tests whose names match `only` one by one, each on an engine without containers.

    `source` is the tree, `program` its pkg/e2e compiled by `go test -c`, `compose` the docker-compose under test.
    A failed test is tried once more, since several wait for a fixed time.
    """
    home = Path(tempfile.mkdtemp(prefix="wherry-compat-"))
    try:
        _prepare(home, contender.engine.host)
        tools = f"{Path(docker_binary()).parent}:"
        variables = environment(contender, home) | {
            "DOCKER_CONTEXT": "compared",
            "COMPOSE_E2E_BIN_PATH": str(compose),
        }
        del variables["DOCKER_HOST"]
        variables["PATH"] = tools + variables["PATH"]
        directory = home / "e2e"  # tests write beside their projects
        shutil.copytree(source / "pkg/e2e", directory, symlinks=True)
        listed = subprocess.run(
            [program, "-test.list", only or "."],
            cwd=directory,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        results: dict[str, Result] = {}
        for test in listed.stdout.split():
            for _ in range(2):
                begun = time.monotonic()
                output = _one(contender, program, directory, variables, test)
                outcome = read(test, output)
                _clear(contender)
                if all(result.outcome != "failed" for result in outcome.values()):
                    break
            results |= outcome
            print(f"{outcome[test].outcome:8}{time.monotonic() - begun:6.1f} s  {test}", flush=True)
            if log is not None:
                (log / f"{test}.log").write_text(output)
        return results
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _prepare(home: Path, host: str) -> None:
    """The suite takes from the environment only a context, and plugins from the home directory."""
    plugins = home / ".docker/cli-plugins"
    plugins.mkdir(parents=True)
    (plugins / "docker-buildx").symlink_to(buildx_directory() / "docker-buildx")
    (home / ".docker/config.json").write_text("{}")  # the suite fails without one
    create = [docker_binary(), "context", "create", "compared", "--docker", f"host={host}"]
    subprocess.run(create, check=True, capture_output=True, env={"HOME": str(home)})


def _one(contender: Contender, program: Path, directory: Path, variables: dict[str, str], test: str) -> str:
    command = [str(program), "-test.v", "-test.timeout", f"{_SECONDS}s", "-test.run", f"^{test}$"]
    done = subprocess.run(
        [*contender.inside, *command],
        cwd=directory,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_SECONDS + 60,
        check=False,
    )
    return done.stdout.decode(errors="replace")


def read(test: str, output: str) -> dict[str, Result]:
    """What became of a test and its parts by its output."""
    results = {name: Result(_OUTCOMES[word]) for word, name in _LINE.findall(output)}
    results.setdefault(
        test, Result("failed", "did not end" if "panic: test timed out" in output else "broke off")
    )
    return results


def _clear(contender: Contender) -> None:
    """Nothing of a test is there in the next one."""
    engine = contender.engine
    engine.forget()
    for network in engine.client.networks.list():
        if network.name not in ("bridge", "host", "none"):
            network.remove()
