"""Manifests and image configurations as JSON: media types, and the ones written here.

OCI image-spec manifest.md and config.md; Docker's image manifest version 2, schema 2.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob as a manifest names it."""

    media_type: str
    digest: str
    size: int

    def json(self) -> dict[str, Any]:
        """The descriptor as it stands in a manifest."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


def layer_type(compression: str) -> str:
    """The media type of a layer blob with this compression ("" or gzip, zstd …)."""
    return f"{OCI_LAYER}+{compression}" if compression else OCI_LAYER


def encode(document: Any) -> bytes:
    """Canonical enough: the same document gives the same bytes."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def image_manifest(config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
    """An OCI manifest."""
    return encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config.json(),
            "layers": [layer.json() for layer in layers],
        }
    )
