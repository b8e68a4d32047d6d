"""`.dockerignore`: the rules of moby/patternmatcher."""

from __future__ import annotations

import fnmatch
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.build.dockerfile import DockerfileError, ignore


def ignores(patterns: list[str], path: str) -> bool:
    return ignore.Patterns(patterns).ignores(path)


def test_reading() -> None:
    source = b"\xef\xbb\xbf# comment\n\n  a/ \n/b//c/../d\r\n!  /e\n #f\n!\n"
    assert ignore.read(source) == ["a", "b/d", "!e", "#f", "!"]


@pytest.mark.parametrize(
    ("patterns", "path", "expected"),
    [
        (["a"], "a", True),
        (["a"], "a/b/c", True),
        (["a"], "b/a", False),
        (["*"], "a", True),
        (["*.md"], "x/a.md", False),
        (["**/*.md"], "a.md", True),
        (["**/*.md"], "x/y/a.md", True),
        (["**/a"], "a", True),
        (["**/a"], "x/a/b", True),
        (["**a"], "xa", True),
        (["a/**"], "a", False),
        (["a/**"], "a/b/c", True),
        (["**"], "a/b", True),
        (["a/**/b"], "a/b", True),
        (["a/**/b"], "a/x/y/b", True),
        (["a?b"], "a/b", False),
        (["a[b-d]e"], "ace", True),
        (["a[^b-d]e"], "ace", False),
        (["a\\*"], "a*", True),
        (["a\\*"], "ab", False),
        (["a.b"], "axb", False),
        (["x*y*z*"], "x1y2z3", True),
        (["x*y*z*"], "x1y2/z3", False),
        (["**/x*y*/z"], "a/b/xxyy/z", True),
        (["**/x*y*/z"], "a/b/xxyy/w/z", False),
        (["*.md", "!README.md"], "README.md", False),
        (["*.md", "!README*.md", "README-secret.md"], "README-secret.md", True),
        (["a", "!a/b"], "a/b", False),
        (["a", "!a/b"], "a/b/c", False),
        (["a", "!a/b"], "a/c", True),
        (["!a", "a"], "a", True),
        (["*", "!a/**/b"], "a/x/b", False),
    ],
)
def test_matching(patterns: list[str], path: str, expected: bool) -> None:
    assert ignores(patterns, path) is expected


@pytest.mark.parametrize("pattern", ["[", "a[", "[]", "[-]", "[a-]", "a\\", "!"])
def test_malformed(pattern: str) -> None:
    with pytest.raises(DockerfileError, match=r"syntax error in pattern|illegal exclusion pattern"):
        ignore.Patterns([pattern])


def test_which_directories_may_hold_something_brought_back() -> None:
    patterns = ignore.Patterns(["*", "!a/*/c", "!d/**/e"])
    assert [patterns.may_keep_below(path) for path in ("a", "a/b", "a/b/c", "d/x/y", "f")] == [
        True,
        True,
        False,
        True,
        False,
    ]


def test_a_hostile_pattern_takes_no_time() -> None:
    begin = time.monotonic()
    assert not ignores(["*a" * 30 + "b"], "a" * 4000)
    assert time.monotonic() - begin < 10


@given(st.text(alphabet="ab*?", max_size=10), st.text(alphabet="ab", max_size=12))
def test_one_component_matches_as_fnmatch_says(pattern: str, name: str) -> None:
    if not pattern or not name or "**" in pattern:
        return
    assert ignores([pattern], name) == fnmatch.fnmatchcase(name, pattern)


@given(
    st.text(alphabet="ab/*?[]^-\\!.", max_size=12),
    st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=4),
)
def test_a_pattern_is_refused_or_decides(pattern: str, parts: list[str]) -> None:
    try:
        patterns = ignore.Patterns(ignore.read(pattern))
    except DockerfileError:
        return
    path = "/".join(parts)
    ignored = patterns.ignores(path)
    if ignored:  # so is everything below
        assert patterns.ignores(path + "/below")
