"""A build cache in a registry or a folder: an OCI manifest whose layers are those that steps have made.

Its configuration (`CACHE_CONFIG`) says which step, by the key of all it depends on, came to which layer:

    {"steps": [{"key", "chain", "empty", "created", "description", "kind"}],
     "layers": [{"chain", "parent", "diff", "size", "blob"}]}

`chain`, `parent` and `diff` are OCI chain and diff ids, `blob` is the digest of a layer of the manifest,
`size` what it comes to in bytes. Steps that are `empty` added no layer to the one that `chain` names.

BuildKit's own caches have the same outer form, but their keys are digests of LLB vertices, which are not
known here; so neither can read the other's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from guest_agent.errors import InvalidParameter
from guest_agent.images import manifest, reference
from guest_agent.images.content import digest_of
from guest_agent.images.manifest import Descriptor
from guest_agent.images.snapshots import chain_id

CACHE_CONFIG = "application/vnd.wherry.build-cache.v1+json"
BUILDKIT_CONFIG = "application/vnd.buildkit.cacheconfig.v0"


class CachedStep(msgspec.Struct, frozen=True):
    """A step and what it came to."""

    key: str
    chain: str  # the topmost layer after it, "" for none
    empty: bool
    created: str
    description: str
    kind: str


class CachedLayer(msgspec.Struct, frozen=True):
    """A layer that a step has made."""

    chain: str
    parent: str
    diff: str
    size: int
    blob: str


class _Document(msgspec.Struct):
    steps: list[CachedStep]
    layers: list[CachedLayer]


@dataclass(frozen=True, slots=True)
class CacheDocument:
    """A cache: `config` and `manifest` are its documents, `blobs` what the layers are."""

    config: bytes
    manifest: bytes
    blobs: list[Descriptor]
    steps: dict[str, CachedStep]  # by key
    layers: dict[str, CachedLayer]  # by chain

    @property
    def config_descriptor(self) -> Descriptor:
        """The configuration as the manifest names it."""
        return Descriptor(CACHE_CONFIG, digest_of(self.config), len(self.config))

    @property
    def descriptor(self) -> Descriptor:
        """The manifest's own."""
        return Descriptor(manifest.OCI_MANIFEST, digest_of(self.manifest), len(self.manifest))

    def blob(self, layer: CachedLayer) -> Descriptor:
        """A layer's blob."""
        return next(blob for blob in self.blobs if blob.digest == layer.blob)


def make(
    steps: Sequence[CachedStep], layers: Sequence[CachedLayer], blobs: Sequence[Descriptor]
) -> CacheDocument:
    """A cache of these steps; the same ones give the same bytes."""
    known = {step.key: step for step in steps}
    made = {layer.chain: layer for layer in layers}
    document = _Document([known[key] for key in sorted(known)], [made[chain] for chain in sorted(made)])
    config = msgspec.json.encode(document)
    unique = {blob.digest: blob for blob in blobs}
    sorted_blobs = [unique[digest] for digest in sorted(unique)]
    described = Descriptor(CACHE_CONFIG, digest_of(config), len(config))
    return CacheDocument(config, manifest.image_manifest(described, sorted_blobs), sorted_blobs, known, made)


def read(config: bytes, document: bytes, blobs: Sequence[Descriptor]) -> CacheDocument:
    """A cache that somebody else has written. Raises InvalidParameter when it is damaged."""
    try:
        found = msgspec.json.decode(config, type=_Document)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidParameter(f"malformed build cache: {error}", "Export it again.")
    offered = {blob.digest for blob in blobs}
    layers = {layer.chain: layer for layer in found.layers}
    for layer in layers.values():
        for digest in filter(None, (layer.chain, layer.parent, layer.diff, layer.blob)):
            reference.check_digest(digest)
        if chain_id(layer.parent, layer.diff) != layer.chain or layer.blob not in offered or layer.size < 0:
            raise InvalidParameter(f"malformed build cache: layer {layer.chain}", "Export it again.")
    steps = {step.key: step for step in found.steps}
    for step in steps.values():
        if not step.empty and step.chain not in layers:
            raise InvalidParameter(f"malformed build cache: step {step.key} has no layer", "Export it again.")
    return CacheDocument(config, document, list(blobs), steps, layers)
