"""Layers on disk, one directory each, and the writable directories of containers.

`layers/HEX` is the layer with that chain id (OCI image-spec config.md), complete when it has this name.
`containers/ID/{upper,work}` are a container's own. Overlay puts them together at launch; no mount is held
here.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import stat
import struct
import threading
import uuid
from collections.abc import Iterator, Sequence

from guest_agent.errors import NotSupported
from guest_agent.kernel import quota
from guest_agent.kernel.syscalls import fs_magic
from guest_agent.kernel.trees import remove_tree
from guest_agent.runtime import layers
from guest_agent.runtime.types import Overlay

log = logging.getLogger(__name__)

MAX_LAYERS = 127  # Docker's limit, well within overlay's 500


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The chain id of each layer, bottom first (OCI image-spec config.md, "Layer ChainID")."""
    chains: list[str] = []
    for diff in diff_ids:
        chains.append(chain_id(chains[-1] if chains else "", diff))
    return chains


def chain_id(parent: str, diff: str) -> str:
    """The chain id of a layer on top of `parent`, "" for the lowest."""
    return f"sha256:{hashlib.sha256(f'{parent} {diff}'.encode()).hexdigest()}" if parent else diff


# linux/fs.h; the values are those of 64-bit machines
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS, _FS_TOPDIR_FL = 0x80086601, 0x40086602, 0x00020000


# linux/magic.h, and how each comes to count what directories use
_QUOTA_HINTS = {
    0xEF53: "It is on ext4, which needs `tune2fs -O quota,project -Q prjquota` on the unmounted device, "
    "and to be mounted with prjquota.",
    0x58465342: "It is on XFS, which needs to be mounted with pquota.",
}
_OTHER_QUOTA_HINT = "Its file system has none: put it on XFS mounted with pquota, or on ext4 with prjquota."


