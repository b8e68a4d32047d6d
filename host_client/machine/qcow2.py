"""Data disks: qcow2 files that are empty at first and take only what is used.

Written here because QEMU's wheel for Windows and macOS need not have qemu-img, and an empty image is four
tables. Format: QEMU documentation, interop/qcow2.
"""

from __future__ import annotations

import os
import struct

CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS
PER_L1_ENTRY = CLUSTER * (CLUSTER // 8)  # bytes of disk that one entry of the first-level table stands for
MAX_SIZE = 16 << 40
MAGIC = 0x514649FB
_SIZE_AT = 24  # of the virtual size in the header


def create(path: str, size: int) -> None:
    """Writes a new, empty image.

    The first-level table is made for the largest disk, so growing is one number.
    """
    l1_entries = MAX_SIZE // PER_L1_ENTRY
    l1_clusters = -(-l1_entries * 8 // CLUSTER)
    # Clusters: header, refcount table, refcount block, first-level table.
    used = 3 + l1_clusters
    header = struct.pack(
        ">IIQIIQIIQQIIQQQQII",
        MAGIC, 3,
        0, 0,  # no backing file
        CLUSTER_BITS, size,
        0,  # not encrypted
        l1_entries, 3 * CLUSTER,
        CLUSTER, 1,  # refcount table: place, clusters
        0, 0,  # no snapshots
        0, 1, 0,  # features: incompatible, compatible (lazy refcounts), autoclear
        4,  # refcounts of 16 bits
        104,
    )  # fmt: skip
    refcounts = struct.pack(">Q", 2 * CLUSTER)
    block = struct.pack(f">{used}H", *[1] * used)
    with open(path, "xb") as file:
        for part in (header, refcounts, block):
            file.write(part.ljust(CLUSTER, b"\0"))
        file.truncate(used * CLUSTER)
        file.flush()
        os.fsync(file.fileno())


def virtual_size(path: str) -> int:
    """Bytes of the disk that the guest sees. Raises ValueError for a file that is no qcow2 image."""
    with open(path, "rb") as file:
        header = file.read(32)
    if len(header) < 32 or struct.unpack_from(">I", header)[0] != MAGIC:
        raise ValueError(f"{path} is not a qcow2 image")
    size: int = struct.unpack_from(">Q", header, _SIZE_AT)[0]
    return size


def grow(path: str, size: int) -> None:
    """Makes the disk larger while nothing uses it. Raises ValueError when that would shrink it."""
    if size < virtual_size(path):
        raise ValueError(f"{path} cannot be made smaller: what is at its end would be lost")
    with open(path, "r+b") as file:
        file.seek(_SIZE_AT)
        file.write(struct.pack(">Q", size))
        file.flush()
        os.fsync(file.fileno())
