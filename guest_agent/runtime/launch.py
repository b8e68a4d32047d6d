"""The launch child: forked by the monitor, becomes a container's process by execve.

`start` makes a new container, `enter` starts one more process in a running one. Both end in
`process.execute`, or send (stage, errno, text) to the monitor and exit. The steps and their order are
runc's and crun's (see there), on top of descriptors instead of paths.

Nothing may be imported here after the fork: once inside, an import would run the image's files
(CVE-2019-14271).
"""

from __future__ import annotations

import gc
import json
import os
import sys
from fcntl import F_DUPFD_CLOEXEC, fcntl

from guest_agent.kernel import syscalls as s
from guest_agent.kernel.overlay import open_overlay
from guest_agent.kernel.paths import O_PATH, RootFd
from guest_agent.kernel.userns import inside as in_user_namespace
from guest_agent.kernel.userns import may_set_groups

from . import cgroups, console, process, protocol, users
from .capabilities import DEFAULT
from .devices import add_device, host_nodes
from .idmap import Mappings, mapped, mapped_overlay, open_namespace
from .mounts import CgroupView, Mount, Rootfs, bind_of_host, open_binds, open_dev, open_now
from .process import SYNC_FD
from .stage import StageError, in_init

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any, NoReturn

_NAMESPACES = {
    "mount": s.CLONE_NEWNS,
    "uts": s.CLONE_NEWUTS,
    "ipc": s.CLONE_NEWIPC,
    "pid": s.CLONE_NEWPID,
    "network": s.CLONE_NEWNET,
    "cgroup": s.CLONE_NEWCGROUP,
    "user": s.CLONE_NEWUSER,
}
_ALL_BUT_USER = (
    s.CLONE_NEWNS | s.CLONE_NEWUTS | s.CLONE_NEWIPC | s.CLONE_NEWPID | s.CLONE_NEWNET | s.CLONE_NEWCGROUP
)
_ESRCH, _ENOTDIR, _EINVAL, _SIGKILL = 3, 20, 22, 9
EXIT_FAILED = 125
"""The exit status of a launch child that could not become its process."""

_KERNEL_SYSCTLS = frozenset(
    f"kernel.{name}"
    for name in (
        "msgmax",
        "msgmnb",
        "msgmni",
        "sem",
        "shmall",
        "shmmax",
        "shmmni",
        "shm_rmid_forced",
    )
)


class Job:
    """What the monitor hands to a launch child, by fork: descriptors and the decoded request."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.sync: socket
        self.stdin = self.stdout = self.stderr = -1  # -1: none, or a terminal
        self.seccomp = -1  # a memfd
        self.seccomp_flags = 0
        self.cgroup: cgroups.Cgroup | None = None
        self.in_cgroup = False  # born there (CLONE_INTO_CGROUP)
        self.pidfd = -1  # enter: the container's first process, as a descriptor
        self.user_root: tuple[int, int] | None = None  # enter: host ids of the root of its user namespace
        self.signals: list[int] = []  # that are not at their defaults
        self.staging = ""  # an empty directory of ours
        self.oom_score_adj: int | None = None  # where the process asks for none
        self.limits: list[dict[str, Any]] = []  # OCI rlimits where the process asks for no others
        self.host_namespaces: dict[str, tuple[int, int]] = {}  # `own_namespaces` of the monitor

    def descriptors(self) -> list[int]:
        """What must stay open for now."""
        mine = (self.sync.fileno(), self.stdin, self.stdout, self.stderr, self.seccomp, self.pidfd)
        return [fd for fd in mine if fd >= 0]


def namespaces(config: dict[str, Any]) -> tuple[int, dict[int, str]]:
    """The CLONE_NEW* flags of the namespaces to make, and the paths of those to join by flag."""
    new, join = 0, {}
    for entry in config.get("linux", {}).get("namespaces") or ():
        flag = _NAMESPACES.get(entry["type"])
        if flag is None:
            raise StageError("namespaces", _EINVAL, f"namespace {entry['type']!r} is not supported")
        if entry.get("path"):
            join[flag] = entry["path"]
        else:
            new |= flag
    return new, join


def clone_flags(config: dict[str, Any]) -> int:
    """What the monitor's clone3 makes at once. The cgroup namespace comes later, when the child is in its
    group.
    """
    new, join = namespaces(config)
    if s.CLONE_NEWPID in join or s.CLONE_NEWUSER in join or new & s.CLONE_NEWUSER:
        return 0  # a second child will be cloned, by the first
    return new & ~s.CLONE_NEWCGROUP


def run(job: Job, body: Any) -> NoReturn:
    """The child's whole life after the fork."""
    try:
        gc.disable()
        sys.meta_path.clear()  # from here on nothing can be imported, whatever a path leads to
        sys.path.clear()
        process.reset_signals(job.signals)
        s.prctl(s.PR_SET_DUMPABLE, 0)  # until execve: closed to ptrace and /proc/PID/fd
        s.prctl(s.PR_SET_PDEATHSIG, _SIGKILL)
        _close_others(job.descriptors())
        os.dup2(0, 2)  # the monitor's log is not for anybody to hold
        os.umask(0)
        body(job)
    except StageError as e:
        _report(job, e)
    except BaseException as e:
        text = f"error during container init: {type(e).__name__}: {e}"
        _report(job, StageError("launch", getattr(e, "errno", None) or 0, text))
    os._exit(EXIT_FAILED)


