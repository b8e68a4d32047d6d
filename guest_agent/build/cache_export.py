"""The steps of a build as a cache for other engines: `--cache-to`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from guest_agent.build.request import BuildResult
from guest_agent.errors import InvalidParameter, NotSupported
from guest_agent.images import cache_manifest, reference
from guest_agent.images.auth import Credentials
from guest_agent.images.build_cache import BuildCache
from guest_agent.images.cache_manifest import CachedLayer, CacheDocument, CachedStep
from guest_agent.images.manifest import Descriptor
from guest_agent.images.reference import Reference
from guest_agent.images.store import ImageStore
from guest_agent.threads import in_thread

_TRUE = ("1", "t", "true")
_AS_IT_IS = {
    "oci-mediatypes": _TRUE,
    "image-manifest": _TRUE,
    "compression": ("gzip",),
    "force-compression": ("0", "f", "false"),
}
_CLIENTS = ("dest", "tag", "reset")  # are dealt with by the client


@dataclass(frozen=True, slots=True)
class CacheTo:
    """One `--cache-to`."""

    kind: str  # registry, local, inline
    ref: Reference | None = None  # of a registry
    dest: str = ""  # the client's folder
    whole: bool = False  # mode=max: all steps, not only those whose layers the image has
    ignore_error: bool = False


def parse(kind: str, attributes: Mapping[str, str]) -> CacheTo:
    """What a client asks for. Raises NotSupported by the option's name, InvalidParameter."""
    if kind not in ("registry", "local", "inline"):
        raise NotSupported(f"--cache-to type={kind} is not supported", "It can be registry, local or inline.")
    ref, whole, ignore = None, False, False
    for name, value in attributes.items():
        if name == "ref" and kind == "registry":
            ref = reference.parse(value).with_default_tag()
        elif name == "mode":
            if value not in ("min", "max"):
                raise InvalidParameter(f"invalid cache mode {value!r}", "It is min or max.")
            whole = value == "max"
        elif name == "ignore-error":
            ignore = value.lower() in _TRUE
        elif name in _CLIENTS and kind == "local":
            pass
        elif value.lower() not in _AS_IT_IS.get(name, ()):
            raise NotSupported(f"--cache-to type={kind},{name}={value} is not supported", "Leave it out.")
    dest = attributes.get("dest", "")
    if (kind == "registry" and ref is None) or (kind == "local" and not dest):
        missing = "ref" if kind == "registry" else "dest"
        raise InvalidParameter(f"{kind} cache exporter requires {missing}")
    return CacheTo(kind, ref, dest, whole, ignore)


def options_of(text: str, flag: str) -> tuple[str, dict[str, str]]:
    """The type and the attributes of a `type=…,name=value` as flags have it. Raises InvalidParameter."""
    attributes = dict(part.partition("=")[::2] for part in text.split(","))
    kind = attributes.pop("type", "")
    if not kind:
        raise InvalidParameter(f"invalid {flag} {text!r}: type is required", "Write type=registry,ref=NAME.")
    return kind, attributes


def document_of(store: ImageStore, results: Sequence[BuildResult], whole: bool) -> CacheDocument:
    """The cache of builds whose layers are held. Blocks."""
    cache = BuildCache(store)
    kept: Collection[str] = {chain for result in results for chain in result.state.chains}
    steps: list[CachedStep] = []
    layers: list[CachedLayer] = []
    blobs: list[Descriptor] = []
    for key in dict.fromkeys(key for result in results for key in result.keys):
        entry = cache.find(key)
        if entry is None or not (whole or not entry.chain or entry.chain in kept):
            continue
        row = entry.layer
        steps.append(CachedStep(key, entry.chain, row is None, entry.created, entry.description, entry.kind))
        if row is not None:
            layers.append(CachedLayer(row.chain, row.parent, row.diff, row.size, row.blob))
            blobs.append(Descriptor(row.media_type, row.blob, store.content.size(row.blob)))
    return cache_manifest.make(steps, layers, blobs)


async def push(
    store: ImageStore,
    ref: Reference,
    document: CacheDocument,
    credentials: Credentials | None,
    told: Callable[[Descriptor], None],
) -> None:
    """Pushes a cache; `told` is called from a thread, before each layer. Raises as `Puller.push`."""
    blobs: list[tuple[Descriptor, bytes | None]] = [(blob, None) for blob in document.blobs]
    blobs.append((document.config_descriptor, document.config))
    cancelled = threading.Event()

    def work() -> None:
        store.puller().push_artifact(ref, document.manifest, blobs, credentials, told, cancelled)

    try:
        await in_thread(work, "build-cache")
    finally:
        cancelled.set()
