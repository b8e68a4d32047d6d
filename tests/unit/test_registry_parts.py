"""The parts of the registry client that need no registry: challenges, endpoints, platforms, compression, filters."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from guest_agent.engine import image_filters
from guest_agent.errors import InvalidParameter, Unavailable
from guest_agent.images import decompress, platforms
from guest_agent.images.auth import Challenge, challenges
from guest_agent.images.config import RegistryConfig, split_port
from guest_agent.images.decompress import Decompressed
from guest_agent.images.messages import bar, size_text
from guest_agent.images.platforms import Platform
from guest_agent.images.search import search
from guest_agent.images.tar import TarError
from tests.support.faulty_registry import FaultyRegistry, Request


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("", []),
        ('Basic realm="a b"', [Challenge("basic", {"realm": "a b"})]),
        (
            'Bearer realm="https://auth.test/token",service="registry.test",scope="repository:a/b:pull,push"',
            [Challenge("bearer", {"realm": "https://auth.test/token", "service": "registry.test", "scope": "repository:a/b:pull,push"})],
        ),
        ('Bearer realm="x", error=insufficient_scope', [Challenge("bearer", {"realm": "x", "error": "insufficient_scope"})]),
        (
            'Negotiate, Basic realm="b", Bearer realm="t"',
            [Challenge("negotiate", {}), Challenge("basic", {"realm": "b"}), Challenge("bearer", {"realm": "t"})],
        ),
        (r'BASIC realm="say \"hi\""', [Challenge("basic", {"realm": 'say "hi"'})]),
    ],
)  # fmt: skip
def test_challenges(header: str, wanted: list[Challenge]) -> None:
    assert challenges(header) == wanted


@given(st.text(alphabet='Basicerl="\\, \t:/', max_size=60))
def test_any_header_is_read(header: str) -> None:
    challenges(header)


def test_endpoints() -> None:
    config = RegistryConfig(
        mirrors={
            "docker.io": ["https://mirror.test/hub/", "plain.test:5000"],
            "quay.io": ["http://10.0.0.1:5000"],
        },
        insecure=["plain.test:5000", "10.0.0.0/8", "named.test"],
    )

    def urls(domain: str) -> list[str]:
        return [endpoint.url for endpoint in config.endpoints(domain)]

    assert urls("docker.io") == [
        "https://mirror.test/hub", "https://plain.test:5000", "http://plain.test:5000", "https://registry-1.docker.io",
    ]  # fmt: skip
    assert urls("quay.io") == ["http://10.0.0.1:5000", "https://quay.io"]
    assert urls("ghcr.io") == ["https://ghcr.io"]
    for host in (
        "localhost",
        "localhost:5000",
        "127.0.0.1:1",
        "127.8.9.10",
        "[::1]:5000",
        "10.1.2.3:5000",
        "named.test:443",
    ):
        assert urls(host) == [f"https://{host}", f"http://{host}"], host
        assert not config.endpoints(host)[0].verify
    for host in ("128.0.0.1", "localhost.evil.test", "plain.test", "192.168.0.1:5000", "[::2]"):
        assert not config.is_insecure(host), host
    assert split_port("[fe80::1]:5000") == ("fe80::1", "5000")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("Linux/x86_64", Platform("linux", "amd64")),
        ("arm64", Platform("linux", "arm64")),
        ("linux/arm64/v8", Platform("linux", "arm64")),
        ("linux/arm", Platform("linux", "arm", "v7")),
        ("linux/arm/6", Platform("linux", "arm", "v6")),
        ("armhf", Platform("linux", "arm", "v7")),
        ("windows/amd64", Platform("windows", "amd64")),
    ],
)
def test_platforms(text: str, wanted: Platform) -> None:
    assert platforms.parse(text) == wanted
    assert platforms.parse(str(wanted)) == wanted


@pytest.mark.parametrize("text", ["", "what", "linux/", "linux/amd64/v2/x", "a b"])
def test_what_is_no_platform(text: str) -> None:
    with pytest.raises(InvalidParameter, match=re.escape(f'"{text}"')):
        platforms.parse(text)


def test_the_best_platform_is_the_nearest_below() -> None:
    offered = [Platform("linux", "arm", "v6"), Platform("linux", "arm", "v7"), Platform("linux", "386")]
    assert platforms.best(Platform("linux", "arm", "v7"), offered) == 1
    assert platforms.best(Platform("linux", "arm64"), offered) == 1
    assert platforms.best(Platform("linux", "arm", "v5"), offered) == -1
    assert platforms.best(Platform("linux", "amd64"), offered) == 2
    assert platforms.can_run(platforms.host())
    assert not platforms.can_run(Platform("windows", "amd64"))


def test_emulation_is_what_binfmt_misc_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = "arm64" if platforms.host().architecture == "amd64" else "amd64"
    machine = {"arm64": "b7", "amd64": "3e"}[foreign]
    rule = (
        "{}\ninterpreter /usr/bin/qemu-static\nflags: F\noffset 0\n"
        f"magic 7f454c460201010000000000000000000200{machine}00\n"
        "mask ffffffffffffff00fffffffffffffffffeffffff\n"
    )
    monkeypatch.setattr(platforms, "_BINFMT", str(tmp_path))
    assert not platforms.can_run(Platform("linux", foreign))
    (tmp_path / "status").write_text("enabled\n")
    (tmp_path / "jar").write_text("enabled\ninterpreter /usr/bin/jexec\nflags: \noffset 0\nmagic 504b0304\n")
    (tmp_path / "qemu").write_text(rule.format("disabled"))
    assert not platforms.can_run(Platform("linux", foreign))
    (tmp_path / "qemu").write_text(rule.format("enabled"))
    assert platforms.can_run(Platform("linux", foreign))
    assert not platforms.can_run(Platform("linux", "s390x"))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1),
    "zstd": zstd.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "": lambda data: data,
}


def inflated(data: bytes, step: int = 1 << 18) -> bytes:
    stream = io.BytesIO(data)
    source = Decompressed(lambda size: stream.read(min(size, step)))
    out = b""
    while chunk := source.read(1 << 16):
        out += chunk
    return out


@pytest.mark.parametrize("kind", PACKERS)
@given(data=st.binary(min_size=1, max_size=5000), step=st.integers(1, 5000))
@settings(deadline=None)
def test_compressed_streams(kind: str, data: bytes, step: int) -> None:
    data = b"plain " + data  # so that it does not look compressed
    pack = PACKERS[kind]
    assert inflated(pack(data), step) == data
    if kind:
        assert inflated(pack(data[:3]) + pack(data[3:]) + bytes(700), step) == data, (
            "members one after another"
        )


@pytest.mark.parametrize("kind", [kind for kind in PACKERS if kind])
def test_damaged_streams(kind: str) -> None:
    packed = PACKERS[kind](os.urandom(10_000))
    bad_ones = [packed[:-20], packed[:50], packed + b"rubbish"]
    if kind != "zstd":  # whose frames need not have a checksum; the diff id tells
        bad_ones.append(packed[:500] + bytes(100) + packed[600:])
    for bad in bad_ones:
        with pytest.raises(TarError, match=kind):
            inflated(bad)


def test_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2017-14992."""
    monkeypatch.setattr(decompress, "BOMB_SIZE", 4 << 20)
    for packed in (
        gzip.compress(bytes(64 << 20), 9),
        zstd.compress(bytes(64 << 20)),
        lzma.compress(bytes(64 << 20)),
    ):
        with pytest.raises(TarError, match="decompression bomb"):
            inflated(packed)
    noise = os.urandom(5 << 20)
    assert inflated(PACKERS["gzip"](noise)) == noise