def _report(job: Job, error: StageError) -> None:
    message = json.dumps({"stage": error.stage, "errno": error.errno, "text": error.text}).encode()
    try:
        os.write(_sync_fd(job), message[:60000])
    except OSError:
        pass


def _sync_fd(job: Job) -> int:
    """The socket to the monitor, wherever it is by now."""
    return job.sync.fileno() if job.sync.fileno() >= 0 else SYNC_FD


def _close_others(keep: list[int]) -> None:
    """Closes all descriptors but the streams and `keep`: other containers' pipes, clients, the monitor's
    own.
    """
    first = 3
    for fd in sorted(set(keep)):
        if fd > first:
            s.close_range(first, fd - 1)
        first = max(first, fd + 1)
    s.close_range(first)


def start(job: Job) -> None:
    """Makes the container and becomes its first process."""
    config = job.request["config"]
    linux = config.get("linux", {})
    new, join = namespaces(config)
    if not new & s.CLONE_NEWNS:
        text = "error during container init: it takes a new mount namespace"
        raise StageError("namespaces", _EINVAL, text)
    _join_cgroup(job)
    _set_oom_score_adj(job, config["process"])
    _new_session_keyring()
    profile = config["process"].get("apparmorProfile")
    if profile:
        _confine(profile)
    own_users = join.pop(s.CLONE_NEWUSER, "")
    _join_namespaces(join)
    private = new | sum(join)
    if _is_host_network(job, join.get(s.CLONE_NEWNET, "")):
        private &= ~s.CLONE_NEWNET
    sources = None
    if new & s.CLONE_NEWUSER or own_users:
        sources = _enter_user_namespace(job, config, new, own_users)
    elif not clone_flags(config):
        _continue_in_child(job, new & ~s.CLONE_NEWCGROUP)
    if new & s.CLONE_NEWCGROUP:
        s.unshare(s.CLONE_NEWCGROUP)
    _name_host(config, new)
    _set_sysctls(linux.get("sysctl") or {}, private)

    if sources is None:
        sources = Sources(job, config, _of_host(job, new))
        sources.open()
    rootfs = _furnish(job, config, sources, bool(new & s.CLONE_NEWCGROUP))
    spec = config["process"]
    identity = _identity(rootfs.root, spec)
    if spec.get("createCwd"):
        _make_cwd(rootfs.root, spec)
    tty = job.request["stdio"]["tty"]
    slave = _open_console(job, rootfs.root, rootfs.devpts) if tty else -1
    if tty:
        console.mount_console(rootfs.root, slave)
    null = -1 if tty or job.stdin >= 0 else console.open_null(rootfs.root)
    rootfs.finish(bool(config.get("root", {}).get("readonly")))
    rootfs.pivot(linux.get("rootfsPropagation") or "")
    seccomp = _place_streams(job, slave, null)
    _become(process.Prepared(spec, identity, job.limits), seccomp, tty)


