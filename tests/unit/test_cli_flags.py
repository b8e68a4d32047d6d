"""Reading command lines: pflag's forms, docker's sentences, and that every command's declaration is sound."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host_client.cli import table
from host_client.cli.errors import HelpWanted, UsageError
from host_client.cli.flags import Command, Parsed, default_of, parse, shown_kind
from host_client.cli.values import _CONVERTERS

FLAGS = (
    ("all", "a", "bool", ""),
    ("proxy", "", "bool", "", True),
    ("name", "n", "string", ""),
    ("count", "c", "int", "", -1),
    ("env", "e", "list", ""),
    ("opt", "o", "map", ""),
    ("subnet", "", "strings", ""),
    ("filter", "f", "filter", ""),
)


def read(*words: str, interspersed: bool = True, maximum: int | None = None, minimum: int = 0) -> Parsed:
    command = Command("", lambda: 0, minimum, maximum, FLAGS, {"label": "name"}, interspersed=interspersed)
    return parse("x", command, words)


def test_defaults() -> None:
    parsed = read()
    assert parsed.values == {
        "all": False, "proxy": True, "name": "", "count": -1, "env": [], "opt": {}, "subnet": [], "filter": {},
    }  # fmt: skip
    assert parsed.given == set()


@pytest.mark.parametrize(
    "words", [["--name", "v"], ["--name=v"], ["-n", "v"], ["-nv"], ["-n=v"], ["--label=v"], ["-an", "v"]]
)
def test_forms_of_a_value(words: list[str]) -> None:
    parsed = read(*words)
    assert parsed["name"] == "v"
    assert "name" in parsed.given


def test_clusters_and_the_end_of_flags() -> None:
    parsed = read("-ac5", "one", "--", "-n", "--all")
    assert (parsed["all"], parsed["count"], parsed.args) == (True, 5, ["one", "-n", "--all"])


def test_a_dash_alone_is_an_argument() -> None:
    assert read("-", "-a").args == ["-"]


def test_no_flags_after_the_first_argument() -> None:
    parsed = read("-a", "image", "-n", "v", "--", "x", interspersed=False)
    assert (parsed.args, parsed["name"]) == (["image", "-n", "v", "--", "x"], "")


def test_flags_that_add_up() -> None:
    parsed = read(
        "-e", "A=1", "-eB=2", "-o", "k=v", "-o", "k=w", "-o", "x", "--subnet", "a,b", "--subnet", "c"
    )
    assert parsed["env"] == ["A=1", "B=2"]
    assert parsed["opt"] == {"k": "w", "x": ""}
    assert parsed["subnet"] == ["a", "b", "c"]
    assert read("-f", "a=b", "-f", " A = c ", "-f", "")["filter"] == {"a": ["b", "c"]}


def test_booleans_take_values_only_with_an_equals_sign() -> None:
    assert read("--proxy=false")["proxy"] is False
    assert read("-a=0")["all"] is False
    assert read("--all", "false").args == ["false"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nope"], "unknown flag: --nope"),
        (["-x"], "unknown shorthand flag: 'x' in -x"),
        (["-axn"], "unknown shorthand flag: 'x' in -xn"),
        (["--name"], "flag needs an argument: --name"),
        (["-n"], "flag needs an argument: 'n' in -n"),
        (["--=x"], "bad flag syntax: --=x"),
        (["---x"], "bad flag syntax: ---x"),
        (
            ["--count=z"],
            'invalid argument "z" for "-c, --count" flag: strconv.ParseInt: parsing "z": invalid syntax',
        ),
        (
            ["--all=z"],
            'invalid argument "z" for "-a, --all" flag: strconv.ParseBool: parsing "z": invalid syntax',
        ),
        (
            ["-f", "x"],
            'invalid argument "x" for "-f, --filter" flag: bad format of filter (expected name=value)',
        ),
    ],
)
def test_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(*words)
    assert (caught.value.message, caught.value.status) == (message, 125)
    assert "see 'wherry x --help'" in caught.value.hint


def test_a_close_flag_is_named() -> None:
    with pytest.raises(UsageError) as caught:
        read("--nam")
    assert caught.value.hint.startswith("did you mean --name?")


@pytest.mark.parametrize(
    ("low", "high", "count", "message"),
    [
        (0, 0, 1, "'wherry x' accepts no arguments"),
        (1, None, 0, "'wherry x' requires at least 1 argument"),
        (2, None, 1, "'wherry x' requires at least 2 arguments"),
        (1, 1, 2, "'wherry x' requires 1 argument"),
        (0, 1, 2, "'wherry x' requires at most 1 argument"),
        (1, 2, 3, "'wherry x' requires at least 1 and at most 2 arguments"),
    ],
)
def test_number_of_arguments(low: int, high: int | None, count: int, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(*["a"] * count, minimum=low, maximum=high)
    assert (caught.value.message, caught.value.status) == (message, 1)


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["x", "--help"], ["-ah"]])
def test_help(words: list[str]) -> None:
    with pytest.raises(HelpWanted):
        read(*words)


@given(st.lists(st.text(min_size=1), max_size=4), st.lists(st.text(), max_size=4))
def test_any_text_is_a_value(values: list[str], arguments: list[str]) -> None:
    words = [word for value in values for word in ("--env", value)]
    parsed = read(*words, "--", *arguments)
    assert (parsed["env"], parsed.args) == (values, arguments)


def all_commands() -> list[tuple[str, tuple[str, str, str]]]:
    found = [(name, entry) for name, entry in table.SINGLE.items()]
    found += [
        (f"{group} {verb}", entry)
        for group, (_, verbs) in table.GROUPS.items()
        for verb, entry in verbs.items()
    ]
    return found


@pytest.mark.parametrize(
    ("name", "entry"), all_commands(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_declarations(name: str, entry: tuple[str, str, str]) -> None:
    command = table.load(entry)
    names = [flag[0] for flag in command.flags]
    shorts = [flag[1] for flag in command.flags if flag[1]]
    assert len(set(names)) == len(names)
    assert len(set(shorts)) == len(shorts)
    assert set(command.aliases.values()) <= {*names, "timeout"}
    for flag in command.flags:
        assert flag[2] in ("string", "list") or flag[2] in _CONVERTERS, flag
        assert flag[3], f"{flag[0]} has no help"
        assert shown_kind(flag[2])
        default_of(flag)
    assert entry[2]
    assert not entry[2].endswith(".")
    assert command.examples
    for line, what in command.examples:
        assert what
        assert entry in [called(words) for words in calls(line)], line


def calls(line: str) -> list[list[str]]:
    """The words after each `wherry` in a line of shell."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found: list[list[str]] = []
    inside = False
    for word in lexer:
        if word == "wherry":
            found.append([])
            inside = True
        elif set(word) <= set("();<>|&"):
            inside = False
        elif inside:
            found[-1].append(word)
    return found


