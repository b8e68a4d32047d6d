"""The last steps of every process of a container: from "all is mounted" to execve.

Runs in the launch child only. Nothing of the host is open any more but the socket to the monitor.
The order is runc's, with one difference: whatever can fail or needs many system calls (working directory,
search for the program) comes before the seccomp filter, so that a strict profile meets no more than capset
and execve.
"""

from __future__ import annotations

import os
import resource
import signal

from guest_agent.kernel import syscalls, userns
from guest_agent.kernel.syscalls import prctl

from .capabilities import mask
from .stage import StageError, in_init, strerror
from .users import Identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_ENOENT, _EACCES, _EPERM, _EISDIR, _EINVAL, _ENOTDIR = 2, 13, 1, 21, 22, 20
_RLIMITS = {
    "RLIMIT_CPU": resource.RLIMIT_CPU,
    "RLIMIT_FSIZE": resource.RLIMIT_FSIZE,
    "RLIMIT_DATA": resource.RLIMIT_DATA,
    "RLIMIT_STACK": resource.RLIMIT_STACK,
    "RLIMIT_CORE": resource.RLIMIT_CORE,
    "RLIMIT_RSS": resource.RLIMIT_RSS,
    "RLIMIT_NPROC": resource.RLIMIT_NPROC,
    "RLIMIT_NOFILE": resource.RLIMIT_NOFILE,
    "RLIMIT_MEMLOCK": resource.RLIMIT_MEMLOCK,
    "RLIMIT_AS": resource.RLIMIT_AS,
    "RLIMIT_LOCKS": 10,
    "RLIMIT_SIGPENDING": resource.RLIMIT_SIGPENDING,
    "RLIMIT_MSGQUEUE": resource.RLIMIT_MSGQUEUE,
    "RLIMIT_NICE": resource.RLIMIT_NICE,
    "RLIMIT_RTPRIO": resource.RLIMIT_RTPRIO,
    "RLIMIT_RTTIME": resource.RLIMIT_RTTIME,
}
_CAP_SETPCAP, _CAP_SYS_ADMIN = 8, 21
_SIGKILL = 9
SYNC_FD = 3


def _last_capability() -> int:
    number = 0
    while True:
        try:
            prctl(syscalls.PR_CAPBSET_READ, number + 1)
        except OSError:  # EINVAL: one the kernel does not know
            return number
        number += 1


_LAST_CAPABILITY = _last_capability()


def changed_signals() -> list[int]:
    """The signals this process does not leave to their defaults: CPython and the monitor ignore some."""
    return [number for number in signal.valid_signals() if signal.getsignal(number) != signal.SIG_DFL]


def reset_signals(numbers: list[int]) -> None:
    """Default dispositions and nothing blocked, as a new program expects."""
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def set_rlimits(limits: list[dict[str, Any]]) -> None:
    """Applies OCI `process.rlimits`."""
    for limit in limits:
        number = _RLIMITS.get(limit["type"])
        if number is None:
            raise StageError("rlimits", _EINVAL, f"invalid rlimit type: {limit['type']}")
        # OCI's largest number stands for "unlimited".
        soft, hard = (-1 if not 0 <= value < 1 << 63 else value for value in (limit["soft"], limit["hard"]))
        try:
            resource.setrlimit(number, (soft, hard))
        except (OSError, ValueError) as e:
            # The resource module turns EPERM and EINVAL into ValueError.
            reason = "operation not permitted" if "not allowed" in str(e) else "invalid argument"
            code = _EPERM if "not allowed" in str(e) else _EINVAL
            text = f"error setting rlimits for ready process: error setting rlimit type {number}: {reason}"
            raise StageError("rlimits", code, f"error during container init: {text}") from e


def allow_rlimits(limits: list[dict[str, Any]]) -> None:
    """Raises hard limits to what `set_rlimits` will want: in a user namespace that is not allowed any more.

    What is refused here is left for that to tell.
    """
    for limit in limits:
        number, hard = _RLIMITS.get(limit["type"], -1), limit["hard"]
        if number < 0:
            continue
        soft, now = resource.getrlimit(number)
        if now == resource.RLIM_INFINITY or 0 <= hard <= now:
            continue
        try:
            resource.setrlimit(number, (soft, hard if 0 <= hard < 1 << 63 else resource.RLIM_INFINITY))
        except (OSError, ValueError):
            pass


def set_oom_score_adj(value: int) -> None:
    """Writes /proc/self/oom_score_adj; needs the host's /proc."""
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(value).encode())
        finally:
            os.close(fd)
    except OSError as e:
        if e.errno == _EACCES and userns.inside():
            return  # less than we were given, which only the host's root may ask for
        raise in_init("oom_score_adj", "write /proc/self/oom_score_adj", e) from e


