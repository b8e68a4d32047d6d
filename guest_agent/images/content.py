"""Blobs by digest in an OCI image layout, verified as they are written.

A blob is written to `ingest/` and gets its name only when its digest is right. Making blobs durable is left
to the caller, who syncs once before it commits what refers to them; a blob nothing refers to goes at the
next collection.
"""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
from collections.abc import Iterator

from guest_agent.errors import InternalError, NotFound, Unavailable
from guest_agent.images import reference
from guest_agent.kernel.syscalls import syncfs

_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


def digest_of(data: bytes) -> str:
    """The sha256 digest of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class DiskFull(Unavailable):
    """There is no room for what was to be written."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "Free space below the data root, e.g. with 'image prune', and try again.")


class BlobWriter:
    """A blob on its way in. Leave the context without `commit` and nothing remains."""

    def __init__(self, store: BlobStore, algorithm: str) -> None:
        self._store = store
        self._algorithm = algorithm
        self._hash = hashlib.new(algorithm)
        self.path = os.path.join(store.ingest, uuid.uuid4().hex)
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.size = 0

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Drops what has not been committed."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            try:
                os.unlink(self.path)
            except FileNotFoundError:
                pass

    def write(self, data: bytes | memoryview) -> None:
        """Appends. Unavailable when the disk is full."""
        self._hash.update(data)
        self.size += len(data)
        try:
            while (done := os.write(self.fd, data)) < len(data):
                data = data[done:]
        except OSError as e:
            text = f"write {self.path}: {(e.strerror or '').lower()}"
            if e.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(text) from e
            raise Unavailable(text, "Look at the disk.") from e

    @property
    def digest(self) -> str:
        """The digest of what has been written so far."""
        return f"{self._algorithm}:{self._hash.hexdigest()}"

    def commit(self, expected: str = "") -> str:
        """Gives the blob its name. InternalError when it is not the one expected."""
        digest = self.digest
        if expected and digest != expected:
            raise InternalError(
                f"filesystem layer verification failed for digest {expected}",
                f"The content has digest {digest}: it was damaged or tampered with on the way. Try again.",
            )
        os.fchmod(self.fd, 0o644)
        os.rename(self.path, self._store.path(digest))
        os.close(self.fd)
        self.fd = -1
        return digest


class BlobStore:
    """The blobs below one directory."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.ingest = os.path.join(root, "ingest")
        self._blobs = os.path.join(root, "blobs")
        for algorithm in ("sha256", "sha384", "sha512"):
            os.makedirs(os.path.join(self._blobs, algorithm), exist_ok=True)
        os.makedirs(self.ingest, mode=0o700, exist_ok=True)
        layout = os.path.join(root, "oci-layout")
        if not os.path.exists(layout):
            with open(layout, "wb") as file:
                file.write(_LAYOUT)

    def path(self, digest: str) -> str:
        """Where a blob is.

        Digests come from manifests, so anything but a digest is refused before it is a path.
        """
        reference.check_digest(digest)
        algorithm, _, value = digest.partition(":")
        return os.path.join(self._blobs, algorithm, value)

    def has(self, digest: str) -> bool:
        """Whether the blob is here."""
        return os.path.exists(self.path(digest))

    def size(self, digest: str) -> int:
        """Bytes of a blob; NotFound."""
        try:
            return os.stat(self.path(digest)).st_size
        except FileNotFoundError:
            raise self._missing(digest) from None

    def open(self, digest: str) -> int:
        """A descriptor to read a blob with, which the caller owns; NotFound."""
        try:
            return os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise self._missing(digest) from None

    def read(self, digest: str) -> bytes:
        """The whole of a small blob; NotFound, InternalError when it does not match its digest."""
        with open(self.open(digest), "rb") as file:
            data = file.read()
        algorithm, _, value = digest.partition(":")
        if hashlib.new(algorithm, data).hexdigest() != value:
            raise InternalError(
                f"content store: blob {digest} is damaged",
                "Remove the images that use it and pull them again.",
            )
        return data

    def writer(self, expected: str = "") -> BlobWriter:
        """A writer for a blob of the algorithm of `expected`, sha256 by default."""
        if expected:
            reference.check_digest(expected)
        return BlobWriter(self, expected.partition(":")[0] or "sha256")

    def put(self, data: bytes, digest: str = "", anew: bool = False) -> str:
        """Stores `data`, if it is not here yet, and returns its digest; `digest` is the one it must have.

        `anew` replaces what is here, which may be damaged.
        """
        digest = digest or digest_of(data)
        if anew or not self.has(digest):
            with self.writer(digest) as writer:
                writer.write(data)
                writer.commit(digest)
        return digest

    def delete(self, digest: str) -> None:
        """Removes a blob, if it is here."""
        try:
            os.unlink(self.path(digest))
        except FileNotFoundError:
            pass

    def digests(self) -> Iterator[str]:
        """The digests of all blobs."""
        for algorithm in os.listdir(self._blobs):
            for value in os.listdir(os.path.join(self._blobs, algorithm)):
                yield f"{algorithm}:{value}"

    def recover(self) -> None:
        """Removes what a killed process was writing."""
        for name in os.listdir(self.ingest):
            os.unlink(os.path.join(self.ingest, name))

    def sync(self) -> None:
        """Makes all that has been written durable:

        one syncfs(2), which covers the snapshots beside the blobs.
        """
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syncfs(fd)
        except OSError as e:
            raise InternalError(
                f"syncfs {self.root}: {(e.strerror or '').lower()}", "Look at the disk."
            ) from e
        finally:
            os.close(fd)

    @staticmethod
    def _missing(digest: str) -> NotFound:
        return NotFound(f"content digest {digest}: not found", "The store is damaged; pull the image again.")
