"""The image store: images, their names, their layers, and the root file systems of containers.

Blobs (`content`), layers on disk (`snapshots`) and the database (`metadata`) come together here.
An image is committed in one durable transaction after everything it refers to has been synced, so what the
database names is there after a crash. What nothing refers to is collected; a lease keeps what a pull in
flight relies on. All methods may be called from any thread; the async ones are for the event loop and do not
block it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guest_agent.errors import Conflict, EngineError, InternalError, InvalidParameter, NotFound, Unavailable
from guest_agent.images import indexes, reference
from guest_agent.images.config import RegistryConfig
from guest_agent.images.content import BlobStore
from guest_agent.images.manifest import parse_config
from guest_agent.images.metadata import Metadata
from guest_agent.images.reference import Reference
from guest_agent.images.snapshots import MAX_LAYERS, Snapshots, chain_ids
from guest_agent.roots import Roots
from guest_agent.runtime.types import Overlay
from guest_agent.threads import in_thread

if TYPE_CHECKING:
    from guest_agent.images.auth import Credentials
    from guest_agent.images.platforms import Platform
    from guest_agent.images.pull import Puller

log = logging.getLogger(__name__)

_CACHED_CONFIGS = 256


@dataclass(frozen=True, slots=True)
class Image:
    """An image as of now. `config` is shared: do not change it."""

    id: str  # "sha256:…", the digest of the configuration
    config: dict[str, Any]  # OCI image configuration
    repo_tags: tuple[str, ...]  # "alpine:latest"
    repo_digests: tuple[str, ...]  # "alpine@sha256:…"
    layers: tuple[str, ...]  # diff ids, bottom first
    chains: tuple[str, ...]  # chain ids, bottom first
    size: int  # bytes in all layers
    manifest: str  # digest of its manifest
    parent: str  # id of the image it was made from here, or ""
    tagged: float  # when a tag was last put on it, seconds since the epoch; 0: never

    @property
    def platform(self) -> str:
        """`linux/arm64/v8`: what it was made for, as far as it says."""
        parts = (self.config.get("os"), self.config.get("architecture"), self.config.get("variant"))
        return "/".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class LayerRow:
    """An extracted layer in the database."""

    chain: str
    parent: str
    diff: str
    size: int
    blob: str
    media_type: str


class Lease:
    """Keeps blobs and layers from collection while it is open."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self.blobs: set[str] = set()
        self.chains: set[str] = set()

    def __enter__(self) -> Lease:
        with self._store.lock:
            self._store.leases.add(self)
        return self

    def __exit__(self, *exc: object) -> None:
        with self._store.lock:
            self._store.leases.discard(self)

    def hold(self, *digests: str) -> None:
        """Keeps these blobs from now on; look for them only afterwards."""
        with self._store.lock:
            self.blobs.update(digests)

    def hold_chains(self, chains: Iterable[str]) -> None:
        """Keeps these layers from now on; look for them only afterwards."""
        with self._store.lock:
            self.chains.update(chains)


