"""Steps from a cache elsewhere: each layer is fetched when a step comes to it."""

from __future__ import annotations

from collections.abc import Sequence

from guest_agent.build.request import Blobs
from guest_agent.errors import InvalidParameter
from guest_agent.images import cache_manifest, reference
from guest_agent.images import manifest as manifests
from guest_agent.images.assemble import extract_layer
from guest_agent.images.cache_manifest import CacheDocument, CachedStep
from guest_agent.images.content import digest_of
from guest_agent.images.manifest import Descriptor
from guest_agent.images.repository import CONFIGS, Manifest, descriptor, parse_manifest
from guest_agent.images.store import ImageStore, LayerRow, Lease

_MAX_CONFIG = 64 << 20  # bytes of what lists the steps


class ImportedCache:
    """A cache in a registry or a client's folder. All methods but `find` block."""

    def __init__(self, document: CacheDocument, blobs: Blobs) -> None:
        self._document = document
        self._blobs = blobs

    @classmethod
    def open(cls, manifest: Manifest, blobs: Blobs) -> ImportedCache:
        """The cache that a manifest describes. Raises InvalidParameter for a manifest of something else."""
        described = _config_of(manifest)
        if described.media_type == cache_manifest.BUILDKIT_CONFIG:
            raise InvalidParameter(
                "it is a cache of BuildKit's, whose keys are not known here",
                "Export one with this engine: --cache-to.",
            )
        if described.media_type != cache_manifest.CACHE_CONFIG:
            raise InvalidParameter(f"it is no build cache but {described.media_type}")
        if described.size > _MAX_CONFIG:
            raise InvalidParameter(f"the build cache lists more than {_MAX_CONFIG} bytes of steps")
        config = bytearray()
        for piece in blobs(described):
            config += piece
            if len(config) > described.size:
                break
        if digest_of(bytes(config)) != described.digest:
            raise InvalidParameter("the build cache is damaged", "Export it again.")
        return cls(cache_manifest.read(bytes(config), manifest.data, manifest.layers()), blobs)

    def find(self, key: str, chain: str) -> CachedStep | None:
        """The step of this key, made on the layer `chain`."""
        step = self._document.steps.get(key)
        if step is None:
            return None
        below = chain if step.empty else self._document.layers[step.chain].parent
        return step if below == chain and (not step.empty or step.chain == chain) else None

    def bring(self, store: ImageStore, lease: Lease, step: CachedStep, chains: Sequence[str]) -> LayerRow:
        """The layer that a step has made on `chains`, fetched unless it is here; the lease holds it.

        Raises InternalError when it is not what it should be, Unavailable, DiskFull.
        """
        layer = self._document.layers[step.chain]
        blob = self._document.blob(layer)
        lease.hold_chains([layer.chain])
        lease.hold(blob.digest)
        known = store.layer(layer.chain)
        if known is not None:
            return known
        if not store.content.has(blob.digest):
            with store.content.writer(blob.digest) as writer:
                for piece in self._blobs(blob):
                    writer.write(piece)
                    if writer.size > blob.size:
                        break
                writer.commit(blob.digest)
        size = extract_layer(store, blob, layer.diff, chains, layer.chain)
        row = LayerRow(layer.chain, layer.parent, layer.diff, size, blob.digest, blob.media_type)
        store.add_layer(row)
        return row


def open_folder(digest: str, blobs: Blobs) -> ImportedCache:
    """The cache in a folder that is read by `blobs`; `digest` is its manifest's. Blocks.

    Raises InvalidParameter, NotFound.
    """
    reference.check_digest(digest)
    data = b"".join(blobs(Descriptor(manifests.OCI_MANIFEST, digest, 0)))
    return ImportedCache.open(parse_manifest(data, manifests.OCI_MANIFEST, digest), blobs)


def is_image(manifest: Manifest) -> bool:
    """Whether a manifest is an image's, or an index of images."""
    return manifest.is_index or _config_of(manifest).media_type in CONFIGS


def _config_of(manifest: Manifest) -> Descriptor:
    if manifest.is_index:
        raise InvalidParameter("it is no build cache but an index of images")
    return descriptor(manifest.document.get("config"), "config")