def _spread_out(directory: str) -> None:
    """Tells ext4 that the directories made here have nothing to do with each other (chattr +T).

    It then puts each layer into a block group of its own. Otherwise new files go where removed layers' were,
    and ext4 searches for inodes past all those it has freed in the last minutes: pulling after removing took
    five times as long. Other file systems know no such flag.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = struct.unpack("l", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8)))[0]
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("l", flags | _FS_TOPDIR_FL))
    except OSError:
        pass
    finally:
        os.close(fd)


class Snapshots:
    """The layers and writable directories below `root`, the engine's own directory (0710 above it)."""

    def __init__(self, root: str, driver: str = "") -> None:
        """`driver`: how layers are put together, one of `layers.DRIVERS`; "" for the best that works."""
        self._layers = os.path.join(root, "snapshots")
        self._containers = os.path.join(root, "containers")
        self._staging = os.path.join(root, "staging")
        self._empty = os.path.join(root, "empty")
        self._merged = os.path.join(root, layers.MERGED)
        for path in (self._layers, self._containers, self._staging, self._empty):
            os.makedirs(path, mode=0o700, exist_ok=True)
        layers.use(layers.choose(driver, self._staging))
        os.chmod(self._empty, 0o755)
        _spread_out(self._staging)
        self._quotas = quota.enforced(self._containers)
        self._sweep_lock = threading.Lock()
        self._rubbish: list[str] = []
        self._sweeping = False

    # -- layers ------------------------------------------------------------------------------------

    def path(self, chain: str) -> str:
        """The directory of a layer."""
        return os.path.join(self._layers, chain.rpartition(":")[2])

    def has(self, chain: str) -> bool:
        """Whether the layer is complete."""
        return os.path.isdir(self.path(chain))

    def stage(self) -> str:
        """A new directory to extract a layer into; `commit` or `discard` ends it."""
        path = os.path.join(self._staging, uuid.uuid4().hex)
        os.mkdir(path, 0o755)
        os.chmod(path, 0o755)
        return path

    def commit(self, staged: str, chain: str) -> None:
        """Gives a staged directory its layer's name.

        One that is there already stays, and the new one goes.
        """
        try:
            os.rename(staged, self.path(chain))
        except OSError:
            if not self.has(chain):
                raise
            self.discard(staged)

    def discard(self, staged: str) -> None:
        """Removes a directory below `staging`; what cannot be removed is tried again at the next start."""
        try:
            remove_tree(staged)
        except OSError as e:
            log.warning("cannot remove %s: %s", staged, e)

    def delete(self, chain: str) -> None:
        """Takes a layer away at once; its files go in the background."""
        self.retire(self.path(chain))
        self.retire(layers.merged_path(self.path(chain)))

    def chains(self) -> Iterator[str]:
        """The chain ids of all layers that are here."""
        for name in os.listdir(self._layers):
            yield f"sha256:{name}"

    # -- containers --------------------------------------------------------------------------------

    def overlay(self, container: str, chains: Sequence[str]) -> Overlay:
        """A container's root on the layers `chains` (bottom first)."""
        base = os.path.join(self._containers, container)
        return Overlay(self.lower(chains), os.path.join(base, "upper"), os.path.join(base, "work"))

    def lower(self, chains: Sequence[str]) -> tuple[str, ...]:
        """The directories of layers, topmost first; one empty directory for an image without layers."""
        return tuple(self.path(chain) for chain in reversed(chains)) or (self._empty,)

    def prepare(self, container: str, chains: Sequence[str], size: int = 0) -> Overlay:
        """Makes a container's writable directories, which together hold at most `size` bytes (0: no limit).

        The root directory's attributes come from the top layer. NotSupported when there are no quotas.
        """
        if size:
            self.check_quotas()
        overlay = self.overlay(container, chains)
        base = os.path.dirname(overlay.upper)
        os.mkdir(base, 0o700)
        if size:
            quota.limit(base, size)
        os.mkdir(overlay.work, 0o700)
        os.mkdir(overlay.upper, 0o755)
        st = os.stat(overlay.lower[0])
        os.chmod(overlay.upper, stat.S_IMODE(st.st_mode))
        if st.st_uid or st.st_gid:
            os.chown(overlay.upper, st.st_uid, st.st_gid)
        # By this file programs tell that they run in a container; dockerd makes it, too.
        os.mknod(os.path.join(overlay.upper, ".dockerenv"), stat.S_IFREG | 0o755)
        return overlay

    def check_quotas(self) -> None:
        """Raises NotSupported, in dockerd's words, when what a container writes cannot be limited."""
        if self._quotas:
            return
        fd = os.open(self._containers, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            reason = _QUOTA_HINTS.get(fs_magic(fd), _OTHER_QUOTA_HINT)
        finally:
            os.close(fd)
        raise NotSupported(
            "--storage-opt is supported only for overlay over xfs with 'pquota' mount option",
            hint=f"Project quotas are not in force where {self._containers} is. {reason}",
        )

    def remove(self, container: str) -> None:
        """Takes a container's writable directories away at once; its files go in the background."""
        base = os.path.join(self._containers, container)
        if self._quotas and os.path.isdir(base):
            quota.release(base)
        self.retire(base)

    def take(self, container: str) -> str:
        """Takes what a container has written from it, as a staged directory; see `stage`."""
        target = os.path.join(self._staging, uuid.uuid4().hex)
        os.rename(os.path.join(self._containers, container, "upper"), target)
        return target

    def containers(self) -> Iterator[str]:
        """The containers that have writable directories."""
        yield from os.listdir(self._containers)

    # -- rubbish -----------------------------------------------------------------------------------

    def retire(self, path: str) -> None:
        """Takes a directory of the same file system away at once, and removes it in the background."""
        target = os.path.join(self._staging, uuid.uuid4().hex)
        try:
            os.rename(path, target)
        except FileNotFoundError:
            return
        self._sweep([target])

    def recover(self) -> None:
        """Removes, in the background, what a killed process left half made or half removed."""
        left = [os.path.join(self._staging, name) for name in os.listdir(self._staging)]
        if os.path.isdir(self._merged):
            copies = os.listdir(self._merged)
            left += [os.path.join(self._merged, name) for name in copies if not self.has(name)]
        self._sweep(left)

    def _sweep(self, paths: list[str]) -> None:
        with self._sweep_lock:
            self._rubbish += paths
            if self._rubbish and not self._sweeping:
                self._sweeping = True
                threading.Thread(target=self._sweep_all, name="images-sweep", daemon=True).start()

    def _sweep_all(self) -> None:
        while True:
            with self._sweep_lock:
                if not self._rubbish:
                    self._sweeping = False
                    return
                path = self._rubbish.pop()
            self.discard(path)
