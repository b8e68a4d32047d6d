"""Pulling an image: which endpoint, which manifest, which platform; the layers are `transfer`'s.

Everything a pull stores is leased until the image that refers to it has been committed, and what a failed
pull leaves is collected at once.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from guest_agent.errors import EngineError, Forbidden, InvalidParameter, NotFound, Unauthorized, Unavailable
from guest_agent.images import hello, platforms, reference
from guest_agent.images.auth import Credentials
from guest_agent.images.config import RegistryConfig
from guest_agent.images.manifest import Descriptor
from guest_agent.images.messages import Say
from guest_agent.images.platforms import Platform
from guest_agent.images.progress import PullProgress
from guest_agent.images.reference import Reference
from guest_agent.images.registry import Cancelled, CertificateError, Registry, RegistryError, Unreachable
from guest_agent.images.repository import Manifest, Repository, not_found
from guest_agent.images.snapshots import MAX_LAYERS, chain_ids
from guest_agent.images.store import Image, ImageStore, Lease
from guest_agent.images.transfer import LayerJob, Transfers

T = TypeVar("T")

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


class Puller:
    """Pulls for one store. Thread-safe: any number of pulls at a time."""

    def __init__(self, store: ImageStore, config: RegistryConfig) -> None:
        self._store = store
        self._config = config
        self._transfers = Transfers(store, config)
        self._schemes: dict[str, str] = {}  # of insecure hosts, as seen last

    # -- endpoints ---------------------------------------------------------------------------------

    def pull(
        self,
        ref: Reference,
        platform: Platform | None,
        credentials: Credentials | None,
        say: Say,
        cancelled: threading.Event,
    ) -> Pulled:
        """Pulls a tag or a digest. Blocking; `say` is called from this thread.

        Raises NotFound, Unauthorized, Unavailable and InvalidParameter in dockerd's words.
        """
        ref = ref.with_default_tag()
        sources = self._sources(ref, credentials)
        for index, source in enumerate(sources):
            try:
                pulled = self._pull(ref, platform, sources[index:], say, cancelled)
                self._schemes[source.registry.endpoint.host] = source.registry.endpoint.scheme
                return pulled
            except Cancelled:
                raise
            except EngineError as e:
                endpoint = source.registry.endpoint
                another = endpoint.mirror or isinstance(e, Unreachable | CertificateError)
                if another and index + 1 < len(sources):
                    continue
                if isinstance(e, Unreachable) and hello.covers(ref, platform):
                    return self._hello(ref, platform, say, e)
                raise _translated(e, ref) from e
        raise AssertionError("unreachable")

    def _hello(self, ref: Reference, platform: Platform | None, say: Say, why: Unreachable) -> Pulled:
        say({"status": f"Docker Hub cannot be reached: {why.message}"})
        before = self._store.named(ref)
        image = hello.make(self._store, ref, platform)
        say({"status": f"Status: Using the {ref.familiar} image that ships with Wherry"})
        return Pulled(image, "", before != image.id)

    def tags(self, ref: Reference, credentials: Credentials | None) -> list[str]:
        """All tags of a repository. Raises as `pull` does."""
        return self._ask(ref, credentials, lambda source: source.tags())

    def describe(self, ref: Reference, credentials: Credentials | None) -> tuple[Descriptor, list[Platform]]:
        """What a name stands for in its registry, and the platforms it is there for.

        Raises as `pull` does.
        """

        def ask(source: Repository) -> tuple[Descriptor, list[Platform]]:
            top = source.manifest(ref.digest or ref.tag)
            if top.is_index:
                offered = [_platform_of(item) for _, item in top.manifests()]
            else:
                offered = [platforms.of_config(_document(source.config(top.config())))]
            return Descriptor(top.media_type, top.digest, len(top.data)), offered

        ref = ref.with_default_tag()
        return self._ask(ref, credentials, ask)

    def login(self, host: str, credentials: Credentials) -> str:
        """Tries credentials on a registry; the identity token it gives for them, or "".

        Raises Unauthorized.
        """
        try:
            return self._ask(
                Reference(host, ""),
                credentials,
                lambda source: source.registry.login(),
                offline=True,
                mirrors=False,
            )
        except Forbidden as e:
            raise Unauthorized(e.message, e.hint) from e

    def _ask(
        self,
        ref: Reference,
        credentials: Credentials | None,
        question: Callable[[Repository], T],
        offline: bool = False,
        mirrors: bool = True,
    ) -> T:
        """The answer of the first endpoint that has one."""
        sources = [
            s for s in self._sources(ref, credentials, offline) if mirrors or not s.registry.endpoint.mirror
        ]
        for index, source in enumerate(sources):
            try:
                return question(source)
            except EngineError as e:
                another = source.registry.endpoint.mirror or isinstance(e, Unreachable | CertificateError)
                if another and index + 1 < len(sources):
                    continue
                raise _translated(e, ref) from e
        raise AssertionError("unreachable")

    def _sources(
        self, ref: Reference, credentials: Credentials | None, offline: bool = False
    ) -> list[Repository]:
        endpoints = self._config.endpoints(ref.domain)
        # Of an insecure host's two ways, the one that worked the last time comes first.
        endpoints.sort(key=lambda e: (not e.mirror, self._schemes.get(e.host, e.scheme) != e.scheme))
        return [
            # Credentials are for the registry itself, not for its mirrors.
            Repository(
                Registry(endpoint, self._config, None if endpoint.mirror else credentials, offline), ref.path
            )
            for endpoint in endpoints
        ]

    # -- one image ---------------------------------------------------------------------------------

    def _pull(
        self,
        ref: Reference,
        platform: Platform | None,
        sources: Sequence[Repository],
        say: Say,
        cancelled: threading.Event,
    ) -> Pulled:
        known = self._up_to_date(ref, platform, sources[0])
        if known is not None:
            say({"status": f"Pulling from {ref.path}", "id": ref.digest or ref.tag})
            _conclude(say, ref, known)
            return known
        found = self._find(ref, platform, sources[0])
        say({"status": f"Pulling from {ref.path}", "id": ref.digest or ref.tag})
        try:
            with self._store.lease() as lease:
                pulled = self._patiently(ref, found, sources, lease, say, cancelled)
        except BaseException:
            self._store.collect()
            raise
        _warn_of_platform(say, ref, platform, pulled.image)
        _conclude(say, ref, pulled)
        return pulled

    def _patiently(
        self,
        ref: Reference,
        found: _Found,
        sources: Sequence[Repository],
        lease: Lease,
        say: Say,
        cancelled: threading.Event,
    ) -> Pulled:
        """Brings the image in, again when a layer went with the pull that fetched it for both."""
        for attempt in range(_TRIES):
            try:
                return self._bring_in(ref, found, sources, lease, say, cancelled)
            except Cancelled:
                if cancelled.is_set() or attempt + 1 == _TRIES:
                    raise
            except RegistryError as e:
                raise Unavailable(e.message, "The registry has the image, but not all of it.") from e
        raise AssertionError("unreachable")

    def _up_to_date(self, ref: Reference, platform: Platform | None, source: Repository) -> Pulled | None:
        """The image we have under this name, when the registry still has the same."""
        digest = ref.digest
        if not digest:
            if not self._store.named(ref):
                return None
            digest = source.head(ref.tag)
            if not digest:
                return None
        id = self._store.named(ref.with_digest(digest))
        if not id:
            return None
        try:
            image = self._store.by_id(id)
        except NotFound:
            return None
        if not platforms.fits(platform or platforms.host(), platforms.of_config(image.config)):
            return None
        updated = bool(ref.tag) and not ref.digest and ref.familiar not in image.repo_tags
        if updated:
            self._store.tag(image.id, ref)
        return Pulled(image, digest, updated)

    def _find(self, ref: Reference, platform: Platform | None, source: Repository) -> _Found:
        top = source.manifest(ref.digest or ref.tag)
        documents = [top]
        if top.is_index:
            documents.append(self._choose(top, platform, ref, source))
        manifest = documents[-1]
        described, layers = manifest.config(), manifest.layers()
        if len(layers) > MAX_LAYERS:
            raise InvalidParameter(
                f"max depth exceeded: the image has {len(layers)} layers, the limit is {MAX_LAYERS}"
            )
        if self._store.content.has(described.digest):
            config = self._store.content.read(described.digest)
        else:
            config = source.config(described)
        diffs = _diff_ids(config)
        if len(diffs) != len(layers):
            raise InvalidParameter(
                "layers from manifest don't match image configuration", "The image is broken."
            )
        return _Found(top.digest, tuple(documents), config, described.digest, layers, diffs)

    def _choose(
        self, index: Manifest, platform: Platform | None, ref: Reference, source: Repository
    ) -> Manifest:
        wanted = platform or platforms.host()
        entries = index.manifests()
        offered = [_platform_of(item) for _, item in entries]
        at = platforms.best(wanted, offered)
        if at < 0:
            there = sorted({str(each) for each in offered if each.os not in ("", "unknown")})
            raise NotFound(
                f"no matching manifest for {wanted} in the manifest list entries",
                f"It is there for {', '.join(there) or 'no platform'}; choose one with --platform.",
            )
        descriptor = entries[at][0]
        manifest = source.manifest(descriptor.digest, descriptor.size)
        if manifest.is_index:
            raise InvalidParameter("an index in an index is not supported")
        return manifest

    def _bring_in(
        self,
        ref: Reference,
        found: _Found,
        sources: Sequence[Repository],
        lease: Lease,
        say: Say,
        cancelled: threading.Event,
    ) -> Pulled:
        store = self._store
        chains = chain_ids(found.diff_ids)
        lease.hold_chains(chains)
        lease.hold(found.config_digest, *(document.digest for document in found.documents))
        lease.hold(*(layer.digest for layer in found.layers))
        progress = PullProgress(say)
        missing = [index for index, chain in enumerate(chains) if store.layer(chain) is None]
        for index, layer in enumerate(found.layers):
            (progress.announce if index in missing else progress.exists)(_short(layer.digest))
        jobs: list[LayerJob] = []
        failed: EngineError | None = None
        wake = threading.Event()

        def ended() -> bool:
            return (
                cancelled.is_set()
                or all(job.finished.is_set() for job in jobs)
                or any(job.error for job in jobs)
            )

        try:
            for index in missing:
                if any(job.error for job in jobs):
                    break
                below = jobs[-1] if jobs else None
                job = self._transfers.watch(
                    chains[: index + 1],
                    found.diff_ids[index],
                    found.layers[index],
                    below,
                    sources,
                    wake,
                    cancelled,
                )
                jobs.append(job)
                progress.follow(_short(found.layers[index].digest), job)
                progress.update()
            progress.wait(ended, wake)
            if cancelled.is_set():
                raise Cancelled("cancelled")
            failed = next((job.error for job in jobs if job.error is not None), None)
            if failed is not None:
                raise failed
        finally:
            for job in jobs:
                self._transfers.unwatch(job)
            for job in jobs:
                if job.cancelled:
                    job.finished.wait()  # so that what it leaves can be collected
        return self._commit(ref, found)

    def _commit(self, ref: Reference, found: _Found) -> Pulled:
        store = self._store
        for document in found.documents:
            store.content.put(document.data, document.digest)
        store.content.put(found.config, found.config_digest)
        names = [ref.with_digest(found.digest)]
        before = store.named(names[0] if ref.digest else ref)
        if not ref.digest:
            names.append(ref)
        image, _ = store.add_image(found.config_digest, found.documents[-1].digest, names)
        return Pulled(image, found.digest, before != image.id)


def _translated(error: EngineError, ref: Reference) -> EngineError:
    """A registry's refusal in dockerd's words."""
    if isinstance(error, RegistryError):
        return not_found(error, ref) or Unavailable(
            error.message, "Try again; if it stays, tell who runs it."
        )
    if isinstance(error, Unauthorized):
        return Forbidden(error.message, error.hint)  # at a 401 the docker CLI would ask for a password
    return error


def _conclude(say: Say, ref: Reference, pulled: Pulled) -> None:
    say({"status": f"Digest: {pulled.digest}"})
    what = "Downloaded newer image" if pulled.updated else "Image is up to date"
    say({"status": f"Status: {what} for {ref.familiar}"})


def _warn_of_platform(say: Say, ref: Reference, wanted: Platform | None, image: Image) -> None:
    actual = platforms.of_config(image.config)
    if wanted is not None and not platforms.fits(wanted, actual):
        say(
            {
                "status": f"WARNING: image with reference {ref.familiar} was found but does not match the "
                f"specified platform: wanted {wanted}, actual: {actual}"
            }
        )


def _platform_of(item: dict[str, Any]) -> Platform:
    return platforms.normalise(*(str(item.get(key) or "") for key in ("os", "architecture", "variant")))


def _short(digest: str) -> str:
    return digest.partition(":")[2][:12]


def _document(config: bytes) -> dict[str, Any]:
    try:
        document: Any = json.loads(config)
    except (ValueError, RecursionError) as e:
        raise InvalidParameter(f"malformed image configuration: {e}")
    if not isinstance(document, dict):
        raise InvalidParameter("malformed image configuration: not a JSON object")
    return document


def _diff_ids(config: bytes) -> list[str]:
    """The diff ids in an image configuration somebody else wrote."""
    document = _document(config)
    system = document.get("os") or "linux"
    if system != "linux":
        raise InvalidParameter(
            f'image operating system "{system}" cannot be used on this platform: '
            "operating system is not supported"
        )
    rootfs = document.get("rootfs")
    diffs = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if diffs is None:
        diffs = []
    if not isinstance(diffs, list) or not all(isinstance(diff, str) for diff in diffs):
        raise InvalidParameter("malformed image configuration: rootfs.diff_ids")
    for diff in diffs:
        reference.check_digest(diff)
    return diffs
