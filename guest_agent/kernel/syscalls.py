"""System calls that Python 3.11's `os` lacks: one thin wrapper each, named as the call, raising OSError.

Imported by the monitor and by the launch child, where every millisecond and megabyte counts: ctypes and os
only. Calls up to Linux 4.x go through glibc; newer ones (numbers 424 and up, the same on every architecture)
go through syscall(2), since glibc has had their names only since 2.36.
Paths are str or bytes; a null byte in one is a ValueError. x86_64 and aarch64.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import byref, c_char, c_char_p, c_int, c_long, c_uint, c_ulong, c_void_p, sizeof

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_DIRSYNC = 0x80
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_REC = 0x4000
MS_UNBINDABLE = 0x20000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000
MS_RELATIME = 0x200000
MS_STRICTATIME = 0x1000000

MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

OPEN_TREE_CLONE = 0x1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_ATIME = 0x70  # mask; relatime is 0
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

FSOPEN_CLOEXEC = 0x1
FSMOUNT_CLOEXEC = 0x1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

PR_SET_PDEATHSIG = 1
PR_GET_DUMPABLE = 3
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_LOG = 2
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4

MFD_CLOEXEC = 0x1
MFD_ALLOW_SEALING = 0x2
MFD_EXEC = 0x10  # Linux 6.3; EINVAL before

DEVPTS_SUPER_MAGIC = 0x1CD1
PROC_SUPER_MAGIC = 0x9FA0

_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_FSOPEN = 430
_NR_FSCONFIG = 431
_NR_FSMOUNT = 432
_NR_CLONE3 = 435
_NR_CLOSE_RANGE = 436
_NR_OPENAT2 = 437
_NR_MOUNT_SETATTR = 442
_NR_QUOTACTL_FD = 443
_RENAME_EXCHANGE = 2
_EPERM, _NO_ID = 1, 0xFFFFFFFF
_MACHINE = os.uname().machine
if _MACHINE == "x86_64":
    _NR_CAPGET, _NR_CAPSET, _NR_KEYCTL, _NR_SECCOMP, _NR_BPF, _NR_PIVOT_ROOT = 125, 126, 250, 317, 321, 155
    _NR_RENAMEAT2 = 316
elif _MACHINE == "aarch64":
    _NR_CAPGET, _NR_CAPSET, _NR_KEYCTL, _NR_SECCOMP, _NR_BPF, _NR_PIVOT_ROOT = 90, 91, 219, 277, 280, 41
    _NR_RENAMEAT2 = 276
else:
    raise ImportError(f"Wherry runs on x86_64 and aarch64, not on {_MACHINE}")

Path = str | bytes


def _version(release: str) -> tuple[int, int]:
    major, _, rest = release.partition(".")
    digits = len(rest) - len(rest.lstrip("0123456789"))
    return int(major), int(rest[:digits] or 0)


LINUX = _version(os.uname().release)
"""Version of the running kernel: major, minor."""

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = c_long
libc.unshare.argtypes = (c_int,)
libc.setns.argtypes = (c_int, c_int)
libc.mount.argtypes = (c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
libc.umount2.argtypes = (c_char_p, c_int)
libc.prctl.argtypes = (c_int, c_ulong, c_ulong, c_ulong, c_ulong)
libc.sethostname.argtypes = (c_char_p, ctypes.c_size_t)
libc.setdomainname.argtypes = (c_char_p, ctypes.c_size_t)
libc.fstatfs.argtypes = (c_int, c_void_p)
libc.syncfs.argtypes = (c_int,)
libc.personality.argtypes = (c_ulong,)
libc.setfsuid.argtypes = libc.setfsgid.argtypes = (c_uint,)
libc.setfsuid.restype = libc.setfsgid.restype = c_uint


def _encode(path: Path) -> bytes:
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise ValueError(f"embedded null byte in {path!r}")
    return raw


def _fail(call: str, name: Path | int | None = None) -> OSError:
    number = ctypes.get_errno()
    text = f"{call}: {os.strerror(number)}"
    if name is None:
        return OSError(number, text)
    return OSError(number, text, f"fd {name}" if isinstance(name, int) else os.fsdecode(name))


def _syscall(number: int, *args: object) -> int:
    # syscall(2) is variadic: an int left to ctypes would be passed with 32 defined bits only.
    return int(libc.syscall(c_long(number), *[c_long(a) if isinstance(a, int) else a for a in args]))


def unshare(flags: int) -> None:
    """unshare(2)."""
    if libc.unshare(flags) < 0:
        raise _fail("unshare")


def setns(fd: int, flags: int = 0) -> None:
    """setns(2); `fd` is a namespace or (Linux 5.8) a pidfd with a mask of CLONE_NEW*."""
    if libc.setns(fd, flags) < 0:
        raise _fail("setns", fd)


def mount(source: Path, target: Path, fstype: str = "", flags: int = 0, data: Path = "") -> None:
    """mount(2); the empty string stands for a null `fstype` and `data`."""
    kind, options = fstype.encode() or None, _encode(data) or None
    if libc.mount(_encode(source), _encode(target), kind, flags, options) < 0:
        raise _fail("mount", target)


def umount2(target: Path, flags: int = 0) -> None:
    """umount2(2)."""
    if libc.umount2(_encode(target), flags) < 0:
        raise _fail("umount2", target)


def pivot_root(new_root: Path, put_old: Path) -> None:
    """pivot_root(2)."""
    if _syscall(_NR_PIVOT_ROOT, _encode(new_root), _encode(put_old)) < 0:
        raise _fail("pivot_root", new_root)


def open_tree(dirfd: int, path: Path, flags: int) -> int:
    """open_tree(2), always close-on-exec; OPEN_TREE_CLONE makes a detached mount. Returns the fd."""
    fd = _syscall(_NR_OPEN_TREE, dirfd, _encode(path), flags | OPEN_TREE_CLOEXEC)
    if fd < 0:
        raise _fail("open_tree", path)
    return fd


def move_mount(from_fd: int, from_path: Path, to_fd: int, to_path: Path, flags: int) -> None:
    """move_mount(2)."""
    if _syscall(_NR_MOVE_MOUNT, from_fd, _encode(from_path), to_fd, _encode(to_path), flags) < 0:
        raise _fail("move_mount", to_path or to_fd)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def mount_setattr(
    dirfd: int,
    path: Path,
    flags: int,
    attr_set: int = 0,
    attr_clr: int = 0,
    propagation: int = 0,
    userns: int = 0,
) -> None:
    """mount_setattr(2) (Linux 5.12): MOUNT_ATTR_* to set and to clear, an MS_* propagation, a userns fd."""
    attr = _MountAttr(attr_set, attr_clr, propagation, userns)
    if _syscall(_NR_MOUNT_SETATTR, dirfd, _encode(path), flags, byref(attr), sizeof(attr)) < 0:
        raise _fail("mount_setattr", path or dirfd)


class FsError(OSError):
    """An error of a file system being configured; `strerror` is the kernel's own message."""


