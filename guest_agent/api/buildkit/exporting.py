"""What becomes of a build's result: an image of the engine's, files or an archive for the client."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from guest_agent.api.buildkit import content
from guest_agent.api.buildkit.progress import Progress, Vertex
from guest_agent.api.buildkit.sending import Write, send_file, send_tree
from guest_agent.api.buildkit.session import Session
from guest_agent.build.copies import look
from guest_agent.build.output import item, write_files
from guest_agent.build.request import BuildResult
from guest_agent.errors import InvalidParameter, NotSupported
from guest_agent.images import manifest, reference
from guest_agent.images.content import digest_of
from guest_agent.images.manifest import Descriptor
from guest_agent.images.platforms import Platform, as_json
from guest_agent.images.reference import Reference
from guest_agent.images.save import Item, write_archive
from guest_agent.images.store import Lease

if TYPE_CHECKING:
    from guest_agent.engine.engine import Engine

_IMAGES = ("moby", "image")
_ARCHIVES = ("oci", "docker")
_EXPORT = "export"  # the client's name of the folder of an output
_TRUE, _FALSE = ("1", "t", "true"), ("", "0", "f", "false")
# Attributes that ask for what is so in any case, with the values that do.
_AS_IT_IS = {
    "compression": ("gzip",),
    "force-compression": _FALSE,
    "oci-mediatypes": _TRUE,
    "oci-artifact": _FALSE,
    "unpack": (*_TRUE, *_FALSE),
    "load": (*_TRUE, *_FALSE),  # as Compose sends it; the result is an image of the engine either way
    "store": _TRUE,
    "rewrite-timestamp": _FALSE,
    "push-by-digest": _FALSE,
    "name-canonical": _FALSE,
    "registry.insecure": _FALSE,
    "mode": ("", "copy"),
    "platform-split": _TRUE,
    "buildinfo": _FALSE,
    "attestation-prefix": ("",),
}


@dataclass(frozen=True, slots=True)
class Work:
    """What an export has to work with."""

    engine: Engine
    lease: Lease  # holds the result's layers
    session: Session
    credentials: Callable[[str], Any]
    progress: Progress


@dataclass(frozen=True, slots=True)
class Results:
    """What came of a build: one result, or one for each of several platforms."""

    builds: Sequence[tuple[Platform | None, BuildResult]]
    index: str = ""  # the digest of the index that the engine has of several

    @property
    def first(self) -> BuildResult:
        """The only one, or the first that was asked for."""
        return self.builds[0][1]

    def directories(self) -> list[tuple[str, BuildResult]]:
        """Where the files of each go: to the top, or into a directory for each platform."""
        if len(self.builds) == 1:
            return [("", self.first)]
        return [(str(platform).replace("/", "_"), result) for platform, result in self.builds]


@dataclass(frozen=True, slots=True)
class Export:
    """One `--output`, the `number`th of its build."""

    number: int
    kind: str
    tags: Sequence[Reference]
    push: bool = False
    folder: bool = False  # an archive's blobs go into a folder of the client's, an OCI image layout

    @property
    def keeps(self) -> bool:
        """Is the result to be an image of the engine's?"""
        return self.kind in _IMAGES

    async def run(self, results: Results, work: Work) -> dict[str, str]:
        """Carries it out; what a client's `--iidfile` and `--metadata-file` hold. EngineError."""
        if self.keeps:
            return await self._image(results, work)
        if self.kind in _ARCHIVES:
            return await self._archive(results, work)
        if self.kind == "tar":
            await self._tar(results, work)
        else:
            await self._local(results, work)
        return {}

    async def _image(self, results: Results, work: Work) -> dict[str, str]:
        digest = results.index or results.first.image_id
        with work.progress.vertex("exporting to image") as vertex:
            vertex.status("exporting layers", done=True)
            for _, result in results.builds:
                vertex.status(f"writing image {result.image_id}", done=True)
            if results.index:
                vertex.status(f"writing index {results.index}", done=True)
            for tag in self.tags:
                vertex.status(f"naming to {tag}", done=True)
            if self.push:
                for tag in self.tags:
                    digest = await _pushed(tag, work, vertex)
        return self._answer(results, digest)

    def _answer(self, results: Results, digest: str) -> dict[str, str]:
        answer = {"containerimage.digest": digest}
        if len(results.builds) == 1:
            answer["containerimage.config.digest"] = results.first.image_id
        if self.tags:
            answer["image.name"] = ",".join(str(tag) for tag in self.tags)
        return answer

    async def _archive(self, results: Results, work: Work) -> dict[str, str]:
        store = work.engine.images
        items = [item(store, result, self.tags) for _, result in results.builds]
        whole, described = items[0], items[0].package.descriptor
        if len(items) > 1:
            data = manifest.image_index(
                [
                    (each.package.descriptor, as_json(result.state.platform))
                    for each, (_, result) in zip(items, results.builds, strict=True)
                ]
            )
            described = Descriptor(manifest.OCI_INDEX, digest_of(data), len(data))
            whole = replace(items[0], others=items[1:], index=data)
        with work.progress.vertex(f"exporting to {self.kind} image format") as vertex:
            vertex.status("exporting layers", done=True)
            for each in items:
                vertex.status(f"exporting manifest {each.package.descriptor.digest}", done=True)
                vertex.status(f"exporting config {each.package.config.digest}", done=True)
            if self.folder:
                return await _fill_folder(whole, described, work, self._answer(results, described.digest))
            vertex.status("sending tarball")

            def write(out: Write) -> None:
                write_archive(store, work.lease, [whole], out)

            answer = self._answer(results, described.digest)
            await send_file(work.session, self.number, write, answer)
            vertex.status("sending tarball", done=True)
        return answer

    async def _tar(self, results: Results, work: Work) -> None:
        with work.progress.vertex("exporting to client tarball") as vertex:
            vertex.status("sending tarball")

            write = partial(write_files, work.engine, results.directories())
            await send_file(work.session, self.number, write, {})
            vertex.status("sending tarball", done=True)

    async def _local(self, results: Results, work: Work) -> None:
        with work.progress.vertex("exporting to client directory") as vertex:
            for directory, result in results.directories():
                copied = _Copied(vertex, f"copying files {directory}".rstrip())
                with_tree = partial(look, work.engine, result.state)
                await send_tree(work.session, self.number, with_tree, directory, copied.told)
                copied.end()


