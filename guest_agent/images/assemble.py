"""Bringing layers and images into the store: the steps that load, import and commit share with pull."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

from guest_agent.images import manifest
from guest_agent.images.content import BlobWriter
from guest_agent.images.decompress import Read, kind_of
from guest_agent.images.manifest import Descriptor
from guest_agent.images.package import package_of
from guest_agent.images.reference import Reference
from guest_agent.images.snapshots import chain_ids
from guest_agent.images.store import Image, ImageStore, LayerRow, Lease
from guest_agent.images.unpack import SMALL, StagedLayer, reading

_CHUNK = 1 << 20


def store_stream(store: ImageStore, lease: Lease, read: Read) -> Descriptor:
    """Stores a layer's stream as a blob, compressed when it comes plain, and leases it."""
    head = read(_CHUNK)
    while 0 < len(head) < 6 and (more := read(_CHUNK)):
        head += more
    kind = kind_of(head)
    with store.content.writer() as writer:
        if kind in ("gzip", "zstd"):
            data = head
            while data:
                writer.write(data)
                data = read(_CHUNK)
        else:
            if kind:
                from guest_agent.images.decompress import Decompressed

                read = Decompressed(_prepended(head, read)).read
                head = read(_CHUNK)
            kind = "gzip"
            compressed = GzipWriter(writer)
            while head:
                compressed.write(head)
                head = read(_CHUNK)
            compressed.finish()
        blob = Descriptor(manifest.layer_type(kind), writer.digest, writer.size)
        lease.hold(blob.digest)
        if not store.content.has(blob.digest):
            writer.commit()
    return blob


def _prepended(head: bytes, read: Read) -> Read:
    pending = [head]
    return lambda size: pending.pop() if pending else read(size)


class GzipWriter:
    """Writes a blob as gzip; fast rather than small, since a blob is written more often than it is sent."""

    def __init__(self, blob: BlobWriter) -> None:
        from isal import isal_zlib

        self._blob = blob
        self._engine = isal_zlib.compressobj(isal_zlib.ISAL_BEST_SPEED, isal_zlib.DEFLATED, 31)

    def write(self, data: bytes) -> None:
        """Adds plain bytes."""
        self._blob.write(self._engine.compress(data))

    def finish(self) -> None:
        """Ends the stream."""
        self._blob.write(self._engine.flush())


def extract_layers(
    store: ImageStore,
    lease: Lease,
    blobs: Sequence[Descriptor],
    diff_ids: Sequence[str],
    progress: Callable[[int, int], None] = lambda index, done: None,
) -> None:
    """Extracts those of an image's layers that are not here yet.

    `progress(index, bytes of the blob read)`.
    """
    chains = chain_ids(diff_ids)
    lease.hold_chains(chains)
    for index, (blob, diff, chain) in enumerate(zip(blobs, diff_ids, chains, strict=True)):
        if store.layer(chain) is not None:
            continue
        size = extract_layer(store, blob, diff, chains[:index], chain, partial(progress, index))
        parent = chains[index - 1] if index else ""
        store.add_layer(LayerRow(chain, parent, diff, size, blob.digest, blob.media_type))


def extract_layer(
    store: ImageStore,
    blob: Descriptor,
    diff: str,
    below: Sequence[str],
    chain: str,
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Extracts one layer, over those with the chain ids `below`; returns the size of its content."""
    fd = store.content.open(blob.digest)
    try:
        with StagedLayer(store.snapshots, base=not below) as staged:
            staged.unpack(_told(reading(fd), progress), diff, blob.size <= SMALL)
            staged.commit(chain, store.snapshots.lower(below))
            return staged.size
    finally:
        os.close(fd)


def _told(read: Read, progress: Callable[[int], None]) -> Read:
    done = 0

    def counting(size: int) -> bytes:
        nonlocal done
        data = read(size)
        done += len(data)
        progress(done)
        return data

    return counting


def add_image(
    store: ImageStore,
    lease: Lease,
    config: bytes,
    blobs: Sequence[Descriptor],
    names: Sequence[Reference] = (),
    parent: str = "",
) -> tuple[Image, list[str]]:
    """Commits an image made here or loaded, with a manifest of our own.

    Returns what `ImageStore.add_image` does.
    """
    made = package_of(config, blobs)
    lease.hold(made.config.digest, made.descriptor.digest)
    store.content.put(config)
    return store.add_image(made.config.digest, store.content.put(made.manifest), names, parent)