class FsContext:
    """A file system being configured (fsopen(2), fsconfig(2), fsmount(2); Linux 5.2). Owns the context's fd.

    Errors carry the kernel's own message where it left one in the context, which says far more than EINVAL.
    """

    def __init__(self, fstype: str) -> None:
        self._fstype = fstype
        self.fd = _syscall(_NR_FSOPEN, _encode(fstype), FSOPEN_CLOEXEC)
        if self.fd < 0:
            raise _fail("fsopen", fstype)

    def __enter__(self) -> FsContext:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)

    def _config(self, command: int, key: bytes | None, value: bytes | None, aux: int) -> None:
        if _syscall(_NR_FSCONFIG, self.fd, command, key, value, aux) < 0:
            raise self._fail("fsconfig", key)

    def _fail(self, call: str, key: bytes | None) -> OSError:
        error = _fail(call, self._fstype)
        number = error.errno or 0
        if messages := self.messages():
            return FsError(number, messages, self._fstype)
        return OSError(
            number, f"{call}{f' {os.fsdecode(key)}' if key else ''}: {os.strerror(number)}", self._fstype
        )

    def messages(self) -> str:
        """The kernel's error and warning messages so far; reading takes them out."""
        found: list[str] = []
        while True:
            try:
                line = os.read(self.fd, 4096)
            except OSError:  # ENODATA: no more
                return "; ".join(found)
            found.append(line[2:].decode(errors="replace").strip())  # "e overlay: …", "w …", "i …"

    def set(self, key: str, value: Path) -> None:
        """FSCONFIG_SET_STRING."""
        self._config(FSCONFIG_SET_STRING, _encode(key), _encode(value), 0)

    def flag(self, key: str) -> None:
        """FSCONFIG_SET_FLAG."""
        self._config(FSCONFIG_SET_FLAG, _encode(key), None, 0)

    def options(self, options: list[str]) -> None:
        """Each as mount(8) has it: `key=value`, or a flag."""
        for option in options:
            key, separator, value = option.partition("=")
            if separator:
                self.set(key, value)
            else:
                self.flag(key)

    def create(self) -> None:
        """FSCONFIG_CMD_CREATE: make the superblock."""
        self._config(FSCONFIG_CMD_CREATE, None, None, 0)

    def mount(self, attributes: int = 0) -> int:
        """fsmount(2) with MOUNT_ATTR_* flags; returns the fd of the detached mount (like an O_PATH one)."""
        fd = _syscall(_NR_FSMOUNT, self.fd, FSMOUNT_CLOEXEC, attributes)
        if fd < 0:
            raise self._fail("fsmount", None)
        return fd


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(dirfd: int, path: Path, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2) (Linux 5.6), always close-on-exec. EAGAIN is the caller's: see `kernel.paths`."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    fd = _syscall(_NR_OPENAT2, dirfd, _encode(path), byref(how), sizeof(how))
    if fd < 0:
        raise _fail("openat2", path)
    return fd