class ImageStore:
    """The image store of one engine, below DATA/images. One process at a time."""

    def __init__(
        self,
        roots: Roots,
        registries: RegistryConfig | None = None,
        default_size: int = 0,
        driver: str = "",
    ) -> None:
        """`default_size`: bytes that containers may write into their roots, 0: no limit. `driver`: see
        `Snapshots`.
        """
        self.registries = registries or RegistryConfig()
        self._default_size = default_size
        self._puller: Puller | None = None
        self.root = roots.data_path("images")
        os.makedirs(self.root, mode=0o700, exist_ok=True)
        self._lock_fd = os.open(os.path.join(self.root, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_fd)
            raise Unavailable(
                f"the image store {self.root} is in use by another engine",
                "Stop it, or use another --data-root.",
            ) from None
        self.lock = threading.RLock()  # held while deciding what is referred to
        self.leases: set[Lease] = set()
        self._configs: dict[str, dict[str, Any]] = {}
        self.content = BlobStore(self.root)
        self.snapshots = Snapshots(self.root, driver)
        self.metadata = Metadata(os.path.join(self.root, "images.db"))
        try:
            if default_size:
                self.snapshots.check_quotas()
            self._recover()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the use of the store."""
        self.metadata.close()
        os.close(self._lock_fd)

    def _recover(self) -> None:
        """Collects what a killed process left:

        half-written blobs, layers and blobs that nothing refers to.
        """
        self.content.recover()
        self.snapshots.recover()
        known = {chain for (chain,) in self.metadata.rows("SELECT chain FROM layers")}
        here = set(self.snapshots.chains())
        for chain in here - known:
            self.snapshots.delete(chain)
        lost = known - here
        if lost:  # somebody, or fsck, has removed them; a pull puts them back
            log.error("image store %s: layers are missing: %s", self.root, ", ".join(sorted(lost)))
            with self.metadata.transaction() as db:
                db.executemany("DELETE FROM layers WHERE chain = ?", [(chain,) for chain in lost])
        containers = {id for (id,) in self.metadata.rows("SELECT id FROM containers")}
        for id in list(self.snapshots.containers()):
            if id not in containers:
                self.snapshots.remove(id)
        self.collect()

    # -- looking up --------------------------------------------------------------------------------

    def get(self, name: str, damaged: bool = False) -> Image:
        """The image `name` stands for: an id, the start of one, or NAME[:TAG][@DIGEST].

        NotFound and InvalidParameter in dockerd's words; InternalError when its configuration is damaged,
        unless `damaged` images are wanted, too, whose configuration is then empty.
        """
        return self.by_id(self.resolve(name), damaged)

    def resolve(self, name: str) -> str:
        """The id of the image `name` stands for; raises as `get` does."""
        id = reference.image_id(name)
        if id:
            if self.metadata.row("SELECT 1 FROM images WHERE id = ?", (id,)):
                return id
            raise _no_such_image(id)
        ref = reference.parse(name)
        id = self.named(ref.with_digest(ref.digest) if ref.digest else ref.with_default_tag())
        if id:
            return id
        prefix = name.removeprefix("sha256:")
        if prefix and all(c in "0123456789abcdef" for c in prefix):
            found = self.metadata.rows(
                "SELECT id FROM images WHERE id >= ? AND id < ? LIMIT 2",
                (f"sha256:{prefix}", f"sha256:{prefix}g"),
            )
            if len(found) == 1:
                return str(found[0][0])
        raise _no_such_image(ref.with_default_tag().familiar)

    def named(self, ref: Reference) -> str:
        """The id of the image that has exactly this name; "" when none has."""
        row = self.metadata.row("SELECT image FROM names WHERE name = ?", (str(ref),))
        return str(row[0]) if row else ""

    def tags_of(self, repository: Reference) -> list[tuple[Reference, str]]:
        """The tags of a repository here, each with the id of its image."""
        rows = self.metadata.rows(
            "SELECT name, image FROM names WHERE name >= ? AND name < ? ORDER BY name",
            (f"{repository.name}:", f"{repository.name};"),
        )
        return [(reference.parse(name), id) for name, id in rows]

    def by_id(self, id: str, damaged: bool = False) -> Image:
        """The image with this id. Raises as `get` does."""
        found = self._images("WHERE id = ?", (id,), damaged)
        if not found:
            raise _no_such_image(id)
        return found[0]

    def images(self) -> list[Image]:
        """All images, in no particular order, damaged ones with an empty configuration."""
        return self._images("", (), True)

    def _images(self, where: str, parameters: Sequence[Any], damaged: bool) -> list[Image]:
        rows = self.metadata.rows(
            f"SELECT id, manifest, parent, size, tagged FROM images {where}", parameters
        )
        if not rows:
            return []
        # For one image ask for its rows, for all of them ask for all rows.
        condition = "" if len(rows) > 1 or not where else "WHERE image = ?"
        only = (rows[0][0],) if condition else ()
        names: dict[str, list[str]] = {}
        for image, name in self.metadata.rows(
            f"SELECT image, name FROM names {condition} ORDER BY name", only
        ):
            names.setdefault(image, []).append(name)
        layers: dict[str, list[tuple[str, str]]] = {}
        for image, chain, diff in self.metadata.rows(
            f"SELECT image, chain, diff FROM image_layers {condition} ORDER BY image, position", only
        ):
            layers.setdefault(image, []).append((chain, diff))
        images = []
        for id, manifest, parent, size, tagged in rows:
            familiar = [reference.parse(name).familiar for name in names.get(id, ())]
            images.append(
                Image(
                    id,
                    self._config_or_none(id) if damaged else self.config(id),
                    tuple(name for name in familiar if "@" not in name),
                    tuple(name for name in familiar if "@" in name),
                    tuple(diff for _, diff in layers.get(id, ())),
                    tuple(chain for chain, _ in layers.get(id, ())),
                    size,
                    manifest,
                    parent,
                    tagged,
                )
            )
        return images

    def _config_or_none(self, id: str) -> dict[str, Any]:
        try:
            return self.config(id)
        except EngineError as e:
            log.error("image %s: %s", id, e.message)
            return {}

    def config(self, id: str) -> dict[str, Any]:
        """The configuration of an image (shared, do not change it)."""
        config = self._configs.get(id)
        if config is None:
            config = parse_config(self.content.read(id))
            if len(self._configs) >= _CACHED_CONFIGS:
                self._configs.clear()
            self._configs[id] = config
        return config

    def layer(self, chain: str) -> LayerRow | None:
        """What is known of an extracted layer."""
        row = self.metadata.row(
            "SELECT chain, parent, diff, size, blob, media_type FROM layers WHERE chain = ?", (chain,)
        )
        return LayerRow(*row) if row else None

    # -- pulling -----------------------------------------------------------------------------------

    async def pull(
        self,
        ref: Reference,
        platform: Platform | None = None,
        credentials: Credentials | None = None,
        progress: Callable[[dict[str, Any]], None] = lambda message: None,
        by_digest: bool = False,
    ) -> str:
        """Pulls a tag or digest and returns the image's id; `progress` is called from a thread.

        `by_digest`: the image gets the name of its own digest alone, so that no tag moves.
        Raises NotFound, Unauthorized, Unavailable and InvalidParameter in dockerd's words. Cancelling it
        cancels the transfer, unless another pull waits for the same layers.
        """
        cancelled = threading.Event()
        try:
            pulled = await in_thread(
                lambda: self.puller().pull(ref, platform, credentials, progress, cancelled, by_digest),
                "images-pull",
            )
        finally:
            cancelled.set()
        return pulled.image.id

    async def push(
        self,
        ref: Reference,
        platform: Platform | None = None,
        credentials: Credentials | None = None,
        progress: Callable[[dict[str, Any]], None] = lambda message: None,
    ) -> None:
        """Pushes a tag, or all tags of a repository; `progress` is called from threads.

        Raises NotFound, Forbidden, Unavailable and InvalidParameter in dockerd's words. Cancelling it cancels
        the transfer.
        """
        cancelled = threading.Event()
        try:
            await in_thread(
                lambda: self.puller().push(ref, platform, credentials, progress, cancelled), "images-push"
            )
        finally:
            cancelled.set()

    def puller(self) -> Puller:
        """What talks to registries; its libraries are loaded at the first use."""
        from guest_agent.images.pull import Puller

        with self.lock:
            if self._puller is None:
                self._puller = Puller(self, self.registries)
            return self._puller

    # -- putting in --------------------------------------------------------------------------------

    def lease(self) -> Lease:
        """A context that keeps what it is told to from collection."""
        return Lease(self)

    def add_layer(self, row: LayerRow) -> None:
        """Makes a layer that `snapshots` has known; the caller leases it until an image refers to it."""
        with self.metadata.transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO layers VALUES(?, ?, ?, ?, ?, ?)",
                (row.chain, row.parent, row.diff, row.size, row.blob, row.media_type),
            )

    def add_image(
        self,
        id: str,
        manifest: str,
        names: Sequence[Reference] = (),
        parent: str = "",
        name_manifest: str = "",
    ) -> tuple[Image, list[str]]:
        """Commits an image whose configuration, manifest and layers are here, under `names`.

        Returns it, and the tags (familiar) that stood for another image before.
        """
        config = self.config(id)
        diffs: list[str] = (config.get("rootfs") or {}).get("diff_ids") or []
        if len(diffs) > MAX_LAYERS:
            raise InvalidParameter(
                f"max depth exceeded: the image has {len(diffs)} layers, the limit is {MAX_LAYERS}"
            )
        chains = chain_ids(diffs)
        size = 0
        for chain in chains:
            layer = self.layer(chain)
            if layer is None:
                raise InternalError(f"layer {chain} of image {id} is not in the store")
            size += layer.size
        self.content.sync()
        moved: list[str] = []
        with self.lock, self.metadata.transaction(durable=True) as db:
            db.execute("INSERT OR IGNORE INTO images VALUES(?, ?, ?, ?, 0)", (id, manifest, parent, size))
            db.executemany(
                "INSERT OR IGNORE INTO image_layers VALUES(?, ?, ?, ?)",
                [(id, i, chain, diff) for i, (chain, diff) in enumerate(zip(chains, diffs, strict=True))],
            )
            for name in names:
                old = self.put_name(db, name, id, name_manifest or manifest)
                if old and old != id and not name.digest:
                    moved.append(name.familiar)
        return self.by_id(id), moved

    @staticmethod
    def put_name(db: Any, name: Reference, id: str, manifest: str) -> str:
        """Makes a name stand for an image; the id of the one it stood for, or ""."""
        old = db.execute("SELECT image FROM names WHERE name = ?", (str(name),)).fetchone()
        db.execute("INSERT OR REPLACE INTO names VALUES(?, ?, ?)", (str(name), id, manifest))
        if name.tag:
            db.execute("UPDATE images SET tagged = ? WHERE id = ?", (time.time(), id))
        return str(old[0]) if old else ""

    def tag(self, id: str, name: Reference, index: str = "") -> None:
        """Makes `name` (tagged) stand for an image; NotFound. `index`: the digest of one it is of, which
        `name` is then to stand for, too."""
        with self.lock, self.metadata.transaction(durable=True) as db:
            row = db.execute("SELECT manifest FROM images WHERE id = ?", (id,)).fetchone()
            if row is None:
                raise _no_such_image(id)
            self.put_name(db, name, id, index or row[0])

    # -- taking out --------------------------------------------------------------------------------

    def untag(self, name: Reference) -> None:
        """Forgets one name. The image stays, if need be without any."""
        with self.lock:
            id = self.named(name) if indexes.named(self, name) else ""
            with self.metadata.transaction(durable=True) as db:
                db.execute("DELETE FROM names WHERE name = ?", (str(name),))
            if id and self.metadata.row("SELECT 1 FROM names WHERE image = ?", (id,)):
                self.collect()  # else it is the caller's turn: the image goes, and the others with it

    def delete(self, id: str) -> list[str]:
        """Removes an image with all its names, and the layers that nothing else uses.

        Returns the chain ids of those, topmost first. What containers are built on stays until they are gone.
        """
        with self.lock:
            with self.metadata.transaction(durable=True) as db:
                db.execute("DELETE FROM names WHERE image = ?", (id,))
                db.execute("DELETE FROM image_layers WHERE image = ?", (id,))
                if not db.execute("DELETE FROM images WHERE id = ?", (id,)).rowcount:
                    raise _no_such_image(id)
            self._configs.pop(id, None)
            return self.collect()

    def collect(self) -> list[str]:
        """Removes the layers and blobs that no image, container or lease refers to.

        Returns the chain ids removed, topmost first.
        """
        with self.lock:
            for id in indexes.forget(self.metadata):
                self._configs.pop(id, None)
            # What is dead is decided in the transaction that removes it, so that a container made at the same
            # time either finds its layers gone or keeps them.
            with self.metadata.transaction() as db:
                rows = {row[0]: LayerRow(*row) for row in db.execute("SELECT * FROM layers")}
                tops = {chain for (chain,) in db.execute("SELECT chain FROM containers")}
                tops |= {chain for (chain,) in db.execute("SELECT DISTINCT chain FROM image_layers")}
                tops |= {chain for (chain,) in db.execute("SELECT DISTINCT chain FROM build_cache")}
                for lease in self.leases:
                    tops |= lease.chains
                live: set[str] = set()
                for chain in tops:
                    while chain and chain not in live:
                        live.add(chain)
                        chain = rows[chain].parent if chain in rows else ""
                dead = [row for chain, row in rows.items() if chain not in live]
                db.executemany("DELETE FROM layers WHERE chain = ?", [(row.chain,) for row in dead])
            for row in dead:
                self.snapshots.delete(row.chain)
            self._collect_blobs()
            return [row.chain for row in _topmost_first(dead)]

    def _collect_blobs(self) -> None:
        live = {digest for (digest,) in self.metadata.rows("SELECT blob FROM layers")}
        for id, manifest in self.metadata.rows("SELECT id, manifest FROM images"):
            live |= {id, manifest}
        for name, manifest in self.metadata.rows("SELECT name, manifest FROM names"):
            live |= {manifest, name.partition("@")[2]}
        for lease in self.leases:
            live |= lease.blobs
        for digest in list(self.content.digests()):
            if digest not in live:
                self.content.delete(digest)

    # -- containers --------------------------------------------------------------------------------

    async def prepare(self, container_id: str, image: Image, size: int | None = None) -> Overlay:
        """Makes a container's root file system: its writable directories on the image's layers.

        They hold `size` bytes at most; 0 is no limit, None the store's own. About 0.2 ms, no fsync.
        Conflict when the container has one, InternalError when layers are missing, NotSupported when the
        file system has no quotas.
        """
        return self.prepare_on(container_id, image.id, image.chains, size)

    def prepare_on(
        self, container_id: str, image_id: str, chains: Sequence[str], size: int | None = 0
    ) -> Overlay:
        """The same on layers (bottom first) that need not be an image's: then `image_id` is ""."""
        top = chains[-1] if chains else ""
        with self.metadata.transaction() as db:
            if (
                db.execute(
                    "INSERT OR IGNORE INTO containers VALUES(?, ?, ?)", (container_id, image_id, top)
                ).rowcount
                < 1
            ):
                raise Conflict(f"container {container_id} already has a root file system")
            places = ",".join("?" * len(chains))
            query = f"SELECT COUNT(*) FROM layers WHERE chain IN ({places})"
            if db.execute(query, chains).fetchone()[0] < len(set(chains)):
                if not db.execute("SELECT 1 FROM images WHERE id = ?", (image_id,)).fetchone():
                    raise _no_such_image(image_id)  # removed meanwhile
                raise InternalError(f"layers of image {image_id} are missing", "Pull or load it again.")
            return self.snapshots.prepare(container_id, chains, self._default_size if size is None else size)

    def overlay(self, container_id: str) -> Overlay:
        """The root file system of a container; NotFound."""
        return self.snapshots.overlay(container_id, self.root_of(container_id)[1])

    def changes(self, container_id: str) -> list[tuple[str, int]]:
        """What a container has changed, as `docker diff` shows it: (path, 0 modified, 1 added, 2 deleted).

        Blocks; NotFound.
        """
        from guest_agent.images.diff import changes

        return changes(self.overlay(container_id))

    def image_overlay(self, image: Image) -> Overlay:
        """A read-only view of an image."""
        return Overlay(self.snapshots.lower(image.chains))

    def root_of(self, container_id: str) -> tuple[str, list[str]]:
        """The image a container was made from, which may be gone, and its layers' chain ids, bottom first.

        NotFound.
        """
        row = self.metadata.row("SELECT image, chain FROM containers WHERE id = ?", (container_id,))
        if row is None:
            raise NotFound(f"No such container: {container_id}")
        found = self.metadata.rows(
            "WITH RECURSIVE up(chain, parent, depth) AS ("
            " SELECT chain, parent, 0 FROM layers WHERE chain = ?"
            " UNION ALL SELECT l.chain, l.parent, depth + 1 FROM layers l JOIN up ON l.chain = up.parent)"
            " SELECT chain FROM up ORDER BY depth DESC",
            (row[1],),
        )
        return row[0], [chain for (chain,) in found]

    async def remove(self, container_id: str) -> None:
        """Removes a container's writable directories, and layers it was the last to use.

        Fine when there are none.
        """
        self.remove_now(container_id)

    def remove_now(self, container_id: str) -> None:
        """The same, from any thread."""
        with self.metadata.transaction() as db:
            row = db.execute("SELECT image FROM containers WHERE id = ?", (container_id,)).fetchone()
            db.execute("DELETE FROM containers WHERE id = ?", (container_id,))
        self.snapshots.remove(container_id)
        if row and row[0] and not self.metadata.row("SELECT 1 FROM images WHERE id = ?", (row[0],)):
            self.collect()

    def keep_containers(self, known: Collection[str]) -> None:
        """Removes the root file systems of all other containers: an agent was killed while it made them."""
        with self.metadata.transaction() as db:
            rows = db.execute("SELECT id FROM containers").fetchall()
            lost = [id for (id,) in rows if id not in known]
            db.executemany("DELETE FROM containers WHERE id = ?", [(id,) for id in lost])
        for id in lost:
            self.snapshots.remove(id)
        if lost:
            self.collect()

    def has_children(self, id: str) -> bool:
        """Whether images were made here from this one."""
        return self.metadata.row("SELECT 1 FROM images WHERE parent = ?", (id,)) is not None


def _no_such_image(name: str) -> NotFound:
    return NotFound(f"No such image: {name}", "Pull it, or look at the names that 'image ls' shows.")


def _topmost_first(rows: list[LayerRow]) -> list[LayerRow]:
    """Children before parents."""
    by_chain = {row.chain: row for row in rows}

    def depth(row: LayerRow) -> int:
        level = 0
        at: LayerRow | None = row
        while at is not None:
            level += 1
            at = by_chain.get(at.parent)
        return level

    return sorted(rows, key=depth, reverse=True)
