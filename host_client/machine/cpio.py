"""The cpio archive the kernel unpacks as its first root: "newc" format, reproducible.

Format: kernel documentation, driver-api/early-userspace/buffer-format. Owners are always root and times zero,
so the same content gives the same bytes. Several archives may follow one another; the kernel unpacks them in
order, which is how the host adds the agent's code to the image's initrd.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field


@dataclass
class Cpio:
    """An archive being written. A folder must be added before what is in it: the kernel makes none itself."""

    _parts: list[bytes] = field(default_factory=list)
    _inode: int = 0

    def directory(self, path: str, mode: int = 0o755) -> None:
        self._entry(path, stat.S_IFDIR | mode, b"")

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self._entry(path, stat.S_IFREG | mode, content)

    def symlink(self, path: str, target: str) -> None:
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device."""
        self._entry(path, stat.S_IFCHR | mode, b"", major, minor)

    def finish(self) -> bytes:
        """The whole archive, padded to 512 bytes so that another may follow."""
        self._entry("TRAILER!!!", 0, b"")
        data = b"".join(self._parts)
        return data + b"\0" * (-len(data) % 512)

    def _entry(self, path: str, mode: int, content: bytes, major: int = 0, minor: int = 0) -> None:
        self._inode += 1
        name = path.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        numbers = (self._inode, mode, 0, 0, links, 0, len(content), 0, 0, major, minor, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % n for n in numbers) + name
        self._parts.append(header + b"\0" * (-len(header) % 4))
        self._parts.append(content + b"\0" * (-len(content) % 4))
