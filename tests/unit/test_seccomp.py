"""Seccomp profiles resolved for a container, and the programs made of them."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.errors import InvalidParameter, NotSupported
from guest_agent.runtime import capabilities, seccomp, seccomp_program
from tests.support import libseccomp

DEFAULT = set(capabilities.DEFAULT)
ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
X86_64 = os.uname().machine == "x86_64"


def names(resolved: dict[str, Any], action: str = "SCMP_ACT_ALLOW") -> set[str]:
    return {
        name
        for rule in resolved["syscalls"]
        if rule["action"] == action and "args" not in rule
        for name in rule["names"]
    }


def test_default_profile() -> None:
    resolved = seccomp.resolve(None, DEFAULT)
    allowed = names(resolved)
    assert resolved["defaultAction"] == "SCMP_ACT_ERRNO"
    assert resolved["defaultErrnoRet"] == 1
    assert {"read", "execve", "chroot", "ptrace"} <= allowed
    assert not {"mount", "bpf", "setns", "unshare", "clone", "clone3", "keyctl", "io_uring_setup"} & allowed
    assert {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38} in resolved["syscalls"]
    sockets = [rule["args"] for rule in resolved["syscalls"] if rule["names"] == ["socket"]]
    assert [(args[0]["op"], args[0]["value"]) for args in sockets] == [
        ("SCMP_CMP_LT", 38),
        ("SCMP_CMP_EQ", 39),
        ("SCMP_CMP_GT", 40),
    ]


def test_capabilities_open_calls() -> None:
    assert "reboot" not in names(seccomp.resolve(None, DEFAULT))
    assert "reboot" in names(seccomp.resolve(None, DEFAULT | {"CAP_SYS_BOOT"}))
    admin = seccomp.resolve(None, DEFAULT | {"CAP_SYS_ADMIN"})
    assert {"mount", "clone", "clone3", "unshare"} <= names(admin)
    assert not [rule for rule in admin["syscalls"] if rule["action"] == "SCMP_ACT_ERRNO"]
    assert "chroot" not in names(seccomp.resolve(None, set()))


def test_default_is_resolved_once() -> None:
    assert seccomp.resolve(None, DEFAULT) is seccomp.resolve(None, set(DEFAULT))


@pytest.mark.parametrize(
    ("condition", "applies"),
    [
        ({"includes": {"arches": ["s390x"]}}, False),
        ({"includes": {"arches": ["amd64", "arm64"]}}, True),
        ({"excludes": {"arches": ["amd64", "arm64"]}}, False),
        ({"includes": {"caps": ["CAP_CHOWN"]}}, True),
        ({"includes": {"caps": ["CAP_CHOWN", "CAP_BPF"]}}, False),
        ({"excludes": {"caps": ["CAP_BPF", "CAP_CHOWN"]}}, False),
        ({"includes": {"minKernel": "4.8"}}, True),
        ({"includes": {"minKernel": "99.0"}}, False),
        ({"excludes": {"minKernel": "4.8"}}, False),
        ({"includes": None, "excludes": {}}, True),
    ],
)
def test_conditions(condition: dict[str, Any], applies: bool) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"} | condition],
    }
    assert ("read" in names(seccomp.resolve(profile, DEFAULT))) == applies


def test_old_form_with_one_name() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"name": "mkdir", "action": "SCMP_ACT_ERRNO", "args": []}],
    }
    assert seccomp.resolve(profile, DEFAULT)["syscalls"] == [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]


@pytest.mark.parametrize(
    ("profile", "text"),
    [
        ({}, "defaultAction must be set"),
        ([], "defaultAction must be set"),
        (
            {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"], "archMap": [{}]},
            "'architectures' and 'archMap'",
        ),
        (
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"name": "a", "names": ["b"], "action": "SCMP_ACT_ALLOW"}],
            },
            "'name' and 'names' were specified",
        ),
        (
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "5"}}],
            },
            'invalid kernel version: "5"',
        ),
    ],
)
def test_profile_that_makes_no_sense(profile: Any, text: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        seccomp.resolve(profile, DEFAULT)
    assert text in caught.value.message


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"defaultAction": "SCMP_ACT_NONSENSE"}, InvalidParameter, "invalid action"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, NotSupported, "SCMP_ACT_NOTIFY"),
        ({"flags": ["SECCOMP_FILTER_FLAG_NEW"]}, NotSupported, "SECCOMP_FILTER_FLAG_NEW"),
        ({"architectures": ["SCMP_ARCH_PDP11"]}, InvalidParameter, "SCMP_ARCH_PDP11"),
        (
            {"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "errnoRet": 1}]},
            InvalidParameter,
            "errno",
        ),
        (
            {
                "syscalls": [
                    {
                        "names": ["read"],
                        "action": "SCMP_ACT_KILL",
                        "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}],
                    }
                ]
            },
            InvalidParameter,
            "index 6",
        ),
        (
            {
                "syscalls": [
                    {
                        "names": ["read"],
                        "action": "SCMP_ACT_KILL",
                        "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_ODD"}],
                    }
                ]
            },
            InvalidParameter,
            "invalid operator",
        ),
    ],
)
def test_profile_that_cannot_be_compiled(change: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        seccomp.compiled({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []} | change)


def test_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = seccomp.resolve(None, DEFAULT)
    program = seccomp.compiled(resolved)
    monkeypatch.setattr(seccomp_program, "compile_program", None)
    assert seccomp.compiled(resolved) is program
    assert seccomp.known(json.loads(json.dumps(resolved))) is program  # by content, too
    assert seccomp.known({"defaultAction": "SCMP_ACT_LOG"}) is None


def run_filter(program: bytes, number: int, args: tuple[int, ...] = (), arch: int | None = None) -> int:
    """Interprets a classic BPF program as the kernel does, on a struct seccomp_data."""
    if arch is None:
        arch = 0xC000003E if X86_64 else 0xC00000B7
    data = struct.pack("<iIQ6Q", number, arch, 0, *(list(args) + [0] * 6)[:6])
    instructions = list(struct.iter_unpack("=HBBI", program))
    accumulator, position = 0, 0
    scratch = [0] * 16
    while True:
        code, true, false, k = instructions[position]
        position += 1
        if code == 0x20:
            accumulator = struct.unpack_from("<I", data, k)[0]
        elif code == 0x06:
            return int(k)
        elif code == 0x05:
            position += k
        elif code == 0x54:
            accumulator &= k
        elif code == 0x02:
            scratch[k] = accumulator
        elif code == 0x60:
            accumulator = scratch[k]
        else:
            holds = {
                0x15: accumulator == k,
                0x25: accumulator > k,
                0x35: accumulator >= k,
                0x45: bool(accumulator & k),
            }[code]
            position += true if holds else false


def number_of(name: str) -> int:
    return seccomp_program.numbers()[os.uname().machine].get(name, -1)


def program_of(resolved: dict[str, Any]) -> bytes:
    program = seccomp.compiled(resolved)
    return os.pread(program.fd, program.size, 0)


@pytest.fixture(scope="module")
def default_program() -> bytes:
    return program_of(seccomp.resolve(None, DEFAULT))


@pytest.mark.parametrize(
    ("name", "args", "verdict"),
    [
        ("read", (), ALLOW),
        ("mount", (), EPERM),
        ("clone3", (), ENOSYS),
        ("clone", (0x11,), ALLOW),
        ("clone", (0x11 | 0x10000000,), EPERM),  # CLONE_NEWUSER
        ("clone", (0x11 | 0x20000000,), EPERM),
        ("socket", (2,), ALLOW),
        ("socket", (38,), EPERM),  # AF_ALG
        ("socket", (39,), ALLOW),
        ("socket", (40,), EPERM),  # AF_VSOCK
        ("socket", (41,), ALLOW),
        ("socket", (1 << 32 | 38,), ALLOW),  # a comparison of 64 bits; the kernel takes an int: EAFNOSUPPORT
        ("personality", (0,), ALLOW),
        ("personality", (0x20000,), ALLOW),
        ("personality", (0x40000,), EPERM),
    ],
)
def test_default_program(default_program: bytes, name: str, args: tuple[int, ...], verdict: int) -> None:
    assert run_filter(default_program, number_of(name), args) == verdict


def test_default_program_allows_what_the_profile_does(default_program: bytes) -> None:
    resolved = seccomp.resolve(None, DEFAULT)
    allowed = {number_of(name) for name in names(resolved)}
    conditional = {
        number_of(name) for rule in resolved["syscalls"] if "args" in rule for name in rule["names"]
    }
    for number in range(460):
        if number not in conditional and number != number_of("clone3"):
            verdict = run_filter(default_program, number)
            assert (verdict == ALLOW) == (number in allowed), number


def test_calls_from_the_future_do_not_exist(default_program: bytes) -> None:
    newest = max(number_of(name) for name in names(seccomp.resolve(None, DEFAULT)))
    assert run_filter(default_program, newest) == ALLOW
    for number in (newest + 1, 1000, 0x3FFFFFFF):
        assert run_filter(default_program, number) == ENOSYS
    # Not by a profile that allows by default: there they are allowed.
    assert run_filter(program_of({"defaultAction": "SCMP_ACT_ALLOW"}), 1000) == ALLOW


def test_other_architectures(default_program: bytes) -> None:
    if X86_64:
        i386, x32_bit = 0x40000003, 0x40000000
        assert run_filter(default_program, 3, arch=i386) == ALLOW  # read
        assert run_filter(default_program, 21, arch=i386) == EPERM  # mount
        assert run_filter(default_program, 1000, arch=i386) == ENOSYS
        assert run_filter(default_program, x32_bit | 0) == ALLOW
        assert run_filter(default_program, x32_bit | 165) == EPERM
        assert run_filter(default_program, x32_bit | 1000) == ENOSYS
    else:
        arm = 0x40000028
        assert run_filter(default_program, 3, arch=arm) == ALLOW  # read
        assert run_filter(default_program, 21, arch=arm) == EPERM  # mount
    assert run_filter(default_program, 0, arch=0x16) == seccomp_program.KILL_THREAD  # s390


def test_same_argument_twice_is_either() -> None:
    args = [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"} for value in (1, 2)]
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["close"], "action": "SCMP_ACT_ALLOW", "args": args}],
    }
    program = program_of(profile)
    assert [run_filter(program, number_of("close"), (n,)) for n in (0, 1, 2)] == [EPERM, ALLOW, ALLOW]


def test_masked_comparison() -> None:
    args = [{"index": 1, "value": 0xF0, "valueTwo": 0x50, "op": "SCMP_CMP_MASKED_EQ"}]
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["dup2", "dup3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7, "args": args}],
    }
    program = program_of(profile)
    assert run_filter(program, number_of("dup3"), (0, 0x5A)) == 0x00050007
    assert run_filter(program, number_of("dup3"), (0, 0x6A)) == ALLOW


def test_unknown_calls_are_passed_over() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["read", "nosuchcall", "s390_pci_mmio_read"], "action": "SCMP_ACT_ALLOW"}],
    }
    assert run_filter(program_of(profile), number_of("read")) == ALLOW


def test_numbers_are_libseccomps() -> None:
    for name, (column, _) in seccomp_program.ARCHITECTURES.items():
        token = libseccomp.arch_token(name)
        for call, number in seccomp_program.numbers()[column].items():
            theirs = libseccomp.syscall_number(token, call)
            if theirs >= 0:  # else newer than this libseccomp
                assert number == theirs & ~0x40000000, (name, call)


def test_numbers_of_new_calls() -> None:
    # From 424 on all architectures number alike.
    assert {number_of("fchmodat2"), number_of("mseal"), number_of("statmount")} == {452, 462, 457}


NAMES = st.sampled_from(
    ["read", "write", "openat", "close", "socket", "clone", "mmap", "ptrace", "bpf", "rt_sigreturn"]
)
VALUES = st.sampled_from(
    [0, 1, 2, 7, 0xFF, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 32) + 7, 1 << 63, (1 << 64) - 1]
)
ACTIONS = st.sampled_from(
    ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP", "SCMP_ACT_LOG"]
)
ARGS = st.lists(
    st.fixed_dictionaries(
        {
            "index": st.integers(0, 5),
            "op": st.sampled_from(sorted(seccomp_program.OPERATORS)),
            "value": VALUES,
            "valueTwo": VALUES,
        }
    ),
    max_size=3,
    unique_by=lambda arg: arg["index"],
)


def by_libseccomp(default: int, rules: list[seccomp_program.Rule]) -> bytes:
    with libseccomp.Filter(default) as built:
        for name, action, comparisons in rules:
            array = [libseccomp.ArgCmp(i, libseccomp.OPERATORS[op], a, b) for i, op, a, b in comparisons]
            built.rule(action, name, array)
        return built.export()


@given(
    ACTIONS,
    st.dictionaries(NAMES, st.tuples(ACTIONS, ARGS), min_size=1),
    st.lists(st.tuples(NAMES, st.lists(VALUES, min_size=6, max_size=6)), min_size=1, max_size=10),
)
def test_program_does_what_libseccomps_does(
    default: str, rules: dict[str, tuple[str, list[dict[str, Any]]]], calls: list[tuple[str, list[int]]]
) -> None:
    action = seccomp._action(default, None)
    flat = [
        (name, seccomp._action(verdict, None), comparisons)
        for name, (verdict, args) in rules.items()
        for comparisons in seccomp._comparisons(args)
    ]
    native = seccomp._OCI_ARCH[os.uname().machine]
    ours = seccomp_program.compile_program([native], action, flat)
    theirs = by_libseccomp(action, flat)
    newest = max(number_of(name) for name in rules)
    for name, values in calls:
        number = number_of(name)
        if number <= newest:
            assert run_filter(ours, number, tuple(values)) == run_filter(theirs, number, tuple(values))


def test_default_program_does_what_libseccomps_does(default_program: bytes) -> None:
    resolved = seccomp.resolve(None, DEFAULT)
    rules = [
        (name, seccomp._action(entry["action"], entry.get("errnoRet")), comparisons)
        for entry in resolved["syscalls"]
        for comparisons in seccomp._comparisons(entry.get("args") or [])
        for name in entry["names"]
    ]
    theirs = by_libseccomp(EPERM, rules)
    known = seccomp_program.numbers()[os.uname().machine]
    newest = max(known[name] for name, _, _ in rules if name in known)
    for name, number in known.items():
        # What is newer than the whole profile is not there, for ours; libseccomp itself refuses it.
        if number > newest or libseccomp.syscall_number(libseccomp.native_arch(), name) < 0:
            continue
        for first in (0, 2, 8, 38, 40, 0x11, 0x20000, 0x10000011, 0xFFFFFFFF):
            assert run_filter(default_program, number, (first,)) == run_filter(theirs, number, (first,)), name


def test_program_that_is_too_long() -> None:
    rules = [
        {
            "names": [name],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": index, "value": value, "op": "SCMP_CMP_EQ"} for index in range(6)],
        }
        for value, name in enumerate(seccomp_program.numbers()["x86_64"])
    ]
    with pytest.raises(InvalidParameter, match="too many rules"):
        seccomp.compiled({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules})


def test_socketcall_of_32_bit_x86() -> None:
    program = seccomp_program.compile_program(
        ["SCMP_ARCH_X86"], EPERM, [("connect", ALLOW, []), ("socket", ALLOW, [(0, "SCMP_CMP_EQ", 1, 0)])]
    )
    verdicts = [run_filter(program, 102, (call,), arch=0x40000003) for call in (1, 2, 3)]
    assert verdicts == [EPERM, EPERM, ALLOW]


def test_flags() -> None:
    assert seccomp.compiled({"defaultAction": "SCMP_ACT_ALLOW"}).flags == 4  # SPEC_ALLOW, as runc
    assert (
        seccomp.compiled({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"]}).flags == 2
    )