async def _fill_folder(
    whole: Item, described: Descriptor, work: Work, answer: dict[str, str]
) -> dict[str, str]:
    """Puts the blobs of an image into the client's folder; the client writes its index."""
    blobs = work.engine.images.content
    for each in (whole, *whole.others):
        packed = each.package
        for layer in packed.layers:
            fd = blobs.open(layer.digest)
            try:
                await content.write(work.session, _EXPORT, layer, fd)
            finally:
                os.close(fd)
        assert each.config is not None
        await content.write(work.session, _EXPORT, packed.config, each.config)
        await content.write(work.session, _EXPORT, packed.descriptor, packed.manifest)
    if whole.index:
        await content.write(work.session, _EXPORT, described, whole.index)
    encoded = base64.b64encode(json.dumps(described.json()).encode()).decode()
    return answer | {"containerimage.descriptor": encoded}


class _Copied:
    """How much of a directory has been sent, said about once a megabyte."""

    def __init__(self, vertex: Vertex, title: str) -> None:
        self._vertex = vertex
        self._title = title
        self._loop = asyncio.get_running_loop()
        self._sent = self._said = 0
        vertex.status(title)

    def told(self, done: int) -> None:
        self._sent = done
        if done - self._said > 1 << 20:
            self._said = done
            self._loop.call_soon_threadsafe(self._vertex.status, self._title, done)

    def end(self) -> None:
        self._vertex.status(self._title, self._sent, done=True)


async def _pushed(tag: Reference, work: Work, vertex: Vertex) -> str:
    """Pushes an image under a name it has; the manifest's digest."""
    loop = asyncio.get_running_loop()
    digest = ""

    def say(message: dict[str, Any]) -> None:
        nonlocal digest
        digest = (message.get("aux") or {}).get("Digest") or digest
        if message.get("id"):
            loop.call_soon_threadsafe(layer, message)

    def layer(message: dict[str, Any]) -> None:
        detail, text = message.get("progressDetail") or {}, message.get("status") or ""
        done = not text.startswith(("Preparing", "Waiting", "Pushing"))
        current, total = detail.get("current") or 0, detail.get("total") or 0
        vertex.status(f"pushing layer {message['id']}", current, total, done=done)

    await work.engine.images.push(tag, None, await work.credentials(tag.domain), say)
    vertex.status(f"pushing manifest for {tag}@{digest}", done=True)
    return digest


def exports_of(request: Any) -> list[Export]:
    """What a SolveRequest wants. NotSupported by the name of exporter or attribute, InvalidParameter for a
    bad tag."""
    wanted = [(each.Type, dict(each.Attrs)) for each in request.Exporters]
    if not wanted and request.ExporterDeprecated:
        wanted = [(request.ExporterDeprecated, dict(request.ExporterAttrsDeprecated))]
    return [_export(number, kind, attributes) for number, (kind, attributes) in enumerate(wanted)]


def _export(number: int, kind: str, attributes: Mapping[str, str]) -> Export:
    if kind not in (*_IMAGES, *_ARCHIVES, "tar", "local"):
        raise NotSupported(
            f"--output type={kind} is not supported", "It can be image, registry, local, tar, oci or docker."
        )
    names, push, folder = "", False, False
    for name, value in attributes.items():
        if name == "name":
            names = value
        elif name == "push" and kind in _IMAGES:
            push = value.lower() in _TRUE
        elif name == "tar" and kind in _ARCHIVES:
            folder = value.lower() in _FALSE
        elif name in ("dest", "context", "prefer-image-digest"):
            pass  # the client's own
        elif value.lower() not in _AS_IT_IS.get(name, ()):
            raise NotSupported(f"--output type={kind},{name}={value} is not supported", _hint(name))
    tags = [reference.parse(text).with_default_tag() for text in names.split(",") if text]
    if push and not tags:
        raise InvalidParameter("tag is needed when pushing to registry", "Name the image: -t NAME.")
    return Export(number, kind, tags, push, folder)


def _hint(name: str) -> str:
    if name == "registry.insecure":
        return "List the registry under insecure-registries in the engine's configuration."
    return "Leave it out."
