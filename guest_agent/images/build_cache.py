"""What builds remember: for each step that was executed, by the digest of all it depends on, its result.

The rows are in the image store's database, so that the layers they name are kept while they are there, and
go with them. A row whose layer has been lost is no hit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from guest_agent.images.store import ImageStore, LayerRow


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One step's result. `layer` None: the step has added none to what it was made on."""

    key: str
    chain: str  # the topmost layer after the step, "" for none
    layer: LayerRow | None
    created: str  # as the image's history has it
    description: str
    kind: str  # Docker's BuildCache.Type: "regular", "source.local" …
    size: int  # bytes of content that the step added
    made: float  # seconds since the epoch
    used: float
    uses: int


class BuildCache:
    """The build cache of one image store. All methods may be called from any thread."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store

    def find(self, key: str) -> CacheEntry | None:
        """What is known under `key`; None when it, or its layer, is not here."""
        row = self._store.metadata.row(f"{_QUERY} WHERE key = ?", (key,))
        return self._entry(row) if row else None

    def used(self, keys: Iterable[str]) -> None:
        """Marks steps as used just now."""
        now = time.time()
        with self._store.metadata.transaction() as db:
            db.executemany(
                "UPDATE build_cache SET used = ?, uses = uses + 1 WHERE key = ?", [(now, key) for key in keys]
            )

    def add(
        self, key: str, chain: str, layer: LayerRow | None, created: str, description: str, kind: str
    ) -> None:
        """Remembers a step's result; the caller leases the layer."""
        document = {
            "created": created,
            "description": description,
            "kind": kind,
            "empty": layer is None,
        }
        now = time.time()
        with self._store.metadata.transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO build_cache VALUES(?, ?, ?, ?, ?, ?, 0)",
                (key, chain, json.dumps(document), layer.size if layer else 0, now, now),
            )

    def entries(self) -> list[CacheEntry]:
        """All that is remembered, the oldest first."""
        rows = self._store.metadata.rows(f"{_QUERY} ORDER BY created")
        return [entry for entry in map(self._entry, rows) if entry is not None]

    def remove(self, keys: Iterable[str]) -> None:
        """Forgets steps, and removes the layers that nothing else needs. Survives power loss."""
        with self._store.metadata.transaction(durable=True) as db:
            db.executemany("DELETE FROM build_cache WHERE key = ?", [(key,) for key in keys])
        self._store.collect()

    def of_images(self) -> set[str]:
        """The chain ids of all layers that images have."""
        return {chain for (chain,) in self._store.metadata.rows("SELECT DISTINCT chain FROM image_layers")}

    def _entry(self, row: tuple[Any, ...]) -> CacheEntry | None:
        key, chain, text, size, made, used, uses, *layer_row = row
        document = json.loads(text)
        layer = LayerRow(chain, *layer_row) if layer_row[1] is not None else None
        if chain and layer is None:
            return None
        return CacheEntry(
            key,
            chain,
            None if document["empty"] else layer,
            document["created"],
            document["description"],
            document["kind"],
            size,
            made,
            used,
            uses,
        )


_QUERY = (
    "SELECT key, c.chain, document, c.size, created, used, uses, parent, diff, l.size, blob, media_type"
    " FROM build_cache c LEFT JOIN layers l ON l.chain = c.chain"
)
