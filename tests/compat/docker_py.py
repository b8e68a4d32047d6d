"""docker-py's own integration tests, from a source tree of docker-py."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from tests.compat.engines import Contender, environment
from tests.compat.results import Result

API_VERSION = "1.51"
_SECONDS = 900  # for one file of tests


def run(contender: Contender, source: Path, only: str = "") -> dict[str, Result]:
    """Run the files of tests whose names contain `only` one after the other, and tell what became of each test."""
    files = sorted(path for path in (source / "tests/integration").glob("*_test.py") if only in path.name)
    results: dict[str, Result] = {}
    for file in files:
        home = Path(tempfile.mkdtemp(prefix="wherry-compat-"))
        try:
            report = home / "report.xml"
            variables = environment(contender, home) | {"DOCKER_TEST_API_VERSION": API_VERSION}
            pytest = (
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                "--timeout",
                "60",
                "--reruns",
                "2",
            )
            done = subprocess.run(
                [*contender.inside, *pytest, "--junitxml", str(report), str(file)],
                cwd=source,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_SECONDS,
                check=False,
            )
            if not report.exists():
                raise RuntimeError(f"{file.name} did not run:\n{done.stdout}")
            results |= read(report)
        finally:
            shutil.rmtree(home, ignore_errors=True)
        contender.engine.forget()
    return results


def read(report: Path) -> dict[str, Result]:
    """What became of each test by pytest's report in JUnit's format."""
    results: dict[str, Result] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').removeprefix('tests.integration.')}::{case.get('name')}"
        result = Result("passed")
        for tag, outcome in (("skipped", "skipped"), ("failure", "failed"), ("error", "failed")):
            if (found := case.find(tag)) is not None:
                result = Result(outcome, " ".join((found.get("message") or "").split())[:300])
        if name not in results or results[name].outcome == "passed":  # its clean-up is a case of its own
            results[name] = result
    return results
