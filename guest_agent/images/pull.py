"""Pulling and pushing images: which endpoints of a registry to ask, and what to make of their refusals."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from guest_agent.errors import (
    EngineError,
    Forbidden,
    InternalError,
    InvalidParameter,
    NotFound,
    Unauthorized,
    Unavailable,
)
from guest_agent.images import hello, indexes, platforms, policy
from guest_agent.images import manifest as manifests
from guest_agent.images.auth import Credentials
from guest_agent.images.config import RegistryConfig
from guest_agent.images.content import DiskFull
from guest_agent.images.image_pull import ImagePull, Pulled, platform_of
from guest_agent.images.image_push import ImagePush
from guest_agent.images.manifest import Descriptor
from guest_agent.images.messages import Say
from guest_agent.images.platforms import Platform
from guest_agent.images.reference import Reference
from guest_agent.images.registry import Cancelled, CertificateError, Registry, RegistryError, Unreachable
from guest_agent.images.repository import Manifest, Repository, not_found
from guest_agent.images.store import Image, ImageStore
from guest_agent.images.transfer import Transfers
from guest_agent.images.upload import Uploads

T = TypeVar("T")

_NO_CREDENTIALS = "no basic auth credentials"


class Puller:
    """Talks to registries for one store. Thread-safe: any number of transfers. All methods block."""

    def __init__(self, store: ImageStore, config: RegistryConfig) -> None:
        self._store = store
        self._config = config
        self._transfers = Transfers(store, config)
        self._schemes: dict[str, str] = {}  # of insecure hosts, as seen last

    def pull(
        self,
        ref: Reference,
        platform: Platform | None,
        credentials: Credentials | None,
        say: Say,
        cancelled: threading.Event,
        by_digest: bool = False,
    ) -> Pulled:
        """Pulls a tag or a digest; `say` is called from this thread.

        `by_digest`: the image gets the name of its own digest alone.

        Raises NotFound, Unauthorized, Unavailable and InvalidParameter in dockerd's words.
        """
        ref = ref.with_default_tag()
        rules = policy.rules_for(ref, self._config.signature_policy)
        rules.check(ref)

        def pull(sources: Sequence[Repository]) -> Pulled:
            def admit(digests: Sequence[str]) -> None:
                if rules.signed:
                    from guest_agent.images.signature import verify

                    verify(rules, ref, digests, sources)

            work = ImagePull(
                self._store, self._transfers, ref, platform, sources, say, cancelled, admit, by_digest
            )
            return work.run()

        try:
            return self._ask(ref, self._sources(ref, credentials), pull)
        except Unreachable as e:
            if not hello.covers(ref, platform) or rules.signed:
                raise
            return self._hello(ref, platform, say, e)

    def _hello(self, ref: Reference, platform: Platform | None, say: Say, why: Unreachable) -> Pulled:
        say({"status": f"Docker Hub cannot be reached: {why.message}"})
        before = self._store.named(ref)
        image = hello.make(self._store, ref, platform)
        say({"status": f"Status: Using the {ref.familiar} image that ships with Wherry"})
        return Pulled(image, "", before != image.id)

    def push(
        self,
        ref: Reference,
        platform: Platform | None,
        credentials: Credentials | None,
        say: Say,
        cancelled: threading.Event,
    ) -> None:
        """Pushes a tag, or all tags of a repository when `ref` has none; `say` is called from threads.

        Raises NotFound, InvalidParameter and Unavailable in dockerd's words.
        """
        store = self._store
        tags = store.tags_of(ref) if not ref.tag else [(ref, store.named(ref))]
        if platform is not None:
            for tag, id in tags:
                if id and not indexes.member(store, tag, platform):
                    _check_platform(tag, platform, store.by_id(id))
        say({"status": f"The push refers to repository [{ref.name}]"})
        if ref.digest:
            raise InvalidParameter("cannot push a digest reference", "Push a tag: 'tag' gives the image one.")
        if not tags or (not tags[0][1] and not store.tags_of(ref)):
            raise NotFound(
                f"An image does not exist locally with the tag: {ref.familiar_name}", "Look at 'image ls'."
            )
        if not tags[0][1]:
            raise NotFound(f"tag does not exist: {ref.familiar}", "Look at 'image ls'.")

        known: set[str] = set()

        def push(targets: Sequence[Repository]) -> None:
            target = targets[0]
            target.registry.get("", "").close()  # is it there, and how does it want to be spoken to
            work = ImagePush(store, target, self._config.concurrent_uploads, say, cancelled, known)
            for tag, id in tags:
                only = indexes.member(store, tag, platform) if platform else None
                work.run(tag, only or store.by_id(id), alone=platform is not None)

        self._ask(ref, self._targets(ref, credentials), push, _push_refused)

    def artifact(
        self, ref: Reference, credentials: Credentials | None
    ) -> tuple[Manifest, Callable[[Descriptor], Iterator[bytes]]]:
        """The manifest that a name has in its registry, whatever it is of, and what reads its blobs.

        Raises as `pull` does; what is read is not verified.
        """
        ref = ref.with_default_tag()
        rules = policy.rules_for(ref, self._config.signature_policy)
        rules.check(ref)

        def find(sources: Sequence[Repository]) -> tuple[Manifest, Callable[[Descriptor], Iterator[bytes]]]:
            found = sources[0].manifest(ref.digest or ref.tag)
            if rules.signed:
                from guest_agent.images.signature import verify

                verify(rules, ref, [found.digest], sources)
            return found, lambda blob: self._blob(ref, sources[0], blob)

        return self._ask(ref, self._sources(ref, credentials), find)

    def _blob(self, ref: Reference, source: Repository, blob: Descriptor) -> Iterator[bytes]:
        try:
            yield from source.blob(blob.digest, 0)
        except EngineError as e:
            raise _translated(e, ref) from e

    def push_artifact(
        self,
        ref: Reference,
        document: bytes,
        blobs: Sequence[tuple[Descriptor, bytes | None]],
        credentials: Credentials | None,
        told: Callable[[Descriptor], None],
        cancelled: threading.Event,
    ) -> None:
        """Pushes an OCI manifest that is no image's under a tag, and what it names, each as its content or
        None for a blob of the store.

        `told` is called, in this thread, before each. Raises as `push` does.
        """

        def push(targets: Sequence[Repository]) -> None:
            targets[0].registry.get("", "").close()
            uploads = Uploads(targets[0], cancelled)
            for blob, content in blobs:
                told(blob)
                if not uploads.has(blob.digest):
                    self._upload(uploads, blob, content)
            uploads.manifest(ref.tag, document, manifests.OCI_MANIFEST)

        self._ask(ref, self._targets(ref, credentials), push, _push_refused)

    def _upload(self, uploads: Uploads, blob: Descriptor, content: bytes | None) -> None:
        if content is None:
            fd = self._store.content.open(blob.digest)
        else:
            fd = os.memfd_create("blob", os.MFD_CLOEXEC)
            os.pwrite(fd, content, 0)
        try:
            uploads.send(blob, fd, lambda done: None)
        finally:
            os.close(fd)

    def _targets(self, ref: Reference, credentials: Credentials | None) -> list[Repository]:
        """Where to push to: no mirrors."""
        return [
            Repository(each.registry, each.path, "pull,push")
            for each in self._sources(ref, credentials)
            if not each.registry.endpoint.mirror
        ]

    def tags(self, ref: Reference, credentials: Credentials | None) -> list[str]:
        """All tags of a repository. Raises as `pull` does."""
        return self._ask(ref, self._sources(ref, credentials), lambda sources: sources[0].tags())

    def describe(self, ref: Reference, credentials: Credentials | None) -> tuple[Descriptor, list[Platform]]:
        """What a name stands for in its registry, and the platforms it is there for.

        Raises as `pull` does.
        """
        ref = ref.with_default_tag()

        def describe(sources: Sequence[Repository]) -> tuple[Descriptor, list[Platform]]:
            top = sources[0].manifest(ref.digest or ref.tag)
            if top.is_index:
                offered = [platform_of(item) for _, item in top.manifests()]
            else:
                offered = [platforms.of_config(manifests.parse_config(sources[0].config(top.config())))]
            return Descriptor(top.media_type, top.digest, len(top.data)), offered

        return self._ask(ref, self._sources(ref, credentials), describe, _described)

    def login(self, host: str, credentials: Credentials) -> str:
        """Tries credentials on a registry; the identity token it gives for them, or "".

        Raises Unauthorized.
        """
        ref = Reference(host, "")
        sources = [
            each for each in self._sources(ref, credentials, True) if not each.registry.endpoint.mirror
        ]
        return self._ask(ref, sources, lambda sources: sources[0].registry.login())

    def _sources(
        self, ref: Reference, credentials: Credentials | None, offline: bool = False
    ) -> list[Repository]:
        """Where to ask, in this order."""
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

    def _ask(
        self,
        ref: Reference,
        sources: Sequence[Repository],
        question: Callable[[Sequence[Repository]], T],
        translated: Callable[[EngineError, Reference], EngineError] | None = None,
    ) -> T:
        """The answer of the first source that has one; `question` is put to it and those after it."""
        for index, source in enumerate(sources):
            endpoint = source.registry.endpoint
            try:
                answer = question(sources[index:])
                self._schemes[endpoint.host] = endpoint.scheme
                return answer
            except (Cancelled, DiskFull):
                raise
            except EngineError as e:
                another = endpoint.mirror or isinstance(e, Unreachable | CertificateError)
                if another and index + 1 < len(sources):
                    continue
                raise (translated or _translated)(e, ref) from e
        raise AssertionError("unreachable")


def _translated(error: EngineError, ref: Reference) -> EngineError:
    """A registry's refusal in dockerd's words."""
    if isinstance(error, RegistryError):
        return not_found(error, ref) or Unavailable(
            error.message, "Try again; if it stays, tell who runs it."
        )
    if isinstance(error, Unauthorized) and error.message.endswith(_NO_CREDENTIALS):
        return InternalError(error.message, error.hint)  # 401 is for credentials that were refused
    return error


def _described(error: EngineError, ref: Reference) -> EngineError:
    """A registry's refusal to tell what a name stands for, which dockerd passes on as it is."""
    if isinstance(error, RegistryError) and (told := not_found(error, ref)):
        return (Forbidden if error.code == "DENIED" else NotFound)(error.message, told.hint)
    return _translated(error, ref)


def _push_refused(error: EngineError, ref: Reference) -> EngineError:
    """A registry's refusal of a push, which dockerd passes on as it is."""
    if isinstance(error, RegistryError):
        hint = "Try again; if it stays, tell who runs it."
        if error.code in ("DENIED", "NAME_UNKNOWN"):
            hint = f"Check the name; log in to {ref.domain} as somebody who may push there."
        return Unavailable(error.message, hint)
    if isinstance(error, Unauthorized):
        missing = error.message.endswith(_NO_CREDENTIALS)
        return Forbidden(_NO_CREDENTIALS if missing else error.message, error.hint)
    return error


def _check_platform(ref: Reference, wanted: Platform, image: Image) -> None:
    actual = platforms.of_config(image.config)
    if not platforms.fits(wanted, actual):
        raise NotFound(
            f"image with reference {ref.familiar} was found but its platform ({actual}) does not match the "
            f"specified platform ({wanted})",
            f"Pull it with --platform {wanted}, or push it as it is.",
        )
