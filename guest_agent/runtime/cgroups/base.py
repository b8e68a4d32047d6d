"""What v1 and v2 share: reading and writing control files, killing and deleting whole trees of groups."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

Resources = dict[str, "Any"]  # OCI linux.resources

_SIGKILL = 9
_ENOENT, _EBUSY, _ENODEV = 2, 16, 19


def write(path: str, value: str) -> None:
    """Writes a control file in one write(2); the OSError says what was written and to which file."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as e:
        raise OSError(e.errno, f'failed to write "{value}": {os.strerror(e.errno or 0)}', path) from None
    try:
        os.write(fd, value.encode())
    except OSError as e:
        raise OSError(e.errno, f'failed to write "{value}": {os.strerror(e.errno or 0)}', path) from None
    finally:
        os.close(fd)


def read(path: str) -> str:
    """The text of a control file, stripped."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        chunks = []
        while chunk := os.read(fd, 65536):
            chunks.append(chunk)
        return b"".join(chunks).decode().strip()
    finally:
        os.close(fd)


def read_or(path: str, default: str = "") -> str:
    """As `read`, or `default` when the file is not there (a controller that is off, an older kernel)."""
    try:
        return read(path)
    except OSError as e:
        if e.errno in (_ENOENT, _ENODEV):
            return default
        raise


def integer(text: str) -> int:
    """A number of a control file; `max` and nonsense count as the largest 64-bit value, as in Docker's
    stats.
    """
    try:
        return int(text)
    except ValueError:
        return (1 << 64) - 1


def table(text: str) -> dict[str, int]:
    """A flat keyed file (`key value` lines)."""
    return {key: int(value) for key, _, value in (line.partition(" ") for line in text.splitlines()) if value}


def make(root: str, path: str) -> list[str]:
    """mkdir -p of the group `path` below the mount point `root`; the new directories, outermost first.

    A group that is there is from an earlier life and is made anew; OSError EBUSY when processes are in it.
    """
    group = root + path
    try:
        os.mkdir(group, 0o755)
        return [group]
    except FileExistsError:
        if not remove(group):
            raise OSError(_EBUSY, "the group exists and is in use", group) from None
        os.mkdir(group, 0o755)
        return [group]
    except FileNotFoundError:
        parent = path.rpartition("/")[0]
        made = make_parents(root, parent)
        os.mkdir(group, 0o755)
        return [*made, group]


def make_parents(root: str, path: str) -> list[str]:
    """mkdir -p of `path` below `root`, what is there stays; the new directories, outermost first."""
    made = []
    current = root
    for name in path.split("/"):
        if name:
            current = f"{current}/{name}"
            try:
                os.mkdir(current, 0o755)
                made.append(current)
            except FileExistsError:
                pass
    return made


def below(directory: str) -> list[str]:
    """`directory` and the groups inside it, innermost first; empty when it is gone."""
    found: list[str] = []
    try:
        with os.scandir(directory) as entries:
            names = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return found
    for name in names:
        found += below(name)
    return [*found, directory]


def member_pids(directory: str) -> list[int]:
    """Process ids in `directory` and the groups inside it, in the reader's pid namespace."""
    pids: list[int] = []
    for group in below(directory):
        pids += [int(line) for line in read_or(f"{group}/cgroup.procs").split()]
    return pids


def remove(directory: str) -> bool:
    """rmdir of a tree of groups; False when one is still busy (its processes are not all reaped yet)."""
    for group in below(directory):
        try:
            os.rmdir(group)
        except FileNotFoundError:
            pass
        except OSError as e:
            if e.errno != _EBUSY:
                raise
            return False
    return True


def host_memory() -> int:
    """MemTotal of this machine in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def system_cpu_usage() -> tuple[int, int]:
    """Time all CPUs have spent, idle included, in nanoseconds, and how many are online: from /proc/stat."""
    total, online = 0, 0
    with open("/proc/stat", encoding="ascii") as file:
        for line in file:
            if not line.startswith("cpu"):
                break
            if line[3] == " ":
                # user nice system idle iowait irq softirq steal; guest time is within user already
                total = sum(int(field) for field in line.split()[1:9])
            else:
                online += 1
    return total * (1_000_000_000 // os.sysconf("SC_CLK_TCK")), online


class Cgroup:
    """A container's control group. Nothing is held open; every call works on the files by path."""

    managed = True
    """Whether there is a group at all; see `none`."""

    def __init__(self, path: str) -> None:
        self.path = path

    def follow(self, pid: int) -> None:
        """Tells the first process, for where only that leads to the others."""

    def create(self) -> None:
        """Makes the group in every hierarchy, its parents too; anew when it is there without processes."""
        raise NotImplementedError

    def set(self, resources: Resources) -> None:
        """Applies the limits of an OCI `linux.resources`; what it does not mention stays as it is.

        Raises OSError naming file and value for what the kernel refuses, ValueError for what this version of
        control groups cannot express.
        """
        raise NotImplementedError

    def join(self) -> None:
        """Moves the calling process in."""
        raise NotImplementedError

    def freeze(self) -> None:
        """Stops all processes and returns when they stand still. OSError ETIMEDOUT after some seconds."""
        raise NotImplementedError

    def thaw(self) -> None:
        """Undoes `freeze`."""
        raise NotImplementedError

    def frozen(self) -> bool:
        """Whether the group is frozen, or about to be."""
        raise NotImplementedError

    def pids(self) -> list[int]:
        """Process ids in the group and in groups inside it, as this process sees them."""
        raise NotImplementedError

    def stats(self) -> dict[str, Any]:
        """`cpu_stats`, `memory_stats`, `blkio_stats`, `pids_stats` as in Docker's container statistics."""
        raise NotImplementedError

    def features(self) -> dict[str, bool]:
        """Which limits this system can set, by the names of Docker's /info in snake case."""
        raise NotImplementedError

    def oom_kills(self) -> int:
        """How many processes of the group the kernel has killed for want of memory."""
        raise NotImplementedError

    def oom_watch(self) -> tuple[int, int]:
        """(fd, epoll events): the fd becomes ready when the group may have run out of memory. The caller
        owns it.
        """
        raise NotImplementedError

    def oom_acknowledge(self, fd: int) -> None:
        """Makes the fd of `oom_watch` not ready again."""
        raise NotImplementedError

    def directories(self) -> list[str]:
        """The group's directory in each hierarchy."""
        raise NotImplementedError

    def kill(self) -> bool:
        """Sends SIGKILL to everything in the group, frozen or not; False when nothing was there."""
        pids = self.pids()
        for pid in pids:
            try:
                os.kill(pid, _SIGKILL)
            except ProcessLookupError:
                pass
        if pids and self.frozen():
            self.thaw()  # a frozen process of v1 dies only when it is let run
        return bool(pids)

    def delete(self) -> bool:
        """Removes the group everywhere; False when something is busy yet: try again a little later."""
        return all([remove(directory) for directory in self.directories()])
