"""A layer from what a build step has written, without writing it again: its directory becomes the layer's.

A blob is made of it beside that, as `commit` does, since an image is saved and pushed from blobs.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable

from guest_agent.images import manifest, tar
from guest_agent.images.assemble import GzipWriter, extract_layer
from guest_agent.images.diff import remove_mount_points, write_layer
from guest_agent.images.manifest import Descriptor
from guest_agent.images.snapshots import chain_ids
from guest_agent.images.store import ImageStore, LayerRow, Lease
from guest_agent.images.tar import Entry, TarWriter
from guest_agent.runtime import layers


class _Counting(TarWriter):
    """Adds up the content, which is the size that `docker history` shows."""

    size = 0

    def add(self, entry: Entry, content: Iterable[bytes | memoryview] = ()) -> None:
        if entry.type == tar.REGULAR:
            self.size += entry.size
        super().add(entry, content)


def take_layer(
    store: ImageStore, lease: Lease, container_id: str, diffs: list[str], latest: int | None = None
) -> LayerRow | None:
    """Makes what a container that has ended has written the layer on top of `diffs`. Blocks.

    `diffs` are the diff ids of the layers below. `latest`: no file's time is after this (seconds since the
    epoch). The container has no root file system any more afterwards. None when nothing was written.
    Raises Unavailable (disk full).
    """
    overlay = store.overlay(container_id)
    remove_mount_points(overlay)
    if latest is not None:
        _clamp_times(overlay.upper, latest)
    plain = hashlib.sha256()
    with store.content.writer() as blob:
        compressed = GzipWriter(blob)

        def write(data: bytes) -> None:
            plain.update(data)
            compressed.write(data)

        writer = _Counting(write)
        if not write_layer(overlay, writer):
            return None
        writer.close()
        compressed.finish()
        described = Descriptor(manifest.layer_type("gzip"), blob.digest, blob.size)
        lease.hold(described.digest)
        if not store.content.has(described.digest):
            blob.commit()
    diff = f"sha256:{plain.hexdigest()}"
    *below, chain = chain_ids([*diffs, diff])
    lease.hold_chains([chain])
    known = store.layer(chain)
    if known is not None:
        return known
    if layers.driver() == layers.OVERLAY:
        store.snapshots.commit(store.snapshots.take(container_id), chain)
    else:  # what the others leave there overlay would not understand
        extract_layer(store, described, diff, below, chain)
    row = LayerRow(
        chain, below[-1] if below else "", diff, writer.size, described.digest, described.media_type
    )
    store.add_layer(row)
    return row


def _clamp_times(top: str, latest: int) -> None:
    limit = latest * 1_000_000_000
    for _, _, names, directory in os.fwalk(top, topdown=False, follow_symlinks=False):
        for name in names:
            _clamp(name, directory, limit)
        _clamp(".", directory, limit)


def _clamp(name: str, directory: int, limit: int) -> None:
    details = os.lstat(name, dir_fd=directory)
    if details.st_mtime_ns > limit and not (stat.S_ISCHR(details.st_mode) and not details.st_rdev):
        os.utime(name, ns=(limit, limit), dir_fd=directory, follow_symlinks=False)