def test_progress_bars_are_dockers() -> None:
    assert bar(500, 1000) == "[=========================>                         ]     500B/1kB"
    assert bar(1036264, 1036264) == f"[{'=' * 50}>]  1.036MB/1.036MB"
    assert size_text(1234567) == "1.235MB"


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("alpine", "alpine:3", True),
        ("alpine:*", "alpine:3", True),
        ("alp*", "alpine:3", True),
        ("*/*", "a/b:1", True),
        ("*", "a/b:1", False),
        ("a/?", "a/b:1", True),
        ("[a-c]lpine", "alpine:3", True),
        ("[^a]lpine", "alpine:3", False),
        ("example.test/*:v[12]", "example.test/x:v2", True),
        (r"a\*", "a:1", False),
    ],
)
def test_reference_filters(pattern: str, name: str, matches: bool) -> None:
    assert image_filters.matches_pattern(image_filters.glob(pattern), name) is matches


@pytest.mark.parametrize("pattern", ["[", "[]", "a\\"])
def test_bad_patterns(pattern: str) -> None:
    with pytest.raises(InvalidParameter, match="syntax error in pattern"):
        image_filters.glob(pattern)


def test_until() -> None:
    assert image_filters.until("1700000000") == 1_700_000_000
    assert image_filters.until("2023-11-14T22:13:20Z") == 1_700_000_000
    assert abs(image_filters.until("1h30m") - (time.time() - 5400)) < 5
    with pytest.raises(InvalidParameter):
        image_filters.until("yesterday")


def test_times_as_go_writes_them() -> None:
    assert image_filters.instant("2024-01-01T00:00:00.123456789Z") == 1704067200.123456
    assert image_filters.instant("0001-01-01T00:00:00Z") == 0
    assert image_filters.instant("rubbish") == 0


def test_search() -> None:
    running = FaultyRegistry()
    hits = [
        {"name": "official", "description": "d", "is_official": True, "star_count": 7, "is_automated": True},
        {"name": "some/other", "star_count": 1},
    ]
    asked = []

    def answer(request: Request) -> bool:
        asked.append(request.path)
        request.send(200, json.dumps({"num_results": 2, "results": hits}).encode())
        return True

    running.fault = answer
    try:
        found = search(RegistryConfig(), f"{running.address}/term", 25)
        assert asked == ["/v1/search?q=term&n=25"]
        assert found == [
            {
                "name": "official",
                "description": "d",
                "is_official": True,
                "star_count": 7,
                "is_automated": False,
            },
            {
                "name": "some/other",
                "description": "",
                "is_official": False,
                "star_count": 1,
                "is_automated": False,
            },
        ]
        running.fault = lambda request: request.error(500, "UNKNOWN", "broken")
        with pytest.raises(Unavailable, match="Unexpected status code 500: unknown: broken"):
            search(RegistryConfig(), f"{running.address}/term", 25)
        running.fault = lambda request: False
        with pytest.raises(Unavailable, match="is no search result"):
            search(RegistryConfig(), f"{running.address}/term", 25)
    finally:
        running.close()
