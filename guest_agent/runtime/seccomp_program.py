"""From seccomp rules to a BPF program: what libseccomp does, but smaller, faster and with the newest
system calls.

Runs of system calls with the same verdict become ranges, searched by halves; conditions on arguments stand
at the leaves. The numbers are a table of ours (`syscall_numbers.json`), so that what a profile names is
known whatever library a host has. Pure; tested against libseccomp.
"""

from __future__ import annotations

import json
import os
import struct
from functools import lru_cache

KILL_PROCESS = 0x80000000
KILL_THREAD = 0x00000000
TRAP = 0x00030000
ERRNO = 0x00050000
TRACE = 0x7FF00000
LOG = 0x7FFC0000
ALLOW = 0x7FFF0000

_ENOSYS = 38
_X32_BIT = 0x40000000
_ARM_PRIVATE = 0x0F0000  # numbers of ARM's own, far above all others
_MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
_MAX_JUMP = 255

ARCHITECTURES = {
    "SCMP_ARCH_X86_64": ("x86_64", 0xC000003E),
    "SCMP_ARCH_X86": ("x86", 0x40000003),
    "SCMP_ARCH_X32": ("x32", 0xC000003E),  # told from x86_64 by a bit of the number
    "SCMP_ARCH_AARCH64": ("aarch64", 0xC00000B7),
    "SCMP_ARCH_ARM": ("arm", 0x40000028),
}
"""OCI's name → our table's column, and the kernel's AUDIT_ARCH_* value."""

# On 32-bit x86 these can also be made through socketcall(2), with the call as first argument.
_SOCKETCALL = {
    name: number
    for number, name in enumerate(
        (
            "socket",
            "bind",
            "connect",
            "listen",
            "accept",
            "getsockname",
            "getpeername",
            "socketpair",
            "send",
            "recv",
            "sendto",
            "recvfrom",
            "shutdown",
            "setsockopt",
            "getsockopt",
            "sendmsg",
            "recvmsg",
            "accept4",
            "recvmmsg",
            "sendmmsg",
        ),
        start=1,
    )
}

Comparison = tuple[int, str, int, int]
"""Argument index, SCMP_CMP_*, value, second value (for SCMP_CMP_MASKED_EQ: what is left under the mask)."""

Rule = tuple[str, int, list[Comparison]]
"""System call, action, comparisons that must all hold."""


@lru_cache(maxsize=1)
def numbers() -> dict[str, dict[str, int]]:
    """Column → system call → number, without x32's bit."""
    with open(os.path.join(os.path.dirname(__file__), "syscall_numbers.json"), "rb") as file:
        table = json.loads(file.read())
    columns = table.pop("architectures")
    return {
        column: {name: row[index] for name, row in table.items() if row[index] >= 0}
        for index, column in enumerate(columns)
    }


def compile_program(architectures: list[str], default: int, rules: list[Rule]) -> bytes:
    """The program, an array of struct sock_filter. `architectures` are keys of ARCHITECTURES, the native
    one first.

    A rule whose action is the default's is none; of several for one system call an unconditional one
    counts, else the first whose comparisons hold. System calls newer than all that the rules name fail
    with ENOSYS rather than by default, unless that allows them: the C library tries new calls and falls
    back on ENOSYS only (as runc). Another architecture than those given kills the thread. ValueError when
    it becomes too long.
    """
    blocks: dict[int, list[bytes]] = {}
    trees = {name: _tree(ARCHITECTURES[name][0], default, rules) for name in architectures}
    for name in architectures:
        column, audit = ARCHITECTURES[name]
        if column == "x32":
            continue
        block = trees[name]
        if column == "x86_64":
            x32 = trees.get("SCMP_ARCH_X32", [_return(KILL_THREAD)])
            block = _either(_JUMP_GE, _X32_BIT, x32, block)
        blocks[audit] = [_load(_NUMBER), *block]
    program = [_return(KILL_THREAD)]
    for audit, block in reversed(blocks.items()):
        program = _either(_JUMP_EQ, audit, block, program)
    program = [_load(_ARCHITECTURE), *program]
    if len(program) > _MAX_INSTRUCTIONS:
        raise ValueError("the seccomp profile has too many rules for one program")
    return b"".join(program)


class _Verdict:
    """What is to happen with one system call."""

    def __init__(self) -> None:
        self.action: int | None = None  # without condition
        self.conditional: list[tuple[list[Comparison], int]] = []


