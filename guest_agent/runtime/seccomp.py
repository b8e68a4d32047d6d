"""Seccomp: a Docker profile resolved for one container, and the BPF program made of it.

`resolve` evaluates a profile's includes and excludes (moby/profiles, seccomp_linux.go) into OCI's
`linux.seccomp`; `compiled` turns that into a program. Both remember their results. Runs in the agent; the
launch child only loads bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from typing import Any

from guest_agent.errors import InvalidParameter, NotSupported
from guest_agent.kernel.syscalls import LINUX, SECCOMP_FILTER_FLAG_LOG, SECCOMP_FILTER_FLAG_SPEC_ALLOW

from . import seccomp_program as bpf

Profile = dict[str, Any]

_GO_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}
_OCI_ARCH = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}
_MACHINE = os.uname().machine
_ACTIONS = {
    "SCMP_ACT_KILL": bpf.KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": bpf.KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": bpf.KILL_PROCESS,
    "SCMP_ACT_TRAP": bpf.TRAP,
    "SCMP_ACT_ERRNO": bpf.ERRNO,
    "SCMP_ACT_TRACE": bpf.TRACE,
    "SCMP_ACT_LOG": bpf.LOG,
    "SCMP_ACT_ALLOW": bpf.ALLOW,
}
_FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 0,  # one thread when it is loaded: nothing to synchronise
    "SECCOMP_FILTER_FLAG_LOG": SECCOMP_FILTER_FLAG_LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": SECCOMP_FILTER_FLAG_SPEC_ALLOW,
}
_EPERM = 1
_CACHED_PROGRAMS = 64


@lru_cache(maxsize=1)
def default_profile() -> Profile:
    """Docker's default profile, for the architectures Wherry runs on."""
    with open(os.path.join(os.path.dirname(__file__), "seccomp_default.json"), "rb") as file:
        profile: Profile = json.loads(file.read())
    return profile


def resolve(docker_profile: Profile | None, caps: set[str]) -> Profile:
    """The OCI `linux.seccomp` for a container with the capabilities `caps` ("CAP_…").

    `docker_profile` is a decoded profile, None for Docker's default. Do not change the result: it is shared.
    Raises InvalidParameter, in dockerd's words, for a profile that makes no sense.
    """
    if docker_profile is None:
        return _resolve_default(frozenset(caps))
    return _resolve(docker_profile, frozenset(caps))


@lru_cache(maxsize=32)
def _resolve_default(caps: frozenset[str]) -> Profile:
    return _resolve(default_profile(), caps)


def _resolve(profile: Profile, caps: frozenset[str]) -> Profile:
    if not isinstance(profile, dict) or not profile.get("defaultAction"):
        raise InvalidParameter("loading seccomp profile failed: defaultAction must be set")
    if profile.get("architectures") and profile.get("archMap"):
        raise InvalidParameter(
            "loading seccomp profile failed: 'architectures' and 'archMap' were specified in the seccomp "
            "profile, use either 'architectures' or 'archMap'"
        )
    result: Profile = {"defaultAction": profile["defaultAction"]}
    if profile.get("defaultErrnoRet") is not None:
        result["defaultErrnoRet"] = profile["defaultErrnoRet"]
    for key in ("flags", "listenerPath", "listenerMetadata"):
        if profile.get(key):
            result[key] = profile[key]
    architectures = list(profile.get("architectures") or [])
    for entry in profile.get("archMap") or []:
        if entry.get("architecture") == _OCI_ARCH[_MACHINE]:
            architectures = [entry["architecture"], *(entry.get("subArchitectures") or [])]
    result["architectures"] = architectures
    result["syscalls"] = [_syscall(entry) for entry in profile.get("syscalls") or [] if _applies(entry, caps)]
    return result


def _applies(entry: Profile, caps: frozenset[str]) -> bool:
    includes, excludes = entry.get("includes") or {}, entry.get("excludes") or {}
    arch = _GO_ARCH[_MACHINE]
    if arch in (excludes.get("arches") or ()) or caps.intersection(excludes.get("caps") or ()):
        return False
    if excludes.get("minKernel") and _kernel_at_least(excludes["minKernel"]):
        return False
    if includes.get("arches") and arch not in includes["arches"]:
        return False
    if not caps.issuperset(includes.get("caps") or ()):
        return False
    return not includes.get("minKernel") or _kernel_at_least(includes["minKernel"])


def _syscall(entry: Profile) -> Profile:
    if entry.get("name") and entry.get("names"):
        raise InvalidParameter(
            "loading seccomp profile failed: 'name' and 'names' were specified in the seccomp profile, "
            "use either 'name' or 'names'"
        )
    result: Profile = {
        "names": list(entry.get("names") or [entry.get("name", "")]),
        "action": entry["action"],
    }
    if entry.get("errnoRet") is not None:
        result["errnoRet"] = entry["errnoRet"]
    if entry.get("args"):
        result["args"] = entry["args"]
    return result


