"""Mounts the engine makes on this host so that containers can have them.

They are volumes with mount options, /dev/shm that is shared, subpaths of volumes, and content of images.
Paths below a volume or an image are resolved by the kernel inside it, so a link in there cannot lead out
(CVE-2017-1002101, CVE-2022-23648).
"""

from __future__ import annotations

import logging
import os
import secrets
import socket

from guest_agent.errors import InternalError, InvalidParameter
from guest_agent.kernel import syscalls
from guest_agent.kernel.mountns import in_private_namespace
from guest_agent.kernel.paths import O_PATH, RootFd
from guest_agent.kernel.trees import remove_tree
from guest_agent.runtime.idmap import mapped_overlay, open_namespace
from guest_agent.runtime.layers import open_layers
from guest_agent.runtime.types import Overlay

log = logging.getLogger(__name__)

_ASIDE = ".removed-"

# Options of mount(8) that are flags: bits to set, bits to clear.
_FLAGS = {
    "defaults": (0, 0),
    "ro": (syscalls.MS_RDONLY, 0),
    "rw": (0, syscalls.MS_RDONLY),
    "nosuid": (syscalls.MS_NOSUID, 0),
    "suid": (0, syscalls.MS_NOSUID),
    "nodev": (syscalls.MS_NODEV, 0),
    "dev": (0, syscalls.MS_NODEV),
    "noexec": (syscalls.MS_NOEXEC, 0),
    "exec": (0, syscalls.MS_NOEXEC),
    "sync": (syscalls.MS_SYNCHRONOUS, 0),
    "async": (0, syscalls.MS_SYNCHRONOUS),
    "dirsync": (syscalls.MS_DIRSYNC, 0),
    "noatime": (syscalls.MS_NOATIME, 0),
    "atime": (0, syscalls.MS_NOATIME),
    "nodiratime": (syscalls.MS_NODIRATIME, 0),
    "diratime": (0, syscalls.MS_NODIRATIME),
    "relatime": (syscalls.MS_RELATIME, 0),
    "norelatime": (0, syscalls.MS_RELATIME),
    "strictatime": (syscalls.MS_STRICTATIME, 0),
    "nostrictatime": (0, syscalls.MS_STRICTATIME),
    "bind": (syscalls.MS_BIND, 0),
    "rbind": (syscalls.MS_BIND | syscalls.MS_REC, 0),
}


def mount_volume(target: str, options: dict[str, str]) -> None:
    """Mounts what a volume's options name (`type`, `device`, `o` as mount(8) has them) on `target`.

    Raises InternalError with dockerd's words; a password in the options is not repeated.
    """
    try:
        _mount_volume(target, options)
    except InternalError as error:
        error.message = f"error while mounting volume '{target}': {error.message}"
        raise


def _mount_volume(target: str, options: dict[str, str]) -> None:
    kind, device = options.get("type", ""), options.get("device", "")
    flags, data = 0, []
    for word in filter(None, options.get("o", "").split(",")):
        if word in _FLAGS:
            on, off = _FLAGS[word]
            flags = flags & ~off | on
        else:
            data.append(_resolved(kind, word))
    text = ",".join(data)
    if kind == "cifs" and not any(word.startswith("addr=") for word in data):
        device = _resolved_device(device)
    try:
        syscalls.mount(
            device, target, kind, flags & ~syscalls.MS_RDONLY if flags & syscalls.MS_BIND else flags, text
        )
        if flags & syscalls.MS_BIND and flags & syscalls.MS_RDONLY:
            # mount(2) ignores MS_RDONLY on the bind itself
            syscalls.mount("", target, "", flags | syscalls.MS_REMOUNT)
    except OSError as error:
        shown = ",".join("password=********" if word.startswith("password=") else word for word in data)
        details = (f", flags: {flags:#x}" if flags else "") + (f", data: {shown}" if shown else "")
        raise InternalError(
            f"failed to mount local volume: mount {device}:{target}{details}: "
            f"{os.strerror(error.errno or 0).lower()}",
            hint="Check the volume's options type, o and device; `docker volume inspect` shows them.",
        )