def enter(job: Job) -> None:
    """Joins a running container and becomes one more process of it."""
    spec = job.request["process"]
    if not spec["cwd"].startswith("/"):
        raise StageError("process", _EINVAL, "Cwd must be an absolute path")
    assert job.cgroup is not None
    # Of v2 only the child that goes on is to be a member, and is born as one: moving waits for a grace
    # period of the kernel's. It so must be cloned before the cgroup namespace is joined, which must hold
    # both groups.
    group = -1
    if cgroups.version() == 2 and not job.in_cgroup:
        group = os.open(job.cgroup.directories()[0], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    else:
        _join_cgroup(job)
    _set_oom_score_adj(job, spec)
    _new_session_keyring()
    if spec.get("apparmorProfile"):
        _confine(spec["apparmorProfile"])
    if job.user_root:
        _own_pipes(job, job.user_root)
        process.allow_rlimits([*job.limits, *(spec.get("rlimits") or ())])
        _join_running(job.pidfd, _ALL_BUT_USER | s.CLONE_NEWUSER)
        _become_root_of(-1)
    else:
        _join_running(job.pidfd, _ALL_BUT_USER & ~s.CLONE_NEWCGROUP if group >= 0 else _ALL_BUT_USER)
    with RootFd.at("/") as root:
        identity = _identity(root, spec)
        if spec.get("createCwd"):
            _make_cwd(root, spec)
        slave = null = -1
        tty = job.request["stdio"]["tty"]
        if tty:
            devpts = console.open_devpts(root)
            slave = _open_console(job, root, devpts)
        elif job.stdin < 0:
            null = console.open_null(root)
    prepared = process.Prepared(spec, identity, job.limits)
    keep = (job.pidfd, group) if group >= 0 else ()
    seccomp = _place_streams(job, slave, null, keep)
    # Only the child of this one is seen by the container's processes, with all that is secret closed.
    if group >= 0:
        _continue_in_child(job, 0, SYNC_FD + 2)
        _join_running(SYNC_FD + 1, s.CLONE_NEWCGROUP)
        s.close_range(SYNC_FD + 1)
    else:
        _continue_in_child(job, 0)
    _become(prepared, seccomp, tty)


def stand_by(job: Job) -> None:
    """A launch child made ahead: waits for somebody to `enter` for, having touched what it will need by
    then.
    """
    _rehearse()
    received = protocol.receive(job.sync)
    if received is None:  # not needed after all
        os._exit(0)
    message, fds = received
    for name, fd in zip(message["fds"], fds, strict=True):
        setattr(job, name, fd)
    job.request = message["request"]
    job.seccomp_flags = message["seccomp_flags"]
    job.cgroup = cgroups.at(message["cgroup"])
    enter(job)


def _rehearse() -> None:
    """Goes through the motions of `enter`: each page of the heap that it changes is copied now, not later."""
    spec = {
        "args": ["true"],
        "env": ["PATH=/usr/bin:/bin"],
        "user": {"name": "root:0"},
        "capabilities": {"bounding": list(DEFAULT), "effective": list(DEFAULT), "permitted": list(DEFAULT)},
    }
    spec = json.loads(json.dumps(spec))
    try:
        with RootFd.at("/") as root:
            prepared = process.Prepared(spec, _identity(root, spec))
            os.close(console.open_null(root))
        process.set_rlimits(prepared.limits)
        process.find_executable("true", prepared.environment["PATH"])
    except (StageError, OSError):
        pass  # a host without these files


def _join_running(pidfd: int, namespaces: int) -> None:
    if in_user_namespace():
        namespaces &= _others(pidfd)  # the host's, which we are in, may not be joined again
    try:
        s.setns(pidfd, namespaces)
    except ProcessLookupError as e:
        raise StageError("process", _ESRCH, "cannot exec in a stopped container") from e
    except OSError as e:
        raise in_init("namespaces", "error joining the container's namespaces: setns", e) from e


def _others(pidfd: int) -> int:
    """The CLONE_NEW* flags of the namespaces in which the process behind `pidfd` is and we are not."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        pid = next(line.split()[1] for line in file if line.startswith("Pid:"))
    flags = 0
    for kind, flag in _NAMESPACES.items():
        name = {"mount": "mnt", "network": "net"}.get(kind, kind)
        theirs, ours = os.stat(f"/proc/{pid}/ns/{name}"), os.stat(f"/proc/self/ns/{name}")
        if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino):
            flags |= flag
    return flags


def _join_cgroup(job: Job) -> None:
    if job.cgroup is None or job.in_cgroup:
        return
    try:
        job.cgroup.join()
    except OSError as e:
        raise in_init("cgroup", f"unable to apply cgroup configuration: {e.filename}", e) from e


def _set_oom_score_adj(job: Job, spec: dict[str, Any]) -> None:
    value = spec.get("oomScoreAdj")
    value = job.oom_score_adj if value is None else value
    if value is not None:
        process.set_oom_score_adj(value)


def _new_session_keyring() -> None:
    try:
        s.keyctl_join_session_keyring()
    except OSError as e:
        if e.errno != 38:  # ENOSYS: a kernel without keyrings has none to leak
            raise in_init("keyring", "unable to join session keyring", e) from e


def _join_namespaces(join: dict[int, str]) -> None:
    opened = []
    for flag, path in join.items():
        try:
            opened.append((flag, path, os.open(path, os.O_RDONLY | os.O_CLOEXEC)))
        except OSError as e:
            raise in_init("namespaces", f"error joining namespace {path}: open", e) from e
    for flag, path, fd in opened:
        try:
            s.setns(fd, flag)
        except OSError as e:
            raise in_init("namespaces", f"error joining namespace {path}: setns", e) from e
        os.close(fd)


def _continue_in_child(job: Job, flags: int, group: int | None = None) -> None:
    """Forks once more, into the joined pid namespace; the child, the monitor's own, goes on and this one
    exits.
    """
    try:
        # Not os.fork: with CLONE_PARENT the child is the monitor's, which so is the one to reap it.
        pid, _ = s.clone3(s.CLONE_PARENT | flags, group)
    except OSError as e:
        raise in_init("clone", "unable to clone", e) from e
    if pid:
        os.write(_sync_fd(job), b"p%d" % pid)
        os._exit(0)
    s.prctl(s.PR_SET_PDEATHSIG, _SIGKILL)


def _confine(profile: str) -> None:
    """Sets the AppArmor profile that the coming execve changes to; needs the host's /proc."""
    for path in ("/proc/self/attr/apparmor/exec", "/proc/self/attr/exec"):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            os.write(fd, f"exec {profile}".encode())
            return
        except OSError as e:
            raise in_init("apparmor", f"unable to apply apparmor profile {profile}", e) from e
        finally:
            os.close(fd)
    text = f"error during container init: unable to apply apparmor profile {profile}: AppArmor is not enabled"
    raise StageError("apparmor", _EINVAL, text)


def _name_host(config: dict[str, Any], new: int) -> None:
    for key, call in (("hostname", s.sethostname), ("domainname", s.setdomainname)):
        if not config.get(key):
            continue
        if not new & s.CLONE_NEWUTS:
            text = f"error during container init: unable to set {key} without a private UTS namespace"
            raise StageError("hostname", _EINVAL, text)
        try:
            call(config[key])
        except OSError as e:
            raise in_init("hostname", f"set{key}", e) from e


def _set_sysctls(sysctls: dict[str, str], private: int) -> None:
    """Writes each below the host's /proc/sys, where the kernel takes the caller's namespaces; nothing else
    is there yet. `private`: the CLONE_NEW* flags of those that are not the host's.
    """
    for key, value in sysctls.items():
        if not _is_namespaced(key, private):
            text = f'error during container init: sysctl "{key}" is not in a separate kernel namespace'
            raise StageError("sysctl", _EINVAL, text)
        path = f"/proc/sys/{key.replace('.', '/')}"
        doing = "open"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            doing = "write"
            try:
                os.write(fd, str(value).encode())
            finally:
                os.close(fd)
        except OSError as e:
            raise in_init("sysctl", f"{doing} {path}", e) from e


def _is_namespaced(key: str, private: int) -> bool:
    """Whether a sysctl is the container's own, as runc's validator has it; all others are the host's."""
    if "/" in key or ".." in key:
        return False
    if key in _KERNEL_SYSCTLS or key.startswith("fs.mqueue."):
        return bool(private & s.CLONE_NEWIPC)
    if key.startswith("net."):
        return bool(private & s.CLONE_NEWNET)
    if key in ("kernel.domainname", "kernel.hostname"):
        return bool(private & s.CLONE_NEWUTS)
    return key.startswith("user.") and bool(private & s.CLONE_NEWUSER)


def _is_host_network(job: Job, path: str) -> bool:
    if not path:
        return False
    status = os.stat(path)
    return (status.st_dev, status.st_ino) == job.host_namespaces["net"]


def own_namespaces() -> dict[str, tuple[int, int]]:
    """Device and inode of the namespaces that kernel file systems are mounted for."""
    found = {}
    for name in ("net", "pid", "ipc"):
        status = os.stat(f"/proc/self/ns/{name}")
        found[name] = (status.st_dev, status.st_ino)
    return found


def _of_host(job: Job, new: int) -> set[str]:
    """The kernel file systems that a user namespace may not mount, since they show namespaces of the
    host's.
    """
    if not in_user_namespace():
        return set()
    own = own_namespaces()
    flags = {
        "sysfs": (s.CLONE_NEWNET, "net"),
        "proc": (s.CLONE_NEWPID, "pid"),
        "mqueue": (s.CLONE_NEWIPC, "ipc"),
    }
    return {
        kind
        for kind, (flag, name) in flags.items()
        if not new & flag and own[name] == job.host_namespaces[name]
    }


class Sources:
    """The detached mounts that the container's tree will be made of, as far as the host has to lend them."""

    def __init__(self, job: Job, config: dict[str, Any], of_host: set[str]) -> None:
        """`of_host`: kinds of mounts that can only be bound from the host's."""
        self._of_host = of_host
        self._job = job
        self._config = config
        self.staging = job.staging
        self.mounts = [Mount(entry) for entry in config.get("mounts") or ()]
        self.devices: list[dict[str, Any]] = list(config.get("linux", {}).get("devices") or ())
        self.init = -1
        self.root = -1
        self.nodes: list[tuple[str, int]] = []  # of the host, where none can be made

    def open(self, userns: int = -1, owner: tuple[int, int] = (0, 0)) -> None:
        """Opens everything, in a mount namespace of our own, and cuts that off from the host's.

        `userns`: the user namespace through which the root's files are to be seen; `owner` is its root.
        """
        open_binds(self.mounts, userns)
        bind_of_host(self.mounts, self._of_host)
        if in_user_namespace():
            made = [device for device in self.devices if device.get("type") == "p"]
            self.nodes = host_nodes([device for device in self.devices if device not in made])
            self.devices = made
        if self._config["process"].get("init"):
            self.init = _open_init()
        root = self._job.request["rootfs"]
        try:
            s.mount("", "/", flags=s.MS_REC | s.MS_SLAVE)
            if userns >= 0:
                _act_as(owner)
            if not isinstance(root, str):
                if userns >= 0:
                    self.root = mapped_overlay(root, userns, self.staging)
                else:
                    self.root = open_overlay(root["lower"], root["upper"], root["work"], self.staging)
            elif userns >= 0 and not self._config.get("root", {}).get("mapped"):
                self.root = mapped(root, userns)
            else:
                self.root = s.open_tree(s.AT_FDCWD, root, s.OPEN_TREE_CLONE | s.AT_RECURSIVE)
                s.mount_setattr(self.root, "", s.AT_EMPTY_PATH | s.AT_RECURSIVE, propagation=s.MS_PRIVATE)
        except OSError as e:
            raise in_init("rootfs", "error preparing rootfs", e) from e
        dev = open_dev(self.mounts, owner)
        if dev >= 0:
            here = [device for device in self.devices if device["path"].startswith("/dev/")]
            with RootFd(os.dup(dev)) as tree:
                for device in here:
                    add_device(tree, device, "/dev", owner)
            self.devices = [device for device in self.devices if device not in here]


def _enter_user_namespace(job: Job, config: dict[str, Any], new: int, path: str) -> Sources:
    """Opens the sources with the host's privileges and goes on in a user namespace, with all new ones in it.

    `path`: of the one to join, or of a namespace that it owns; empty for a new one.
    """
    mappings = Mappings(config["linux"])
    userns = open_namespace(path) if path else mappings.new_namespace()
    process.allow_rlimits([*job.limits, *(config["process"].get("rlimits") or ())])
    s.unshare(s.CLONE_NEWNS)
    sources = Sources(job, config, _of_host(job, new))
    sources.open(userns, mappings.root)
    # Of namespaces that do not belong to it a user namespace gets no file systems.
    shared = {"sysfs": s.CLONE_NEWNET, "mqueue": s.CLONE_NEWIPC}
    open_now(sources.mounts, {kind for kind, flag in shared.items() if not new & flag})
    _own_pipes(job, mappings.root)
    os.chdir(sources.staging)  # by its path it may be out of reach for who we are to become
    sources.staging = "."
    _become_root_of(userns)
    _continue_in_child(job, new & ~(s.CLONE_NEWUSER | s.CLONE_NEWCGROUP))
    return sources


def _own_pipes(job: Job, owner: tuple[int, int]) -> None:
    """Gives the pipes to a user namespace's root, who can give them on to its users."""
    for fd in (job.stdin, job.stdout, job.stderr):
        if fd >= 0:
            os.fchown(fd, *owner)


def _act_as(owner: tuple[int, int]) -> None:
    """Changes to the ids of a user namespace's root, with all capabilities kept.

    Overlay writes to its upper layer in the name of who mounted it, and that must be somebody the layer's
    map knows.
    """
    s.prctl(s.PR_SET_KEEPCAPS, 1)
    os.setresgid(owner[1], owner[1], owner[1])
    os.setresuid(owner[0], owner[0], owner[0])
    permitted = s.capget()[1]
    s.capset(permitted, permitted, 0)


def _become_root_of(userns: int) -> None:
    try:
        if userns >= 0:
            s.setns(userns, s.CLONE_NEWUSER)
        if may_set_groups():
            os.setgroups(())
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    except OSError as e:
        raise in_init("namespaces", "unable to become root of the user namespace", e) from e


def _furnish(job: Job, config: dict[str, Any], sources: Sources, own_cgroup_namespace: bool) -> Rootfs:
    """Builds the container's file system tree, short of pivoting into it."""
    linux = config.get("linux", {})
    try:
        rootfs = Rootfs(sources.root, sources.staging)
    except OSError as e:
        raise in_init("rootfs", "error preparing rootfs", e) from e
    view = CgroupView(
        job.cgroup.path if job.cgroup else "/", cgroups.hierarchies(), own_cgroup_namespace, cgroups.managed()
    )
    for mount in sources.mounts:
        rootfs.mount(mount, view)
    if sources.init >= 0:
        _mount_init(rootfs, sources.init, config)
    for path, tree in sources.nodes:
        rootfs.place(path, tree)
    for device in sources.devices:
        add_device(rootfs.root, device, "", (0, 0))
    rootfs.make_read_only(linux.get("readonlyPaths") or [])
    null = os.open("/dev/null", O_PATH)
    status = os.fstat(null)
    if status.st_rdev != os.makedev(1, 3):
        text = "error during container init: /dev/null of the host is not the null device"
        raise StageError("mask", _EINVAL, text)
    rootfs.mask(linux.get("maskedPaths") or [], null)
    os.close(null)
    return rootfs


_INIT_PATH = "/sbin/docker-init"
_INIT_BINARY = os.path.join(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
    "bin",
    "init-" + {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
)


def _open_init() -> int:
    try:
        return s.open_tree(s.AT_FDCWD, _INIT_BINARY, s.OPEN_TREE_CLONE)
    except OSError as e:
        raise in_init("init", f"open {_INIT_BINARY}", e) from e


def _mount_init(rootfs: Rootfs, tree: int, config: dict[str, Any]) -> None:
    """Puts Wherry's init before the program, where Docker has it."""
    try:
        s.mount_setattr(tree, "", s.AT_EMPTY_PATH, attr_set=s.MOUNT_ATTR_RDONLY, propagation=s.MS_PRIVATE)
        target = rootfs.root.touch(_INIT_PATH, 0o755)
        s.move_mount(tree, "", target, "", s.MOVE_MOUNT_F_EMPTY_PATH | s.MOVE_MOUNT_T_EMPTY_PATH)
    except OSError as e:
        raise in_init("init", f"mounting {_INIT_PATH}", e) from e
    os.close(target)
    os.close(tree)
    config["process"]["args"] = [_INIT_PATH, "--", *(config["process"].get("args") or [])]


def _identity(root: RootFd, spec: dict[str, Any]) -> users.Identity:
    user = spec.get("user") or {}
    if "name" in user:
        return users.resolve(root, user["name"], [str(group) for group in user.get("groups") or ()])
    uid, gid = user.get("uid", 0), user.get("gid", 0)
    return users.Identity(uid, gid, list(user.get("additionalGids") or ()), users.home_of(root, uid))


def _make_cwd(root: RootFd, spec: dict[str, Any]) -> None:
    cwd = spec.get("cwd") or "/"
    try:
        os.close(root.mkdirs(cwd))
    except NotADirectoryError as e:
        try:
            root.stat(cwd)
            text = f"Cannot mkdir: {cwd} is not a directory"
        except OSError:
            text = f"mkdir {cwd}: not a directory"
        raise StageError("mkcwd", _ENOTDIR, text) from e
    except OSError as e:
        raise in_init("cwd", f"mkdir {cwd}", e) from e


def _open_console(job: Job, root: RootFd, devpts: int) -> int:
    """Opens a terminal, hands the master to the monitor and returns the slave."""
    if devpts < 0:
        text = "error during container init: a terminal needs a devpts mount at /dev/pts"
        raise StageError("console", _EINVAL, text)
    master, slave = console.open_pair(devpts)
    rows, columns = job.request["stdio"]["size"]
    if rows and columns:
        console.set_size(slave, rows, columns)
    os.close(devpts)
    _send_fd(job.sync, master)
    os.close(master)
    return slave


def _send_fd(sync: socket, fd: int) -> None:
    sync.sendmsg([b"m"], [(1, 1, fd.to_bytes(4, sys.byteorder))])  # SOL_SOCKET, SCM_RIGHTS


def _place_streams(job: Job, slave: int, null: int, keep: tuple[int, ...] = ()) -> process.Filter:
    """Puts the streams and the socket in their places, `keep` behind them, and closes everything else.

    Returns the seccomp filter, read.
    """
    seccomp = process.Filter()
    if job.seccomp >= 0:
        size = os.fstat(job.seccomp).st_size
        seccomp = process.Filter(os.pread(job.seccomp, size, 0), job.seccomp_flags)
    high = [fcntl(fd, F_DUPFD_CLOEXEC, SYNC_FD + 1 + len(keep)) for fd in keep]  # out of each other's way
    if slave >= 0:
        sources = (slave, slave, slave)
    else:
        sources = (job.stdin if job.stdin >= 0 else null, job.stdout, job.stderr)
    for fd, source in enumerate(sources):
        os.dup2(source, fd, inheritable=True)
    os.dup2(job.sync.fileno(), SYNC_FD, inheritable=False)
    job.sync.detach()
    for fd, source in enumerate(high, SYNC_FD + 1):
        os.dup2(source, fd, inheritable=False)
    s.close_range(SYNC_FD + 1 + len(keep))
    return seccomp


def _become(prepared: process.Prepared, seccomp: process.Filter, tty: bool) -> NoReturn:
    """Ends in execve."""
    os.setsid()
    if tty:
        console.take(0)
    process.execute(prepared, seccomp)
