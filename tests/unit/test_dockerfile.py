"""The Dockerfile language: what each instruction becomes, and what is said of a wrong one.

The error texts are those of dockerd's classic builder and BuildKit for the same Dockerfile.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.build.dockerfile import DockerfileError, arguments, expand, parse, parse_instruction
from guest_agent.build.dockerfile.types import (
    Add,
    Arg,
    Cmd,
    CommandLine,
    Copy,
    Env,
    Healthcheck,
    InlineFile,
    Instruction,
    Lines,
    Mount,
    Onbuild,
    Pair,
    Run,
    Shell,
)


def only(text: str) -> Instruction:
    """The one instruction below `FROM x`."""
    [instruction] = parse(f"FROM x\n{text}\n").stages[0].instructions
    return instruction


def test_stages_have_names_bases_platforms_and_lines() -> None:
    dockerfile = parse(
        b"\xef\xbb\xbf# syntax=docker/dockerfile:1\n# check=skip=all\n\nARG V=1\nFROM a:$V AS Build\nRUN x\n"
        b"from --platform=linux/arm64 build\nCOPY --from=0 a \\\n  # between\n  b\n"
    )
    assert (dockerfile.syntax, dockerfile.check) == ("docker/dockerfile:1", "skip=all")
    assert [(s.name, s.base, s.platform, s.lines) for s in dockerfile.stages] == [
        ("build", "a:$V", "", Lines(5, 5)),
        ("", "build", "linux/arm64", Lines(7, 7)),
    ]
    [copy] = dockerfile.stages[1].instructions
    assert isinstance(copy, Copy)
    assert (copy.sources, copy.destination, copy.from_, copy.lines) == (("a",), "b", "0", Lines(8, 10))
    assert (copy.name, copy.code) == ("COPY", "COPY --from=0 a   b")
    assert [dockerfile.stage_index(name) for name in ("BUILD", "1", "2", "other")] == [0, 1, None, None]


def test_the_escape_directive_changes_continuation_and_escapes() -> None:
    dockerfile = parse("# escape=`\nFROM x\nRUN dir c:\\ `\n  && y\nENV a=b` c\n")
    assert dockerfile.escape == "`"
    run, env = dockerfile.stages[0].instructions
    assert isinstance(run, Run)
    assert run.command.arguments == ("dir c:\\   && y",)
    assert expand(env, {}, "`").pairs == (Pair("a", "b c"),)  # type: ignore[attr-defined]


def test_a_directive_below_a_comment_is_a_comment() -> None:
    assert parse("# hello\n# escape=`\nFROM x\n").escape == "\\"


def test_empty_lines_within_an_instruction_are_warned_of() -> None:
    dockerfile = parse("FROM x\nRUN a \\\n\n  b\n")
    assert [warning.lines for warning in dockerfile.warnings] == [Lines(4, 4)]
    assert dockerfile.stages[0].instructions[0].lines == Lines(2, 4)


def test_heredocs_of_run() -> None:
    run = only("RUN <<EOF cat 3<<-'B C'\nhi $x\n# kept\nEOF\n\tone\n\tB C")
    assert isinstance(run, Run)
    assert run.command == CommandLine(
        ("<<EOF cat 3<<-'B C'",),
        shell=True,
        files=(
            InlineFile("EOF", "hi $x\n# kept\n", expand=True),
            InlineFile("B C", "\tone\n", expand=False, strip_tabs=True, descriptor=3),
        ),
    )
    assert run.lines == Lines(2, 7)


def test_heredocs_of_copy_are_files_whose_variables_are_replaced_unless_quoted() -> None:
    copy = only("COPY --chmod=$m <<a <<-\"b\" c /d/\n'$x' \\$x\na\n\t$x\nb")
    assert isinstance(copy, Copy)
    copy = expand(copy, {"x": "1", "m": "0644"})
    assert copy.inline == (
        InlineFile("a", "'1' $x\n", expand=False),
        InlineFile("b", "$x\n", expand=False, strip_tabs=True),
    )
    assert (copy.sources, copy.destination, copy.chmod) == (("c",), "/d/", "0644")


@pytest.mark.parametrize("text", ['RUN ["a", "<<EOF"]', "RUN echo '<<EOF'", "CMD <<EOF", "RUN a <<< b"])
def test_what_is_no_heredoc(text: str) -> None:
    assert only(text).lines == Lines(2, 2)


def test_onbuild_keeps_its_heredocs() -> None:
    onbuild = only("ONBUILD RUN <<EOF\nhi\nEOF")
    assert isinstance(onbuild, Onbuild)
    assert onbuild.trigger == "RUN <<EOF\nhi\nEOF"
    run = parse_instruction(onbuild.trigger, at=Lines(9, 9))
    assert isinstance(run, Run)
    assert run.command.files == (InlineFile("EOF", "hi\n", expand=True),)
    assert run.lines == Lines(9, 9)


@pytest.mark.parametrize(
    ("text", "arguments", "shell"),
    [
        ('["a", "b c"]', ("a", "b c"), False),
        ("[ 'a' ]", ("[ 'a' ]",), True),
        ('["a"', ('["a"',), True),
        ('["a"] b', ('["a"] b',), True),
        ("[NaN]", ("[NaN]",), True),
        ("a   b ", ("a   b",), True),
        ("[]", (), False),
        ("", (), True),
    ],
)
def test_json_or_shell_form(text: str, arguments: tuple[str, ...], shell: bool) -> None:
    cmd = only(f"CMD {text}")
    assert isinstance(cmd, Cmd)
    assert cmd.command == CommandLine(arguments, shell)


def test_flags_of_copy_and_add() -> None:
    copy = only("COPY --link --parents=false --exclude=*.a --exclude='b c' --chown=1:2 a b")
    assert isinstance(copy, Copy)
    assert (copy.link, copy.parents, copy.exclude, copy.chown) == (True, False, ("*.a", "b c"), "1:2")
    add = only('ADD --checksum=sha256:$s --keep-git-dir --unpack=false ["a b", "/c"]')
    assert isinstance(add, Add)
    assert (add.keep_git_dir, add.unpack, add.sources) == (True, False, ("a b",))
    assert expand(add, {"s": "1"}).checksum == "sha256:1"
    plain = only("ADD a b")
    assert isinstance(plain, Add)
    assert (plain.keep_git_dir, plain.unpack) == (None, None)


def test_mounts_are_read_when_their_variables_are_known() -> None:
    run = only(
        "RUN --network=none --security=insecure --device=vendor/x=0,required "
        "--mount=type=cache,target=$d,sharing=locked,uid=7,mode=0700 --mount=from=a,src=/s,dst=/t,rw "
        "--mount=type=secret,id=s,env=S,required --mount=type=tmpfs,target=/x,size=1m true"
    )
    assert isinstance(run, Run)
    assert (run.network, run.security, run.devices[0].required) == ("none", "insecure", True)
    assert [mount.from_ for mount in run.mounts] == ["", "a", "", ""]
    cache, bind, secret, tmpfs = expand(run, {"d": "/cache"}).mounts
    assert cache == Mount(
        cache.flag, "cache", target="/cache", read_only=False, sharing="locked", uid=7, mode=0o700
    )
    assert bind == Mount(bind.flag, "bind", "a", "/s", "/t", read_only=False)
    assert secret == Mount(secret.flag, "secret", id="s", env="S", required=True)
    assert tmpfs == Mount(tmpfs.flag, "tmpfs", target="/x", read_only=False, size=1 << 20)


def test_healthcheck() -> None:
    check = only("HEALTHCHECK --interval=1m30s --timeout=1.5s --start-interval=2ms --retries=3 CMD a  b")
    assert isinstance(check, Healthcheck)
    assert check.test == ("CMD-SHELL", "a  b")
    assert (check.interval, check.timeout, check.start_interval) == (90 * 10**9, 1_500_000_000, 2_000_000)
    assert (check.retries, check.start_period) == (3, 0)
    none, words = only("HEALTHCHECK none"), only('HEALTHCHECK CMD ["a"]')
    assert isinstance(none, Healthcheck)
    assert isinstance(words, Healthcheck)
    assert (none.test, words.test) == (("NONE",), ("CMD", "a"))


def test_env_and_label_forms() -> None:
    env = only('ENV a=b "c d"=e\\ f g= h="i j"')
    assert isinstance(env, Env)
    assert env.pairs[1] == Pair('"c d"', "e\\ f")
    assert expand(env, {}).pairs == (Pair("a", "b"), Pair("c d", "e f"), Pair("g", ""), Pair("h", "i j"))
    legacy = only("ENV a  b = $c 'd'")
    assert isinstance(legacy, Env)
    assert expand(legacy, {"c": "1"}).pairs == (Pair("a", "b = 1 d", legacy=True),)


def test_variables_of_one_instruction_are_those_before_it() -> None:
    env = only("ENV a=2 b=$a")
    assert isinstance(env, Env)
    assert expand(env, {"a": "1"}).pairs == (Pair("a", "2"), Pair("b", "1"))


def test_commands_are_left_to_their_shell() -> None:
    for text in ("RUN echo $a", 'CMD ["$a"]', "ENTRYPOINT $a", 'SHELL ["$a"]', "HEALTHCHECK CMD $a"):
        assert expand(only(text), {"a": "1"}) == only(text)


def test_expose_is_sorted_and_may_hold_several_ports_in_a_variable() -> None:
    assert expand(only("EXPOSE 90 $p 80/udp"), {"p": "1 2"}).ports == ("1", "2", "80/udp", "90")  # type: ignore[attr-defined]


def test_shell_words() -> None:
    shell = only('SHELL ["/bin/bash", "-c"]')
    assert isinstance(shell, Shell)
    assert shell.shell == ("/bin/bash", "-c")


def test_arguments_come_from_the_client_the_default_or_the_global_scope() -> None:
    dockerfile = parse("ARG A=1 B=${A}b\nARG C\nARG D=d\nFROM x:$B AS s\nARG A\nARG D=own$E E=5 F=$E C\n")
    given = {"C": "c", "TARGETARCH": "other"}
    scope = arguments.global_arguments(
        dockerfile, given, arguments.platform_arguments("linux/arm/v7", "linux/amd64", "s")
    )
    assert {name: scope[name] for name in ("A", "B", "C", "D")} == {"A": "1", "B": "1b", "C": "c", "D": "d"}
    assert (scope["TARGETVARIANT"], scope["BUILDPLATFORM"], scope["TARGETSTAGE"]) == (
        "v7",
        "linux/amd64",
        "s",
    )
    assert scope["TARGETARCH"] == "other"
    assert arguments.base(dockerfile.stages[0], scope, "\\") == ("x:1b", "")
    first, second = dockerfile.stages[0].instructions
    assert isinstance(first, Arg)
    assert isinstance(second, Arg)
    assert arguments.stage_arguments(first, given, scope, {}) == {"A": "1"}
    assert arguments.stage_arguments(second, given, scope, {"E": "env"}) == {
        "D": "ownenv",
        "E": "5",
        "F": "5",
        "C": "c",
    }
    assert arguments.unused({"x": "1", "http_proxy": "2", "A": "3"}, {"A"}) == ["x"]


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("# nothing\n", "file with no instructions", 1),
        ("RUN x\n", "no build stage in current context", 1),
        ("ARG a\n", "dockerfile contains no stages to build", None),
        (
            "FROM x\n\nRUNN x\n",
            "dockerfile parse error on line 3: unknown instruction: RUNN (did you mean RUN?)",
            3,
        ),
        ("FROM x\nnix\n", "dockerfile parse error on line 2: unknown instruction: nix", 2),
        ("FROM bb as\n", "dockerfile parse error on line 1: FROM requires either one or three arguments", 1),
        (
            "FROM bb AS 1x\n",
            'dockerfile parse error on line 1: invalid name for build stage: "1x", '
            "name can't start with a number or contain symbols",
            1,
        ),
        ("FROM x\nENV a\n", "ENV must have two arguments", 2),
        ("FROM x\nENV a=b c\n", 'Syntax error - can\'t find = in "c". Must be of the form: name=value', 2),
        ("FROM x\nONBUILD ENV a\n", "ENV must have two arguments", 2),
        ("FROM x\nENV\n", "dockerfile parse error on line 2: ENV requires at least one argument", 2),
        ("FROM x\nENV =b\n", "dockerfile parse error on line 2: ENV names can not be blank", 2),
        (
            "FROM x\nCOPY \\\n a\n",
            "dockerfile parse error on line 2: COPY requires at least two arguments, but only one was provided. "
            "Destination could not be determined",
            2,
        ),
        (
            "FROM x\nCOPY --chwn=1 a b\n",
            "dockerfile parse error on line 2: unknown flag: --chwn (did you mean chown?)",
            2,
        ),
        ("FROM x\nADD --from=a b c\n", "dockerfile parse error on line 2: unknown flag: --from", 2),
        (
            "FROM x\nCOPY --chown a b\n",
            "dockerfile parse error on line 2: missing a value on flag: --chown",
            2,
        ),
        (
            "FROM x\nCOPY --link= a b\n",
            "dockerfile parse error on line 2: missing a value on flag: --link",
            2,
        ),
        (
            "FROM x\nCOPY --chown=1 --chown=2 a b\n",
            "dockerfile parse error on line 2: duplicate flag specified: --chown",
            2,
        ),
        (
            "FROM x\nCOPY --link=x a b\n",
            "dockerfile parse error on line 2: expecting boolean value for flag --link, not: x",
            2,
        ),
        ("FROM x\nCMD [1]\n", "when using JSON array syntax, arrays must be comprised of strings only", 2),
        (
            "FROM x\nHEALTHCHECK\n",
            "dockerfile parse error on line 2: HEALTHCHECK requires at least one argument",
            2,
        ),
        (
            "FROM x\nHEALTHCHECK FOO x\n",
            'dockerfile parse error on line 2: Unknown type "FOO" in HEALTHCHECK (try CMD)',
            2,
        ),
        (
            "FROM x\nHEALTHCHECK --interval=1 CMD x\n",
            'dockerfile parse error on line 2: time: missing unit in duration "1"',
            2,
        ),
        (
            "FROM x\nHEALTHCHECK --interval=1us CMD x\n",
            'dockerfile parse error on line 2: Interval "interval" cannot be less than 1ms',
            2,
        ),
        (
            "FROM x\nHEALTHCHECK --retries=-1 CMD x\n",
            "dockerfile parse error on line 2: --retries cannot be negative (-1)",
            2,
        ),
        (
            "FROM x\nONBUILD ONBUILD RUN x\n",
            "dockerfile parse error on line 2: Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
            2,
        ),
        (
            "FROM x\nONBUILD FROM x\n",
            "dockerfile parse error on line 2: FROM isn't allowed as an ONBUILD trigger",
            2,
        ),
        (
            "FROM x\nSHELL a b\n",
            "dockerfile parse error on line 2: SHELL requires the arguments to be in JSON form",
            2,
        ),
        (
            'FROM x\nVOLUME [""]\n',
            "dockerfile parse error on line 2: VOLUME specified can not be an empty string",
            2,
        ),
        ("FROM x\nUSER\n", "dockerfile parse error on line 2: USER requires exactly one argument", 2),
        ("FROM x\nARG =x\n", "dockerfile parse error on line 2: ARG names can not be blank", 2),
        ("FROM x\nCOPY <<EOF /x\nabc\n", "unterminated heredoc", 2),
        (
            "FROM x\nCOPY a <<EOF\nabc\nEOF\n",
            "dockerfile parse error on line 2: COPY cannot accept a heredoc as a destination",
            2,
        ),
        ("# escape=x\nFROM x\n", "invalid escape token 'x' does not match ` or \\", 1),
        ("# escape=`\n# escape=`\nFROM x\n", "only one escape parser directive can be used", 2),
        ("FROM x\nRUN --network=foo a\n", 'dockerfile parse error on line 2: invalid network mode "foo"', 2),
        (
            "FROM x\nRUN --security=foo a\n",
            'dockerfile parse error on line 2: security "foo" is not valid',
            2,
        ),
        (
            "FROM x\nRUN --mount=from=$x,target=/x a\n",
            "dockerfile parse error on line 2: 'from' doesn't support variable expansion, define alias stage instead",
            2,
        ),
        ("FROM x\nRUN " + "a" * 70000, "dockerfile line greater than max allowed size of 65535", 2),
    ],
)
def test_errors_of_parsing(text: str, message: str, line: int | None) -> None:
    with pytest.raises(DockerfileError) as caught:
        parse(text)
    assert caught.value.message == message
    assert (caught.value.lines.start if caught.value.lines else None) == line


@pytest.mark.parametrize(
    ("mount", "message"),
    [
        ("type=foo,target=/x", 'unsupported mount type "foo"'),
        ("type=cache,foo=bar", "unexpected key 'foo' in 'foo=bar' (did you mean from?)"),
        ("type=cache,foo", "invalid field 'foo' must be a key=value pair"),
        ("type=secret", "invalid secret mount. one of source, target required"),
        ("type=secret,id=a,src=b", "both source and id can't be set"),
        ("type=bind,mode=0777,target=/x", 'mode not allowed for "bind" type mounts'),
        ("type=tmpfs,target=/x,size=x", "invalid value for size: x"),
        ("type=cache,target=/x,mode=9", "invalid value 9 for mode"),
        ("target=/x,required", "unexpected key 'required' for mount type 'bind'"),
        (
            "type=cache,target=/x,sharing=sharde",
            'unsupported sharing value "sharde" (did you mean shared?)',
        ),
        ("target=/x,sharing=shared", "invalid cache sharing set for bind mount"),
    ],
)
def test_errors_of_mounts(mount: str, message: str) -> None:
    run = only(f"RUN --mount={mount} true")
    with pytest.raises(DockerfileError) as caught:
        expand(run, {})
    assert (caught.value.message, caught.value.lines) == (message, Lines(2, 2))


@given(st.binary(max_size=300) | st.text(max_size=300))
def test_any_text_is_a_dockerfile_or_a_clear_error(source: bytes | str) -> None:
    try:
        dockerfile = parse(source)
    except DockerfileError as error:
        assert error.message  # noqa: PT017
    else:
        assert dockerfile.stages


_WORDS = st.sampled_from(
    ["FROM", "RUN", "COPY", "ENV", "ONBUILD", "HEALTHCHECK", "x", "a=b", "--mount=", "--from=", "type=cache,", "<<E",
     "E", "[", '"', "]", "\\\n", "\n", " ", "$", "{", "}", ":", "-", "#", "/", "CMD", "\t", "'", ","]
)  # fmt: skip


@given(st.lists(_WORDS, max_size=40).map(lambda words: "FROM x\n" + "".join(words)))
def test_anything_parsed_is_expanded_or_refused_with_its_lines(source: str) -> None:
    try:
        stages = parse(source).stages
    except DockerfileError:
        return
    for stage in stages:
        for instruction in stage.instructions:
            assert 1 <= instruction.lines.start <= instruction.lines.end <= source.count("\n") + 1
            if isinstance(instruction, Arg):
                continue
            try:
                expand(instruction, {"x": "1 2", "E": ""})
            except DockerfileError as error:
                assert error.lines == instruction.lines  # noqa: PT017