def close_range(first: int, last: int = 0xFFFFFFFF, flags: int = 0) -> None:
    """close_range(2) (Linux 5.9), both ends included."""
    if _syscall(_NR_CLOSE_RANGE, first, last, flags) < 0:
        raise _fail("close_range")


class _CloneArgs(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    )


_SIGCHLD = 17
_pydll = ctypes.PyDLL(
    None, use_errno=True
)  # keeps the GIL: in the child nobody else is there to give it back
_pydll.syscall.restype = c_long
_pydll.PyOS_BeforeFork.restype = None
_pydll.PyOS_AfterFork_Child.restype = None
_pydll.PyOS_AfterFork_Parent.restype = None


def clone3(flags: int, cgroup: int | None = None) -> tuple[int, int]:
    """Forks by clone3(2) (Linux 5.3) with CLONE_PIDFD: (0, -1) in the child, (pid, pidfd) in the parent.

    `cgroup` is the fd of a cgroup v2 directory to be born in (Linux 5.7). glibc's atfork handlers do not run
    and its cached thread id stays the parent's, so this is for a single-threaded process whose child soon
    calls execve.
    """
    pidfd = c_int(-1)
    args = _CloneArgs(flags=flags | CLONE_PIDFD, pidfd=ctypes.addressof(pidfd))
    if not flags & CLONE_PARENT:  # such a child takes its new parent's word for it
        args.exit_signal = _SIGCHLD
    if cgroup is not None:
        args.flags |= CLONE_INTO_CGROUP
        args.cgroup = cgroup
    _pydll.PyOS_BeforeFork()
    pid = int(_pydll.syscall(c_long(_NR_CLONE3), byref(args), c_long(sizeof(args))))
    if pid == 0:
        _pydll.PyOS_AfterFork_Child()
        return 0, -1
    number = ctypes.get_errno()
    _pydll.PyOS_AfterFork_Parent()
    if pid < 0:
        ctypes.set_errno(number)
        raise _fail("clone3")
    return pid, pidfd.value


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """prctl(2)."""
    result = libc.prctl(option, arg2, arg3, arg4, arg5)
    if result < 0:
        raise _fail(f"prctl {option}")
    return int(result)


