"""Layers put together by copying, for where no file system does it: what overlay would show, as a plain tree.

A layer is a directory with whiteouts and opaque directories as overlay has them (kernel's
Documentation/filesystems/overlayfs.rst).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from .copies import Copier
from .overlay import FUSE_MARKERS, is_opaque
from .paths import O_PATH
from .syscalls import syncfs
from .trees import remove_tree


def merge(layers: Sequence[str], target: str) -> None:
    """Copies `layers`, topmost first, into the directory `target`, and to the disk. Blocks. Raises OSError.

    What is in `target` already counts as a layer below. The top attributes are the topmost layer's.
    """
    into = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for layer in reversed(layers):
            source = os.open(layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                copier = _Applier(source, into)
                try:
                    copier.copy()
                finally:
                    copier.close()
            finally:
                os.close(source)
        syncfs(into)  # whoever gives it its name relies on what is in it
    finally:
        os.close(into)


class _Applier(Copier):
    """Copies one layer over what is there."""

    def take(self, name: str, info: os.stat_result) -> bool:
        """Makes way for an entry; whiteouts are no more than that."""
        if name in FUSE_MARKERS:
            return False
        whiteout = stat.S_ISCHR(info.st_mode) and info.st_rdev == 0
        if not whiteout and stat.S_ISDIR(info.st_mode) and not self._opaque(name):
            return not self._is_directory(name)
        try:
            os.unlink(name, dir_fd=self.target)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            remove_tree(name, self.target)
        return not whiteout

    def _opaque(self, name: str) -> bool:
        fd = os.open(name, O_PATH | os.O_NOFOLLOW, dir_fd=self.source)
        try:
            return is_opaque(fd)
        finally:
            os.close(fd)

    def _is_directory(self, name: str) -> bool:
        """Whether there is one to go on in; anything else is removed."""
        try:
            if stat.S_ISDIR(os.lstat(name, dir_fd=self.target).st_mode):
                return True
            os.unlink(name, dir_fd=self.target)
        except FileNotFoundError:
            pass
        return False
