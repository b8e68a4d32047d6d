"""What the image store knows beside blobs and directories: one SQLite database, WAL.

One connection writes, under a lock; another reads, so that a commit waiting for the disk does not hold up a
lookup. A transaction is durable when it is asked to be (`durable=True`, one fsync); others, such as a
container's row, are atomic and ordered, and the last ones may be lost with the power, never with a killed
process.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from guest_agent.errors import InternalError, Unavailable

_VERSION = 1
_SCHEMA = """
CREATE TABLE images(            -- one row an image
    id TEXT PRIMARY KEY,        -- the digest of its configuration, which is a blob
    manifest TEXT NOT NULL,     -- the digest of its manifest, which is a blob
    parent TEXT NOT NULL,       -- the image it was made from here, or ''
    size INTEGER NOT NULL,      -- bytes in all its layers
    tagged REAL NOT NULL        -- when a tag was last put on it, seconds since the epoch, 0: never
) WITHOUT ROWID;
CREATE TABLE image_layers(
    image TEXT NOT NULL, position INTEGER NOT NULL, chain TEXT NOT NULL, diff TEXT NOT NULL,
    PRIMARY KEY(image, position)
) WITHOUT ROWID;
CREATE INDEX image_layers_chain ON image_layers(chain);
CREATE TABLE names(             -- docker.io/library/x:tag and docker.io/library/x@sha256:…
    name TEXT PRIMARY KEY,
    image TEXT NOT NULL,
    manifest TEXT NOT NULL      -- the manifest that name stood for here
) WITHOUT ROWID;
CREATE INDEX names_image ON names(image);
CREATE TABLE layers(            -- one row an extracted layer
    chain TEXT PRIMARY KEY, parent TEXT NOT NULL, diff TEXT NOT NULL,
    size INTEGER NOT NULL,      -- bytes of content, as `docker history` shows them
    blob TEXT NOT NULL,         -- the blob it was extracted from
    media_type TEXT NOT NULL    -- of that blob
) WITHOUT ROWID;
CREATE INDEX layers_diff ON layers(diff);
CREATE TABLE containers(id TEXT PRIMARY KEY, image TEXT NOT NULL, chain TEXT NOT NULL) WITHOUT ROWID;
"""
# Came later; an older Wherry leaves them alone.
_LATER = """
CREATE TABLE IF NOT EXISTS indexes(  -- images that were built together for several platforms
    digest TEXT NOT NULL,       -- of the index, which is a blob while a name stands for it
    position INTEGER NOT NULL, image TEXT NOT NULL,
    PRIMARY KEY(digest, position)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS build_cache(  -- one row a build step whose result is kept
    key TEXT PRIMARY KEY,       -- the digest of all that the result depends on
    chain TEXT NOT NULL,        -- the topmost layer after the step, or '' for none
    document TEXT NOT NULL,     -- JSON: what else is known of it
    size INTEGER NOT NULL,      -- bytes of content that the step added
    created REAL NOT NULL, used REAL NOT NULL,  -- seconds since the epoch
    uses INTEGER NOT NULL
) WITHOUT ROWID;
"""
_CHECKPOINT_AFTER = (
    2000  # small transactions, so that the log stays small without an fsync in a container's start
)


class Metadata:
    """The database. Rows in, rows out; the meaning is `store`'s."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._read_lock = threading.Lock()
        self._small = 0
        try:
            self._writer = self._connect()
            version = self._writer.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._writer.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")
            elif version != _VERSION:
                raise InternalError(
                    f"{path} has version {version}, this Wherry knows {_VERSION}",
                    "Use the newer Wherry that made it.",
                )
            self._writer.executescript(_LATER)
            self._reader = self._connect()
            self._log = os.open(
                f"{path}-wal", os.O_RDONLY | os.O_CLOEXEC
            )  # there as long as we are connected
        except sqlite3.DatabaseError as e:
            raise InternalError(f"{path}: {e}", "The image store's database is damaged.") from e

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=10, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA wal_autocheckpoint=0")
        db.execute("PRAGMA synchronous=NORMAL")
        os.chmod(self.path, 0o600)
        return db

    def close(self) -> None:
        """Writes everything into the database proper and closes it."""
        with self._lock, self._read_lock:
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._reader.close()
            self._writer.close()
            os.close(self._log)

    @contextmanager
    def transaction(self, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """A write transaction, rolled back when the body raises. Unavailable when the disk is full."""
        with self._lock:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    yield self._writer
                except BaseException:
                    self._writer.execute("ROLLBACK")
                    raise
                self._writer.execute("COMMIT")
            except sqlite3.OperationalError as e:
                raise Unavailable(f"{self.path}: {e}", "Free space below the data root and try again.") from e
            self._small += 1
            checkpoint = durable or self._small >= _CHECKPOINT_AFTER
            if checkpoint:
                self._small = 0
        if durable:
            # Not SQLite's own synchronous=FULL, which would keep other writers, such as a container's start,
            # waiting for the disk.
            os.fsync(self._log)
        if checkpoint:
            threading.Thread(target=self._checkpoint, name="images-checkpoint", daemon=True).start()

    def _checkpoint(self) -> None:
        try:
            db = sqlite3.connect(self.path, timeout=10)
            db.execute("PRAGMA wal_checkpoint(PASSIVE)")
            db.close()
        except sqlite3.Error:
            pass  # the log just stays; the next one tries again

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """What has been committed."""
        with self._read_lock:
            return self._reader.execute(sql, parameters).fetchall()

    def row(self, sql: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        """The first row, None when there is none."""
        with self._read_lock:
            found: tuple[Any, ...] | None = self._reader.execute(sql, parameters).fetchone()
            return found
