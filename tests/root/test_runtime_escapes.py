"""Known escapes from containers, each tried against the runtime. The names are those of the advisories."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guest_agent.kernel import syscalls
from guest_agent.runtime import capabilities, launch
from guest_agent.runtime.types import LaunchError
from tests.support.oci import Driver, make_rootfs, monitor_pid, mounts

pytestmark = pytest.mark.root

ADMIN = [*capabilities.DEFAULT, "CAP_SYS_ADMIN"]
PRIVILEGED: dict[str, Any] = {
    "process": {"capabilities": {"bounding": ADMIN, "effective": ADMIN, "permitted": ADMIN}},
    "linux": {"seccomp": None},
}


def refused(driver: Driver, *args: str, **more: Any) -> str:
    with pytest.raises(LaunchError) as caught:
        driver.start(*args, **more)
    return caught.value.text


def in_launch_child(body: Callable[[launch.Job], None]) -> dict[str, Any]:
    """What a launch child reports that ran `body`, which must raise."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    job = launch.Job({})
    job.sync = theirs
    pid = os.fork()
    if pid == 0:
        launch.run(job, body)
    theirs.close()
    with ours:
        report: dict[str, Any] = json.loads(ours.recv(65536))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == launch.EXIT_FAILED
    return report


# Descriptors of the host


@pytest.mark.parametrize("tty", [False, True])
def test_only_the_streams_are_open(driver: Driver, tty: bool) -> None:
    # The shell's glob opens the directory itself as 3 or higher.
    container = driver.start("sleep", "60")
    script = "for f in /proc/self/fd/*; do readlink $f; done"
    for result in (
        driver.run("sh", "-c", script, tty=tty),
        driver.exec(container, "sh", "-c", script, tty=tty),
    ):
        targets = result.out.split()
        expected = "/dev/pts/0" if tty else "pipe:"
        assert sum(target.startswith(expected) for target in targets) >= 2
        assert all(target.startswith((expected, "/dev/null", "/proc/")) for target in targets)
    driver.kill(container)


def test_cve_2024_21626_working_directory_in_a_descriptor(driver: Driver) -> None:
    container = driver.start("sleep", "60")
    for number in range(3, 24):
        for path in (f"/proc/self/fd/{number}", f"/proc/self/fd/{number}/../.."):
            refused(driver, "pwd", process={"cwd": path})
            with pytest.raises(LaunchError):
                driver.exec(container, "pwd", cwd=path)
    driver.kill(container)


def test_cve_2024_21626_working_directory_is_verified(driver: Driver, tmp_path: Path) -> None:
    # Were a descriptor left open after all, getcwd would tell: seen from inside, it is no path.
    from guest_agent.runtime import process
    from guest_agent.runtime.stage import StageError

    def body(job: launch.Job) -> None:
        outside = os.open("/", os.O_PATH)
        os.chroot(tmp_path)
        os.chdir("/")
        try:
            os.fchdir(outside)
            process.enter_directory(".", final=True)
        except StageError as e:
            raise RuntimeError(e.text) from e
        raise RuntimeError("entered")

    assert "possible container breakout detected" in in_launch_child(body)["text"]


def test_cve_2016_9962_launch_child_cannot_be_looked_into() -> None:
    def body(job: launch.Job) -> None:
        raise RuntimeError(f"dumpable={syscalls.prctl(3)}")  # PR_GET_DUMPABLE

    assert "dumpable=0" in in_launch_child(body)["text"]


def test_cve_2016_9962_nobody_sees_an_exec_before_it_is_one(driver: Driver) -> None:
    names = [*capabilities.DEFAULT, "CAP_SYS_PTRACE"]
    caps = dict.fromkeys(("bounding", "effective", "permitted"), names)
    # Whoever finds a process with an open file that no container has, or another program than busybox,
    # says so.
    script = """
    while [ ! -e /tmp/stop ]; do
        for p in /proc/[0-9]*; do
            l=$(readlink $p/exe); case $l in /bin/busybox|"") ;; *) echo "exe $l" ;; esac
            for f in $p/fd/*; do
                l=$(readlink $f)
                case $l in pipe:*|socket:*|/dev/null|/proc/*|/tmp/found|"") ;; *) echo "fd $l" ;; esac
            done
        done
    done
    """
    container = driver.start(
        "sh", "-c", f"({script}) > /tmp/found 2>/dev/null", process={"capabilities": caps}
    )
    for _ in range(30):
        assert driver.exec(container, "true", capabilities=caps).code == 0
    driver.exec(container, "touch", "/tmp/stop")
    driver.call(driver.runtime.wait(container))
    upper = driver.runtime.top / container / "upper/tmp/found"
    found = set(upper.read_text().splitlines())
    # With CAP_SYS_PTRACE the last instant before execve can be seen: the interpreter's sealed copy, and the
    # socket to the monitor; never a file or directory of the host.
    interpreter = Path(os.path.realpath(sys.executable)).name
    assert found <= {f"exe /{interpreter}"}


