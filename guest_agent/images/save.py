"""`docker save`: images as one tar that is an OCI image layout and a docker-archive at once, as Docker 25
writes it.

Layers stand in it as the blobs they are in the store, compressed; all readers of both formats take them. The
same images give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from guest_agent.errors import NotFound
from guest_agent.images import indexes, manifest, platforms, reference, tar
from guest_agent.images.content import digest_of
from guest_agent.images.manifest import Descriptor
from guest_agent.images.package import Package, package
from guest_agent.images.platforms import Platform
from guest_agent.images.reference import Reference
from guest_agent.images.store import Image, ImageStore, Lease
from guest_agent.images.tar import Entry, TarWriter

_CHUNK = 1 << 20
_IMAGE_NAME = "io.containerd.image.name"
_REF_NAME = "org.opencontainers.image.ref.name"


@dataclass(slots=True)
class Selected:
    """An image to save, under the tags that were asked for."""

    image: Image
    names: list[Reference] = field(default_factory=list)
    members: list[Image] = field(default_factory=list)  # all of its index, where the names stand for one


def select(store: ImageStore, names: Sequence[str], platform: Platform | None = None) -> list[Selected]:
    """What `names` mean: an id one image without tags, NAME all its tags, NAME:TAG that one.

    `platform`: of images for several only the one for this. Raises as `get`.
    """
    found: dict[tuple[str, str], Selected] = {}

    def add(image: Image, *tags: Reference) -> None:
        for tag in tags or (None,):
            members = indexes.members(store, tag) if tag else []
            if members and platform:
                at = platforms.best(platform, [platforms.of_config(each.config) for each in members])
                image, members = (members[at], []) if at >= 0 else (image, [])
            index = indexes.named(store, tag) if tag and members else ""
            selected = found.setdefault((image.id, index), Selected(image, members=members))
            if tag and tag not in selected.names:
                selected.names.append(tag)

    for name in names:
        if not reference.image_id(name):
            ref = reference.parse(name)
            if not ref.tag and not ref.digest:
                tags = store.tags_of(ref)
                for tag, id in tags:
                    add(store.by_id(id), tag)
                if tags:
                    continue
            elif not ref.digest and store.named(ref):
                add(store.get(name), ref)
                continue
        try:
            add(store.get(name))
        except NotFound as error:
            raise NotFound(f"No such image: {name}", error.hint)
    return list(found.values())


def save(store: ImageStore, selected: Sequence[Selected], write: Callable[[bytes], object]) -> None:
    """Writes the archive. Blocks; raises what `write` raises, NotFound when the store misses a blob."""
    with store.lease() as lease:
        write_archive(store, lease, [_item(store, each) for each in selected], write)


def _item(store: ImageStore, selected: Selected) -> Item:
    images = selected.members or [selected.image]
    packages = [package(store, image) for image in images]
    at = [image.id for image in images].index(selected.image.id)
    if not selected.members:
        return Item(packages[0], selected.names)
    others = [Item(packed, ()) for packed in packages[:at] + packages[at + 1 :]]
    return Item(packages[at], selected.names, None, others, indexes.document(images, packages))


@dataclass(frozen=True, slots=True)
class Item:
    """An image in an archive. `config`: its configuration, None where the store has it as a blob."""

    package: Package
    names: Sequence[Reference]
    config: bytes | None = None
    others: Sequence[Item] = ()  # for other platforms, under the same names
    index: bytes = b""  # of all of them


def write_archive(
    store: ImageStore, lease: Lease, items: Sequence[Item], write: Callable[[bytes], object]
) -> None:
    """The same for images that need not be the store's, whose layers are. Blocks."""
    _Archive(store, lease, write).write(items)


class _Archive:
    def __init__(self, store: ImageStore, lease: Lease, write: Callable[[bytes], object]) -> None:
        self._store = store
        self._lease = lease
        self._tar = TarWriter(write)
        self._written: set[str] = set()

    def write(self, items: Sequence[Item]) -> None:
        index: list[dict[str, Any]] = []
        docker: list[dict[str, Any]] = []
        repositories: dict[str, dict[str, str]] = {}
        for directory in ("blobs/", "blobs/sha256/"):
            self._tar.add(Entry(directory, tar.DIRECTORY, 0o755))
        for item in items:
            packed = item.package
            layers, described, config = packed.layers, packed.descriptor, packed.config.digest
            for each in (item, *item.others):
                self._image(each)
            if item.index:
                described = Descriptor(manifest.OCI_INDEX, digest_of(item.index), len(item.index))
                self._data(_path(described.digest), item.index)
            index += self._described(described, item)
            docker.append(
                {
                    "Config": _path(config),
                    "RepoTags": [name.familiar for name in item.names] or None,
                    "Layers": [_path(layer.digest) for layer in layers],
                }
            )
            for name in item.names:
                top = layers[-1].digest.partition(":")[2] if layers else ""
                repositories.setdefault(name.familiar_name, {})[name.tag] = top
        layout = {"schemaVersion": 2, "mediaType": manifest.OCI_INDEX, "manifests": index}
        self._data("index.json", manifest.encode(layout))
        self._data("manifest.json", manifest.encode(docker))
        self._data("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        if repositories:
            self._data("repositories", manifest.encode(repositories))
        self._tar.close()

    def _image(self, item: Item) -> None:
        """The blobs of one image."""
        packed = item.package
        config = packed.config.digest
        self._lease.hold(config, *(layer.digest for layer in packed.layers))
        for layer in packed.layers:
            self._blob(layer.digest)
        if item.config is None:
            self._blob(config)
        else:
            self._data(_path(config), item.config)
        self._data(_path(packed.descriptor.digest), packed.manifest)

    @staticmethod
    def _described(described: Descriptor, item: Item) -> list[dict[str, Any]]:
        if not item.names:
            return [described.json()]
        return [
            described.json() | {"annotations": {_IMAGE_NAME: str(name), _REF_NAME: name.tag}}
            for name in item.names
        ]

    def _blob(self, digest: str) -> None:
        if digest in self._written:
            return
        self._written.add(digest)
        fd = self._store.content.open(digest)
        try:
            self._tar.add(Entry(_path(digest), size=os.fstat(fd).st_size), _content(fd))
        finally:
            os.close(fd)

    def _data(self, name: str, data: bytes) -> None:
        if name in self._written:
            return
        self._written.add(name)
        self._tar.add(Entry(name, size=len(data)), [data])


def _content(fd: int) -> Iterator[bytes]:
    while data := os.read(fd, _CHUNK):
        yield data


def _path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"
