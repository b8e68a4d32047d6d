"""An engine without root on a machine with systemd and cgroup v2, where control groups are the user's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cli import eventually
from tests.support.images import image
from tests.support.systemd import SystemdMachine

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdMachine]:
    made = SystemdMachine(tmp_path_factory.mktemp("systemd"))
    try:
        made.ok(
            "cat >busybox.tar && wherry load -q -i busybox.tar",
            image("busybox:latest").archive().read_bytes(),
        )
        yield made
    finally:
        made.close()


def process(machine: SystemdMachine) -> str:
    """The agent's process id."""
    return machine.ok("cat $XDG_RUNTIME_DIR/wherry/agent.pid")


def group(machine: SystemdMachine) -> str:
    """The agent's control group."""
    return machine.ok(f"cut -d: -f3 /proc/{process(machine)}/cgroup")


def test_limits_hold_for_an_engine_started_from_a_shell(machine: SystemdMachine) -> None:
    limits = "--memory 64m --pids-limit 50 --cpus 0.5"
    machine.ok(f"wherry run -d --name limited {limits} busybox sleep 1000")
    assert "/app.slice/wherry-" in group(machine)
    read = "cd /sys/fs/cgroup; cat memory.max pids.max cpu.max"
    assert machine.ok(f"wherry exec limited sh -c '{read}'").split() == ["67108864", "50", "50000", "100000"]
    machine.ok("wherry update --memory 100m --memory-swap 200m limited")
    assert machine.ok("wherry exec limited cat /sys/fs/cgroup/memory.max") == str(100 << 20)
    assert " / 100MiB" in machine.ok("wherry stats --no-stream limited")
    ended = machine.run("wherry run --name greedy -m 32m busybox tail /dev/zero")
    assert (ended.returncode, ended.stderr) == (137, "")
    assert machine.ok("wherry inspect -f '{{.State.OOMKilled}}' greedy") == "true"
    unheld = machine.run("wherry run --rm --cpuset-cpus 0 busybox true")
    assert unheld.returncode == 0
    assert "Cpuset discarded" in unheld.stderr


def test_the_next_engine_joins_its_containers(machine: SystemdMachine) -> None:
    before = group(machine)
    machine.ok(f"kill -9 {process(machine)}")
    assert machine.ok("wherry ps --format '{{.Names}}'") == "limited"
    assert group(machine) == before
    assert machine.ok("wherry exec limited cat /sys/fs/cgroup/memory.max") == str(100 << 20)
    machine.ok("wherry rm -f limited greedy; wherry engine stop")
    eventually(lambda: not machine.ok("systemctl --user list-units -q 'wherry-*'"), what="the scope is gone")


def test_what_doctor_says(machine: SystemdMachine) -> None:
    said = machine.run("wherry doctor").stdout
    assert "ok   Delegated control groups: cpu, memory, pids" in said
    assert "ok   Overlay file system: " in said
    assert "ok   Rootless network: pasta" in said


def test_as_a_service(machine: SystemdMachine) -> None:
    machine.ok("wherry engine install-service")
    machine.ok("wherry run -d --name web -p 8080:80 --memory 64m --restart always busybox httpd -f -h /etc")
    main = "systemctl --user show -P MainPID wherry.service"
    assert machine.ok(main) == process(machine)
    fetch = "busybox wget -qO- http://127.0.0.1:8080/hostname"
    container = machine.ok(fetch)
    # Containers with limits do not keep systemd from starting the service again, whatever has ended it.
    machine.ok(f"kill -9 $({main})")
    eventually(lambda: machine.run("systemctl --user is-active wherry.service").returncode == 0, 60)
    assert machine.ok(fetch) == container
    assert machine.ok("wherry exec web cat /sys/fs/cgroup/memory.max") == str(64 << 20)
    machine.ok("systemctl --user restart wherry.service")
    eventually(lambda: machine.run(fetch).returncode == 0, 60, what="the container was started again")
    machine.ok("wherry rm -f web; wherry engine uninstall-service")
