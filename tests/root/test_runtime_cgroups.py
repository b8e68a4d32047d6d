"""Control groups of running containers: limits at the start and changed later, statistics, freezing,
clearing up.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guest_agent.kernel import syscalls
from guest_agent.runtime import cgroups
from guest_agent.runtime.cgroups import devices
from guest_agent.runtime.cgroups.base import Cgroup
from guest_agent.runtime.cgroups.v2 import CgroupV2
from guest_agent.runtime.types import LaunchError
from tests.support.oci import PARENT, Driver, new_id

pytestmark = pytest.mark.root


V2 = cgroups.version() == 2


def control(container: str, controller: str, name: str) -> str:
    point = cgroups.hierarchies()["" if V2 else controller]
    return Path(f"{point}{PARENT}/{container}/{name}").read_text().strip()


def memory_limit(container: str) -> str:
    return control(container, "memory", "memory.max" if V2 else "memory.limit_in_bytes")


@pytest.fixture
def busy(driver: Driver) -> Iterator[str]:
    """A container that keeps a CPU busy and writes to memory."""
    container = driver.start(
        "sh", "-c", "dd if=/dev/zero of=/dev/shm/x bs=1M count=8 2>/dev/null; while :; do :; done"
    )
    yield container
    driver.kill(container)


def test_limits(driver: Driver) -> None:
    resources = {
        "memory": {"limit": 64 << 20, "swap": 96 << 20, "reservation": 32 << 20, "swappiness": 10},
        "cpu": {"shares": 512, "quota": 25_000, "period": 50_000, "cpus": "0", "mems": "0"},
        "pids": {"limit": 40},
    }
    container = driver.start("sleep", "60", linux={"resources": resources})
    expected = {
        ("memory", "memory.limit_in_bytes"): str(64 << 20),
        ("memory", "memory.memsw.limit_in_bytes"): str(96 << 20),
        ("memory", "memory.soft_limit_in_bytes"): str(32 << 20),
        ("memory", "memory.swappiness"): "10",
        ("cpu", "cpu.shares"): "512",
        ("cpu", "cpu.cfs_quota_us"): "25000",
        ("cpu", "cpu.cfs_period_us"): "50000",
        ("cpuset", "cpuset.cpus"): "0",
        ("pids", "pids.max"): "40",
    }
    if V2:
        expected = {
            ("memory", "memory.max"): str(64 << 20),
            ("memory", "memory.swap.max"): str(32 << 20),
            ("memory", "memory.low"): str(32 << 20),
            ("cpu", "cpu.weight"): "59",
            ("cpu", "cpu.max"): "25000 50000",
            ("cpuset", "cpuset.cpus"): "0",
            ("pids", "pids.max"): "40",
        }
    assert {key: control(container, *key) for key in expected} == expected
    assert driver.exec(container, "grep", "Cpus_allowed_list", "/proc/self/status").out.split()[1] == "0"
    driver.kill(container)


def _whole_disks() -> list[tuple[int, int]]:
    # Throttles are for whole disks; any will do, and a machine in memory has none.
    numbers = [
        Path(f"/sys/block/{name}/dev").read_text().split(":") for name in sorted(os.listdir("/sys/block"))
    ]
    return [(int(major), int(minor)) for major, minor in numbers][:1]


def test_throttles(driver: Driver) -> None:
    for major, minor in _whole_disks():
        disk = {"major": major, "minor": minor}
        block = {
            "throttleReadBpsDevice": [disk | {"rate": 1 << 20}],
            "throttleWriteIOPSDevice": [disk | {"rate": 100}],
        }
        container = driver.start("sleep", "60", linux={"resources": {"blockIO": block}})
        if V2:
            line = f"{major}:{minor} rbps=1048576 wbps=max riops=max wiops=100"
            assert control(container, "io", "io.max") == line
        else:
            read = control(container, "blkio", "blkio.throttle.read_bps_device")
            write = control(container, "blkio", "blkio.throttle.write_iops_device")
            assert (read, write) == (f"{major}:{minor} 1048576", f"{major}:{minor} 100")
        driver.kill(container)


def test_no_limits(driver: Driver) -> None:
    container = driver.start("sleep", "60", linux={"resources": {"pids": {"limit": -1}, "memory": {}}})
    assert control(container, "pids", "pids.max") == "max"
    assert memory_limit(container) == "max" or int(memory_limit(container)) > 1 << 60
    driver.kill(container)


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"cpu": {"cpus": "4000"}}, 'failed to write "4000": '),
    ({"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]}, "hugetlb"),
    ({"devices": [{"allow": True, "type": "x"}]}, "invalid device rule"),
]
IMPOSSIBLE += (
    [
        ({"memory": {"limit": 64 << 20, "swap": 32 << 20}}, "memory+swap limit should be >= memory limit"),
        ({"unified": {"../cgroup.procs": "0"}}, "must be a file name"),
        ({"unified": {"memory.high": "lots"}}, 'failed to write "lots"'),
    ]
    if V2
    else [
        ({"memory": {"limit": 64 << 20, "swap": 32 << 20}}, "failed to write"),
        ({"cpu": {"shares": 1}}, "the minimum allowed cpu-shares is 2"),
        ({"cpu": {"shares": 1 << 20}}, "the maximum allowed cpu-shares is 262144"),
        ({"unified": {"memory.high": "1"}}, "need cgroup v2"),
    ]
)


@pytest.mark.parametrize(("resources", "text"), IMPOSSIBLE)
def test_limit_that_cannot_be_set(driver: Driver, resources: dict[str, Any], text: str) -> None:
    container = new_id()
    with pytest.raises(LaunchError) as caught:
        driver.start("true", id=container, linux={"resources": resources})
    prefixes = (
        "unable to apply cgroup configuration: ",
        "error during container init: error setting cgroup config for procHooks process: ",
    )
    assert caught.value.text.startswith(prefixes)
    assert text in caught.value.text
    assert not any(os.path.exists(path) for path in cgroups.open(container, PARENT).directories())


def test_live_changes_in_the_right_order(driver: Driver) -> None:
    limits = {"memory": {"limit": 32 << 20, "swap": 48 << 20}}
    container = driver.start("sleep", "60", linux={"resources": limits})
    group = cgroups.open(container, PARENT)

    def swap() -> str:
        return control(container, "memory", "memory.swap.max" if V2 else "memory.memsw.limit_in_bytes")

    # Up past the old memory+swap, down below the new memory, and off.
    for limit, both in (
        (128 << 20, 160 << 20),
        (16 << 20, 24 << 20),
        (-1, -1),
        (16 << 20, 16 << 20),
        (-1, 0),
    ):
        group.set({"memory": {"limit": limit, "swap": both}})
        if limit > 0:
            assert memory_limit(container) == str(limit)
            assert swap() == str(both - limit if V2 else both)
        else:
            assert memory_limit(container) == "max" or int(memory_limit(container)) > 1 << 60
            assert swap() == "max" or int(swap()) > 1 << 60

    def cpu() -> list[str]:
        if V2:
            return control(container, "cpu", "cpu.max").split()
        return [control(container, "cpu", f"cpu.cfs_{name}_us") for name in ("quota", "period")]

    group.set({"cpu": {"quota": 10_000, "period": 20_000}})
    group.set({"cpu": {"quota": 200_000, "period": 400_000}})
    assert cpu() == ["200000", "400000"]
    group.set({"cpu": {"quota": 100_000}})
    assert cpu() == ["100000", "400000"]
    group.set({"cpu": {"quota": -1}})
    assert cpu() == ["max" if V2 else "-1", "400000"]
    group.set({"pids": {"limit": 17}, "cpu": {"shares": 1024}})
    assert control(container, "pids", "pids.max") == "17"
    assert control(container, "cpu", "cpu.weight" if V2 else "cpu.shares") == ("100" if V2 else "1024")
    group.set({})
    assert control(container, "pids", "pids.max") == "17"
    driver.kill(container)


def test_limit_below_what_is_used(driver: Driver) -> None:
    """v1 refuses it, v2 reclaims and kills."""
    script = "dd if=/dev/zero of=/dev/shm/x bs=1M count=20 2>/dev/null; echo ready > /tmp/ready; sleep 60"
    container = driver.start("sh", "-c", script)
    while driver.exec(container, "test", "-e", "/tmp/ready").code:
        time.sleep(0.02)
    group = cgroups.open(container, PARENT)
    if V2:
        group.set({"memory": {"limit": 4 << 20, "swap": 4 << 20}})
        assert driver.call(driver.runtime.wait(container)).oom_killed
    else:
        with pytest.raises(OSError, match="unable to set memory limit to 4194304 \\(current usage: "):
            group.set({"memory": {"limit": 4 << 20}})
        driver.kill(container)


def test_limits_hold(driver: Driver) -> None:
    result = driver.run(
        "sh",
        "-c",
        "for i in 1 2 3 4 5 6; do sleep 5 & done; wait",
        linux={"resources": {"pids": {"limit": 4}}},
    )
    assert "can't fork" in result.err
    resources = {"cpu": {"quota": 10_000, "period": 100_000}}
    container = driver.start("sh", "-c", "while :; do :; done", linux={"resources": resources})
    time.sleep(0.6)
    stats = cgroups.open(container, PARENT).stats()["cpu_stats"]
    assert stats["cpu_usage"]["total_usage"] < 250_000_000
    assert stats["throttling_data"]["throttled_periods"] > 1
    driver.kill(container)


def test_statistics(busy: str) -> None:
    group = cgroups.open(busy, PARENT)
    time.sleep(0.2)
    first = group.stats()
    time.sleep(0.3)
    second = group.stats()
    used = second["cpu_stats"]["cpu_usage"]["total_usage"] - first["cpu_stats"]["cpu_usage"]["total_usage"]
    system = second["cpu_stats"]["system_cpu_usage"] - first["cpu_stats"]["system_cpu_usage"]
    assert 0 < used <= system
    assert second["cpu_stats"]["online_cpus"] == os.cpu_count()
    if not V2:
        assert sum(second["cpu_stats"]["cpu_usage"]["percpu_usage"]) > 0
    assert second["pids_stats"]["current"] >= 1
    assert second["memory_stats"]["usage"] >= 8 << 20
    assert second["memory_stats"]["stats"]["file" if V2 else "total_cache"] >= 8 << 20
    assert second["memory_stats"]["limit"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert set(second["blkio_stats"]) == {
        "io_service_bytes_recursive",
        "io_serviced_recursive",
        "io_queue_recursive",
        "io_service_time_recursive",
        "io_wait_time_recursive",
        "io_merged_recursive",
        "io_time_recursive",
        "sectors_recursive",
    }


def test_statistics_of_what_is_gone() -> None:
    with pytest.raises(FileNotFoundError):
        cgroups.open("nosuch", PARENT).stats()


def test_freezing(busy: str) -> None:
    group = cgroups.open(busy, PARENT)
    group.freeze()
    assert group.frozen()
    before = group.stats()["cpu_stats"]["cpu_usage"]["total_usage"]
    time.sleep(0.1)
    assert group.stats()["cpu_stats"]["cpu_usage"]["total_usage"] - before < 5_000_000
    group.freeze()  # again: nothing to do
    group.thaw()
    assert not group.frozen()
    time.sleep(0.1)
    assert group.stats()["cpu_stats"]["cpu_usage"]["total_usage"] > before


def test_processes(driver: Driver, busy: str) -> None:
    group = cgroups.open(busy, PARENT)
    assert driver.runtime.monitor.running()[busy].pid in group.pids()
    driver.exec(busy, "sh", "-c", "(sleep 30 > /dev/null 2>&1 &); true")
    assert len(group.pids()) == 2


def test_killing_what_is_frozen(driver: Driver) -> None:
    container = driver.start("sh", "-c", "sleep 60 & sleep 61")
    group = cgroups.open(container, PARENT)
    group.freeze()
    assert group.kill()
    assert driver.call(driver.runtime.wait(container)).code == 137


@pytest.mark.parametrize("only", ["", "pids", "freezer"] if cgroups.version() == 1 else [""])
def test_what_is_on_its_way_into_a_container_ends_with_it(driver: Driver, only: str) -> None:
    # A launch child joins the group before the pid namespace. When the container ends just then, nothing else
    # ends it; and one that a pause has frozen meanwhile would not even die.
    container = driver.start("sleep", "60")
    group = cgroups.at(f"{PARENT}/{container}")
    stray = subprocess.Popen(["sleep", "60"])
    for directory in group.directories():
        if not only or only in directory.split("/"):
            Path(directory, "cgroup.procs").write_text(str(stray.pid))
    pid = driver.runtime.monitor.running()[container].pid
    driver.call(driver.runtime.monitor.kill(container, 9))
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.001)
    try:
        group.freeze()
    except OSError:
        pass  # the group is gone already
    driver.call(driver.runtime.wait(container))
    assert stray.wait(10) == -9
    while any(map(os.path.exists, group.directories())) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(os.path.exists, group.directories()))
    driver.call(driver.runtime.monitor.forget(container))


def test_group_with_groups_inside(driver: Driver) -> None:
    # A container may make groups of its own; they go with it.
    container = driver.start("sleep", "60")
    group = cgroups.open(container, PARENT)
    for directory in group.directories():
        os.makedirs(f"{directory}/inner/most")
    driver.kill(container)
    deadline = time.monotonic() + 3
    while any(os.path.exists(directory) for directory in group.directories()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(os.path.exists(directory) for directory in group.directories())


def test_stale_group_is_made_anew(driver: Driver) -> None:
    container = new_id()
    group = cgroups.open(container, PARENT)
    group.create()
    group.set({"pids": {"limit": 1}})
    assert driver.run("sh", "-c", "echo fork | cat", id=container).out == "fork\n"


def test_group_that_is_in_use(driver: Driver) -> None:
    container = new_id()
    group = cgroups.open(container, PARENT)
    group.create()
    sleeper = subprocess.Popen(["sleep", "60"])
    for directory in group.directories():
        Path(directory, "cgroup.procs").write_text(str(sleeper.pid))
    with pytest.raises(LaunchError, match="exists and is in use"):
        driver.start("true", id=container)
    sleeper.kill()
    sleeper.wait()
    while not group.delete():
        time.sleep(0.01)


def test_describe() -> None:
    found = cgroups.describe()
    assert found["version"] == str(cgroups.version())
    assert found["driver"] == "cgroupfs"
    assert found["memory_limit"]
    assert found["pids_limit"]


@pytest.mark.parametrize("path", ["relative", "/../x", "/a/../../b"])
def test_paths_that_lead_out(path: str) -> None:
    with pytest.raises(ValueError, match="absolute"):
        cgroups.at(path)


# The core of version 2, which is there on a hybrid system, too: only controllers are bound to v1 then.


@pytest.fixture
def unified() -> Iterator[Cgroup]:
    point = next(
        line.split()[4]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if " - cgroup2 " in line
    )
    group = CgroupV2(f"{PARENT}/{new_id()}", point)
    group.create()
    yield group
    group.kill()
    deadline = time.monotonic() + 5
    while not group.delete() and time.monotonic() < deadline:
        time.sleep(0.01)
    CgroupV2(PARENT, point).delete()


def born_in(group: Cgroup, script: str) -> subprocess.Popen[str]:
    """A process moved into the group before it executes."""
    return subprocess.Popen(["sh", "-c", script], preexec_fn=group.join, stdout=subprocess.PIPE, text=True)


def test_v2_core(unified: Cgroup) -> None:
    process = born_in(unified, "echo in; exec sleep 60")
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    assert unified.pids() == [process.pid]
    unified.freeze()
    assert unified.frozen()
    unified.thaw()
    assert not unified.frozen()
    assert unified.stats()["cpu_stats"]["cpu_usage"]["total_usage"] > 0
    assert not unified.delete()
    assert unified.kill()
    assert process.wait() == -9
    process.stdout.close()
    assert not unified.kill()


def test_v2_birth_in_the_group(unified: Cgroup) -> None:
    directory = os.open(unified.directories()[0], os.O_PATH | os.O_DIRECTORY)
    ready, told = os.pipe()
    pid, pidfd = syscalls.clone3(0, directory)
    if pid == 0:
        os.write(told, Path("/proc/self/cgroup").read_bytes())
        os._exit(0)
    assert f"0::{unified.path}\n".encode() in os.read(ready, 4096)
    os.waitpid(pid, 0)
    for fd in (directory, ready, told, pidfd):
        os.close(fd)


def opened(group: Cgroup, *tries: str) -> list[bool]:
    script = "; ".join(f"if ({each}) 2>/dev/null >&2; then echo 1; else echo 0; fi" for each in tries)
    process = born_in(group, script)
    return [line == "1" for line in process.communicate()[0].split()]


def test_v2_devices(unified: Cgroup) -> None:
    rules = [{"allow": False, "access": "rwm"}, *devices.IMPLIED]
    tries = (": < /dev/null", ": > /dev/full", ": < /dev/zero", ": < /dev/kmsg", ": > /dev/kmsg")
    unified.set({"devices": rules})
    assert opened(unified, *tries) == [True, True, True, False, False]
    # Changed while it is there, and replaced rather than added to.
    reading = {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"}
    unified.set({"devices": [*rules, reading]})
    assert opened(unified, *tries[3:]) == [True, False]
    unified.set({"devices": [*rules, reading, {"allow": False, "type": "c", "major": 1, "access": "rw"}]})
    assert opened(unified, *tries) == [False] * 5
    unified.set({"devices": [{"allow": True}]})
    assert opened(unified, *tries) == [True] * 5
    unified.set({"devices": [{"allow": True}, {"allow": False, "type": "b", "access": "m"}]})
    node = f"/tmp/{new_id()}"
    assert opened(unified, f"mknod {node} b 7 0 && rm {node}", f"mknod {node} c 7 0 && rm {node}") == [
        False,
        True,
    ]


def test_v2_exact_files(unified: Cgroup) -> None:
    unified.set({"unified": {"cgroup.max.depth": "3"}})
    assert Path(unified.directories()[0], "cgroup.max.depth").read_text() == "3\n"
    with pytest.raises(ValueError, match="must be a file name"):
        unified.set({"unified": {"../cgroup.procs": "0"}})
