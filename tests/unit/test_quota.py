"""The kernel's structures of project quotas, and a file system without them; tests/vm has one with them."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from guest_agent.kernel import quota
from guest_agent.kernel.quota import Usage


def ioctl(direction: int, kind: str, number: int, size: int) -> int:
    """_IOC of asm-generic/ioctl.h."""
    return direction << 30 | size << 16 | ord(kind) << 8 | number


def test_structures_have_the_sizes_of_the_kernels() -> None:
    assert ioctl(2, "X", 31, quota._FSXATTR.size) == quota._FS_IOC_FSGETXATTR
    assert ioctl(1, "X", 32, quota._FSXATTR.size) == quota._FS_IOC_FSSETXATTR
    assert (quota._FSXATTR.size, quota._DISK_QUOTA.size, quota._QUOTA_STAT.size) == (28, 112, 80)


def test_a_limit_is_sent_in_blocks_and_read_in_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sent: dict[tuple[int, int], bytes] = {}

    def kernel(fd: int, command: int, id: int, data: ctypes.Array[ctypes.c_char]) -> None:
        if command == 0x580402:  # QCMD(Q_XSETQLIM, PRJQUOTA)
            sent[command, id] = data.raw
        else:
            assert command == 0x580302  # QCMD(Q_XGETQUOTA, PRJQUOTA)
            data.raw = sent[0x580402, id]

    monkeypatch.setattr(quota, "quotactl_fd", kernel)
    quota._set_limit(3, 70_000, (1 << 20) + 1)
    raw = sent[0x580402, 70_000]
    assert raw[:8] == bytes([1, 2, 0x0C, 0]) + (70_000).to_bytes(4, "little")
    assert raw[8:24] == (2049).to_bytes(8, "little") * 2
    assert not any(raw[24:])
    assert quota.usage(str(tmp_path), 70_000) == Usage(2049 * 512, 0, 0)


def test_limits_are_not_taken_to_be_in_force() -> None:
    assert not quota.enforced("/proc")
    assert not quota.enforced("/nonexistent")
    with pytest.raises(OSError, match="quotactl_fd"):
        quota.limit("/proc", 1 << 20)