# The runtime's own program


def test_cve_2019_5736_interpreter_cannot_be_written(driver: Driver) -> None:
    pid = monitor_pid(driver.runtime.roots)
    interpreter = os.path.realpath(sys.executable)
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
        with pytest.raises(OSError, match="Read-only file system"):
            os.open(f"/proc/{pid}/exe", flags)
    # Not even by way of a descriptor, once nobody executes it, nor through a bind mount.
    held = os.open(f"/proc/{pid}/exe", os.O_PATH)
    with pytest.raises(OSError, match="Read-only file system"):
        os.open(f"/proc/self/fd/{held}", os.O_WRONLY)
    with pytest.raises(OSError, match="Read-only file system"):
        os.chmod(f"/proc/self/fd/{held}", 0o777)
    with pytest.raises(OSError, match="Invalid argument"):
        syscalls.open_tree(held, "", syscalls.AT_EMPTY_PATH | syscalls.OPEN_TREE_CLONE)
    assert os.stat(interpreter).st_dev != os.fstat(held).st_dev
    os.close(held)


def test_cve_2019_5736_sealed_copy_cannot_be_written_either() -> None:
    from guest_agent.runtime.spawn import _sealed_copy

    fd, path = _sealed_copy(os.path.realpath(sys.executable))
    try:
        writable = os.open(path, os.O_WRONLY)
        with pytest.raises(OSError, match="Operation not permitted"):
            os.write(writable, b"x")
        os.close(writable)
        assert os.spawnv(os.P_WAIT, path, [sys.executable, "-I", "-S", "-c", "raise SystemExit(7)"]) == 7
    finally:
        os.close(fd)


def test_cve_2019_5736_executing_proc_self_exe(driver: Driver) -> None:
    # The image has no loader for it, so it cannot even start here; what matters is the file it would get.
    assert "proc/self/exe" in refused(driver, "/proc/self/exe", "-c", "print(1)")


def test_cve_2019_14271_nothing_is_imported_from_the_image(driver: Driver, tmp_path: Path) -> None:
    rootfs = make_rootfs(tmp_path / "rootfs")
    trap = "open('/pwned', 'w').close()\n"
    for directory in {*sys.path, os.path.dirname(os.__file__), str(Path(launch.__file__).parents[2])}:
        if not os.path.isdir(directory):
            continue
        inside = rootfs / directory.lstrip("/")
        inside.mkdir(parents=True, exist_ok=True)
        for name in (
            "encodings",
            "json",
            "socket",
            "typing",
            "traceback",
            "warnings",
            "guest_agent",
            "linecache",
        ):
            (inside / f"{name}.py").write_text(trap)
    container = driver.start("sleep", "60", rootfs=str(rootfs))
    driver.exec(container, "true")
    with pytest.raises(LaunchError):
        driver.exec(container, "nosuch\udcff")
    driver.kill(container)
    refused(driver, "nosuch", rootfs=str(rootfs), process={"user": {"name": "alice"}})
    assert not (rootfs / "pwned").exists()


def test_cve_2019_14271_imports_are_off_in_a_launch_child() -> None:
    def body(job: launch.Job) -> None:
        import tarfile  # noqa: F401

    sys.modules.pop("tarfile", None)
    assert "No module named 'tarfile'" in in_launch_child(body)["text"]


# Masks, terminals, procfs


def test_cve_2025_31133_null_device_of_the_image(driver: Driver, tmp_path: Path) -> None:
    dev = tmp_path / "dev"
    dev.mkdir()
    (dev / "null").symlink_to("/proc/sys/kernel/core_pattern")
    os.mknod(dev / "tty", stat.S_IFCHR | 0o666, os.makedev(5, 0))
    entries = [entry for entry in mounts() if not entry["destination"].startswith("/dev")]
    entries.append({"destination": "/dev", "type": "bind", "source": str(dev), "options": ["bind"]})
    linux = {"maskedPaths": ["/etc/passwd", "/proc/keys"]}
    script = "stat -c '%F %t:%T' /etc/passwd /proc/keys"
    result = driver.run("sh", "-c", script, mounts=entries, linux=linux, stdin=b"")
    assert result.out == "character special file 1:3\n" * 2
    # And as standard input it is not taken for the null device.
    assert "/dev/null in the container is not the null device" in refused(driver, "true", mounts=entries)


