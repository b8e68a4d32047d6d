"""Removing images, by dockerd's rules for what a name takes along and what stands in the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from guest_agent.errors import Conflict, EngineError
from guest_agent.images import Image, ImageStore, reference
from guest_agent.images.reference import Reference

Record = dict[str, str]  # {"Untagged": …} or {"Deleted": …}
Users = Callable[
    [str], Sequence[tuple[str, bool]]
]  # the containers of an image, by id, each with whether it runs


class Removal:
    """One request to remove an image; `records` and `events` (action, image id, attributes) tell what was
    done.

    It writes durably, so it is for a thread; events are published afterwards, on the event loop.
    """

    def __init__(self, store: ImageStore, users: Users) -> None:
        self._store = store
        self._users = users
        self.records: list[Record] = []
        self.events: list[tuple[str, str, dict[str, str]]] = []

    def remove(self, name: str, force: bool, prune: bool) -> None:
        """Removes the name, and the image when it was its last one; or by id, the image with all its names.

        `prune`: untagged images it was made from go, too. Raises NotFound and Conflict in dockerd's words.
        """
        image = self._store.get(name, damaged=True)
        by_id = image.id.startswith(name) or image.id.partition(":")[2].startswith(name)
        quiet = False
        if not by_id:
            if not force and _single(image):
                for container, _ in self._users(image.id):
                    raise Conflict(
                        f'conflict: unable to remove repository reference "{name}" (must force) - container '
                        f"{container[:12]} is using its referenced image {short(image.id)}",
                        "Remove the container first, or use --force.",
                    )
            if self._remove_name(image, name):
                return
            quiet = True
        elif _single(image):
            self._check(image, stopped=not force, referenced=False)
            for ref in names(image):
                self._untag(image, ref)
        self._delete(image.id, force, prune, quiet)

    def _remove_name(self, image: Image, name: str) -> bool:
        """Removes one name and the digests that have no other name; whether the image still has any."""
        removed = reference.parse(name).with_default_tag()
        if removed.digest:
            removed = removed.with_digest(removed.digest)
        self._untag(image, removed)
        left = [ref for ref in names(image) if ref != removed]
        if not removed.digest and not any(ref.tag and ref.name == removed.name for ref in left):
            for ref in [ref for ref in left if ref.name == removed.name]:
                self._untag(image, ref)
                left.remove(ref)
        return bool(left)

    def _untag(self, image: Image, ref: Reference) -> None:
        self._store.untag(ref)
        self.events.append(("untag", image.id, attributes(image, image.id)))
        self.records.append({"Untagged": ref.familiar})

    def _delete(self, id: str, force: bool, prune: bool, quiet: bool) -> None:
        image = self._store.by_id(id, damaged=True)
        try:
            self._check(image, stopped=not force, referenced=not force)
        except Conflict:
            # The name is gone, as was asked; that the image has to stay is only worth a word when nobody
            # sees it.
            if quiet and (names(image) or self._store.has_children(id) or self._users(id)):
                return
            raise
        for ref in names(image):
            self._untag(image, ref)
        chains = self._store.delete(id)
        self.events.append(("delete", id, attributes(image, id)))
        self.records += [{"Deleted": each} for each in (id, *chains)]
        if prune and image.parent:
            try:
                parent = self._store.by_id(image.parent)
            except EngineError:
                return
            if not names(parent):
                self._delete(parent.id, False, True, True)

    def _check(self, image: Image, stopped: bool, referenced: bool) -> None:
        """Raises Conflict for what stands in the way; the first two cannot be forced."""
        containers = self._users(image.id)
        if self._store.has_children(image.id):
            raise self._conflict(image, True, "image has dependent child images")
        for container, running in containers:
            if running:
                raise self._conflict(
                    image, True, f"image is being used by running container {container[:12]}"
                )
        if referenced and names(image):
            raise self._conflict(image, False, "image is referenced in multiple repositories")
        for container, _ in containers if stopped else ():
            raise self._conflict(image, False, f"image is being used by stopped container {container[:12]}")

    @staticmethod
    def _conflict(image: Image, hard: bool, why: str) -> Conflict:
        how = "cannot be forced" if hard else "must be forced"
        return Conflict(
            f"conflict: unable to delete {short(image.id)} ({how}) - {why}",
            "Remove what uses it first." if hard else "Remove what uses it first, or use --force.",
        )


def names(image: Image) -> list[Reference]:
    """All names of an image."""
    return [reference.parse(name) for name in (*image.repo_tags, *image.repo_digests)]


def _single(image: Image) -> bool:
    """Whether one tag, or digests alone, stand for the image."""
    return len(image.repo_tags) == 1 or len(image.repo_tags) + len(image.repo_digests) <= 1


def short(id: str) -> str:
    """An id as messages have it."""
    return id.removeprefix("sha256:")[:12]


def attributes(image: Image | None, name: str) -> dict[str, str]:
    """An image event's attributes: its labels, and the name."""
    config: dict[str, Any] = (image.config.get("config") if image else None) or {}
    return {**(config.get("Labels") or {}), "name": name}