def _resolved(kind: str, word: str) -> str:
    """Network file systems want addresses: the kernel does not resolve names."""
    if kind in ("nfs", "nfs4", "cifs") and word.startswith("addr="):
        return "addr=" + _address(word.removeprefix("addr="))
    return word


def _resolved_device(device: str) -> str:
    """`//HOST/SHARE` with HOST's address."""
    host, slash, share = device.removeprefix("//").partition("/")
    return f"//{_address(host)}{slash}{share}" if device.startswith("//") and host else device


def _address(name: str) -> str:
    try:
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        problem = (error.strerror or str(error)).lower()
        raise InternalError(f"error resolving passed in network volume address: lookup {name}: {problem}")


def mount_shm(target: str, size: int, owner: tuple[int, int]) -> None:
    """A tmpfs of `size` bytes that several containers can have as /dev/shm; `owner` is their root."""
    os.makedirs(target, mode=0o700, exist_ok=True)
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    try:
        syscalls.mount("shm", target, "tmpfs", flags, f"mode=1777,size={size},uid={owner[0]},gid={owner[1]}")
    except OSError as error:
        raise InternalError(f"mounting shm tmpfs: {error.strerror}")


def mount_subpath(top: str, subpath: str, target: str) -> None:
    """Binds `subpath` of a volume or image at `target`, which becomes a directory or file as the source is.

    Raises InvalidParameter when there is no such path inside.
    """
    with RootFd.at(top) as root:
        try:
            source = root.open(subpath, O_PATH)
        except OSError as error:
            raise InvalidParameter(
                f"cannot access path {os.path.join(top, subpath)}: {(error.strerror or str(error)).lower()}"
            )
    try:
        os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
        if os.path.isdir(f"/proc/self/fd/{source}"):
            os.mkdir(target, 0o700)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        syscalls.mount(f"/proc/self/fd/{source}", target, "", syscalls.MS_BIND | syscalls.MS_REC)
    finally:
        os.close(source)


def mount_layers(overlay: Overlay, target: str, userns: str = "") -> None:
    """An image's content, read-only, at `target`.

    `userns`: the path of the user namespace that sees the image's owners as its own.
    """
    os.makedirs(target, mode=0o700, exist_ok=True)
    if userns:
        tree = in_private_namespace(lambda: _mapped_layers(overlay, userns, target))
    else:
        tree = open_layers(overlay.lower, "", "", target)
    try:
        syscalls.move_mount(tree, "", syscalls.AT_FDCWD, target, syscalls.MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(tree)


def _mapped_layers(overlay: Overlay, path: str, staging: str) -> int:
    userns = open_namespace(path)
    try:
        return mapped_overlay({"lower": overlay.lower, "upper": "", "work": ""}, userns, staging)
    finally:
        os.close(userns)


def unmount(target: str) -> None:
    """Unmounts everything that is on `target`; nothing happens when there is nothing."""
    while True:
        try:
            syscalls.umount2(target, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        except OSError:
            return


def remove_mounts(top: str) -> None:
    """Unmounts what is mounted on the entries of the directory `top`, and removes it; it may be gone.

    What is mounted is a volume's or an image's, so it is not looked into: links in there may lead to any
    mount of this host.
    """
    try:
        names = os.listdir(top)
    except FileNotFoundError:
        return
    for name in names:
        unmount(os.path.join(top, name))
    delete(top)


def aside_path(directory: str) -> str:
    """A new path in `directory` whose content is deleted when the next agent starts: for what is not
    finished, or no longer wanted.
    """
    return os.path.join(directory, _ASIDE + secrets.token_hex(8))


def set_aside(directory: str, name: str) -> str:
    """Takes an entry out of the way at once; returns the path where it can be deleted at leisure."""
    aside = aside_path(directory)
    try:
        os.rename(os.path.join(directory, name), aside)
    except FileNotFoundError:
        pass
    return aside


def delete_set_aside(directory: str) -> None:
    """Deletes what an earlier agent had set aside and not yet deleted."""
    for name in os.listdir(directory):
        if name.startswith(_ASIDE):
            delete(os.path.join(directory, name))


def delete(path: str) -> None:
    """Deletes what was set aside; what cannot be deleted is tried again at the next start."""
    try:
        remove_tree(path)
    except OSError as error:
        log.warning("cannot remove %s: %s", path, error)
