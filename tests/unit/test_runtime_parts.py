"""The runtime's parsers and tables that need no container: users, mount options, limits, logs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.errors import InvalidParameter
from guest_agent.kernel import syscalls as s
from guest_agent.kernel.paths import RootFd
from guest_agent.runtime import capabilities, users
from guest_agent.runtime.cgroups import convert, devices
from guest_agent.runtime.cgroups.base import integer, table
from guest_agent.runtime.jsonlog import JsonLog, compress_file
from guest_agent.runtime.mount_options import MountOptions
from guest_agent.runtime.process import environment
from guest_agent.runtime.stage import StageError
from guest_agent.runtime.users import Identity

# Users


@pytest.fixture
def etc(tmp_path: Path) -> Callable[[str, str], RootFd]:
    def write(passwd: str, group: str) -> RootFd:
        (tmp_path / "etc").mkdir(exist_ok=True)
        (tmp_path / "etc/passwd").write_text(passwd)
        (tmp_path / "etc/group").write_text(group)
        return RootFd.at(tmp_path)

    return write


def as_tuple(identity: Identity) -> tuple[int, int, list[int], str]:
    return identity.uid, identity.gid, identity.groups, identity.home


def test_first_entry_wins(etc: Callable[[str, str], RootFd]) -> None:
    with etc("a:x:1:2::/one:\na:x:3:4::/two:\n", "") as root:
        assert as_tuple(users.resolve(root, "a", [])) == (1, 2, [2], "/one")


def test_number_is_never_a_name(etc: Callable[[str, str], RootFd]) -> None:
    with etc("5:x:0:0::/root:\n", "7:x:0:\n") as root:
        assert as_tuple(users.resolve(root, "5:7", [])) == (5, 7, [7], "/")


@pytest.mark.parametrize(
    "line", ["a:x", "a", "", "a:x::", "a:x:0x0:0::/:", "a:x:-:0::/:", "a:x: 0:0::/:", ":::::::", "a:x:0"]
)
def test_malformed_line_is_nobody(etc: Callable[[str, str], RootFd], line: str) -> None:
    with etc(f"{line}\n", "") as root, pytest.raises(StageError, match="unable to find user a"):
        users.resolve(root, "a", [])


def test_ids_out_of_range_in_the_files(etc: Callable[[str, str], RootFd]) -> None:
    # CVE-2024-40635: what overflows is not root.
    with etc("a:x:4294967296:0::/:\nb:x:1:4294967296::/:\n", "g:x:4294967295:c\n") as root:
        for name in ("a", "b", "0:g"):
            with pytest.raises(StageError, match="uids and gids must be in range"):
                users.resolve(root, name, [])


def test_files_that_are_missing(tmp_path: Path) -> None:
    with RootFd.at(tmp_path) as root:
        assert as_tuple(users.resolve(root, "", [])) == (0, 0, [0], "/")
        assert as_tuple(users.resolve(root, "12:13", ["14"])) == (12, 13, [13, 14], "/")
        assert users.home_of(root, 12) == "/"


@given(st.text(max_size=40), st.text(max_size=200), st.text(max_size=200))
def test_any_file_gives_an_identity_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, name: str, passwd: str, group: str
) -> None:
    top = tmp_path_factory.mktemp("root")
    (top / "etc").mkdir()
    (top / "etc/passwd").write_text(passwd, encoding="utf-8", errors="surrogatepass")
    (top / "etc/group").write_text(group, encoding="utf-8", errors="surrogatepass")
    with RootFd.at(top) as root:
        try:
            found = users.resolve(root, name, [])
        except StageError as e:
            found = None
            sentence = e.text
    if found is None:
        assert "unable to find" in sentence or "must be in range" in sentence
        return
    assert 0 <= found.uid < 1 << 31
    assert found.gid in found.groups
    if found.uid == 0 and name.partition(":")[0] not in ("", "0"):
        # Root by name only if an entry says so.
        assert any(
            line.split(":")[2:3] in (["0"], ["+0"], ["-0"]) or "0" in line for line in passwd.splitlines()
        ) or (set(name.partition(":")[0]) <= set("+-0"))


# Mounts


def test_mount_options() -> None:
    options = MountOptions(["rbind", "ro", "nosuid", "rprivate", "size=1m", "sync", "async", "noatime"])
    assert (options.bind, options.recursive) == (True, True)
    assert options.set == s.MOUNT_ATTR_RDONLY | s.MOUNT_ATTR_NOSUID | s.MOUNT_ATTR_NOATIME
    assert options.clear == s.MOUNT_ATTR_ATIME  # one field
    assert (options.propagation, options.propagation_recursive) == (s.MS_PRIVATE, True)
    assert options.data == ["size=1m", "sync"]


def test_last_mount_option_wins() -> None:
    options = MountOptions(["ro", "rw", "exec", "noexec", "rro", "rshared", "slave"])
    assert options.set == s.MOUNT_ATTR_NOEXEC
    assert options.clear == s.MOUNT_ATTR_RDONLY
    assert options.set_all == s.MOUNT_ATTR_RDONLY
    assert (options.propagation, options.propagation_recursive) == (s.MS_SLAVE, False)


@given(
    st.lists(
        st.sampled_from(["ro", "rw", "rro", "rrw", "noatime", "relatime", "strictatime", "nodev", "dev"])
    )
)
def test_attributes_are_never_set_and_cleared_at_once(names: list[str]) -> None:
    options = MountOptions(names)
    for on, off in ((options.set, options.clear), (options.set_all, options.clear_all)):
        # The access time is one field: the kernel wants all of it cleared when a part is set.
        assert on & off & ~s.MOUNT_ATTR_ATIME == 0


# Limits


@pytest.mark.parametrize(
    ("shares", "weight"),
    [(0, 0), (1, 1), (2, 1), (512, 59), (1024, 100), (2048, 174), (262144, 10000), (1 << 30, 10000)],
)
def test_cpu_weight(shares: int, weight: int) -> None:
    assert convert.cpu_weight(shares) == weight


@given(st.integers(2, 262143))
def test_cpu_weight_rises(shares: int) -> None:
    assert 1 <= convert.cpu_weight(shares) <= convert.cpu_weight(shares + 1) <= 10000


@pytest.mark.parametrize(("weight", "expected"), [(0, 0), (10, 1), (500, 4950), (1000, 10000)])
def test_io_weight(weight: int, expected: int) -> None:
    assert convert.io_weight(weight) == expected


@pytest.mark.parametrize(
    ("swap", "limit", "expected"),
    [
        (0, 0, ""),
        (0, 100, ""),
        (-1, 100, "max"),
        (-1, 0, "max"),
        (150, 100, "50"),
        (100, 100, "0"),
        (0, -1, "max"),
    ],
)
def test_swap(swap: int, limit: int, expected: str) -> None:
    assert convert.swap_max(swap, limit) == expected


def test_swap_that_contradicts_the_limit() -> None:
    with pytest.raises(ValueError, match="memory\\+swap limit should be >= memory limit"):
        convert.swap_max(50, 100)
    with pytest.raises(ValueError, match="without memory limit"):
        convert.swap_max(50, 0)


def test_control_files() -> None:
    assert table("usage_usec 12\nuser_usec 5\n\nodd") == {"usage_usec": 12, "user_usec": 5}
    assert integer("max") == (1 << 64) - 1
    assert integer("7") == 7


def test_device_lines() -> None:
    rules = [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"},
    ]
    assert devices.v1_lines(rules) == [(False, "a"), (True, "c 1:3 rw")]
    assert devices.v1_lines([{"allow": True, "type": "b", "access": "m"}]) == [(True, "b *:* m")]
    assert devices.v1_lines([{"allow": True, "type": "u", "major": 136}]) == [(True, "c 136:* rwm")]


def run_device_program(program: bytes, kind: str, access: str, major: int, minor: int) -> bool:
    """Interprets the few eBPF instructions a device program is made of."""
    import struct

    bits = sum({"m": 1, "r": 2, "w": 4}[letter] for letter in access)
    context = struct.pack("=III", bits << 16 | {"b": 1, "c": 2}[kind], major, minor)
    registers = [0] * 11
    instructions = list(struct.iter_unpack("=BBhi", program))
    position = 0
    while True:
        code, operands, offset, immediate = instructions[position]
        target, source = operands & 15, operands >> 4
        position += 1
        if code == 0x61:
            registers[target] = struct.unpack_from("=I", context, offset)[0]
        elif code == 0xBC:
            registers[target] = registers[source]
        elif code == 0xB7:
            registers[target] = immediate
        elif code == 0x54:
            registers[target] &= immediate
        elif code == 0x74:
            registers[target] >>= immediate
        elif code == 0x05:
            position += offset
        elif code == 0x15:
            position += offset if registers[target] == immediate else 0
        elif code == 0x55:
            position += offset if registers[target] != immediate else 0
        else:
            assert code == 0x95
            return bool(registers[0])


ACCESS = st.sets(st.sampled_from("rwm"), min_size=1).map(lambda letters: "".join(sorted(letters)))
RULES = st.lists(
    st.fixed_dictionaries(
        {"allow": st.booleans(), "type": st.sampled_from(["a", "b", "c"]), "access": ACCESS},
        optional={"major": st.integers(0, 3), "minor": st.integers(0, 3)},
    ),
    max_size=8,
)


@given(RULES, st.sampled_from("bc"), ACCESS, st.integers(0, 3), st.integers(0, 3))
def test_device_program(rules: list[devices.Rule], kind: str, access: str, major: int, minor: int) -> None:
    def allowed(letter: str) -> bool:
        verdict = False
        for rule in rules:
            every = rule["type"] == "a"
            if every or (
                rule["type"] == kind
                and letter in rule["access"]
                and rule.get("major", major) == major
                and rule.get("minor", minor) == minor
            ):
                verdict = rule["allow"]
        return verdict

    program = devices.bpf_program(rules)
    assert run_device_program(program, kind, access, major, minor) == all(map(allowed, access))


# Capabilities, environment


def test_capabilities() -> None:
    assert capabilities.normalise("net_raw") == capabilities.normalise("CAP_NET_RAW") == "CAP_NET_RAW"
    assert capabilities.normalise("all") == "ALL"
    assert capabilities.mask(["CAP_CHOWN", "CAP_SYS_ADMIN"]) == 1 | 1 << 21
    assert len(capabilities.DEFAULT) == 14
    with pytest.raises(InvalidParameter, match='unknown capability: "CAP_NOSUCH"'):
        capabilities.normalise("nosuch")


def test_environment() -> None:
    assert environment(["A=1", "B=2=3", "A=4", "BARE", "HOME="], "/h") == {"A": "4", "B": "2=3", "HOME": "/h"}


# Logs


def logged(path: Path) -> list[str]:
    return [json.loads(line)["log"] for line in path.read_text(encoding="utf-8").splitlines()]


def open_log(path: Path, **more: object) -> JsonLog:
    spec = {"path": str(path), "max_size": -1, "max_files": 1, "compress": False, "attrs": {}} | more

    def compress(name: str, then: Callable[[], None]) -> None:
        compress_file(name)
        then()

    return JsonLog(spec, compress)


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_log_does_not_depend_on_how_output_comes_apart(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    top = tmp_path_factory.mktemp("log")
    whole = b"".join(pieces)
    for name, chunks in (("pieces", pieces), ("whole", [whole] if whole else [])):
        log = open_log(top / name)
        for chunk in chunks:
            if chunk:
                log.write("stdout", chunk)
        log.end("stdout")
        log.close()
    assert logged(top / "pieces") == logged(top / "whole")
    lines = whole.split(b"\n")
    expected = [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    assert logged(top / "whole") == [line.decode("utf-8", "replace") for line in expected]


def test_long_lines_are_cut_between_characters(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log")
    line = "é" * 20_000  # two bytes each
    data = f"x{line}\n".encode()
    for start in range(0, len(data), 4096):
        log.write("stdout", data[start : start + 4096])
    log.end("stdout")
    log.close()
    entries = logged(tmp_path / "log")
    assert "".join(entries) == f"x{line}\n"
    assert all(len(entry.encode()) <= 16 * 1024 for entry in entries)
    assert "\ufffd" not in "".join(entries)
    assert len(entries) == 3


def test_streams_do_not_mix(tmp_path: Path) -> None:
    log = open_log(tmp_path / "log")
    log.write("stdout", b"out")
    log.write("stderr", b"err\n")
    log.write("stdout", b"put\n")
    log.close()
    assert logged(tmp_path / "log") == ["err\n", "output\n"]


@given(st.integers(100, 2000), st.integers(1, 5), st.booleans(), st.integers(1, 200))
def test_rotation_keeps_the_newest(
    tmp_path_factory: pytest.TempPathFactory, size: int, files: int, compress: bool, lines: int
) -> None:
    import gzip

    top = tmp_path_factory.mktemp("log")
    log = open_log(top / "log", max_size=size, max_files=files, compress=compress)
    for number in range(lines):
        log.write("stdout", b"%d\n" % number)
    log.close()
    names = sorted(os.listdir(top))
    assert len(names) <= files
    kept: list[str] = []
    for number in range(files - 1, 0, -1):
        plain, packed = top / f"log.{number}", top / f"log.{number}.gz"
        if packed.exists():
            assert compress
            with gzip.open(packed, "rt") as file:
                kept += [json.loads(line)["log"] for line in file]
        elif plain.exists():
            assert not compress
            kept += logged(plain)
    kept += logged(top / "log")
    assert kept == [f"{number}\n" for number in range(lines)][-len(kept) :]
    assert kept
    # Nothing is thrown away while there is room: fewer files than allowed means all lines are there.
    if len(names) < files:
        assert len(kept) == lines