class Capabilities:
    """The five sets of OCI `process.capabilities` as masks, and how they are put on."""

    def __init__(self, sets: dict[str, int]) -> None:
        self.bounding = sets.get("bounding", 0)
        self.effective = sets.get("effective", 0)
        self.permitted = sets.get("permitted", 0)
        self.inheritable = sets.get("inheritable", 0)
        self.ambient = sets.get("ambient", 0)

    def drop_bounding(self) -> None:
        """Takes everything else out of the bounding set."""
        for number in range(_LAST_CAPABILITY + 1):
            if not self.bounding >> number & 1:
                prctl(syscalls.PR_CAPBSET_DROP, number)

    def keep_for_filter(self) -> None:
        """Just after the ids changed: the final sets, and what loading the filter needs besides."""
        extra = 1 << _CAP_SYS_ADMIN | 1 << _CAP_SETPCAP
        extra &= syscalls.capget()[1]
        syscalls.capset(self.effective | extra, self.permitted | extra, self.inheritable)

    def apply(self) -> None:
        """The final sets."""
        syscalls.capset(self.effective, self.permitted, self.inheritable)
        prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
        number = 0
        while self.ambient >> number:
            if self.ambient >> number & 1:
                prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, number)
            number += 1


def become(identity: Identity, capabilities: Capabilities) -> None:
    """Drops the bounding set and changes the ids, keeping for now the capabilities that are left to do."""
    try:
        capabilities.drop_bounding()
        prctl(syscalls.PR_SET_KEEPCAPS, 1)
        if userns.may_set_groups():
            os.setgroups(identity.groups)
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
        prctl(syscalls.PR_SET_KEEPCAPS, 0)
    except OSError as e:
        unknown = _unknown(identity) if e.errno == _EINVAL and userns.inside() else ""
        if unknown:
            text = (
                f"unable to setup user: {unknown} that this engine without root may use (/etc/subuid, "
                "/etc/subgid): usermod --add-subuids and --add-subgids give it more"
            )
            raise StageError("user", _EINVAL, f"error during container init: {text}") from e
        raise in_init("user", "unable to setup user", e) from e
    try:
        capabilities.keep_for_filter()
        # Changing ids has cleared it. Nobody would log a process that outlived the monitor.
        prctl(syscalls.PR_SET_PDEATHSIG, _SIGKILL)
    except OSError as e:
        raise in_init("capabilities", "unable to apply caps", e) from e


def _unknown(identity: Identity) -> str:
    """The first id that this user namespace does not have, and its range; "" when it has all."""
    last = userns.last_user()
    if identity.uid > last:
        return f"user {identity.uid} is not among the ids 0 to {last}"
    last = userns.last_group()
    for group in (identity.gid, *identity.groups):
        if group > last:
            return f"group {group} is not among the ids 0 to {last}"
    return ""


def own_stdio(uid: int) -> None:
    """Gives the pipes or the terminal to the user, so that /dev/stdout can be opened (runc
    fixStdioPermissions).
    """
    for fd in (0, 1, 2):
        status = os.fstat(fd)
        is_null = status.st_rdev == os.makedev(1, 3)
        if status.st_uid != uid and not is_null:
            try:
                os.fchown(fd, uid, -1)
            except OSError as e:
                # EINVAL: an id that is not mapped; EROFS, EPERM: a stream that is not ours to give away.
                if e.errno not in (_EINVAL, _EPERM, 30):
                    raise in_init("user", "unable to setup user: fchown", e) from e


def enter_directory(cwd: str, final: bool) -> bool:
    """chdir(2) and proof that we are still inside; False when it is forbidden and may work as another
    user.
    """
    try:
        os.chdir(cwd)
    except OSError as e:
        if not final and e.errno in (_EACCES, _EPERM):
            return False
        text = f'chdir to cwd ("{cwd}") set in config.json failed: {strerror(e)}'
        raise StageError("cwd", e.errno or 0, f"error during container init: {text}") from e
    try:
        inside = os.getcwd().startswith("/")
    except OSError:
        inside = False
    if not inside:  # CVE-2024-21626
        text = "current working directory is outside of container mount namespace root"
        text = f"error during container init: {text} -- possible container breakout detected"
        raise StageError("cwd", _ENOENT, text)
    return True


