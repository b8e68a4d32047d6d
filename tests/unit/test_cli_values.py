"""Values of flags, against what Go's and docker's own parsers make of them."""

from __future__ import annotations

import csv
import io
import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host_client.cli import values
from host_client.cli.options import checks, networks, ports
from host_client.cli.options.container_config import read_pairs, restart_policy
from host_client.cli.options.mounts import parse_mount, split_volume


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("32", 32), ("32b", 32), ("32B", 32), ("32k", 32768), ("32KiB", 32768), ("32 kb", 32768),
        ("1.5g", 1610612736), ("2T", 2 << 40), ("1PiB", 1 << 50), (".5k", 512),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert values.size(text) == size


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "invalid size: ''"),
        ("x", "invalid size: 'x'"),
        ("-5", "invalid size: '-5'"),
        ("5z", "invalid suffix: 'z'"),
        ("5kx", "invalid suffix: 'kx'"),
        ("5bb", "invalid suffix: 'bb'"),
        ("5kibx", "invalid suffix: 'kibx'"),
        ("1.2.3", 'strconv.ParseFloat: parsing "1.2.3": invalid syntax'),
    ],
)
def test_wrong_sizes(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
        values.size(text)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("1s", 10**9),
        ("1h2m3.5s", 3723500000000),
        ("250ms", 250000000),
        ("1.5µs", 1500),
        ("-2m", -120 * 10**9),
    ],
)
def test_durations(text: str, nanoseconds: int) -> None:
    assert values.duration(text) == nanoseconds


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", 'time: invalid duration ""'),
        ("5", 'time: missing unit in duration "5"'),
        ("5x", 'time: unknown unit "x" in duration "5x"'),
        ("s", 'time: invalid duration "s"'),
        (".s", 'time: invalid duration ".s"'),
    ],
)
def test_wrong_durations(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"):
        values.duration(text)


@pytest.mark.parametrize(
    ("text", "number"), [("10", 10), ("-3", -3), ("0x1f", 31), ("010", 8), ("0b11", 3), ("1_000", 1000)]
)
def test_integers(text: str, number: int) -> None:
    assert values.integer(text) == number


@given(st.integers(-(2**70), 2**70))
def test_integers_have_64_bits(number: int) -> None:
    if -(2**63) <= number < 2**63:
        assert values.integer(str(number)) == number
    else:
        with pytest.raises(ValueError, match="value out of range"):
            values.integer(str(number))


@pytest.mark.parametrize(
    ("text", "nano"),
    [("1", 10**9), ("1.5", 1500000000), (".25", 250000000), ("3/4", 750000000), ("1e-2", 10**7)],
)
def test_cpus(text: str, nano: int) -> None:
    assert values.cpus(text) == nano


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), min_size=1, max_size=5
    )
)
def test_csv_reads_what_csv_writes(fields: list[str]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerow(fields)
    assert values.csv_fields(buffer.getvalue().removesuffix("\r\n")) == fields


@pytest.mark.parametrize("text", ['a"b', '"a', '"a"b', 'x,"y'])
def test_csv_with_stray_quotes(text: str) -> None:
    with pytest.raises(ValueError, match="parse error on line 1"):
        values.csv_fields(text)


@given(st.ip_addresses())
def test_addresses(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    shown = values.address(str(address))
    mapped = getattr(address, "ipv4_mapped", None)
    assert ipaddress.ip_address(shown) == (mapped or address)


@pytest.mark.parametrize("text", ["", "1.2.3", "1.2.3.4.5", "01.2.3.4", "1.2.3.256", "::g", "[::1]", "host"])
def test_no_addresses(text: str) -> None:
    assert values.address(text) == ""


@given(st.integers(1, 65535), st.integers(0, 20), st.sampled_from(["tcp", "udp", "sctp"]))
def test_ranges_of_ports_map_one_to_one(first: int, more: int, protocol: str) -> None:
    last = min(first + more, 65535)
    bindings = ports.published([f"{first}-{last}:{first}-{last}/{protocol}"])
    assert list(bindings) == [f"{port}/{protocol}" for port in range(first, last + 1)]
    assert all(
        found == [{"HostIp": "", "HostPort": port.partition("/")[0]}] for port, found in bindings.items()
    )


def test_a_range_of_host_ports_for_one_port() -> None:
    assert ports.published(["127.0.0.1:8000-8010:80"]) == {
        "80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8000-8010"}]
    }


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("/a:/b", ("/a:/b", None)),
        ("name:/b:ro", ("name:/b:ro", None)),
        ("/anonymous", (None, "/anonymous")),
        ("C:\\data:/b", ("C:\\data:/b", None)),
        ("C:\\data", (None, "C:\\data")),
        ("a", (None, "a")),
    ],
)
def test_volumes(spec: str, expected: tuple[str | None, str | None]) -> None:
    assert split_volume(spec) == expected


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_text_breaks_the_readers(text: str) -> None:
    """Whatever a user types is a value or a ValueError."""
    for read in (
        parse_mount, networks.parse_network, split_volume, restart_policy, checks.ulimit, checks.gpus, values.cpus,
        values.duration, values.size, checks.extra_host, checks.device_rule, checks.dns_search,
    ):  # fmt: skip
        try:
            read(text)
        except ValueError:
            pass
    try:
        ports.published([text])
        ports.exposed([text])
    except ValueError:
        pass


@pytest.mark.parametrize(
    "text", ["92:d0:c6:0a:29:33", "92-d0-c6-0a-29-33", "92d0.c60a.2933", "02:00:5e:10:00:00:00:01"]
)
def test_mac_addresses(text: str) -> None:
    assert networks.valid_mac(text)


@pytest.mark.parametrize(
    "text", ["", "x", "92:d0:c6:0a:29", "92:d0:c6:0a:29:3g", "92:d0-c6:0a:29:33", "92d0c60a2933"]
)
def test_no_mac_addresses(text: str) -> None:
    assert not networks.valid_mac(text)


def test_files_of_variables(tmp_path: object) -> None:
    path = f"{tmp_path}/vars"
    with open(path, "wb") as file:
        file.write(b"\xef\xbb\xbfFIRST=1\r\n# no\n\n  SECOND= a b \nTAKEN\nMISSING\nEMPTY=\n")
    assert read_pairs([path], {"TAKEN": "x"}) == ["FIRST=1", "SECOND= a b ", "TAKEN=x", "EMPTY="]
    assert read_pairs([path], None) == ["FIRST=1", "SECOND= a b ", "EMPTY="]
