"""One image into the store, from a repository that is reached: its manifest, its platform, its layers.

Everything a pull stores is leased until the image that refers to it has been committed, and what a failed
pull leaves is collected at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from guest_agent.errors import EngineError, InvalidParameter, NotFound, Unavailable
from guest_agent.images import manifest as manifests
from guest_agent.images import platforms
from guest_agent.images.manifest import Descriptor
from guest_agent.images.messages import INTERVAL, Say
from guest_agent.images.platforms import Platform
from guest_agent.images.progress import PullProgress
from guest_agent.images.reference import Reference
from guest_agent.images.registry import Cancelled, RegistryError
from guest_agent.images.repository import Manifest, Repository
from guest_agent.images.snapshots import MAX_LAYERS, chain_ids
from guest_agent.images.store import Image, ImageStore, Lease
from guest_agent.images.transfer import LayerJob, Transfers

_TRIES = 3  # when a layer shared with a pull that was cancelled went with it


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull came to."""

    image: Image
    digest: str
    updated: bool  # the name stands for another image than before


@dataclass(frozen=True, slots=True)
class _Found:
    """An image in a registry, all its documents verified."""

    digest: str  # what the name stands for: the index's digest, where there is one
    documents: tuple[Manifest, ...]  # index (if any) and manifest
    config: bytes
    config_digest: str
    layers: list[Descriptor]
    diff_ids: list[str]