def called(words: list[str]) -> tuple[str, str, str] | None:
    """The command that is called with these words, whose flags and arguments it takes."""
    settings = parse("", Command("", lambda: 0, 0, None, table.GLOBAL_FLAGS, interspersed=False), words)
    count = 2 if settings.args[0] in table.GROUPS else 1
    entry = table.entry(*settings.args[:count])
    if entry is not None:
        parse(" ".join(settings.args[:count]), table.load(entry), settings.args[count:])
    return entry


def test_commands_that_only_docker_has() -> None:
    assert not table.DOCKERS_OWN & set(table.names())


def test_every_short_form_leads_somewhere() -> None:
    for name in table.names():
        assert name in table.GROUPS or table.entry(name) is not None
    for group, other in table.OTHER_SPELLINGS:
        assert table.entry(group, other) is not None
    assert set(table.COMMON) <= set(table.names())


def test_debug_shows_where_an_error_came_from(capfd: pytest.CaptureFixture[str]) -> None:
    from host_client.cli.main import main

    assert main(["-H", "unix:///nonexistent", "ps"]) == 1
    plain = capfd.readouterr().err
    assert plain.startswith(
        "error: cannot connect to the engine at unix:///nonexistent: there is no such socket\nhint: "
    )
    for flags in (["-D"], ["--log-level", "debug"]):
        assert main([*flags, "-H", "unix:///nonexistent", "ps"]) == 1
        traced = capfd.readouterr().err
        assert traced.startswith("Traceback (most recent call last):\n")
        assert traced.endswith(plain)
    assert main(["-l", "loud", "ps"]) == 1
    assert "unable to parse logging level: loud" in capfd.readouterr().err


def test_words_that_are_no_commands(capfd: pytest.CaptureFixture[str]) -> None:
    from host_client.cli.main import main

    for words, error in (
        (
            ["imags"],
            "error: unknown command: wherry imags\nhint: did you mean 'images' or 'image'? see 'wherry --help'\n",
        ),
        (["volume", "lst"], "error: unknown command: wherry volume lst\nhint: did you mean 'ls'"),
        (["help", "nope"], "error: unknown command: wherry nope\n"),
        (["-H", "a", "-H", "b", "ps"], "error: specify only one -H\n"),
    ):
        assert main(words) != 0
        assert capfd.readouterr().err.startswith(error)
