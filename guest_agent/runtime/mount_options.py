"""The options of an OCI mount as flags and data (runtime-spec config.md, "Linux mount options")."""

from __future__ import annotations

from guest_agent.kernel import syscalls as s

# option → (attributes to set, attributes to clear); with a leading "r" the whole tree (Linux 5.12)
_ATTRIBUTES = {
    "ro": (s.MOUNT_ATTR_RDONLY, 0),
    "rw": (0, s.MOUNT_ATTR_RDONLY),
    "nosuid": (s.MOUNT_ATTR_NOSUID, 0),
    "suid": (0, s.MOUNT_ATTR_NOSUID),
    "nodev": (s.MOUNT_ATTR_NODEV, 0),
    "dev": (0, s.MOUNT_ATTR_NODEV),
    "noexec": (s.MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, s.MOUNT_ATTR_NOEXEC),
    "noatime": (s.MOUNT_ATTR_NOATIME, s.MOUNT_ATTR_ATIME),
    "strictatime": (s.MOUNT_ATTR_STRICTATIME, s.MOUNT_ATTR_ATIME),
    "relatime": (0, s.MOUNT_ATTR_ATIME),
    "atime": (0, s.MOUNT_ATTR_ATIME),
    "norelatime": (s.MOUNT_ATTR_STRICTATIME, s.MOUNT_ATTR_ATIME),
    "nostrictatime": (0, s.MOUNT_ATTR_ATIME),
    "nodiratime": (s.MOUNT_ATTR_NODIRATIME, 0),
    "diratime": (0, s.MOUNT_ATTR_NODIRATIME),
    "nosymfollow": (s.MOUNT_ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, s.MOUNT_ATTR_NOSYMFOLLOW),
}
_RECURSIVE_ATTRIBUTES = {f"r{name}": bits for name, bits in _ATTRIBUTES.items()}
_PROPAGATION = {
    "private": s.MS_PRIVATE,
    "slave": s.MS_SLAVE,
    "shared": s.MS_SHARED,
    "unbindable": s.MS_UNBINDABLE,
}
_SUPERBLOCK_DEFAULTS = frozenset(("async", "nomand", "nolazytime", "loud", "defaults"))


class MountOptions:
    """What the options of one mount ask for."""

    def __init__(self, options: list[str]) -> None:
        self.set = self.clear = 0
        self.set_all = self.clear_all = 0  # for the whole tree
        self.bind = False
        self.recursive = False
        self.idmap = False  # owners as the container's user namespace has them
        self.idmap_needed = False  # and an error where the file system cannot
        self.propagation = 0
        self.propagation_recursive = False
        self.data: list[str] = []  # flags and key=value for the file system
        for option in options:
            self._add(option)

    def _add(self, option: str) -> None:
        if option in _ATTRIBUTES:
            on, off = _ATTRIBUTES[option]
            self.set = self.set & ~off | on
            self.clear = self.clear & ~on | off
        elif option in _RECURSIVE_ATTRIBUTES:
            on, off = _RECURSIVE_ATTRIBUTES[option]
            self.set_all = self.set_all & ~off | on
            self.clear_all = self.clear_all & ~on | off
        elif option in ("bind", "rbind"):
            self.bind = True
            self.recursive = self.recursive or option == "rbind"
        elif option in ("idmap", "idmap-if-possible"):
            self.idmap = True
            self.idmap_needed = option == "idmap"
        elif option.removeprefix("r") in _PROPAGATION:
            self.propagation = _PROPAGATION[option.removeprefix("r")]
            self.propagation_recursive = option.startswith("r")
        elif option and option not in _SUPERBLOCK_DEFAULTS:
            self.data.append(option)