def test_cve_2025_52565_terminal_of_the_containers_making(driver: Driver) -> None:
    container = driver.start("sleep", "60", **PRIVILEGED)
    assert driver.exec(container, "tty", tty=True).out == "/dev/pts/0\r\n"
    privileged = PRIVILEGED["process"]
    tricks = [
        # a file, a link out, and a foreign character device in place of ptmx
        "umount /dev/pts && echo x > /dev/pts/ptmx",
        "rm /dev/pts/ptmx; ln -s /proc/1/root/etc/passwd /dev/pts/ptmx",
        "rm /dev/pts/ptmx; ln -s /dev/null /dev/pts/ptmx",
        "rm /dev/pts/ptmx; mknod /dev/pts/ptmx c 1 3",
        "rm -r /dev/pts; ln -s /proc/self/fd /dev/pts",
        "rm /dev/pts; echo x > /dev/pts",
    ]
    for trick in tricks:
        assert driver.exec(container, "sh", "-c", trick, **privileged).code == 0, trick
        with pytest.raises(LaunchError, match="/dev/pts"):
            driver.exec(container, "tty", tty=True)
    driver.kill(container)


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
@pytest.mark.parametrize("target", ["/etc", "../../..", "/nowhere", "/tmp/wherry-escape"])
def test_cve_2019_19921_cve_2026_41579_link_in_place_of_a_mount_point(
    driver: Driver, tmp_path: Path, name: str, target: str
) -> None:
    rootfs = make_rootfs(tmp_path / "rootfs")
    shutil.rmtree(rootfs / name)
    (rootfs / name).symlink_to(target)
    text = refused(driver, "true", rootfs=str(rootfs))
    assert f'filesystem at "/{name}" must be mounted on an ordinary directory' in text


def test_cve_2019_19921_link_on_the_way_to_a_mount_point(driver: Driver, tmp_path: Path) -> None:
    rootfs = make_rootfs(tmp_path / "rootfs")
    entries = [entry for entry in mounts() if entry["destination"] != "/dev"]  # /dev is the image's own
    (rootfs / "dev/pts").symlink_to("/etc")
    assert "/dev/pts" in refused(driver, "true", rootfs=str(rootfs), mounts=entries)
    shutil.rmtree(rootfs / "sys")
    (rootfs / "sys").symlink_to("home")
    (rootfs / "home/fs/cgroup").mkdir(parents=True)
    cgroup_only = [entry for entry in mounts() if entry["destination"] == "/sys/fs/cgroup"]
    assert "/sys/fs/cgroup" in refused(driver, "true", rootfs=str(rootfs), mounts=cgroup_only)


@pytest.mark.parametrize(
    "destination",
    [
        "/proc",
        "/proc/sys",
        "/proc/self/attr",
        "/proc/sys/kernel/core_pattern",
        "/proc/1",
        "/procfs",
        "/x/../proc/sys",
    ],
)
def test_cve_2019_16884_cve_2023_27561_volume_over_proc(
    driver: Driver, tmp_path: Path, destination: str
) -> None:
    rootfs = make_rootfs(tmp_path / "rootfs")
    (rootfs / "procfs").symlink_to("proc")
    for source in (tmp_path / "directory", tmp_path / "file"):
        source.mkdir() if source.name == "directory" else source.touch()
        entry = {"destination": destination, "type": "bind", "source": str(source), "options": ["rbind"]}
        text = refused(driver, "true", rootfs=str(rootfs), mounts=[*mounts(), entry])
        assert "proc" in text


def test_volume_over_proc_is_refused_before_proc_is_there(driver: Driver, tmp_path: Path) -> None:
    entry = {"destination": "/proc", "type": "bind", "source": str(tmp_path), "options": ["rbind"]}
    assert '"/proc" cannot be mounted because it is inside /proc' in refused(
        driver, "true", mounts=[entry, *mounts()]
    )
    entry = {"destination": "/proc", "type": "tmpfs", "source": "tmpfs", "options": []}
    assert "inside /proc" in refused(driver, "true", mounts=[entry])


