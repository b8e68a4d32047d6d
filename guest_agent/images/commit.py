"""`docker commit`: a new image from an image and what a container has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from guest_agent.errors import NotFound
from guest_agent.images import manifest, platforms
from guest_agent.images.assemble import GzipWriter, add_image, extract_layers
from guest_agent.images.diff import write_layer
from guest_agent.images.load import now
from guest_agent.images.manifest import Descriptor
from guest_agent.images.reference import Reference
from guest_agent.images.store import Image, ImageStore, Lease
from guest_agent.images.tar import TarWriter


def commit(
    store: ImageStore,
    container_id: str,
    config: dict[str, Any],
    name: Reference | None = None,
    author: str = "",
    comment: str = "",
    created_by: str = "",
) -> Image:
    """Makes an image of a container, whose image configuration's "config" becomes `config`. Blocks.

    Raises NotFound, Unavailable (disk full).
    """
    image_id, chains = store.root_of(container_id)
    try:
        parent: Image | None = store.by_id(image_id)
    except NotFound:
        parent = None  # removed by force; its layers are still here
    old: dict[str, Any] = parent.config if parent else {}
    with store.lease() as lease:
        lease.hold_chains(chains)
        rows = [row for row in map(store.layer, chains) if row is not None]
        blobs = [Descriptor(row.media_type, row.blob, store.content.size(row.blob)) for row in rows]
        diffs = [row.diff for row in rows]
        layer = _layer(store, lease, container_id)
        if layer is not None:
            blobs.append(layer[0])
            diffs.append(layer[1])
            extract_layers(store, lease, blobs, diffs)
        created = now()
        step: dict[str, Any] = {"created": created}
        told = {"author": author, "created_by": created_by, "comment": comment, "empty_layer": layer is None}
        step |= {key: value for key, value in told.items() if value}
        here = platforms.host()
        document: dict[str, Any] = {
            "architecture": old.get("architecture") or here.architecture,
            "os": old.get("os") or here.os,
            **{key: old[key] for key in ("variant", "os.version", "os.features") if key in old},
            "created": created,
            "author": author,
            "config": config,
            "container": container_id,
            "history": [*(old.get("history") or ()), step],
            "rootfs": {"type": "layers", "diff_ids": diffs},
        }
        names: Sequence[Reference] = [name.with_default_tag()] if name else []
        return add_image(store, lease, manifest.encode(document), blobs, names, image_id if parent else "")[0]


def _layer(store: ImageStore, lease: Lease, container_id: str) -> tuple[Descriptor, str] | None:
    """The container's changes as a blob and their diff id; None when it has changed nothing."""
    overlay = store.overlay(container_id)
    plain = hashlib.sha256()
    with store.content.writer() as blob:
        compressed = GzipWriter(blob)

        def write(data: bytes) -> None:
            plain.update(data)
            compressed.write(data)

        writer = TarWriter(write)
        if not write_layer(overlay, writer):
            return None
        writer.close()
        compressed.finish()
        described = Descriptor(manifest.layer_type("gzip"), blob.digest, blob.size)
        lease.hold(described.digest)
        if not store.content.has(described.digest):
            blob.commit()
    return described, f"sha256:{plain.hexdigest()}"
