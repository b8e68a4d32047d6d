"""libseccomp.so.2 by ctypes, the part that turns rules into a BPF program: what ours is compared with."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_char_p, c_int, c_uint, c_uint32, c_uint64, c_void_p

ACT_KILL_PROCESS = 0x80000000
ACT_KILL_THREAD = 0x00000000
ACT_TRAP = 0x00030000
ACT_ERRNO = 0x00050000
ACT_TRACE = 0x7FF00000
ACT_LOG = 0x7FFC0000
ACT_ALLOW = 0x7FFF0000
ACT_NOTIFY = 0x7FC00000

_ATTR_BADARCH = 2
_ATTR_CTL_NNP = 3
_ATTR_CTL_OPTIMIZE = 8
_EEXIST, _EDOM, _EACCES = 17, 33, 13
_NR_SCMP_ERROR = -1


class ArgCmp(ctypes.Structure):
    """struct scmp_arg_cmp: compare system call argument number `arg` by `op` with a (and b)."""

    _fields_ = (("arg", c_uint), ("op", c_int), ("a", c_uint64), ("b", c_uint64))


OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}

_lib: ctypes.CDLL | None = None


def _library() -> ctypes.CDLL:
    global _lib
    if _lib is None:
        lib = ctypes.CDLL("libseccomp.so.2", use_errno=True)  # OSError: not installed
        lib.seccomp_init.argtypes = (c_uint32,)
        lib.seccomp_init.restype = c_void_p
        lib.seccomp_release.argtypes = (c_void_p,)
        lib.seccomp_release.restype = None
        lib.seccomp_arch_resolve_name.argtypes = (c_char_p,)
        lib.seccomp_arch_resolve_name.restype = c_uint32
        lib.seccomp_arch_native.restype = c_uint32
        lib.seccomp_arch_add.argtypes = (c_void_p, c_uint32)
        lib.seccomp_attr_set.argtypes = (c_void_p, c_int, c_uint32)
        lib.seccomp_syscall_resolve_name.argtypes = (c_char_p,)
        lib.seccomp_syscall_resolve_name_arch.argtypes = (c_uint32, c_char_p)
        lib.seccomp_rule_add_array.argtypes = (c_void_p, c_uint32, c_int, c_uint, POINTER(ArgCmp))
        lib.seccomp_export_bpf.argtypes = (c_void_p, c_int)
        _lib = lib
    return _lib


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")


class Filter:
    """One filter being built. A context manager; owns libseccomp's object."""

    def __init__(self, default_action: int) -> None:
        self._lib = _library()
        self._ctx = self._lib.seccomp_init(default_action)
        if not self._ctx:
            raise OSError(22, "seccomp_init")
        _check(self._lib.seccomp_attr_set(self._ctx, _ATTR_CTL_NNP, 0), "seccomp_attr_set")
        # A binary search over the numbers instead of a chain of comparisons (libseccomp 2.5); older: as it
        # is.
        self._lib.seccomp_attr_set(self._ctx, _ATTR_CTL_OPTIMIZE, 2)

    def __enter__(self) -> Filter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._lib.seccomp_release(self._ctx)

    def add_arch(self, name: str) -> None:
        """Adds an architecture by OCI name (SCMP_ARCH_X86_64) to the native one; OSError EINVAL when
        unknown.
        """
        token = arch_token(name)
        result = self._lib.seccomp_arch_add(self._ctx, token)
        if result != -_EEXIST:
            _check(result, f"seccomp architecture {name}")

    def rule(self, action: int, syscall: str, comparisons: list[ArgCmp]) -> None:
        """Adds a rule; all comparisons must hold. A system call no architecture here knows is passed over."""
        number = self._lib.seccomp_syscall_resolve_name(syscall.encode())
        if number == _NR_SCMP_ERROR:
            return
        array = (ArgCmp * max(1, len(comparisons)))(*comparisons)
        result = self._lib.seccomp_rule_add_array(self._ctx, action, number, len(comparisons), array)
        # EDOM: no such call on an added architecture. EACCES: the rule is what happens by default anyway.
        if result not in (-_EDOM, -_EACCES, -_EEXIST):
            _check(result, f"seccomp rule for {syscall}")

    def export(self) -> bytes:
        """The BPF program, an array of struct sock_filter."""
        fd = os.memfd_create("seccomp")
        try:
            _check(self._lib.seccomp_export_bpf(self._ctx, fd), "seccomp_export_bpf")
            return os.pread(fd, os.fstat(fd).st_size, 0)
        finally:
            os.close(fd)


def arch_token(name: str) -> int:
    """libseccomp's token (AUDIT_ARCH_*) of an OCI name such as SCMP_ARCH_X86_64; OSError EINVAL when
    unknown.
    """
    token = int(_library().seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode()))
    if token == 0:
        raise OSError(22, f"unknown seccomp architecture {name}")
    return token


def native_arch() -> int:
    """The token of the architecture this process runs on."""
    return int(_library().seccomp_arch_native())


def syscall_number(token: int, name: str) -> int:
    """The number of a system call on the architecture `token`; negative when it has none there."""
    return int(_library().seccomp_syscall_resolve_name_arch(token, name.encode()))
