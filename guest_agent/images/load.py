"""`docker load` and `docker import`: images from tar archives.

Load takes what `docker save`, skopeo and buildkit write: the docker-archive format (manifest.json) and OCI
image layouts (index.json), which may stand in one archive. Members come in any order, so layers go to the
content store as they come and the rest is held in memory until the archive has ended.
"""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from guest_agent.errors import InvalidParameter
from guest_agent.images import manifest, platforms, reference, tar
from guest_agent.images.assemble import add_image, extract_layers, store_stream
from guest_agent.images.content import digest_of
from guest_agent.images.decompress import Decompressed, Read, kind_of
from guest_agent.images.manifest import Descriptor
from guest_agent.images.messages import Say, Throttle, message
from guest_agent.images.platforms import Platform
from guest_agent.images.reference import Reference
from guest_agent.images.snapshots import chain_ids
from guest_agent.images.store import Image, ImageStore, LayerRow, Lease
from guest_agent.images.tar import TarReader
from guest_agent.images.unpack import StagedLayer, reading

_MAX_DOCUMENT = 8 << 20  # bytes of one JSON document
_MAX_DOCUMENTS = 64 << 20  # bytes of all of them
_MAX_MEMBERS = 100_000
_IMAGE_NAME = "io.containerd.image.name"
_REF_NAME = "org.opencontainers.image.ref.name"


@dataclass(frozen=True, slots=True)
class Loaded:
    """One image of an archive."""

    image: Image
    names: tuple[Reference, ...]
    moved: tuple[str, ...]  # of these names, those that stood for another image before


@dataclass(frozen=True, slots=True)
class _Wanted:
    config: bytes
    layers: list[str]  # member names
    names: list[Reference]


def load(
    store: ImageStore, read: Read, progress: Say = lambda message: None, platform: Platform | None = None
) -> list[Loaded]:
    """Stores every image of an archive (of a multi-platform one, that for `platform`).

    `progress` takes Docker's messages. Raises InvalidParameter, Unavailable (disk full), InternalError (wrong
    digest); images before a faulty one stay.
    """
    with store.lease() as lease:
        archive = _Archive(store, lease, read)
        return [_store(store, lease, archive, wanted, progress) for wanted in archive.images(platform)]


def _store(store: ImageStore, lease: Lease, archive: _Archive, wanted: _Wanted, progress: Say) -> Loaded:
    diffs: list[str] = (manifest.parse_config(wanted.config).get("rootfs") or {}).get("diff_ids") or []
    if len(diffs) != len(wanted.layers):
        raise InvalidParameter(
            f"invalid manifest, layers length mismatch: expected {len(diffs)}, got {len(wanted.layers)}"
        )
    blobs = [archive.layer(name) for name in wanted.layers]

    throttle = Throttle()

    def told(index: int, done: int) -> None:
        total = blobs[index].size
        if throttle.ready() or done == total:
            progress(message("Loading layer", diffs[index].partition(":")[2][:12], done, total))

    extract_layers(store, lease, blobs, diffs, told)
    image, moved = add_image(store, lease, wanted.config, blobs, wanted.names)
    return Loaded(image, tuple(wanted.names), tuple(moved))


