"""Images that are one name for several platforms: what a build for all of them makes.

The index is a blob, and a row for each of its images. One of these stands for the name where only one image
can; the others have no name and are not shown, and go when no name stands for their index any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from guest_agent.images import manifest, platforms
from guest_agent.images.content import digest_of
from guest_agent.images.package import Package, package
from guest_agent.images.platforms import Platform
from guest_agent.images.reference import Reference

if TYPE_CHECKING:
    from guest_agent.images.metadata import Metadata
    from guest_agent.images.store import Image, ImageStore


def add(store: ImageStore, ids: Sequence[str], names: Sequence[Reference]) -> str:
    """Makes `names` stand for images that were built together, each for another platform.

    Returns the index's digest. Raises NotFound.
    """
    images = [store.by_id(id) for id in ids]
    data = document(images, [package(store, image) for image in images])
    runs = (each.id for each in images if platforms.can_run(platforms.of_config(each.config)))
    main = next(runs, ids[0])
    with store.lease() as lease:
        digest = digest_of(data)
        lease.hold(digest)
        store.content.put(data, digest)
        store.content.sync()
        with store.lock, store.metadata.transaction(durable=True) as db:
            db.executemany(
                "INSERT OR IGNORE INTO indexes VALUES(?, ?, ?)",
                [(digest, position, id) for position, id in enumerate(ids)],
            )
            for name in names:
                store.put_name(db, name, main, digest)
    return digest


def document(images: Sequence[Image], packages: Sequence[Package]) -> bytes:
    """The index of images that are sent so."""
    each = [platforms.as_json(platforms.of_config(image.config)) for image in images]
    described = [packed.descriptor for packed in packages]
    return manifest.image_index(list(zip(described, each, strict=True)))


def named(store: ImageStore, name: Reference) -> str:
    """The digest of the index that a name stands for; "" when it is one image."""
    row = store.metadata.row(
        "SELECT manifest FROM names WHERE name = ? AND manifest IN (SELECT digest FROM indexes)", (str(name),)
    )
    return str(row[0]) if row else ""


def members(store: ImageStore, name: Reference) -> list[Image]:
    """The images that a name stands for where they are several, in the order they were asked for."""
    rows = store.metadata.rows(
        "SELECT image FROM indexes WHERE digest = ? ORDER BY position", (named(store, name),)
    )
    return [store.by_id(id) for (id,) in rows]


def member(store: ImageStore, name: Reference, platform: Platform) -> Image | None:
    """The one for a platform."""
    found = members(store, name)
    at = platforms.best(platform, [platforms.of_config(image.config) for image in found])
    return found[at] if at >= 0 else None


def hidden(store: ImageStore) -> set[str]:
    """The ids of all images of indexes that have a name."""
    query = "SELECT DISTINCT image FROM indexes WHERE digest IN (SELECT manifest FROM names)"
    return {id for (id,) in store.metadata.rows(query)}


def forget(metadata: Metadata) -> list[str]:
    """Removes indexes that have no name any more, with those of their images that nothing else needs.

    Returns the ids of these.
    """
    unnamed = "SELECT digest FROM indexes WHERE digest NOT IN (SELECT manifest FROM names)"
    if not metadata.rows(f"{unnamed} LIMIT 1"):
        return []
    gone = []
    with metadata.transaction() as db:
        ids = [id for (id,) in db.execute(f"SELECT image FROM indexes WHERE digest IN ({unnamed})")]
        db.execute(f"DELETE FROM indexes WHERE digest IN ({unnamed})")
        for id in dict.fromkeys(ids):
            tables = ("names", "indexes", "containers")
            if any(
                db.execute(f"SELECT 1 FROM {table} WHERE image = ?", (id,)).fetchone() for table in tables
            ):
                continue
            db.execute("DELETE FROM image_layers WHERE image = ?", (id,))
            db.execute("DELETE FROM images WHERE id = ?", (id,))
            gone.append(id)
    return gone
