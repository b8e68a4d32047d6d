"""What docker's output looks like: columns, sizes, times, ports, listings."""

from __future__ import annotations

import datetime
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host_client.cli import units
from host_client.cli.commands import ps
from host_client.cli.errors import CliError
from host_client.cli.listing import Listing
from host_client.cli.tabwriter import align, width_of


def test_columns() -> None:
    assert align("A\tBB\tC\na longer one\tb\tc\n") == (
        "A              BB        C\na longer one   b         c\n"
    )
    assert align("one\n\ttwo\n") == "one\n          two\n"
    assert align("a\tb\nplain\nc\td") == "a         b\nplain\nc         d"


def test_a_column_ends_with_its_lines() -> None:
    """Neighbouring lines share widths; a line without the cell starts anew, as in Go's tabwriter."""
    assert align("wide cell here\tx\n-\nn\ty\n") == "wide cell here   x\n-\nn         y\n"


def test_wide_characters() -> None:
    assert width_of("日本") == 4
    assert align("日本\tx\n") == "日本      x\n"


@given(st.lists(st.lists(st.text("abc ", max_size=14), min_size=3, max_size=3), min_size=1, max_size=6))
def test_columns_line_up(rows: list[list[str]]) -> None:
    lines = align("".join("\t".join([*row, "|"]) + "\n" for row in rows)).split("\n")[:-1]
    assert len({line.rindex("|") for line in lines}) == 1
    for row, line in zip(rows, lines, strict=True):
        assert line.startswith(row[0].ljust(10))


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0B"), (999, "999B"), (1000, "1kB"), (1982298, "1.982MB"), (10**12, "1TB"), (123456789, "123.5MB")],
)
def test_human_size(size: int, shown: str) -> None:
    assert units.human_size(size) == shown


def test_other_sizes() -> None:
    assert units.human_size(1982298, 3) == "1.98MB"
    assert units.binary_size(25276293120) == "23.54GiB"
    assert units.binary_size(512) == "512B"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.5, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"),
        (150, "2 minutes"), (3599, "59 minutes"), (3600, "About an hour"), (5400, "2 hours"), (86400, "24 hours"),
        (172800, "2 days"), (86400 * 14, "2 weeks"), (86400 * 60, "2 months"), (86400 * 730, "2 years"),
    ],
)  # fmt: skip
def test_human_duration(seconds: float, shown: str) -> None:
    assert units.human_duration(seconds) == shown


@given(
    st.datetimes(datetime.datetime(1, 1, 1), datetime.datetime(9999, 12, 31), timezones=st.just(datetime.UTC))
)
def test_api_times(moment: datetime.datetime) -> None:
    text = moment.strftime("%Y").zfill(4) + moment.strftime("-%m-%dT%H:%M:%S.%fZ")
    seconds, fraction = units.parse_rfc3339(text)
    assert (
        seconds
        == (
            moment.replace(microsecond=0) - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
        ).total_seconds()
    )
    assert float("0" + (fraction or ".0")) == pytest.approx(moment.microsecond / 1e6)


def test_api_times_with_a_zone() -> None:
    assert units.parse_rfc3339("2024-05-01T12:00:00.5+02:00") == (
        units.parse_rfc3339("2024-05-01T10:00:00Z")[0],
        ".5",
    )


def test_local_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert units.local_time(1700000000) == "2023-11-14 23:13:20 +0100 CET"
        assert units.rfc3339(1700000000) == "2023-11-14T23:13:20+01:00"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_ellipsis() -> None:
    assert units.ellipsis("abcdef", 6) == "abcdef"
    assert units.ellipsis("abcdefg", 6) == "abcde…"
    assert units.ellipsis("日本語です", 6) == "日本…"


def port(private: int, public: int = 0, ip: str = "", kind: str = "tcp") -> dict[str, object]:
    found: dict[str, object] = {"PrivatePort": private, "Type": kind}
    return found | ({"PublicPort": public, "IP": ip} if ip else {})


@pytest.mark.parametrize(
    ("ports", "shown"),
    [
        ([], ""),
        ([port(80)], "80/tcp"),
        ([port(80), port(81), port(83)], "80-81/tcp, 83/tcp"),
        ([port(80, 8080, "0.0.0.0")], "0.0.0.0:8080->80/tcp"),
        ([port(80, 80, "0.0.0.0"), port(81, 81, "0.0.0.0")], "0.0.0.0:80-81->80-81/tcp"),
        ([port(80, 8080, "::")], "[::]:8080->80/tcp"),
        ([port(443), port(80, 8080, "0.0.0.0"), port(53, 53, "127.0.0.1", "udp")],
         "127.0.0.1:53->53/udp, 443/tcp, 0.0.0.0:8080->80/tcp"),
    ],
)  # fmt: skip
def test_ports(ports: list[dict[str, object]], shown: str) -> None:
    assert ps.ports_text(ports) == shown


def test_quoted_commands() -> None:
    assert ps.go_quote('sh -c "a\tb\\c\x01é"') == '"sh -c \\"a\\tb\\\\c\\x01é\\""'


LISTING = Listing(
    "x.Context", {"ID": ("THE ID", lambda item: item), "Up": ("UP", str.upper)}, ("ID",), raw="id: {{.ID}}"
)


@pytest.mark.parametrize(
    ("layout", "shown"),
    [
        ("", "THE ID\na\nb\n"),
        ("table", "THE ID\na\nb\n"),
        ("json", '{"ID":"a","Up":"A"}\n{"ID":"b","Up":"B"}\n'),
        ("raw", "id: a\nid: b\n"),
        ("{{.Up}}", "A\nB\n"),
        (r"{{.ID}}\t{{.Up}}", "a\tA\nb\tB\n"),
        (r"table {{.ID}}\t{{.Up | lower}}", "THE ID    UP\na         a\nb         b\n"),
    ],
)
def test_listing(layout: str, shown: str) -> None:
    assert LISTING.render(["a", "b"], layout) == shown


def test_colour_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host_client.cli.output.is_terminal", lambda _: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    listing = Listing(
        "x",
        {"N": ("NAME", lambda i: i[0]), "S": ("STATUS", lambda i: i[1]), "P": ("P", lambda _: "p")},
        "NSP",
    )
    items = [("Up x", "Up 2 hours"), ("b", "Exited (1) now")]
    shown = listing.render(items, "")
    assert shown == (
        "\x1b[1mNAME      STATUS           P\x1b[0m\n"
        "Up x      \x1b[32mUp 2 hours\x1b[0m       p\n"
        "b         \x1b[90mExited (1) now\x1b[0m   p\n"
    )
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in listing.render(items, "")


def test_pretty_listing() -> None:
    shown = LISTING.render(["a", "b"], "pretty")
    assert "THE ID" in shown
    assert "╭" in shown
    assert "│ b" in shown


def test_listing_with_a_field_that_is_not_there() -> None:
    with pytest.raises(CliError, match=r"can't evaluate field Foo in type \*x.Context"):
        LISTING.render(["a"], "{{.Foo}}")
    with pytest.raises(CliError, match="failed to parse template: template: :1: unclosed action"):
        LISTING.render(["a"], "{{.Foo")


def test_empty_listing() -> None:
    assert LISTING.render([], "") == "THE ID\n"
    assert LISTING.render([], "json") == ""
    assert json.loads(LISTING.render(["<"], "json")) == {"ID": "<", "Up": "<"}
