"""Device rules: OCI's list as lines for v1's devices.allow/deny and as a BPF program for v2."""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

Rule = dict[str, "Any"]  # {"allow": bool, "type": "a|b|c", "major": int, "minor": int, "access": "rwm"}

# What every container needs, added after the configured rules as runc does: making nodes is harmless
# without access.
IMPLIED: list[Rule] = [
    {"allow": True, "type": "c", "access": "m"},
    {"allow": True, "type": "b", "access": "m"},
    *(
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
        for major, minor in (
            (1, 3),
            (1, 5),
            (1, 7),
            (1, 8),
            (1, 9),
            (5, 0),
            (5, 2),
        )  # null … urandom, tty, ptmx
    ),
    {"allow": True, "type": "c", "major": 136, "access": "rwm"},  # pts
]

_TYPES = ("a", "b", "c")


def _fields(rule: Rule) -> tuple[bool, str, int, int, str]:
    kind = rule.get("type") or "a"
    kind = "c" if kind == "u" else kind
    access = rule.get("access") or "rwm"
    if kind not in _TYPES or not set(access) <= set("rwm"):
        raise ValueError(f"invalid device rule {rule}")
    major, minor = rule.get("major"), rule.get("minor")
    return bool(rule["allow"]), kind, -1 if major is None else major, -1 if minor is None else minor, access


def v1_lines(rules: list[Rule]) -> list[tuple[bool, str]]:
    """(allow, line for devices.allow or devices.deny) in order."""
    lines = []
    for rule in rules:
        allow, kind, major, minor, access = _fields(rule)
        if kind == "a":
            lines.append((allow, "a"))
        else:
            numbers = ":".join("*" if number < 0 else str(number) for number in (major, minor))
            lines.append((allow, f"{kind} {numbers} {access}"))
    return lines


# linux/bpf.h: struct bpf_cgroup_dev_ctx {u32 access_type (access << 16 | type); u32 major; u32 minor}
_TYPE_BITS = {"b": 1, "c": 2}
_ACCESS_BITS = {"m": 1, "r": 2, "w": 4}
_LDX_W, _MOV64_IMM, _EXIT = 0x61, 0xB7, 0x95
_MOV32_REG, _AND32_IMM, _RSH32_IMM = 0xBC, 0x54, 0x74
_JA, _JEQ_IMM, _JNE_IMM = 0x05, 0x15, 0x55


def _insn(code: int, dst: int = 0, src: int = 0, offset: int = 0, imm: int = 0) -> bytes:
    return struct.pack("=BBhi", code, src << 4 | dst, offset, imm)


def bpf_program(rules: list[Rule]) -> bytes:
    """A BPF_PROG_TYPE_CGROUP_DEVICE program for `rules`; the last rule that matches decides, else deny.

    One request may ask for several accesses at once, and rules may each grant some: as in v1, a request is
    allowed when every bit of it is. The bits are so tested one by one, which keeps the program simple and
    exact.
    """
    # r2 type, r3 access, r4 major, r5 minor
    program = [
        _insn(_LDX_W, 2, 1, 0),
        _insn(_MOV32_REG, 3, 2),
        _insn(_AND32_IMM, 2, imm=0xFFFF),
        _insn(_RSH32_IMM, 3, imm=16),
        _insn(_LDX_W, 4, 1, 4),
        _insn(_LDX_W, 5, 1, 8),
    ]
    for bit in _ACCESS_BITS.values():
        program += _decide_bit(rules, bit)
    program += [_insn(_MOV64_IMM, 0, imm=1), _insn(_EXIT)]
    return b"".join(program)


def _decide_bit(rules: list[Rule], bit: int) -> list[bytes]:
    """Returns 0 from the program when access `bit` is asked for and denied, else falls through."""
    allowed = False
    body: list[tuple[list[tuple[int, int]], bool]] = []  # tests (register, value), verdict; first match wins
    for rule in reversed(rules):
        allow, kind, major, minor, access = _fields(rule)
        mask = 0
        for letter in access:
            mask |= _ACCESS_BITS[letter]
        if kind == "a":
            mask, major, minor = 7, -1, -1
        if not mask & bit:
            continue
        tests = [] if kind == "a" else [(2, _TYPE_BITS[kind])]
        tests += [(register, number) for register, number in ((4, major), (5, minor)) if number >= 0]
        if not tests:
            allowed = allow
            break
        body.append((tests, allow))
    deny = [_insn(_MOV64_IMM, 0, imm=0), _insn(_EXIT)]
    code: list[bytes] = [] if allowed else list(deny)
    for tests, allow in reversed(body):
        verdict = [_insn(_JA, offset=len(code))] if allow else list(deny)
        block: list[bytes] = []
        for register, number in reversed(tests):
            block.insert(0, _insn(_JNE_IMM, register, offset=len(block) + len(verdict), imm=number))
        code = block + verdict + code
    head = [
        _insn(_MOV32_REG, 6, 3),
        _insn(_AND32_IMM, 6, imm=bit),
        _insn(_JEQ_IMM, 6, offset=len(code), imm=0),
    ]
    return head + code