def test_file_of_proc_that_may_be_covered(driver: Driver, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: little\n")
    entry = {
        "destination": "/proc/meminfo",
        "type": "bind",
        "source": str(tmp_path / "meminfo"),
        "options": ["bind"],
    }
    assert driver.run("cat", "/proc/meminfo", mounts=[*mounts(), entry]).out == "MemTotal: little\n"


def test_mount_over_the_root(driver: Driver, tmp_path: Path) -> None:
    for destination in ("/", "/etc/..", "//"):
        entry = {"destination": destination, "type": "bind", "source": str(tmp_path), "options": ["rbind"]}
        assert "destination can't be '/'" in refused(driver, "true", mounts=[*mounts(), entry])


def test_cve_2025_52881_sysctls_are_written_to_the_real_proc(driver: Driver, tmp_path: Path) -> None:
    # The image's own /proc/sys is no party to it: all is written before anything of the container is mounted.
    rootfs = make_rootfs(tmp_path / "rootfs")
    (rootfs / "proc/sys/net/ipv4").mkdir(parents=True)
    (rootfs / "proc/sys/net/ipv4/ip_forward").symlink_to("/etc/hijacked")
    (rootfs / "etc/hijacked").write_text("untouched")
    result = driver.run(
        "cat",
        "/proc/sys/net/ipv4/ip_forward",
        rootfs=str(rootfs),
        linux={"sysctl": {"net.ipv4.ip_forward": "1"}},
    )
    assert result.out == "1\n"
    assert (rootfs / "etc/hijacked").read_text() == "untouched"


# Paths in the image


def test_cve_2021_30465_link_in_place_of_a_target(driver: Driver, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (tmp_path / "source").mkdir()
    (tmp_path / "source/mark").touch()
    rootfs = make_rootfs(tmp_path / "rootfs")
    up = "../" * 20
    (rootfs / "absolute").symlink_to(str(victim))
    (rootfs / "relative").symlink_to(f"{up}{str(victim).lstrip('/')}")
    (rootfs / "magic").symlink_to("/proc/self/root/tmp")
    for name in ("absolute", "relative"):
        entry = {
            "destination": f"/{name}/new/dir",
            "type": "bind",
            "source": str(tmp_path / "source"),
            "options": ["bind"],
        }
        result = driver.run("ls", f"/{name}/new/dir", rootfs=str(rootfs), mounts=[*mounts(), entry])
        assert result.out == "mark\n"  # inside the container's own tree
    entry["destination"] = "/magic/x"
    assert "too many levels of symbolic links" in refused(
        driver, "true", rootfs=str(rootfs), mounts=[*mounts(), entry]
    )
    assert os.listdir(victim) == []


def test_cve_2024_45310_links_swapped_while_directories_are_made(driver: Driver, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (tmp_path / "source").mkdir()
    rootfs = make_rootfs(tmp_path / "rootfs")
    entry = {
        "destination": "/vol/a/b",
        "type": "bind",
        "source": str(tmp_path / "source"),
        "options": ["bind"],
    }
    device = {"path": "/vol/d/null", "type": "c", "major": 1, "minor": 3}
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            try:
                (rootfs / "vol").mkdir(exist_ok=True)
                os.rename(rootfs / "vol", rootfs / "old")
                os.symlink(victim, rootfs / "vol")
                os.unlink(rootfs / "vol")
            except OSError:  # what a container made is in the way
                shutil.rmtree(rootfs / "vol", ignore_errors=True)
            shutil.rmtree(rootfs / "old", ignore_errors=True)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(40):
            try:
                driver.run(
                    "true",
                    rootfs=str(rootfs),
                    mounts=[*mounts(), entry],
                    linux={"devices": [device]},
                    process={"cwd": "/vol/w", "createCwd": True},
                )
            except LaunchError:
                pass  # it may lose the race, but only so
            assert os.listdir(victim) == []
    finally:
        stop.set()
        thread.join()


# The kernel's interfaces


def python_in_container(driver: Driver, code: str, **more: Any) -> Any:
    """Runs Python code in a container whose root is the host's tree, read-only, as busybox has no
    socket(2).
    """
    # Its mount points are made on a tmpfs each where the host has them, so nothing is written.
    return driver.run(sys.executable, "-I", "-S", "-c", code, rootfs="/", root={"readonly": True}, **more)


def test_cve_2026_31431_families_of_sockets(driver: Driver) -> None:
    code = """
import _socket as s
for family, kind in ((38, 5), (40, 1), (2, 1), (1, 1), (16, 3), (17, 3)):
    try:
        s.socket(family, kind)
        print(family, "ok")
    except OSError as e:
        print(family, e.errno)
"""
    result = python_in_container(driver, code)
    # AF_ALG and AF_VSOCK are not to be had: EPERM. AF_PACKET is, by CAP_NET_RAW.
    assert result.out.splitlines() == ["38 1", "40 1", "2 ok", "1 ok", "16 ok", "17 ok"], result.err
    result = python_in_container(driver, code, process={"capabilities": {}})
    assert "17 1" in result.out  # CVE-2020-14386: no packets without the capability


def test_cve_2022_0185_mount_interface_is_closed(driver: Driver) -> None:
    code = """
import sys; sys.path.insert(0, SOURCE)
from guest_agent.kernel import syscalls as s
for call in (
    lambda: s.FsContext("ext4"),
    lambda: s.unshare(s.CLONE_NEWUSER),
    lambda: s.unshare(s.CLONE_NEWNS),
    lambda: s.setns(0, 0),
    lambda: s.mount("none", "/tmp", "tmpfs"),
    lambda: s.open_tree(-100, "/", 1),
    lambda: s.keyctl_join_session_keyring(),
    lambda: s.bpf(5, __import__("ctypes").create_string_buffer(128)),
):
    try:
        call()
        print("ok")
    except OSError as e:
        print(e.errno)
""".replace("SOURCE", repr(str(Path(launch.__file__).parents[2])))
    result = python_in_container(driver, code)
    assert result.out.split() == ["1"] * 8, result.err


def test_cve_2022_0492_release_agent(driver: Driver) -> None:
    assert driver.run("mount", "-t", "cgroup", "-o", "memory", "none", "/tmp").code != 0
    result = driver.run("find", "/sys/fs/cgroup", "-name", "release_agent")
    assert result.out == ""
    # With CAP_SYS_ADMIN a hierarchy can be mounted; its release_agent is still the host's namespace's alone.
    kinds = ("mount", "uts", "ipc", "pid", "network", "cgroup")
    linux = {"seccomp": None, "namespaces": [{"type": kind} for kind in kinds]}
    script = "mount -t cgroup -o pids none /tmp && echo /bin/sh > /tmp/release_agent"
    result = driver.run("sh", "-c", script, process=PRIVILEGED["process"], linux=linux)
    assert result.code != 0


def test_cve_2020_15257_no_abstract_sockets(driver: Driver) -> None:
    namespaces = [{"type": kind} for kind in ("mount", "uts", "ipc", "pid")]  # the host's network
    result = driver.run("cat", "/proc/net/unix", linux={"namespaces": namespaces})
    run = driver.runtime.roots.run
    assert run in result.out  # it is there to be seen
    assert not [line for line in result.out.splitlines() if "@" in line and "wherry" in line]
    mode = os.stat(os.path.join(run, "monitor.sock")).st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_another_user_cannot_talk_to_the_monitor(driver: Driver) -> None:
    path = driver.runtime.roots.run_path("monitor.sock")
    os.chmod(path, 0o666)
    os.chmod(driver.runtime.roots.run, 0o711)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            os.chdir(driver.runtime.roots.run)
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            connection.connect("monitor.sock")
            connection.send(b'J{"op":"hello","seq":1}')
            code = 0 if connection.recv(100) == b"" else 2
        except (BrokenPipeError, ConnectionResetError):
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.chmod(path, 0o600)


def test_cve_2021_43784_configuration_of_any_size(driver: Driver, tmp_path: Path) -> None:
    # There, lengths overflowed and data was taken for options. Here 200 long mounts must come through whole.
    entries = mounts()
    for number in range(200):
        source = tmp_path / f"{number:03}{'s' * 200}"
        source.mkdir()
        (source / "name").write_text(str(number))
        entries.append(
            {
                "destination": f"/m/{number:03}{'d' * 200}",
                "type": "bind",
                "source": str(source),
                "options": ["ro"],
            }
        )
    result = driver.run("sh", "-c", "cat /m/*/name | wc -c; cat /m/199*/name", mounts=entries)
    assert result.out == f"{sum(len(str(n)) for n in range(200))}\n199"


def test_init_of_the_container_dies_with_the_monitor_before_it_runs_wild() -> None:
    def body(job: launch.Job) -> None:
        buffer = __import__("ctypes").c_int(0)
        syscalls.prctl(2, __import__("ctypes").addressof(buffer))  # PR_GET_PDEATHSIG
        raise RuntimeError(f"signal={buffer.value}")

    assert "signal=9" in in_launch_child(body)["text"]
