"""`docker run`: the rarer limits, and what is refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Cli

pytestmark = pytest.mark.root


def v2(docker: Cli) -> bool:
    """Whether the engine's control groups are those of version 2."""
    return docker.ok("info", "--format", "{{.CgroupVersion}}") == "2"


def control(docker: Cli, image: str, first: str, second: str, *flags: str) -> str:
    """A control file as a container sees it that is started with these flags: of cgroup v1 or of v2."""
    return docker.ok("run", "--rm", *flags, image, "cat", f"/sys/fs/cgroup/{second if v2(docker) else first}")


def host_config(docker: Cli, image: str, *flags: str) -> dict[str, Any]:
    identity = docker.ok("create", *flags, image)
    found: dict[str, Any] = json.loads(docker.ok("inspect", "-f", "{{json .HostConfig}}", identity))
    return found


def block_device() -> tuple[str, str]:
    """A disk of this machine: its device file and `major:minor`."""
    for entry in sorted(Path("/sys/block").iterdir()):
        numbers = (entry / "dev").read_text().strip()
        if Path("/dev", entry.name).exists() and not numbers.startswith(("1:", "7:", "11:", "253:")):
            return f"/dev/{entry.name}", numbers
    pytest.fail("this machine has no disk")


@pytest.mark.rootful("control groups")
def test_cpu_shares(docker: Cli, busybox: str) -> None:
    assert control(docker, busybox, "cpu/cpu.shares", "cpu.weight", "--cpu-shares", "512") == (
        "59" if v2(docker) else "512"
    )


@pytest.mark.rootful("control groups")
def test_cpu_period_and_quota(docker: Cli, busybox: str) -> None:
    flags = ("--cpu-period", "50000", "--cpu-quota", "25000")
    assert control(docker, busybox, "cpu/cpu.cfs_quota_us", "cpu.max", *flags) == (
        "25000 50000" if v2(docker) else "25000"
    )
    result = docker("run", "--rm", "--cpus", "1", "--cpu-quota", "25000", busybox, "true")
    assert result.code == 125
    assert "Conflicting options: Nano CPUs and CPU Quota cannot both be set" in result.err


@pytest.mark.native
def test_too_many_cpus(docker: Cli, busybox: str) -> None:
    result = docker("run", "--rm", "--cpus", "1000", busybox, "true")
    assert result.code == 125
    assert (
        f"range of CPUs is from 0.01 to {os.cpu_count()}.00, as there are only {os.cpu_count()} CPUs available"
        in result.err
    )
    result = docker("run", "--rm", "--cpuset-cpus", "999", busybox, "true")
    assert result.code == 125
    assert "Requested CPUs are not available - requested 999, available:" in result.err


@pytest.mark.rootful("control groups")
def test_memory_reservation(docker: Cli, busybox: str) -> None:
    flags = ("-m", "64m", "--memory-reservation", "32m")
    assert control(docker, busybox, "memory/memory.soft_limit_in_bytes", "memory.low", *flags) == str(
        32 << 20
    )
    result = docker("run", "--rm", "-m", "32m", "--memory-reservation", "64m", busybox, "true")
    assert result.code == 125
    assert "Minimum memory limit can not be less than memory reservation limit" in result.err


@pytest.mark.rootful("control groups")
def test_memory_swap(docker: Cli, busybox: str) -> None:
    first, second = "memory/memory.memsw.limit_in_bytes", "memory.swap.max"
    assert control(docker, busybox, first, second, "-m", "64m", "--memory-swap", "96m") == str(
        (32 if v2(docker) else 96) << 20
    )
    assert host_config(docker, busybox, "-m", "64m")["MemorySwap"] == 128 << 20, (
        "twice the memory when nothing is said"
    )
    result = docker("run", "--rm", "-m", "64m", "--memory-swap", "32m", busybox, "true")
    assert result.code == 125
    assert "Minimum memoryswap limit should be larger than memory limit" in result.err
    result = docker("run", "--rm", "--memory-swap", "64m", busybox, "true")
    assert result.code == 125
    assert "You should always set the Memory limit when using Memoryswap limit" in result.err


def test_too_little_memory(docker: Cli, busybox: str) -> None:
    result = docker("run", "--rm", "-m", "1m", busybox, "true")
    assert result.code == 125
    assert "Minimum memory limit allowed is 6MB" in result.err


@pytest.mark.rootful("control groups")
def test_blkio_throttle(docker: Cli, busybox: str) -> None:
    device, numbers = block_device()
    flags = ("--device-read-bps", f"{device}:1mb", "--device-write-iops", f"{device}:100")
    if v2(docker):
        found = control(docker, busybox, "", "io.max", *flags)
        assert found.startswith(numbers)
        assert "rbps=1048576" in found
        assert "wiops=100" in found
    else:
        assert (
            control(docker, busybox, "blkio/blkio.throttle.read_bps_device", "", *flags)
            == f"{numbers} 1048576"
        )
        assert (
            control(docker, busybox, "blkio/blkio.throttle.write_iops_device", "", *flags) == f"{numbers} 100"
        )
    assert host_config(docker, busybox, *flags)["BlkioDeviceReadBps"] == [{"Path": device, "Rate": 1 << 20}]


