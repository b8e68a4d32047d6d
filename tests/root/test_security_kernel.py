"""What a container may say to the kernel, to the host's network, and to whoever comes into it."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.cli import Cli, eventually
from tests.support.engine import OurEngine
from tests.support.oci import Driver

pytestmark = pytest.mark.root

# System calls by name: numbers of x86_64 and aarch64.
CALLS = {
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "kexec_load": (246, 104),
    "finit_module": (313, 273),
    "open_by_handle_at": (304, 265),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "setns": (308, 268),
    "unshare": (272, 97),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "swapon": (167, 224),
    "reboot": (169, 142),
    "syslog": (103, 116),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "lookup_dcookie": (212, 18),
    "pidfd_getfd": (438, 438),
}
EPERM, ENOSYS = 1, 38
# With all arguments -1 or a new user namespace for a flag, what is let through fails otherwise: EBADF, EFAULT, EINVAL.
TRY = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
for word in sys.argv[1:]:
    name, number = word.split("=")
    first = 0x10000000 if name == "unshare" else -1
    libc.syscall(ctypes.c_long(int(number)), ctypes.c_long(first), *[ctypes.c_long(-1)] * 4)
    print(name, ctypes.get_errno())
"""


def test_calls_that_are_refused(driver: Driver) -> None:
    arm = platform.machine() == "aarch64"
    words = [f"{name}={numbers[arm]}" for name, numbers in CALLS.items()] + ["clone3=435"]
    # The root is the host's tree, read-only: busybox has no way to make these calls.
    result = driver.run(*(sys.executable, "-I", "-S", "-c", TRY, *words), rootfs="/", root={"readonly": True})
    errors = dict(line.split() for line in result.out.splitlines())
    assert errors.pop("clone3") == str(ENOSYS), (
        result.err
    )  # glibc then takes clone, whose flags are looked at
    assert errors == dict.fromkeys(CALLS, str(EPERM)), result.err


