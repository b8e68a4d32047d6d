"""One image into a repository that is reached: its layers, several at once, then what names them."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Sequence

from guest_agent.errors import NotFound
from guest_agent.images import indexes
from guest_agent.images.content import digest_of
from guest_agent.images.manifest import OCI_INDEX, Descriptor
from guest_agent.images.messages import Say, Throttle, message
from guest_agent.images.package import Package, package
from guest_agent.images.reference import Reference
from guest_agent.images.registry import Cancelled
from guest_agent.images.repository import Repository
from guest_agent.images.store import Image, ImageStore, Lease
from guest_agent.images.upload import Told, Uploads

_MAX_MOUNTS = 3  # repositories that are asked for a layer before it is uploaded
_FOREIGN = ("nondistributable", ".foreign.")


class ImagePush:
    """One image under one tag, to `target`."""

    def __init__(
        self,
        store: ImageStore,
        target: Repository,
        concurrent: int,
        say: Say,
        cancelled: threading.Event,
        known: set[str],
    ) -> None:
        """`known`: digests that earlier pushes to the same place have found or put there; added to."""
        self._store = store
        self._target = target
        self._concurrent = max(1, concurrent)
        self._say = say
        self._cancelled = cancelled
        self._known = known
        self._uploads = Uploads(target, cancelled)

    def run(self, ref: Reference, image: Image, alone: bool = False) -> Descriptor:
        """Pushes `image` as `ref`, which has a tag; the manifest's descriptor.

        Where `ref` stands for images for several platforms they go along with it, unless it is to go `alone`.

        Raises what the registry client does, NotFound.
        """
        members = [] if alone else indexes.members(self._store, ref)
        with self._store.lease() as lease:
            packages = [self._image(lease, ref, each) for each in members or [image]]
            sent, index = packages[0], ""
            document, described = sent.manifest, sent.descriptor
            if members:
                for each in packages:
                    self._uploads.manifest(each.descriptor.digest, each.manifest, each.media_type)
                document = indexes.document(members, packages)
                index = digest_of(document)
                described = Descriptor(OCI_INDEX, index, len(document))
            lease.hold(described.digest)
            self._uploads.manifest(ref.tag, document, described.media_type)
            self._store.content.put(document, described.digest)
            try:
                self._store.tag(image.id, ref.with_digest(described.digest), index)
            except NotFound:
                pass  # removed meanwhile; what was pushed stays pushed
        size = described.size
        self._say({"status": f"{ref.tag}: digest: {described.digest} size: {size}"})
        aux = {"Tag": ref.tag, "Digest": described.digest, "Size": size}
        self._say({"progressDetail": {}, "aux": aux})
        return described

    def _image(self, lease: Lease, ref: Reference, image: Image) -> Package:
        """Pushes one platform's layers and configuration; its manifest is left."""
        sent = package(self._store, image)
        lease.hold(sent.descriptor.digest, sent.config.digest, *(layer.digest for layer in sent.layers))
        self._layers(ref, image, sent)
        if not self._uploads.has(sent.config.digest):
            self._send(sent.config, lambda done: None)
        return sent

    def _layers(self, ref: Reference, image: Image, sent: Package) -> None:
        work: dict[str, tuple[str, str, Descriptor]] = {}
        for diff, chain, blob in reversed(list(zip(image.layers, image.chains, sent.layers, strict=True))):
            self._say(message("Preparing", _short(diff)))
            work.setdefault(diff, (diff, chain, blob))
        for number, (diff, _, _) in enumerate(work.values()):
            if number >= self._concurrent:
                self._say(message("Waiting", _short(diff)))
        self._at_once(ref, list(work.values()))
        if self._cancelled.is_set():
            raise Cancelled("cancelled")

    def _at_once(self, ref: Reference, layers: list[tuple[str, str, Descriptor]]) -> None:
        """Pushes layers, several at once; the first failure ends it.

        The threads are daemons and are not waited for after that: a registry may leave one without an answer
        for minutes, which neither the client nor the engine's end is to wait for.
        """
        waiting = deque(layers)
        done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        stop = threading.Event()

        def run() -> None:
            while not stop.is_set():
                try:
                    item = waiting.popleft()
                except IndexError:
                    return
                try:
                    self._layer(ref, *item, stop)
                    done.put(None)
                except BaseException as e:
                    done.put(e)

        for _ in range(min(self._concurrent, len(layers))):
            threading.Thread(target=run, name="push-layer", daemon=True).start()
        left = len(layers)
        try:
            while left and not self._cancelled.is_set():
                try:
                    error = done.get(timeout=0.2)
                except queue.Empty:
                    continue
                left -= 1
                if error is not None:
                    raise error
        finally:
            stop.set()

    def _layer(self, ref: Reference, diff: str, chain: str, blob: Descriptor, stop: threading.Event) -> None:
        if stop.is_set():
            raise Cancelled("cancelled")
        id = _short(diff)
        if any(part in blob.media_type for part in _FOREIGN):
            self._say(message("Skipped foreign layer", id))
            return
        if blob.digest in self._known or self._uploads.has(blob.digest):
            self._known.add(blob.digest)
            self._say(message("Layer already exists", id))
            return
        session = ""
        for source in self._sources(ref, chain)[:_MAX_MOUNTS]:
            session = self._uploads.mount(blob.digest, source)
            if not session:
                self._say(message(f"Mounted from {source}", id))
                self._known.add(blob.digest)
                return
        throttle = Throttle()

        def told(done: int) -> None:
            if stop.is_set():
                raise Cancelled("cancelled")
            if throttle.ready() or done == blob.size:
                self._say(message("Pushing", id, done, blob.size))

        self._send(blob, told, session)
        self._known.add(blob.digest)
        self._say(message("Pushed", id))

    def _send(self, blob: Descriptor, told: Told, session: str = "") -> None:
        fd = self._store.content.open(blob.digest)
        try:
            self._uploads.send(blob, fd, told, session)
        finally:
            os.close(fd)

    def _sources(self, ref: Reference, chain: str) -> Sequence[str]:
        """Repositories of the same registry that had the layer when an image was pulled from there or pushed.

        The nearest by name come first.
        """
        rows = self._store.metadata.rows(
            "SELECT DISTINCT n.name FROM names n JOIN image_layers l ON l.image = n.image"
            " WHERE l.chain = ? AND n.name LIKE '%@%'",
            (chain,),
        )
        return nearest(ref, [name for (name,) in rows])


def nearest(ref: Reference, names: Sequence[str]) -> list[str]:
    """The paths of other repositories of `ref`'s registry in `names`, the most like its own first."""
    wanted = ref.path.split("/")

    def likeness(path: str) -> tuple[int, str]:
        parts = path.split("/")
        return -sum(a == b for a, b in zip(parts, wanted, strict=False)), path

    paths = set()
    for name in names:
        domain, _, path = name.partition("@")[0].partition("/")
        if domain == ref.domain and path != ref.path:
            paths.add(path)
    return sorted(paths, key=likeness)


def _short(digest: str) -> str:
    return digest.partition(":")[2][:12]