def _kernel_at_least(version: str) -> bool:
    try:
        wanted = tuple(int(part) for part in version.split("."))
        if len(wanted) != 2:
            raise ValueError
    except ValueError:
        raise InvalidParameter(
            f'loading seccomp profile failed: invalid kernel version: "{version}"'
        ) from None
    return wanted <= LINUX


class Program:
    """A compiled filter: the descriptor of a memfd that holds the BPF program, and the flags for
    seccomp(2).
    """

    def __init__(self, bpf: bytes, flags: int) -> None:
        self.flags = flags
        self.size = len(bpf)
        self.fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        os.write(self.fd, bpf)

    def __del__(self) -> None:
        os.close(self.fd)


_programs: dict[str, Program] = {}
# By identity, for `resolve` hands out the same object again; the object is kept so that its id stays its own.
_by_identity: dict[int, tuple[Profile, Program]] = {}


def known(seccomp: Profile) -> Program | None:
    """The program of an OCI `linux.seccomp` if it has been compiled already."""
    entry = _by_identity.get(id(seccomp))
    if entry is not None and entry[0] is seccomp:
        return entry[1]
    program = _programs.get(_digest(seccomp))
    if program is not None:
        _remember(seccomp, program)
    return program


def compiled(seccomp: Profile) -> Program:
    """The program of an OCI `linux.seccomp`, compiled when it is new: some milliseconds, so use a thread.

    Raises InvalidParameter for an unknown action, operator or architecture, or a profile beyond the kernel's
    size, NotSupported for SCMP_ACT_NOTIFY.
    """
    program = known(seccomp)
    if program is None:
        program = Program(*_compile(seccomp))
        while len(_programs) >= _CACHED_PROGRAMS:
            _programs.pop(next(iter(_programs)))
        _programs[_digest(seccomp)] = program
        _remember(seccomp, program)
    return program


def _remember(seccomp: Profile, program: Program) -> None:
    while len(_by_identity) >= _CACHED_PROGRAMS:
        _by_identity.pop(next(iter(_by_identity)))
    _by_identity[id(seccomp)] = (seccomp, program)


def _digest(seccomp: Profile) -> str:
    return hashlib.sha256(json.dumps(seccomp, sort_keys=True).encode()).hexdigest()


def _compile(seccomp: Profile) -> tuple[bytes, int]:
    default = _action(seccomp["defaultAction"], seccomp.get("defaultErrnoRet"))
    architectures = list(dict.fromkeys([_OCI_ARCH[_MACHINE], *(seccomp.get("architectures") or ())]))
    for name in architectures:
        if name not in bpf.ARCHITECTURES:
            raise InvalidParameter(f"loading seccomp profile failed: unknown architecture {name!r}")
    rules: list[bpf.Rule] = []
    for entry in seccomp.get("syscalls") or ():
        action = _action(entry["action"], entry.get("errnoRet"))
        for comparisons in _comparisons(entry.get("args") or []):
            rules += [(name, action, comparisons) for name in entry["names"]]
    try:
        program = bpf.compile_program(architectures, default, rules)
    except ValueError as e:
        raise InvalidParameter(f"loading seccomp profile failed: {e}") from e
    flags = 0
    for flag in seccomp.get("flags") or ():
        if flag not in _FLAGS:
            raise NotSupported(f"seccomp flag {flag} is not supported")
        flags |= _FLAGS[flag]
    if not seccomp.get("flags"):
        flags = SECCOMP_FILTER_FLAG_SPEC_ALLOW  # as runc: else each call pays for a Spectre mitigation
    return program, flags


def _action(name: str, errno: int | None) -> int:
    if name == "SCMP_ACT_NOTIFY":
        raise NotSupported("seccomp action SCMP_ACT_NOTIFY is not supported")
    if name not in _ACTIONS:
        raise InvalidParameter(f"loading seccomp profile failed: invalid action {name!r}")
    base = _ACTIONS[name]
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        return base | ((_EPERM if errno is None else errno) & 0xFFFF)
    if errno is not None and errno != 0:
        raise InvalidParameter(f"loading seccomp profile failed: errno cannot be used with action {name}")
    return base


def _comparisons(args: list[Profile]) -> list[list[bpf.Comparison]]:
    """The rules that `args` make: one with all of them, or one for each when an index comes twice (as
    runc).
    """
    made: list[bpf.Comparison] = []
    for arg in args:
        if arg["op"] not in bpf.OPERATORS:
            raise InvalidParameter(f"loading seccomp profile failed: invalid operator {arg['op']!r}")
        if not 0 <= arg["index"] <= 5:
            raise InvalidParameter(f"loading seccomp profile failed: no argument with index {arg['index']}")
        made.append((arg["index"], arg["op"], arg["value"], arg.get("valueTwo") or 0))
    indexes = {comparison[0] for comparison in made}
    return [made] if len(indexes) == len(made) else [[comparison] for comparison in made]