def _tree(column: str, default: int, rules: list[Rule]) -> list[bytes]:
    """Code that returns the verdict on the number in A, for one architecture."""
    table = numbers().get(column, {})
    offset = _X32_BIT if column == "x32" else 0
    verdicts: dict[int, _Verdict] = {}
    newest = -1
    for name, action, comparisons in rules:
        number = table.get(name, -1)
        if number >= 0:
            newest = max(newest, number if number < _ARM_PRIVATE else -1)
            _add(verdicts, number + offset, action, comparisons, default)
        if column == "x86" and name in _SOCKETCALL and not comparisons:
            call: Comparison = (0, "SCMP_CMP_EQ", _SOCKETCALL[name], 0)
            _add(verdicts, table["socketcall"], action, [call], default)
    beyond = default
    if default not in (ALLOW, LOG):
        beyond = ERRNO | _ENOSYS
    ranges: list[tuple[int, list[bytes]]] = []  # first number, code

    def put(first: int, code: list[bytes]) -> None:
        if not ranges or ranges[-1][1] != code:
            ranges.append((first, code))

    expected = 0
    fall = [_return(default)]
    end = newest + 1 + offset
    for number in sorted(verdicts):
        if number > expected and expected < end:
            put(expected, fall)
        if number > end:
            put(end, [_return(beyond)])
        put(number, _leaf(verdicts[number], default))
        expected = number + 1
    if expected < end:
        put(expected, fall)
    put(max(expected, end), [_return(beyond)])
    return _search(ranges)


def _add(
    verdicts: dict[int, _Verdict], number: int, action: int, comparisons: list[Comparison], default: int
) -> None:
    if action == default:
        return
    verdict = verdicts.setdefault(number, _Verdict())
    if comparisons:
        verdict.conditional.append((comparisons, action))
    elif verdict.action is None:
        verdict.action = action


def _leaf(verdict: _Verdict, default: int) -> list[bytes]:
    if verdict.action is not None:
        return [_return(verdict.action)]
    code = [_return(default)]
    for comparisons, action in reversed(verdict.conditional):
        block = [_return(action)]
        for comparison in reversed(comparisons):
            block = _compare(comparison, len(block)) + block
        code = block + code
    return code


def _search(ranges: list[tuple[int, list[bytes]]]) -> list[bytes]:
    """A binary search over ranges given by their first numbers; the first one has no lower end."""
    if len(ranges) == 1:
        return ranges[0][1]
    middle = len(ranges) // 2
    return _either(_JUMP_GE, ranges[middle][0], _search(ranges[middle:]), _search(ranges[:middle]))


def _either(jump: int, k: int, true: list[bytes], false: list[bytes]) -> list[bytes]:
    """Code that goes on with `true` when A compares with k, else with `false`; both end in a return."""
    if len(false) <= _MAX_JUMP:
        return [_instruction(jump, k, len(false), 0), *false, *true]
    return [_instruction(jump, k, 0, 1), _instruction(_JUMP, len(false)), *false, *true]


def _compare(comparison: Comparison, rest: int) -> list[bytes]:
    """Goes on when the comparison holds, else jumps over the `rest` instructions that follow it."""
    index, operator, value, second = comparison
    high, low = (
        _load(_ARGUMENTS + 8 * index + 4),
        _load(_ARGUMENTS + 8 * index),
    )  # both machines are little-endian
    value_high, value_low = value >> 32 & 0xFFFFFFFF, value & 0xFFFFFFFF
    if operator == "SCMP_CMP_MASKED_EQ":
        second &= value  # as libseccomp
        second_high, second_low = second >> 32 & 0xFFFFFFFF, second & 0xFFFFFFFF
        return [
            high,
            _instruction(_AND, value_high),
            _instruction(_JUMP_EQ, second_high, 0, rest + 3),
            low,
            _instruction(_AND, value_low),
            _instruction(_JUMP_EQ, second_low, 0, rest),
        ]
    if operator == "SCMP_CMP_EQ":
        return [
            high,
            _instruction(_JUMP_EQ, value_high, 0, rest + 2),
            low,
            _instruction(_JUMP_EQ, value_low, 0, rest),
        ]
    if operator == "SCMP_CMP_NE":
        return [
            high,
            _instruction(_JUMP_EQ, value_high, 0, 2),
            low,
            _instruction(_JUMP_EQ, value_low, rest, 0),
        ]
    if operator in ("SCMP_CMP_GE", "SCMP_CMP_GT"):
        last = _JUMP_GE if operator == "SCMP_CMP_GE" else _JUMP_GT
        return [
            high,
            _instruction(_JUMP_GT, value_high, 3, 0),
            _instruction(_JUMP_EQ, value_high, 0, rest + 2),
            low,
            _instruction(last, value_low, 0, rest),
        ]
    last = _JUMP_GT if operator == "SCMP_CMP_LE" else _JUMP_GE
    return [
        high,
        _instruction(_JUMP_GT, value_high, rest + 3, 0),
        _instruction(_JUMP_EQ, value_high, 0, 2),
        low,
        _instruction(last, value_low, rest, 0),
    ]


OPERATORS = frozenset(f"SCMP_CMP_{name}" for name in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"))

# struct seccomp_data: nr, arch, instruction_pointer, args[6]
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND = 0x54
_JUMP, _JUMP_EQ, _JUMP_GT, _JUMP_GE = 0x05, 0x15, 0x25, 0x35
_RETURN = 0x06


def _instruction(code: int, k: int, true: int = 0, false: int = 0) -> bytes:
    """struct sock_filter."""
    return struct.pack("=HBBI", code, true, false, k)


def _load(offset: int) -> bytes:
    return _instruction(_LOAD, offset)


def _return(action: int) -> bytes:
    return _instruction(_RETURN, action)
