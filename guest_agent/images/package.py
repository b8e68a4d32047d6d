"""What an image is sent as, to a registry or into an archive: its manifest and the layer blobs of the store.

A layer that was pulled or loaded is kept as the blob it came in; one that was made here was compressed once,
when it was made. So what is sent has the digests it had before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guest_agent.errors import NotFound
from guest_agent.images import manifest
from guest_agent.images.content import digest_of
from guest_agent.images.manifest import Descriptor

if TYPE_CHECKING:
    from guest_agent.images.store import Image, ImageStore


@dataclass(frozen=True, slots=True)
class Package:
    """An image's documents, and its layers bottom first."""

    manifest: bytes
    media_type: str  # of the manifest
    config: Descriptor
    layers: list[Descriptor]

    @property
    def descriptor(self) -> Descriptor:
        """The manifest's own."""
        return Descriptor(self.media_type, digest_of(self.manifest), len(self.manifest))


def package(store: ImageStore, image: Image) -> Package:
    """An image's own manifest when all its blobs are here, else one of what is.

    NotFound when the store misses a blob.
    """
    own = store.content.read(image.manifest)
    document = json.loads(own)
    layers = [_descriptor(item) for item in document["layers"]]
    if all(store.content.has(layer.digest) for layer in layers):
        media_type = document.get("mediaType") or manifest.OCI_MANIFEST
        return Package(own, media_type, _descriptor(document["config"]), layers)
    layers = []
    for chain in image.chains:
        row = store.layer(chain)
        if row is None:
            raise NotFound(f"layer {chain} of image {image.id} is not in the store")
        layers.append(Descriptor(_oci(row.media_type), row.blob, store.content.size(row.blob)))
    config = Descriptor(manifest.OCI_CONFIG, image.id, store.content.size(image.id))
    return Package(manifest.image_manifest(config, layers), manifest.OCI_MANIFEST, config, layers)


def package_of(config: bytes, layers: Sequence[Descriptor]) -> Package:
    """An image that is made here, of its configuration and layers."""
    described = Descriptor(manifest.OCI_CONFIG, digest_of(config), len(config))
    document = manifest.image_manifest(described, layers)
    return Package(document, manifest.OCI_MANIFEST, described, list(layers))


def _descriptor(item: dict[str, object]) -> Descriptor:
    return Descriptor(str(item["mediaType"]), str(item["digest"]), int(str(item["size"])))


def _oci(media_type: str) -> str:
    """The OCI name of a layer's type, since a manifest has one vendor's."""
    if media_type.startswith(manifest.OCI_LAYER):
        return media_type
    compression = media_type.rpartition(".")[2]
    return manifest.layer_type(compression if compression in ("gzip", "zstd") else "")
