"""Which networks are defined (a database in the data root), who is connected (files in the exec root)."""

from __future__ import annotations

import os
import sqlite3

import msgspec

from guest_agent.errors import InternalError
from guest_agent.network.hosts import write_file
from guest_agent.network.types import Network, Sandbox, SandboxRequest
from guest_agent.roots import Roots

SCHEMA_VERSION = 1


class NetworkStore:
    """The network definitions, one JSON document a row of `DATA/networks.db`."""

    def __init__(self, roots: Roots) -> None:
        path = roots.data_path("networks.db")
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise InternalError(
                    f"{path} was written by a newer Wherry (schema {version}, known is {SCHEMA_VERSION})",
                    "Start the newer version, or use another data root.",
                )
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS networks (id TEXT PRIMARY KEY, document BLOB NOT NULL)"
            )
            self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise InternalError(
                f"cannot read the network definitions in {path}: {error}",
                "If the file is damaged, move it away: networks must then be created again.",
            )

    def load(self) -> list[Network]:
        """Every network, oldest first."""
        rows = self._db.execute("SELECT document FROM networks ORDER BY rowid")
        return [msgspec.json.decode(row[0], type=Network) for row in rows]

    def save(self, network: Network) -> None:
        """Add or replace a network; durable when this returns."""
        document = msgspec.json.encode(network)
        self._db.execute("INSERT OR REPLACE INTO networks VALUES (?, ?)", (network.id, document))

    def delete(self, network_id: str) -> None:
        """Forget a network."""
        self._db.execute("DELETE FROM networks WHERE id = ?", (network_id,))

    def close(self) -> None:
        """Close the database."""
        self._db.close()


class SandboxRecord(msgspec.Struct):
    """A connected container as the next agent must know it."""

    request: SandboxRequest
    sandbox: Sandbox


class SandboxFiles:
    """`RUN/netns/ID.json`, the record of a sandbox, beside `RUN/netns/ID`, a link to its network namespace.

    The link points into /proc. It works for nsenter and for the runtime as a bind mount would, but needs no
    mount that a crash leaves behind: the namespace lives through its processes and the agent's descriptor.
    """

    def __init__(self, roots: Roots) -> None:
        self._directory = roots.run_path("netns")
        os.makedirs(self._directory, 0o700, exist_ok=True)

    def path(self, container_id: str) -> str:
        """The link to the container's namespace."""
        return os.path.join(self._directory, container_id)

    def link(self, container_id: str, target: str) -> None:
        """Point the container's link to `target`, replacing what is there."""
        path = self.path(container_id)
        try:
            os.symlink(target, path)
        except FileExistsError:
            os.unlink(path)
            os.symlink(target, path)

    def save(self, record: SandboxRecord) -> None:
        """Write a record; one torn by a crash is as good as none, its container never started."""
        text = msgspec.json.encode(record).decode()
        write_file(self._directory, f"{record.sandbox.container_id}.json", text)

    def delete(self, container_id: str) -> None:
        """Remove a container's record and link."""
        for path in (self.path(container_id), self.path(f"{container_id}.json")):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass

    def load(self) -> dict[str, SandboxRecord | None]:
        """Every container that has a record or a link; None where the record cannot be read."""
        found: dict[str, SandboxRecord | None] = {}
        for name in os.listdir(self._directory):
            container_id = name.removesuffix(".json")
            found.setdefault(container_id, None)
            if not name.endswith(".json"):
                continue
            try:
                with open(os.path.join(self._directory, name), "rb") as file:
                    found[container_id] = msgspec.json.decode(file.read(), type=SandboxRecord)
            except (OSError, msgspec.MsgspecError):
                # A record torn by a crash or written by another version: the container is cleaned up.
                continue
        return found