class _Archive:
    """The members of an archive: layers as blobs, JSON documents in memory, links by name."""

    def __init__(self, store: ImageStore, lease: Lease, read: Read) -> None:
        self._layers: dict[str, Descriptor] = {}
        self._documents: dict[str, bytes] = {}
        self._links: dict[str, str] = {}
        held = 0
        reader = TarReader(Decompressed(read).read)
        for count, entry in enumerate(reader):
            if count > _MAX_MEMBERS:
                raise InvalidParameter(f"invalid archive: more than {_MAX_MEMBERS} members")
            name = posixpath.normpath(entry.name)
            if entry.type == tar.SYMLINK:
                self._links[name] = posixpath.normpath(
                    posixpath.join(posixpath.dirname(name), entry.linkname)
                )
            elif entry.type == tar.LINK:
                self._links[name] = posixpath.normpath(entry.linkname)
            elif entry.type == tar.REGULAR:
                head = b""
                chunks = reader.chunks()
                while len(head) < tar.BLOCK and (chunk := next(chunks, None)):
                    head += chunk
                rest = _joined(head, chunks)
                if _is_layer(head):
                    self._layers[name] = store_stream(store, lease, rest)
                elif entry.size <= _MAX_DOCUMENT and head.lstrip()[:1] in (b"{", b"["):
                    held += entry.size
                    if held > _MAX_DOCUMENTS:
                        raise InvalidParameter("invalid archive: too much metadata")
                    self._documents[name] = head + b"".join(chunks)
        reader.drain()

    def layer(self, name: str) -> Descriptor:
        """The blob of a layer's member."""
        name = self._target(name)
        if name not in self._layers:
            raise InvalidParameter(
                f"invalid archive: no layer {name}", "The archive is incomplete; save it again."
            )
        return self._layers[name]

    def _target(self, name: str) -> str:
        name = posixpath.normpath(name)
        for _ in range(8):
            if name not in self._links:
                break
            name = self._links[name]
        return name

    def _document(self, name: str) -> bytes:
        name = self._target(name)
        if name not in self._documents:
            raise InvalidParameter(f"invalid archive: no {name}", "The archive is incomplete; save it again.")
        return self._documents[name]

    def images(self, platform: Platform | None) -> list[_Wanted]:
        """What to store."""
        if "manifest.json" in self._documents:
            items = _parse(self._documents["manifest.json"], list, "manifest.json")
            return [self._from_docker(item) for item in items]
        if "index.json" in self._documents:
            index = _parse(self._documents["index.json"], dict, "index.json")
            return self._from_index(index, platform)
        raise InvalidParameter(
            "invalid archive: does not contain a manifest.json",
            "'load' reads what 'save' writes; for a root file system use 'import'.",
        )

    def _from_docker(self, item: Any) -> _Wanted:
        if not isinstance(item, dict) or not isinstance(item.get("Config"), str):
            raise InvalidParameter("invalid archive: manifest.json is malformed")
        names = []
        for tag in _strings(item.get("RepoTags"), "RepoTags"):
            name = reference.parse(tag)
            if not name.tag:
                raise InvalidParameter(f"invalid tag {tag!r}")
            names.append(name.with_tag(name.tag))
        return _Wanted(self._document(item["Config"]), _strings(item.get("Layers"), "Layers"), names)

    def _from_index(self, index: dict[str, Any], platform: Platform | None) -> list[_Wanted]:
        found: dict[str, _Wanted] = {}
        for descriptor in _dicts(index.get("manifests"), "index.json"):
            names = self._names(descriptor)
            document, digest = self._blob(descriptor)
            if "manifests" in document:
                document = self._choose(document, platform)
            if digest in found:
                found[digest].names.extend(names)
                continue
            config = document.get("config")
            if not isinstance(config, dict):
                raise InvalidParameter("invalid archive: a manifest without a config")
            layers = [_blob_path(layer) for layer in _dicts(document.get("layers"), "layers")]
            data = self._document(_blob_path(config))
            if digest_of(data) != config["digest"]:
                raise InvalidParameter(f"invalid archive: {config['digest']} has another content")
            found[digest] = _Wanted(data, layers, names)
        return list(found.values())

    def _choose(self, index: dict[str, Any], platform: Platform | None) -> dict[str, Any]:
        wanted = platform or platforms.host()
        offered, descriptors = [], []
        for descriptor in _dicts(index.get("manifests"), "index"):
            if self._target(_blob_path(descriptor)) not in self._documents:
                continue  # saved for some platforms only
            described = descriptor.get("platform") or {}
            offered.append(
                platforms.normalise(
                    *(str(described.get(key) or "") for key in ("os", "architecture", "variant"))
                )
            )
            descriptors.append(descriptor)
        at = platforms.best(wanted, offered)
        if at < 0:
            raise InvalidParameter(f"invalid archive: no image for {wanted}", "Choose one with --platform.")
        return self._blob(descriptors[at])[0]

    def _blob(self, descriptor: dict[str, Any]) -> tuple[dict[str, Any], str]:
        data = self._document(_blob_path(descriptor))
        if digest_of(data) != descriptor["digest"]:
            raise InvalidParameter(f"invalid archive: {descriptor['digest']} has another content")
        return _parse(data, dict, "manifest"), descriptor["digest"]

    @staticmethod
    def _names(descriptor: dict[str, Any]) -> list[Reference]:
        annotations = descriptor.get("annotations") or {}
        text = annotations.get(_IMAGE_NAME) if isinstance(annotations, dict) else None
        if not text and isinstance(annotations, dict):
            text = annotations.get(_REF_NAME)
            if not isinstance(text, str) or ("/" not in text and ":" not in text):
                return []  # a bare tag, with no repository to put it to
        if not isinstance(text, str):
            return []
        name = reference.parse(text).with_default_tag()
        return [name.with_tag(name.tag)] if name.tag else []