class ImagePull:
    """One image, asked for as `ref` (with a tag or a digest), from `sources`, of which the first is reached.

    The others are asked for blobs that it does not have.
    """

    def __init__(
        self,
        store: ImageStore,
        transfers: Transfers,
        ref: Reference,
        platform: Platform | None,
        sources: Sequence[Repository],
        say: Say,
        cancelled: threading.Event,
        admit: Callable[[Sequence[str]], None] = lambda digests: None,
        by_digest: bool = False,
    ) -> None:
        """`admit` takes the digests of an image's index and manifest and raises when it may not be had.

        `by_digest`: the image gets the name of its own manifest's digest alone.
        """
        self._by_digest = by_digest
        self._admit = admit
        self._store = store
        self._transfers = transfers
        self._ref = ref
        self._platform = platform
        self._sources = sources
        self._say = say
        self._cancelled = cancelled

    def run(self) -> Pulled:
        """Pulls. Raises what the registry client does, InvalidParameter, NotFound, DiskFull."""
        pulled = None if self._by_digest else self._up_to_date()
        found = None if pulled else self._find()
        self._say({"status": f"Pulling from {self._ref.path}", "id": self._ref.digest or self._ref.tag})
        if found is not None:
            try:
                with self._store.lease() as lease:
                    pulled = self._patiently(found, lease)
            except BaseException:
                self._store.collect()
                raise
            self._warn_of_platform(pulled.image)
        assert pulled is not None
        self._say({"status": f"Digest: {pulled.digest}"})
        what = "Downloaded newer image" if pulled.updated else "Image is up to date"
        self._say({"status": f"Status: {what} for {self._ref.familiar}"})
        return pulled

    def _up_to_date(self) -> Pulled | None:
        """The image we have under this name, when the registry still has the same."""
        ref, store = self._ref, self._store
        digest = ref.digest
        if not digest:
            if not store.named(ref):
                return None
            digest = self._sources[0].head(ref.tag)
            if not digest:
                return None
        id = store.named(ref.with_digest(digest))
        if not id:
            return None
        try:
            image = store.by_id(id)
        except EngineError:
            return None  # removed just now, or damaged
        if not all(map(store.layer, image.chains)):
            return None  # damaged
        if not platforms.fits(self._platform or platforms.host(), platforms.of_config(image.config)):
            return None
        self._admit(list(dict.fromkeys((digest, image.manifest))))
        updated = not ref.digest and ref.familiar not in image.repo_tags
        if updated:
            store.tag(image.id, ref)
        return Pulled(image, digest, updated)

    def _find(self) -> _Found:
        source = self._sources[0]
        top = source.manifest(self._ref.digest or self._ref.tag)
        documents = [top]
        if top.is_index:
            documents.append(self._choose(top))
        self._admit([document.digest for document in documents])
        described, layers = documents[-1].config(), documents[-1].layers()
        if len(layers) > MAX_LAYERS:
            raise InvalidParameter(
                f"max depth exceeded: the image has {len(layers)} layers, the limit is {MAX_LAYERS}"
            )
        config = source.config(described)
        diffs = _diff_ids(config)
        if len(diffs) != len(layers):
            raise InvalidParameter(
                "layers from manifest don't match image configuration", "The image is broken."
            )
        return _Found(top.digest, tuple(documents), config, described.digest, layers, diffs)

    def _choose(self, index: Manifest) -> Manifest:
        """The manifest for the platform wanted."""
        wanted = self._platform or platforms.host()
        entries = index.manifests()
        offered = [platform_of(item) for _, item in entries]
        at = platforms.best(wanted, offered)
        if at < 0:
            there = sorted({str(each) for each in offered if each.os not in ("", "unknown")})
            raise NotFound(
                f"no matching manifest for {wanted} in the manifest list entries",
                f"It is there for {', '.join(there) or 'no platform'}; choose one with --platform.",
            )
        descriptor = entries[at][0]
        manifest = self._sources[0].manifest(descriptor.digest, descriptor.size)
        if manifest.is_index:
            raise InvalidParameter("an index in an index is not supported")
        return manifest

    def _patiently(self, found: _Found, lease: Lease) -> Pulled:
        """Brings the image in, again when a layer went with the pull that fetched it for both."""
        for attempt in range(_TRIES):
            try:
                return self._bring_in(found, lease)
            except Cancelled:
                if self._cancelled.is_set() or attempt + 1 == _TRIES:
                    raise
            except RegistryError as e:
                raise Unavailable(e.message, "The registry has the image, but not all of it.") from e
        raise AssertionError("unreachable")

    def _bring_in(self, found: _Found, lease: Lease) -> Pulled:
        chains = chain_ids(found.diff_ids)
        lease.hold_chains(chains)
        lease.hold(found.config_digest, *(document.digest for document in found.documents))
        lease.hold(*(layer.digest for layer in found.layers))
        progress = PullProgress(self._say)
        missing = [index for index, chain in enumerate(chains) if self._store.layer(chain) is None]
        for index, layer in enumerate(found.layers):
            (progress.announce if index in missing else progress.exists)(_short(layer.digest))
        jobs: list[LayerJob] = []
        try:
            self._work(found, chains, missing, jobs, progress)
        finally:
            for job in jobs:
                self._transfers.unwatch(job)
            for job in jobs:
                if job.cancelled:
                    job.finished.wait()  # so that what it leaves can be collected
        return self._commit(found)

    def _work(
        self,
        found: _Found,
        chains: list[str],
        missing: list[int],
        jobs: list[LayerJob],
        progress: PullProgress,
    ) -> None:
        """Has the missing layers brought in, telling how it goes; returns when all are there."""
        wake = threading.Event()
        while True:
            wake.clear()
            while len(jobs) < len(missing):
                index = missing[len(jobs)]
                below = jobs[-1] if jobs else None
                layer, diff = found.layers[index], found.diff_ids[index]
                job = self._transfers.watch(chains[: index + 1], diff, layer, below, self._sources, wake)
                if job is None:
                    break  # enough is under way
                jobs.append(job)
                progress.follow(_short(layer.digest), job)
            progress.update()
            if self._cancelled.is_set():
                raise Cancelled("cancelled")
            for job in jobs:
                if job.error is not None:
                    raise job.error
            if len(jobs) == len(missing) and all(job.finished.is_set() for job in jobs):
                progress.update()
                return
            wake.wait(INTERVAL)

    def _commit(self, found: _Found) -> Pulled:
        store, ref = self._store, self._ref
        for document in found.documents:
            store.content.put(document.data, document.digest, anew=True)
        store.content.put(found.config, found.config_digest, anew=True)
        names = [ref.with_digest(found.documents[-1].digest if self._by_digest else found.digest)]
        before = store.named(names[0] if ref.digest else ref)
        if not ref.digest and not self._by_digest:
            names.append(ref)
        image, _ = store.add_image(found.config_digest, found.documents[-1].digest, names)
        return Pulled(image, found.digest, before != image.id)

    def _warn_of_platform(self, image: Image) -> None:
        wanted, actual = self._platform, platforms.of_config(image.config)
        if wanted is not None and not platforms.fits(wanted, actual):
            text = (
                f"WARNING: image with reference {self._ref.familiar} was found but does not match the "
                f"specified platform: wanted {wanted}, actual: {actual}"
            )
            self._say({"status": text})


def platform_of(item: dict[str, Any]) -> Platform:
    """The platform as an index has it."""
    return platforms.normalise(*(str(item.get(key) or "") for key in ("os", "architecture", "variant")))


def _short(digest: str) -> str:
    return digest.partition(":")[2][:12]


def _diff_ids(config: bytes) -> list[str]:
    """The diff ids in an image configuration, which must be for Linux."""
    document = manifests.parse_config(config)
    system = document.get("os") or "linux"
    if system != "linux":
        raise InvalidParameter(
            f'image operating system "{system}" cannot be used on this platform: '
            "operating system is not supported"
        )
    return list((document.get("rootfs") or {}).get("diff_ids") or ())