def find_executable(name: str, path: str) -> str:
    """Go's exec.LookPath, error texts included; relative to the working directory, in the user's name."""
    if "/" in name:
        problem = _executable(name)
        if problem is not None:
            raise _exec_error(name, problem)
        return name
    for directory in path.split(":") if path else ():
        candidate = f"{directory or '.'}/{name}"
        if _executable(candidate) is None:
            if not directory.startswith("/"):
                text = "cannot run executable found relative to current directory"
                raise StageError("exec", _ENOENT, f'exec: "{name}": {text}')
            return candidate
    raise StageError("exec", _ENOENT, f'exec: "{name}": executable file not found in $PATH')


def _executable(path: str) -> OSError | None:
    """None when `path` can be executed, else why not."""
    try:
        mode = os.stat(path).st_mode
    except OSError as e:
        return e
    if mode & 0o170000 == 0o040000:
        return OSError(_EISDIR, "is a directory")
    if not mode & 0o111 or not os.access(path, os.X_OK, effective_ids=True):
        return OSError(_EACCES, "permission denied")
    return None


def _exec_error(name: str, error: OSError) -> StageError:
    if error.errno in (_EISDIR, _EACCES) and error.filename is None:
        # dockerd's CLI makes 126 of "permission denied".
        return StageError("exec", _EACCES, f'exec: "{name}": permission denied')
    return StageError("exec", error.errno or 0, f'exec: "{name}": stat {name}: {strerror(error)}')


def environment(entries: list[str], home: str) -> dict[str, str]:
    """OCI `process.env` as a mapping, the last of a name wins, with HOME filled in."""
    result: dict[str, str] = {}
    for entry in entries:
        key, separator, value = entry.partition("=")
        if separator:
            result[key] = value
    if not result.get("HOME"):
        result["HOME"] = home
    return result


class Filter:
    """A compiled seccomp program and the flags of seccomp(2); empty when unconfined."""

    def __init__(self, program: bytes = b"", flags: int = 0) -> None:
        self.program = program
        self.flags = flags

    def load(self) -> None:
        """Puts it on the calling process."""
        if not self.program:
            return
        try:
            syscalls.seccomp_filter(self.program, self.flags)
        except OSError as e:
            what = "unable to init seccomp: error loading seccomp filter into kernel"
            raise in_init("seccomp", what, e) from e


class Prepared:
    """A process with everything found out that needs no descriptor and no capability."""

    def __init__(
        self, process: dict[str, Any], identity: Identity, limits: list[dict[str, Any]] | None = None
    ) -> None:
        """`limits` hold where the process asks for no others. Raises StageError when there is nothing to
        execute.
        """
        self.args: list[str] = process.get("args") or []
        if not self.args:
            raise StageError("exec", _EINVAL, "error during container init: args must not be empty")
        self.identity = identity
        self.capabilities = Capabilities(
            {name: mask(value) for name, value in (process.get("capabilities") or {}).items()}
        )
        self.no_new_privileges = bool(process.get("noNewPrivileges"))
        asked: list[dict[str, Any]] = process.get("rlimits") or []
        kinds = {limit["type"] for limit in asked}
        # Not one after the other: what is lowered may not be allowed to rise again.
        self.limits = [limit for limit in limits or () if limit["type"] not in kinds] + asked
        self.cwd: str = process.get("cwd") or "/"
        self.environment = environment(process.get("env") or [], identity.home)
        umask = process.get("user", {}).get("umask")
        self.umask = 0o022 if umask is None else umask


def execute(prepared: Prepared, seccomp: Filter) -> NoReturn:
    """Becomes the process, or raises StageError.

    Descriptors 0, 1, 2 are the process's own, SYNC_FD is close-on-exec, everything else is closed
    (CVE-2024-21626: before the working directory is entered, for /proc/self/fd/N must lead nowhere).
    """
    capabilities = prepared.capabilities
    set_rlimits(prepared.limits)
    own_stdio(prepared.identity.uid)
    entered = enter_directory(prepared.cwd, final=False)
    become(prepared.identity, capabilities)
    if not entered:
        enter_directory(prepared.cwd, final=True)
    program = find_executable(prepared.args[0], prepared.environment.get("PATH", ""))
    os.umask(prepared.umask)
    os.write(SYNC_FD, b"x")  # all is well so far: what follows is execve, or an error
    try:
        if prepared.no_new_privileges:
            prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
            capabilities.apply()
            seccomp.load()
        else:
            seccomp.load()
            capabilities.apply()
    except OSError as e:
        raise in_init("capabilities", "unable to apply caps", e) from e
    try:
        os.execve(program, prepared.args, prepared.environment)
    except OSError as e:
        raise StageError("exec", e.errno or 0, f"exec {program}: {strerror(e)}") from e
    except ValueError as e:  # a null byte in an argument or a variable
        raise StageError("exec", _EINVAL, f'exec: "{prepared.args[0]}": {e}') from e