@pytest.mark.ours
@pytest.mark.parametrize("privileges", [[], ["--cap-add", "ALL", "--security-opt", "seccomp=unconfined"]])
def test_files_of_the_kernel_cannot_be_written(docker: Cli, busybox: str, privileges: list[str]) -> None:
    # Even with every capability, what is mounted stays read-only until the container mounts anew.
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    files = [
        *("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/fs/binfmt_misc/register"),
        *("/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/proc/bus/pci/devices", "/proc/fs/x"),
        *("/proc/kcore", "/proc/timer_list", "/proc/scsi/scsi", "/proc/acpi/x", "/proc/latency_stats"),
        *("/sys/kernel/uevent_helper", "/sys/kernel/mm/ksm/run", "/sys/power/state", "/sys/firmware/x"),
        *("/sys/fs/cgroup/memory/release_agent", "/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        *("/sys/fs/cgroup/devices/devices.allow", "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/x"),
    ]
    script = 'for f in "$@"; do if [ -c "$f" ]; then echo masked; else (echo x >"$f") 2>&1; fi; done; true'
    shown = docker.ok("run", "--rm", *privileges, busybox, "sh", "-c", script, "sh", *files).splitlines()
    assert len(shown) == len(files)
    for file, line in zip(files, shown, strict=True):
        allowed = (
            "masked",
            "Read-only file system",
            "nonexistent directory",
            "Permission denied",
            "No such file",
        )
        assert any(text in line for text in allowed), (file, line)
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


@pytest.mark.ours
def test_disks_of_the_host_cannot_be_opened(docker: Cli, busybox: str) -> None:
    disks = [line.split() for line in Path("/proc/partitions").read_text().splitlines()[2:]]
    script = "mknod /d b $1 $2 && dd if=/d of=/dev/null bs=512 count=1; mknod /m c 1 1 && head -c1 /m; mknod /k c 1 11 && head -c1 /k"
    for major, minor, *_ in disks[:3]:
        done = docker(
            "run", "--rm", "--cap-add", "SYS_RAWIO", busybox, "sh", "-c", script, "sh", major, minor
        )
        assert done.err.count("Operation not permitted") == 3, done


@pytest.mark.ours
def test_exec_into_a_container_with_a_proc_of_its_own_making(docker: Cli, busybox: str) -> None:
    """CVE-2019-16884, CVE-2025-52881: nothing is read from, or written to, what covers /proc and /dev."""
    docker.ok(
        *("run", "-d", "--name", "covered", "--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined"),
        *(busybox, "sleep", "1000"),
    )
    script = """
    mount -t tmpfs none /proc && mkdir -p /proc/self/attr/apparmor /proc/self/fd /proc/thread-self/attr /proc/sys/kernel
    for f in self/attr/exec self/attr/apparmor/exec thread-self/attr/exec self/oom_score_adj self/gid_map \
             self/setgroups self/cgroup self/mountinfo self/status; do : >/proc/$f; done
    for n in 0 1 2 3 4 5 6 7 8 9; do ln -s /etc/passwd /proc/self/fd/$n; done
    """
    docker.ok("exec", "covered", "sh", "-c", script)
    # The first shell sees the cover, too.
    for options in ([], ["-t"], ["-u", "1000:1000"], ["-w", "/tmp"], ["--privileged"]):
        assert docker.ok("exec", *options, "covered", "echo", "on").strip() == "on"
    for path in ("/proc/self/fd/3", "/proc/self/fd/7", "/proc/self/fd/9/.."):
        assert docker("exec", "-w", path, "covered", "pwd").code != 0
    found = docker.ok("exec", "covered", "find", "/proc", "-type", "f", "-size", "+0")
    assert found == ""
    assert docker.ok("exec", "covered", "sh", "-c", "cat /etc/passwd | head -1").startswith("root:")
    docker.ok("rm", "-f", "covered")


@pytest.mark.ours
def test_terminal_and_null_device_that_a_container_replaced(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "replaced", busybox, "sleep", "1000")
    docker.ok(
        "exec",
        "replaced",
        "sh",
        "-c",
        "rm /dev/null /dev/tty; ln -s /etc/passwd /dev/null; mknod /dev/tty c 5 1",
    )
    before = docker.ok("exec", "-i", "replaced", "cat", "/etc/passwd", input="")
    refused = docker("exec", "replaced", "cat", "/etc/passwd")  # without input: from the null device
    assert refused.code != 0
    assert "not the null device" in refused.err + refused.out
    assert docker.ok("exec", "-i", "replaced", "cat", "/etc/passwd", input="") == before
    docker.ok("rm", "-f", "replaced")


# The host's network

ADVERTISE = """
import socket, struct, sys, time
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("eth0"))
prefix = struct.pack("!BBBBIII16s", 3, 4, 64, 0xC0, 1800, 1800, 0, socket.inet_pton(socket.AF_INET6, "2001:db8:bad::"))
for _ in range(5):
    s.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix, ("ff02::1%eth0", 0))
    time.sleep(0.1)
"""


@pytest.mark.ours
def test_cve_2020_13401_nobody_believes_a_containers_router_advertisements(docker: Cli, busybox: str) -> None:
    docker.ok("network", "create", "--ipv6", "six")
    for name in ("liar", "other"):
        docker.ok("run", "-d", "--name", name, "--network", "six", busybox, "sleep", "1000")
    pids = {name: docker.ok("inspect", "--format", "{{.State.Pid}}", name) for name in ("liar", "other")}
    inside = ["nsenter", f"--net=/proc/{pids['liar']}/ns/net"]
    # Its address must be through with duplicate detection.
    eventually(
        lambda: "tentative" not in subprocess.check_output([*inside, "ip", "-6", "address"], text=True)
    )
    subprocess.run([*inside, sys.executable, "-I", "-c", ADVERTISE], check=True)
    time.sleep(0.5)
    for where in ([], ["nsenter", f"--net=/proc/{pids['other']}/ns/net"]):
        for what in ("route", "address"):
            shown = subprocess.check_output([*where, "ip", "-6", what], text=True)
            assert "2001:db8:bad" not in shown
            assert "proto ra" not in shown
    docker.ok("rm", "-f", "liar", "other")
    docker.ok("network", "rm", "six")


@pytest.mark.ours
def test_ports_of_others_and_of_the_host_are_not_reached_by_way_of_the_proxy(
    docker: Cli, busybox: str, tmp_path: Path
) -> None:
    """The proxy connects to the container's own address and port, whatever a client or container asks for."""
    with socket.socket() as secret, socket.socket() as probe:
        secret.bind(("127.0.0.1", 0))
        secret.listen()
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        docker.ok(
            "run",
            "-d",
            "--name",
            "front",
            "-p",
            f"127.0.0.1:{port}:{secret.getsockname()[1]}",
            busybox,
            "sleep",
            "1000",
        )
        # Nothing listens in the container at that port; on the host something does, at the same.
        with socket.create_connection(("127.0.0.1", port), 15) as connection:
            connection.settimeout(15)
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        secret.settimeout(0.5)
        with pytest.raises(TimeoutError):
            secret.accept()
    gateway = docker.ok("inspect", "--format", "{{.NetworkSettings.Gateway}}", "front")
    for address in (gateway, "127.0.0.1"):
        asked = docker("run", "--rm", busybox, "nc", "-w", "2", address, str(port), input="x")
        assert asked.code != 0
    docker.ok("rm", "-f", "front")


@pytest.mark.ours
def test_the_engine_cannot_be_reached_from_a_container(engine: OurEngine, docker: Cli, busybox: str) -> None:
    """CVE-2025-9074, CVE-2020-15257: no network address and no abstract socket leads to the API or the monitor."""
    shown = docker.ok("run", "--rm", "--network", "host", busybox, "cat", "/proc/net/unix").splitlines()
    ours = [line for line in shown if str(engine.root) in line]
    assert ours
    assert not [line for line in ours if "@" in line]
    agent, monitor = engine.process, engine.monitor_pid
    assert agent is not None
    inodes = set()
    for pid in (agent.pid, monitor):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                inodes.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
            except FileNotFoundError:
                pass
    listening = [
        line.split()
        for name in ("tcp", "tcp6", "udp", "udp6")
        for line in Path(f"/proc/{agent.pid}/net/{name}").read_text().splitlines()[1:]
    ]
    assert not [line for line in listening if f"socket:[{line[9]}]" in inodes]