_CAPABILITY_VERSION_3 = 0x20080522


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) on the calling thread; each set is a mask of 1 << CAP_*."""
    header = (c_uint * 2)(_CAPABILITY_VERSION_3, 0)
    low, high = 0xFFFFFFFF, 32
    data = (c_uint * 6)(
        effective & low,
        permitted & low,
        inheritable & low,
        effective >> high,
        permitted >> high,
        inheritable >> high,
    )
    if _syscall(_NR_CAPSET, header, data) < 0:
        raise _fail("capset")


def capget() -> tuple[int, int, int]:
    """capget(2) of the calling thread: effective, permitted, inheritable."""
    header = (c_uint * 2)(_CAPABILITY_VERSION_3, 0)
    data = (c_uint * 6)()
    if _syscall(_NR_CAPGET, header, data) < 0:
        raise _fail("capget")
    return data[0] | data[3] << 32, data[1] | data[4] << 32, data[2] | data[5] << 32


def set_fs_ids(uid: int, gid: int) -> None:
    """setfsuid(2) and setfsgid(2) of the calling thread, which keeps the capabilities it has.

    What it makes then belongs to them.
    """
    effective, permitted, inheritable = capget()
    dumpable = prctl(PR_GET_DUMPABLE)
    for call, id in ((libc.setfsgid, gid), (libc.setfsuid, uid)):
        call(id)
        if call(_NO_ID) != id:  # all that it tells is who it was before
            raise PermissionError(_EPERM, os.strerror(_EPERM))
    capset(effective, permitted, inheritable)
    if dumpable == 1:
        prctl(PR_SET_DUMPABLE, 1)  # it is the whole process's, and the kernel has cleared it


class _SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", c_void_p))


def seccomp_filter(program: bytes, flags: int = 0) -> None:
    """seccomp(2) SECCOMP_SET_MODE_FILTER; `program` is an array of struct sock_filter, 8 bytes each."""
    buffer = ctypes.create_string_buffer(program, len(program))
    prog = _SockFprog(len(program) // 8, ctypes.addressof(buffer))
    if _syscall(_NR_SECCOMP, SECCOMP_SET_MODE_FILTER, flags, byref(prog)) < 0:
        raise _fail("seccomp")


def bpf(command: int, attr: ctypes.Array[c_char]) -> int:
    """bpf(2); `attr` is a buffer laid out as union bpf_attr."""
    result = _syscall(_NR_BPF, command, attr, len(attr))
    if result < 0:
        raise _fail(f"bpf {command}")
    return result


def keyctl_join_session_keyring() -> None:
    """keyctl(2) KEYCTL_JOIN_SESSION_KEYRING: a new anonymous session keyring."""
    if _syscall(_NR_KEYCTL, 1, None, 0, 0, 0) < 0:
        raise _fail("keyctl")


def sethostname(name: str) -> None:
    """sethostname(2)."""
    raw = name.encode()
    if libc.sethostname(raw, len(raw)) < 0:
        raise _fail("sethostname", name)


def setdomainname(name: str) -> None:
    """setdomainname(2)."""
    raw = name.encode()
    if libc.setdomainname(raw, len(raw)) < 0:
        raise _fail("setdomainname", name)


def personality(persona: int) -> None:
    """personality(2)."""
    if libc.personality(persona) < 0:
        raise _fail("personality")


def fs_magic(fd: int) -> int:
    """f_type of fstatfs(2): which kind of file system `fd` is on (*_MAGIC)."""
    # struct statfs begins with f_type, a long, on both architectures; 120 bytes in all.
    buffer = (c_long * 32)()
    if libc.fstatfs(fd, byref(buffer)) < 0:
        raise _fail("fstatfs", fd)
    return buffer[0]


def quotactl_fd(fd: int, command: int, id: int, data: ctypes.Array[c_char]) -> None:
    """quotactl_fd(2) (Linux 5.14): `command` is QCMD(Q_*, *QUOTA), `data` a buffer laid out as it wants."""
    if _syscall(_NR_QUOTACTL_FD, fd, command, id, data) < 0:
        raise _fail("quotactl_fd", fd)


def rename_exchange(path: Path, other: Path) -> None:
    """renameat2(2) with RENAME_EXCHANGE: two paths of one file system change places, at once."""
    if libc.renameat2(AT_FDCWD, _encode(path), AT_FDCWD, _encode(other), _RENAME_EXCHANGE) < 0:
        raise _fail("renameat2", path)


def syncfs(fd: int) -> None:
    """syncfs(2): writes out the file system that holds `fd`; raises errors of earlier write-back, too."""
    if libc.syncfs(fd) < 0:
        raise _fail("syncfs", fd)


__all__ = [name for name in dir() if not name.startswith("_") and name not in ("annotations", "os", "ctypes")]
