"""Go templates as docker's users write them, with Go's results and Go's words for what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host_client.cli.inspect_defaults import DEFAULTS
from host_client.cli.templates import Row, TemplateError, parse

DATA: dict[str, Any] = {
    "Id": "0123",
    "List": ["a", "b"],
    "Map": {"b": 1, "a.b": "q"},
    "Number": 3,
    "Fraction": 1.5,
    "Null": None,
    "Text": "hello world",
    "State": {"Status": "up", "Pid": 12, "Running": True},
    "Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "90/tcp": None},
    "Nested": [[1, 2], []],
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain", "plain"),
        ("{{.Id}}", "0123"),
        ("{{.ID}}", "0123"),
        ("{{ .State.Status }}-{{.State.Pid}}", "up-12"),
        ("{{.}}", None),
        ("{{json .Map}}", '{"b":1,"a.b":"q"}'),
        ("{{json .Null}} {{json .Text}} {{json .List}}", 'null "hello world" ["a","b"]'),
        ("{{.List}} {{.Map}} {{.Nested}}", "[a b] map[a.b:q b:1] [[1 2] []]"),
        ("{{.Fraction}} {{.State.Running}} {{.Null}}", "1.5 true <nil>"),
        ("{{range .List}}<{{.}}>{{end}}", "<a><b>"),
        ("{{range $i, $e := .List}}{{$i}}={{$e}};{{end}}", "0=a;1=b;"),
        ("{{range $k, $v := .Map}}{{$k}}={{$v}};{{end}}", "a.b=q;b=1;"),
        ("{{range .Null}}x{{else}}none{{end}}", "none"),
        ("{{range .List}}{{if eq . \"b\"}}{{break}}{{end}}{{.}}{{end}}", "a"),
        ("{{range .List}}{{if eq . \"a\"}}{{continue}}{{end}}{{.}}{{end}}", "b"),
        ("{{range 3}}{{.}}{{end}}", "012"),
        ("{{if .Null}}y{{else if .Number}}n{{else}}z{{end}}", "n"),
        ("{{if and .Number (eq .State.Status \"up\" \"down\")}}ok{{end}}", "ok"),
        ("{{if or .Null .Text}}ok{{end}}", "ok"),
        ("{{or .Null .Text}}", "hello world"),
        ("{{not .Null}}", "true"),
        ("{{with .State}}{{.Pid}} {{$.Number}}{{end}}", "12 3"),
        ("{{with .Null}}x{{else}}nothing{{end}}", "nothing"),
        ("{{$x := .Number}}{{$x}}{{$x = 4}}{{$x}}", "34"),
        ("{{with $x := .State}}{{$x.Status}}{{end}}", "up"),
        ('{{index .Map "a.b"}} {{index .List 1}}', "q b"),
        ('{{(index (index .Ports "80/tcp") 0).HostPort}}', "8080"),
        ('{{index .Ports "80/tcp" 0 "HostIp"}}', "0.0.0.0"),
        ('{{range $p, $c := .Ports}}{{$p}} {{range $c}}{{.HostPort}}{{end}};{{end}}', "80/tcp 8080;90/tcp ;"),
        ("{{.State.Status | upper | printf \"%s!\"}}", "UP!"),
        ('{{printf "%-6s|%5d|%.2f|%q|%x|%v|%t|%%" .Id .Number .Fraction .Text .Number .List true}}',
         '0123  |    3|1.50|"hello world"|3|[a b]|true|%'),
        ('{{printf "%d %s" .Number}}', "3 %!s(MISSING)"),
        ('{{printf "%d" .Text}}', "%!d(string=hello world)"),
        ('{{split .Text " "}} {{join .List ","}} {{title .Text}} {{lower "ABC"}}', "[hello world] a,b Hello World abc"),
        ('{{pad .Id 1 2}}|{{pad "" 1 2}}|{{truncate .Text 4}}', " 0123  ||hell"),
        ("{{len .Text}} {{len .List}} {{len .Map}} {{slice .Text 1 3}}", "11 2 2 el"),
        ("{{lt 1 2}} {{ge 2 2}} {{ne 1 2}} {{le 1.5 .Fraction}} {{gt .Text \"a\"}}", "true true true true true"),
        ("{{println .Number .Text}}{{print 1 2 \"x\" 3}}", "3 hello world\n1 2x3"),
        ("{{html \"<a&b>\"}} {{urlquery \"a b&c\"}}", "&lt;a&amp;b&gt; a+b%26c"),
        ("a  {{- .Number -}}  b", "a3b"),
        ("{{/* nothing */}}x{{- /* no */ -}} y", "xy"),
        ("{{`raw {{}} \\n`}}{{\"\\t\\u00e9\"}}{{'a'}}", "raw {{}} \\n\té97"),
        ("{{.State.Missing}}", None),
        ("{{(.State).Status}} {{.List | len}}", "up 2"),
        ("{{true}} {{-3}} {{0x10}} {{1e3}}", "true -3 16 1000"),
    ],
)  # fmt: skip
def test_render(template: str, expected: str | None) -> None:
    if expected is None:
        return_or_error(template)
    else:
        assert parse(template).render(DATA) == expected


def return_or_error(template: str) -> None:
    try:
        parse(template).render(DATA)
    except TemplateError:
        pass


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{.Foo}}", 'template: :1:2: executing "" at <.Foo>: map has no entry for key "Foo"'),
        ("x\n{{.State.Foo}}", 'template: :2:8: executing "" at <.State.Foo>: map has no entry for key "Foo"'),
        ("{{.Foo", "template: :1: unclosed action"),
        ("{{if .Number}}", "template: :1: unexpected EOF"),
        ("{{end}}", "template: :1: unexpected {{end}}"),
        ("{{if}}x{{end}}", "template: :1: missing value for if"),
        ("{{foo .}}", 'template: :1: function "foo" not defined'),
        ("{{$x}}", 'template: :1: undefined variable "$x"'),
        ('{{"abc}}', "template: :1: unterminated quoted string"),
        ("{{(.Id}}", "template: :1: unclosed left paren"),
        ("{{.Id | }}", "template: :1: missing value for command"),
        ("{{define \"x\"}}{{end}}", "template: :1: {{define}} is not supported in --format"),
        ("{{index .List 5}}", 'template: :1:2: executing "" at <index .List 5>: error calling index: index out of range: 5'),
        ("{{len .Number}}", 'template: :1:2: executing "" at <len .Number>: error calling len: len of type int'),
        ('{{eq 1 "a"}}', 'template: :1:2: executing "" at <eq 1 "a">: error calling eq: incompatible types for comparison'),
    ],
)  # fmt: skip
def test_errors(template: str, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        parse(template).render(DATA)
    assert str(caught.value) == message


def test_fields_that_the_api_leaves_out() -> None:
    container = {"State": {"Status": "running"}, "HostConfig": {"Binds": None, "CapAdd": None}, "Mounts": []}
    template = parse(
        "{{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}} {{.HostConfig.Binds}} "
        "{{json .HostConfig.CapAdd}} {{range .HostConfig.Binds}}x{{end}}{{len .Mounts}} {{.Config}}"
    )
    with pytest.raises(TemplateError):
        template.render(container, defaults=DEFAULTS)
    shorter = parse(
        "{{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}} {{.HostConfig.Binds}} "
        "{{json .HostConfig.CapAdd}} {{range .HostConfig.Binds}}x{{end}}{{len .Mounts}}"
    )
    assert shorter.render(container, defaults=DEFAULTS) == "none [] null 0"


def row() -> Row:
    return Row(
        "*formatter.ContainerContext",
        {"ID": lambda item: item["Id"], "Ports": lambda _: "80->80"},
        {"Id": "1", "Labels": {"a": "b"}},
        {"Label": lambda item, name: item["Labels"].get(name, "")},
    )


def test_rows() -> None:
    assert parse('{{.ID}} {{.Label "a"}} {{.Label "c"}}').render(row()) == "1 b "
    assert parse("{{json .}}").render(row()) == '{"ID":"1","Ports":"80-\\u003e80"}'
    assert parse("{{json .Ports}}").render(row()) == '"80->80"'
    with pytest.raises(TemplateError, match=r"can't evaluate field Foo in type \*formatter.ContainerContext"):
        parse("{{.Foo}}").render(row())
    with pytest.raises(TemplateError, match="can't evaluate field Foo"):
        parse('{{.Foo "x"}}').render(row())


def test_headings_keep_their_names() -> None:
    heading = Row("*x", {"ID": lambda _: "CONTAINER ID"}, None)
    assert parse("{{lower .ID}} {{pad .ID 1 0}} {{json .ID}}").render(heading, header=True) == (
        "CONTAINER ID  CONTAINER ID CONTAINER ID"
    )


@given(st.text(alphabet='{}.|$()"`-/* \nabIdif:=rangew,0'))
def test_no_text_breaks_the_reader(source: str) -> None:
    try:
        parse(source).render(DATA)
    except TemplateError:
        pass


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_without_actions_is_left_alone(text: str) -> None:
    if "{{" not in text:
        assert parse(text).render(DATA) == text
