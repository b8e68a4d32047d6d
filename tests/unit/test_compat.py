"""How the comparison of test suites reads what they say."""

from __future__ import annotations

from pathlib import Path

from tests.compat import compose, docker_py, results
from tests.compat.results import Result

REPORT = """<testsuites><testsuite>
<testcase classname="tests.integration.api_test.Some" name="good"/>
<testcase classname="tests.integration.api_test.Some" name="bad"><failure message="assert 1&#10;  == 2"/></testcase>
<testcase classname="tests.integration.api_test.Some" name="left"><skipped message="flaky"/></testcase>
<testcase classname="tests.integration.api_test.Some" name="late"/>
<testcase classname="tests.integration.api_test.Some" name="late"><error message="clean-up"/></testcase>
</testsuite></testsuites>"""

OUTPUT = """=== RUN   TestUp
--- FAIL: TestUp (1.05s)
    --- PASS: TestUp/first (0.10s)
    --- SKIP: TestUp/second (0.00s)
    --- FAIL: TestUp/third (0.20s)
FAIL
"""


def test_docker_pys_report(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    assert docker_py.read(tmp_path / "report.xml") == {
        "api_test.Some::good": Result("passed"),
        "api_test.Some::bad": Result("failed", "assert 1 == 2"),
        "api_test.Some::left": Result("skipped", "flaky"),
        "api_test.Some::late": Result("failed", "clean-up"),
    }


def test_composes_output() -> None:
    found = compose.read("TestUp", OUTPUT)
    assert {name: result.outcome for name, result in found.items()} == {
        "TestUp": "failed",
        "TestUp/first": "passed",
        "TestUp/second": "skipped",
        "TestUp/third": "failed",
    }
    assert compose.read("TestUp", "panic: test timed out after 4m0s") == {
        "TestUp": Result("failed", "did not end")
    }


def test_what_passes_on_one_only(tmp_path: Path) -> None:
    theirs = {"a": Result("passed"), "b": Result("passed"), "c": Result("failed", "x")}
    ours = {"a": Result("failed", "why"), "c": Result("passed")}
    results.write(tmp_path / "kept", theirs)
    assert results.read(tmp_path / "kept") == theirs
    assert results.share(theirs) == "2 of 3 passed (1 failed)"
    assert results.differences(theirs, ours) == [
        "only on dockerd: a: failed: why",
        "only on dockerd: b: not run: ",
        "only on wherry: c: failed: x",
    ]
