"""bpf(2): device programs of cgroup v2."""

from __future__ import annotations

import ctypes
import os
import struct

from .syscalls import bpf

_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH, _PROG_GET_FD_BY_ID, _PROG_QUERY = 5, 8, 9, 13, 16
_PROG_TYPE_CGROUP_DEVICE = 15
_CGROUP_DEVICE = 6  # enum bpf_attach_type
_F_ALLOW_MULTI = 2
_LOG_SIZE = 65536
_MAX_PROGRAMS = 64


def _attr(layout: str, *values: int) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(struct.pack(layout, *values).ljust(128, b"\0"), 128)


def load_device_program(instructions: bytes) -> int:
    """Loads a BPF_PROG_TYPE_CGROUP_DEVICE program and returns its fd; the OSError carries the verifier's
    log.
    """
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    count = len(instructions) // 8
    fields = [_PROG_TYPE_CGROUP_DEVICE, count, ctypes.addressof(code), ctypes.addressof(licence)]
    try:
        return bpf(_PROG_LOAD, _attr("=IIQQ", *fields))
    except OSError as e:
        log = ctypes.create_string_buffer(_LOG_SIZE)
        try:
            return bpf(_PROG_LOAD, _attr("=IIQQIIQ", *fields, 1, _LOG_SIZE, ctypes.addressof(log)))
        except OSError:
            text = log.value.decode(errors="replace").strip()
            raise OSError(e.errno, f"{os.strerror(e.errno or 0)}: {text}" if text else e.strerror) from e


def attach_device_program(cgroup: int, program: int) -> None:
    """Attaches to the cgroup directory `cgroup`, beside programs that are there."""
    bpf(_PROG_ATTACH, _attr("=IIII", cgroup, program, _CGROUP_DEVICE, _F_ALLOW_MULTI))


def device_programs(cgroup: int) -> list[int]:
    """The fds of the device programs attached to the directory itself; the caller owns them."""
    ids = (ctypes.c_uint32 * _MAX_PROGRAMS)()
    attr = _attr("=IIIIQI", cgroup, _CGROUP_DEVICE, 0, 0, ctypes.addressof(ids), _MAX_PROGRAMS)
    bpf(_PROG_QUERY, attr)
    count = struct.unpack_from("=I", attr.raw, 24)[0]
    return [bpf(_PROG_GET_FD_BY_ID, _attr("=I", ids[index])) for index in range(count)]


def detach_device_program(cgroup: int, program: int) -> None:
    """Detaches one program from the directory."""
    bpf(_PROG_DETACH, _attr("=III", cgroup, program, _CGROUP_DEVICE))
