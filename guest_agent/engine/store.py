"""The engine's database: one JSON document a row, in tables that map a key to a document.

SQLite in WAL mode, all writes by one thread that commits whatever has gathered in one transaction. Two
promises:

- Killing the agent loses nothing that was answered. A commit reaches the page cache before `save` returns,
  and the page cache outlives the process.
- Power loss loses nothing a user made. What a user asks for (create, rename, update, a volume) is saved
  `durable`: the transaction runs with synchronous=FULL, so the log is on the disk before the answer. State
  that ends with the machine anyway (running, paused, exited) and containers that are to vanish with it
  (`--rm`) are saved with synchronous=NORMAL, which keeps the file consistent but may forget the last
  commits; so neither `docker run --rm` nor starting and stopping wait for a disk. What they may forget is
  found out again when the agent starts: from the monitor, from exit.json (which is on the disk before
  anybody hears of the exit), and from what is no longer there.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from guest_agent.errors import InternalError

SCHEMA_VERSION = 1
TABLES = ("containers", "volumes")


class Store:
    """The tables of `engine.db`. Reads happen once, when the agent starts; then memory is what counts."""

    def __init__(self, path: str) -> None:
        """Opens or makes the database.

        Raises sqlite3.DatabaseError when the file is not (or a newer) one of ours.
        """
        os.makedirs(os.path.dirname(path), mode=0o710, exist_ok=True)
        self._path = path
        self._lock = threading.Lock()
        self._pending: dict[tuple[str, str], bytes | None] = {}  # insertion order is commit order
        self._durable = False
        self._waiters: list[asyncio.Future[None]] = []
        self._scheduled = False
        self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._db = self._thread.submit(self._open).result()

    def _open(self) -> sqlite3.Connection:
        # Environments have secrets in them. SQLite gives its files beside this one the same mode.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.chmod(self._path, 0o600)
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            db.close()
            raise sqlite3.DatabaseError(
                f"{self._path} was written by a newer Wherry (schema {version}, not {SCHEMA_VERSION})"
            )
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        for table in TABLES:
            db.execute(f"CREATE TABLE IF NOT EXISTS {table} (key TEXT PRIMARY KEY, document BLOB NOT NULL)")
        if version < SCHEMA_VERSION:
            db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        return db

    def load(self, table: str) -> list[tuple[str, bytes]]:
        """All rows of a table, (key, document), in the order of their keys."""

        def read() -> list[tuple[str, bytes]]:
            return self._db.execute(f"SELECT key, document FROM {table} ORDER BY key").fetchall()

        return self._thread.submit(read).result()

    def post(self, table: str, key: str, document: bytes | None) -> None:
        """Saves (None: deletes) a document soon, without telling when.

        Order among posts and saves is kept.
        """
        with self._lock:
            pending = self._pending
            pending.pop((table, key), None)
            pending[table, key] = document
            self._schedule()

    async def save(self, table: str, key: str, document: bytes | None, durable: bool) -> None:
        """Saves (None: deletes) a document; it outlives the process when this returns, and the power when
        `durable`.

        Raises InternalError when it could not be written, e.g. for want of space; the next save tries again.
        """
        waiter = asyncio.get_running_loop().create_future()
        with self._lock:
            self._pending.pop((table, key), None)
            self._pending[table, key] = document
            self._durable |= durable
            self._waiters.append(waiter)
            self._schedule()
        try:
            await waiter
        except sqlite3.Error as error:
            raise InternalError(
                f"cannot save to {self._path}: {error}",
                hint="Make room on the disk that holds the data root.",
            )

    def _schedule(self) -> None:
        if not self._scheduled and not self._closed:
            self._scheduled = True
            self._thread.submit(self._commit)

    def _commit(self) -> None:
        with self._lock:
            batch, self._pending = self._pending, {}
            waiters, self._waiters = self._waiters, []
            durable, self._durable = self._durable, False
            self._scheduled = False
        error: sqlite3.Error | None = None
        try:
            self._write(batch, durable)
        except sqlite3.Error as e:
            error = e
            with self._lock:  # keep what is newest: the next commit tries again
                self._pending = {**batch, **self._pending}
        for waiter in waiters:
            waiter.get_loop().call_soon_threadsafe(_settle, waiter, error)

    def _write(self, batch: dict[tuple[str, str], bytes | None], durable: bool) -> None:
        db = self._db
        if durable:
            db.execute("PRAGMA synchronous=FULL")
        try:
            db.execute("BEGIN IMMEDIATE")
            try:
                for (table, key), document in batch.items():
                    if document is None:
                        db.execute(f"DELETE FROM {table} WHERE key = ?", (key,))
                    else:
                        db.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", (key, document))
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
        finally:
            if durable:
                db.execute("PRAGMA synchronous=NORMAL")

    async def flush(self) -> None:
        """Waits until everything posted so far is written."""
        await asyncio.wrap_future(self._thread.submit(lambda: None))

    def close(self) -> None:
        """Writes what is pending and closes the database; what is posted later is lost."""
        self._closed = True
        self._thread.submit(self._db.close).result()
        self._thread.shutdown()


def _settle(waiter: asyncio.Future[Any], error: sqlite3.Error | None) -> None:
    if waiter.done():  # cancelled meanwhile
        return
    if error is None:
        waiter.set_result(None)
    else:
        waiter.set_exception(error)
