"""Variables in words, and the patterns in `${name#pattern}`."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.build.dockerfile import DockerfileError, expand_word
from guest_agent.build.dockerfile.glob import Pattern
from guest_agent.build.dockerfile.shell import MAX_EXPANSION, expand_words

VARIABLES = {"a": "foobar/foo", "empty": "", "path": "/x/y.tar.gz", "long": "a b", "ü": "1", "1": "one"}


# Expectations are what `sh` prints, but for what only bash has (`${a/b/c}`) and the last two groups: BuildKit's.
@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("plain", "plain"),
        ("$a", "foobar/foo"),
        ("${a}b", "foobar/foob"),
        ("$ab", ""),
        ("$ü", "1"),
        ("$1x", "onex"),
        ("$", "$"),
        ("a$ b", "a$ b"),
        ("'$a'", "$a"),
        ('"$a"', "foobar/foo"),
        ("\\$a", "$a"),
        ('"\\$a \\"\\x"', '$a "\\x'),
        ("'it''s'", "its"),
        ("${unset:-x}", "x"),
        ("${unset-x}", "x"),
        ("${empty:-x}", "x"),
        ("${empty-x}", ""),
        ("${a:-x}", "foobar/foo"),
        ("${unset:-${empty:-$a}}", "foobar/foo"),
        ("${unset:-'a b'}", "a b"),
        ("${a:+x}", "x"),
        ("${empty:+x}", ""),
        ("${empty+x}", "x"),
        ("${unset+x}", ""),
        ("${a:?x}", "foobar/foo"),
        ("${empty?x}", ""),
        ("${a#*o}", "obar/foo"),
        ("${a##*o}", ""),
        ("${a%o*}", "foobar/fo"),
        ("${a%%o*}", "f"),
        ("${a#x}", "foobar/foo"),
        ("${path##*/}", "y.tar.gz"),
        ("${path%.*}", "/x/y.tar"),
        ("${path%%.*}", "/x/y"),
        ("${a#f??}", "bar/foo"),
        ("${a/foo/X}", "Xbar/foo"),
        ("${a//foo/X}", "Xbar/X"),
        ("${a//o*b/_}", "f_ar/foo"),
        ("${a/\\//_}", "foobar_foo"),
        ("${a//o/}", "fbar/f"),
        ("${a/nothing/X}", "foobar/foo"),
        ("trailing\\", "trailing"),
    ],
)
def test_expansion(word: str, expected: str) -> None:
    assert expand_word(word, VARIABLES) == expected


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("${b", "unsupported modifier (\ufffd) in substitution"),
        ('"x', "unexpected end of statement while looking for matching double-quote"),
        ("'x", "unexpected end of statement while looking for matching single-quote"),
        ("${b!x}", "unsupported modifier (!) in substitution"),
        ("${a:#x}", "unsupported modifier (:#) in substitution"),
        ("${}", "syntax error: bad substitution"),
        ("${a:}", "syntax error: missing '}'"),
        ("${a:-x", "syntax error: missing '}'"),
        ("${a/x}", "syntax error: missing '/' in ${}"),
        ("${b?}", "b: is not allowed to be unset"),
        ("${empty:?}", "empty: is not allowed to be empty"),
        ("${b:?no $a}", "b: no foobar/foo"),
        ("${a#\\q}", "invalid pattern (\\q) in substitution: invalid escape '\\q'"),
    ],
)
def test_errors(word: str, message: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        expand_word(word, VARIABLES)
    assert caught.value.message.startswith("failed to process ")
    assert caught.value.message.endswith(f": {message}")


def test_quotes_mean_nothing_in_a_heredoc() -> None:
    assert expand_word("'$a' \"$a\" \\$a", {"a": "1"}, keep_quotes=True) == "'1' \"1\" $a"


def test_words_are_split_after_expansion_but_not_within_quotes() -> None:
    assert expand_words('$long "$long" c\\ d ""', VARIABLES) == ["a", "b", "a b", "c d"]


def test_the_other_escape_token() -> None:
    assert expand_word("c:\\x`$a", VARIABLES, "`") == "c:\\x$a"


def test_no_value_grows_without_end() -> None:
    variables = {"a": "x" * 1000}
    with pytest.raises(DockerfileError, match="longer than"):  # noqa: PT012
        for _ in range(30):
            variables["a"] = expand_word("$a$a$a$a", variables)
    assert len(variables["a"]) <= MAX_EXPANSION
    with pytest.raises(DockerfileError, match="nested deeper"):
        expand_word("${a:-" * 5000 + "}" * 5000, {})


_TEXT = st.text(alphabet="ab/", max_size=8)
_PATTERN = st.text(alphabet="ab*?", max_size=6)


def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern.replace("*", ".*").replace("?", "."))


@given(_PATTERN, _TEXT)
def test_patterns_match_as_the_definition_says(pattern: str, value: str) -> None:
    expression, compiled = _regex(pattern), Pattern(pattern)
    ends = [end for end in range(len(value) + 1) if expression.fullmatch(value[:end])]
    starts = [start for start in range(len(value) + 1) if expression.fullmatch(value[start:])]
    assert compiled.trim_prefix(value, greedy=False) == (value[min(ends) :] if ends else value)
    assert compiled.trim_prefix(value, greedy=True) == (value[max(ends) :] if ends else value)
    assert compiled.trim_suffix(value, greedy=False) == (value[: max(starts)] if starts else value)
    assert compiled.trim_suffix(value, greedy=True) == (value[: min(starts)] if starts else value)
    assert compiled.replace(value, "_", everywhere=False) == expression.sub("_", value, count=1)


def test_a_hostile_pattern_takes_no_time() -> None:
    begin = time.monotonic()
    assert expand_word("${a##" + "*a" * 30 + "b}", {"a": "a" * 50_000}) == "a" * 50_000
    assert time.monotonic() - begin < 10  # with backtracking: longer than the universe is old


@given(st.text(alphabet="ab$ {}:-+?#%/\\'\"", max_size=30))
def test_any_word_expands_or_is_refused(word: str) -> None:
    try:
        assert isinstance(expand_word(word, VARIABLES), str)
    except DockerfileError as error:
        assert error.message.startswith("failed to process ")  # noqa: PT017


@given(st.text(alphabet=st.characters(exclude_characters="'", exclude_categories=["Cs"])))
def test_what_is_in_single_quotes_stays(text: str) -> None:
    assert expand_word(f"'{text}'", VARIABLES) == text