@pytest.mark.rootful("control groups")
def test_device_cgroup_rule(docker: Cli, busybox: str) -> None:
    """The rule lets a device be made and opened; without it the open is refused."""
    script = "mknod /kmsg c 1 11 && head -c0 /kmsg && : > /kmsg"
    assert docker("run", "--rm", busybox, "sh", "-c", script).code != 0
    flags = ("--device-cgroup-rule", "c 1:11 rwm", "--cap-add", "SYSLOG")
    assert docker("run", "--rm", *flags, busybox, "sh", "-c", script).code == 0
    result = docker("run", "--rm", "--device-cgroup-rule", "nonsense", busybox, "true")
    assert result.code == 125
    assert "invalid device cgroup format 'nonsense'" in result.err


def test_no_healthcheck(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "unchecked", "--no-healthcheck", busybox, "sleep", "600")
    assert docker.ok("inspect", "-f", "{{json .State.Health}}", "unchecked") == "null"


def test_annotations(docker: Cli, busybox: str) -> None:
    assert host_config(docker, busybox, "--annotation", "a.b=c")["Annotations"] == {"a.b": "c"}


@pytest.mark.rootful("control groups")
def test_pids_limit_off(docker: Cli, busybox: str) -> None:
    assert control(docker, busybox, "pids/pids.max", "pids.max", "--pids-limit", "-1") == "max"


@pytest.mark.rootful("control groups")
def test_cgroup_parent(docker: Cli, busybox: str) -> None:
    out = docker.ok(
        "run",
        "--rm",
        "--cgroupns",
        "host",
        "--cgroup-parent",
        "/some-parent",
        busybox,
        "cat",
        "/proc/self/cgroup",
    )
    lines = [line for line in out.splitlines() if "pids" in line or line.startswith("0::")]
    assert any("/some-parent/" in line for line in lines)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--runtime", "nosuch"), "nosuch"),
        (("--isolation", "hyperv"), "invalid isolation"),
        (("--gpus", "all"), 'could not select device driver "" with capabilities: [[gpu]]'),
        (("--security-opt", "nosuch=1"), 'invalid --security-opt 2: "nosuch=1"'),
        (("--pid", "nosuch"), "invalid PID mode"),
        (("--ipc", "nosuch"), "invalid IPC mode"),
        (("--uts", "nosuch"), "invalid UTS mode"),
        (("--userns", "nosuch"), "invalid USER mode"),
        (("--cgroupns", "nosuch"), "invalid CGROUP mode"),
        (("--restart", "nosuch"), "invalid restart policy: unknown policy 'nosuch'"),
        (
            ("--restart", "always:3"),
            "invalid restart policy: maximum retry count can only be used with 'on-failure'",
        ),
        (("--ulimit", "nosuch=1"), "invalid ulimit type: nosuch"),
        (("--shm-size", "-1"), "invalid"),
        (("--mac-address", "nonsense"), "nonsense is not a valid mac address"),
        (
            ("--health-interval", "1us", "--health-cmd", "true"),
            "Interval in Healthcheck cannot be less than 1ms",
        ),
        (("--mount", "type=nosuch,dst=/x"), "nosuch"),
        (("--mount", "type=bind,src=/nosuch,dst=/x"), "bind source path does not exist: /nosuch"),
        (("--tmpfs", "/x:nosuch"), "nosuch"),
        (("-v", "/etc:relative"), "invalid mount path: 'relative' mount path must be absolute"),
        (("-v", "bad/name:/x"), '"bad/name" includes invalid characters for a local volume name'),
        (("--volumes-from", "nosuch"), "No such container: nosuch"),
        (("--link", "nosuch"), "nosuch"),
        (("--oom-score-adj", "2000"), "Invalid value 2000, range for oom score adj is [-1000, 1000]"),
        (("--memory-swappiness", "200"), "invalid value: 200. Valid memory swappiness range is 0-100"),
        (("--stop-signal", "NOSUCH"), "invalid signal: NOSUCH"),
        (("--label", "=x"), "invalid label '=x': empty name"),
        (("-e", "=x"), "invalid environment variable: =x"),
        (("--expose", "99999"), "99999"),
        (("--platform", "nonsense/x/y/z"), "nonsense"),
    ],
)
def test_refused(docker: Cli, busybox: str, flags: tuple[str, ...], message: str) -> None:
    result = docker("run", *flags, busybox, "true")
    assert result.code == 125, result
    assert message in result.err
    assert docker.ok("ps", "-q") == ""