def _joined(head: bytes, chunks: Any) -> Read:
    pending = [head] if head else []

    def read(size: int) -> bytes:
        return pending.pop() if pending else bytes(next(chunks, b""))

    return read


def _is_layer(head: bytes) -> bool:
    """A compressed stream, a tar header, or the zeros of an empty tar."""
    return (
        bool(kind_of(head)) or head[257:262] == b"ustar" or (len(head) >= tar.BLOCK and not head.strip(b"\0"))
    )


def _blob_path(descriptor: dict[str, Any]) -> str:
    digest = descriptor.get("digest")
    if not isinstance(digest, str):
        raise InvalidParameter("invalid archive: a descriptor without a digest")
    reference.check_digest(digest)
    return f"blobs/{digest.replace(':', '/')}"


def _parse(data: bytes, kind: type, what: str) -> Any:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise InvalidParameter(f"invalid archive: {what}: {e}")
    if not isinstance(document, kind):
        raise InvalidParameter(f"invalid archive: {what} is malformed")
    return document


def _strings(value: Any, what: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidParameter(f"invalid archive: {what} is not a list of strings")
    return list(value)


def _dicts(value: Any, what: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InvalidParameter(f"invalid archive: {what} is malformed")
    return list(value)


def now() -> str:
    """The time as image configurations have it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def import_tar(
    store: ImageStore,
    read: Read,
    name: Reference | None = None,
    config: dict[str, Any] | None = None,
    message: str = "",
    platform: Platform | None = None,
    source: str = "-",
) -> Loaded:
    """Makes an image of one layer from a root file system's tar, with the run configuration `config`.

    Raises InvalidParameter (no tar), Unavailable (disk full).
    """
    made_for = platform or platforms.host()
    comment = message or f"Imported from {source}"
    with store.lease() as lease:
        blob = store_stream(store, lease, read)
        fd = store.content.open(blob.digest)
        with open(fd, "rb"), StagedLayer(store.snapshots, base=True) as staged:
            staged.unpack(reading(fd))
            (chain,) = chain_ids([staged.diff_id])
            lease.hold_chains([chain])
            if store.layer(chain) is None:
                staged.commit(chain, ())
                store.add_layer(
                    LayerRow(chain, "", staged.diff_id, staged.size, blob.digest, blob.media_type)
                )
            diff_id = staged.diff_id
        created = now()
        document: dict[str, Any] = {
            "created": created,
            "architecture": made_for.architecture,
            "os": made_for.os,
            "config": config or {},
            "comment": comment,
            "history": [{"created": created, "comment": comment}],
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        }
        if made_for.variant:
            document["variant"] = made_for.variant
        names = [name.with_default_tag()] if name else []
        image, moved = add_image(store, lease, manifest.encode(document), [blob], names)
        return Loaded(image, tuple(names), tuple(moved))
