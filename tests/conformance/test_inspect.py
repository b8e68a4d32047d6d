"""Looking at containers: ps, inspect, top, stats, port, diff."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.cli import Cli, eventually

pytestmark = pytest.mark.root


# ps


def test_ps_table(docker: Cli, busybox: str) -> None:
    identity = docker.ok("run", "-d", "--name", "shown", "-p", "127.0.0.1:0:80", busybox, "sleep", "600")
    header, row = docker.ok("ps").splitlines()
    assert header.split() == ["CONTAINER", "ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]
    columns = re.split(r" {2,}", row)
    assert columns[:3] == [identity[:12], busybox, '"sleep 600"']
    assert re.fullmatch(r"(Less than a|\d+) seconds? ago", columns[3])
    assert re.fullmatch(r"Up (Less than a|\d+) seconds?", columns[4])
    assert re.fullmatch(r"127\.0\.0\.1:\d+->80/tcp", columns[5])
    assert columns[6] == "shown"


def test_ps_shows_the_running_only(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "up", busybox, "sleep", "600")
    docker("run", "--name", "down", busybox, "sh", "-c", "exit 3")
    docker.ok("create", "--name", "new", busybox)
    assert docker.ok("ps", "--format", "{{.Names}}") == "up"
    assert docker.ok("ps", "-a", "--format", "{{.Names}}").split() == ["new", "down", "up"]
    assert docker.ok("ps", "-n", "2", "--format", "{{.Names}}").split() == ["new", "down"]
    assert docker.ok("ps", "-l", "--format", "{{.Names}}") == "new"
    states = docker.ok("ps", "-a", "--format", "{{.Names}} {{.State}} {{.Status}}").splitlines()
    assert states[0] == "new created Created"
    assert re.fullmatch(r"down exited Exited \(3\) (Less than a|\d+) seconds? ago", states[1])


def test_ps_filters(docker: Cli, busybox: str) -> None:
    first = docker.ok(
        "run", "-d", "--name", "web-1", "-l", "tier=web", "-v", "data:/data", busybox, "sleep", "600"
    )
    docker.ok("run", "--name", "web-2", "-l", "tier=web", busybox, "true")
    docker("run", "--name", "job", "-l", "tier=job", busybox, "sh", "-c", "exit 4")

    def names(*filters: str) -> list[str]:
        flags = [word for each in filters for word in ("--filter", each)]
        return sorted(docker.ok("ps", "-a", "--format", "{{.Names}}", *flags).split())

    assert names("name=web") == ["web-1", "web-2"]
    assert names("name=^web-1$") == ["web-1"]
    assert names(f"id={first[:10]}") == ["web-1"]
    assert names("label=tier") == ["job", "web-1", "web-2"]
    assert names("label=tier=web") == ["web-1", "web-2"]
    assert names("status=running") == ["web-1"]
    assert names("status=exited", "exited=4") == ["job"]
    assert names("exited=0") == ["web-2"]
    assert names(f"ancestor={busybox}") == ["job", "web-1", "web-2"]
    assert names("ancestor=other") == []
    assert names("before=job") == ["web-1", "web-2"]
    assert names("since=web-1") == ["job", "web-2"]
    assert names("volume=data") == ["web-1"]
    assert names("volume=/data") == ["web-1"]
    assert names("network=bridge") == ["job", "web-1", "web-2"]
    assert names("name=web", "status=exited") == ["web-2"]
    assert docker("ps", "--filter", "nosuch=1").err == "Error response from daemon: invalid filter 'nosuch'\n"
    assert "invalid filter 'status=nosuch'" in docker("ps", "--filter", "status=nosuch").err


def test_ps_sizes(docker: Cli, busybox: str) -> None:
    docker.ok("run", "--name", "writer", busybox, "sh", "-c", "head -c 1000000 /dev/zero > /file")
    size = docker.ok("ps", "-a", "-s", "--format", "{{.Size}}")
    assert re.fullmatch(r"1MB \(virtual \d\.\d+MB\)", size)


def test_ps_long_commands_are_cut(docker: Cli, busybox: str) -> None:
    docker.ok("create", busybox, "echo", "a-rather-long-argument-indeed")
    assert docker.ok("ps", "-a", "--format", "{{.Command}}") == '"echo a-rather-long-…"'
    assert (
        docker.ok("ps", "-a", "--no-trunc", "--format", "{{.Command}}")
        == '"echo a-rather-long-argument-indeed"'
    )


# inspect


def test_inspect_shape(docker: Cli, busybox: str) -> None:
    identity = docker.ok("run", "-d", "--name", "seen", "-e", "A=1", "-p", "80", busybox, "sleep", "600")
    [found] = json.loads(docker.ok("inspect", "seen"))
    assert set(found) >= {
        *(
            "Id",
            "Created",
            "Path",
            "Args",
            "State",
            "Image",
            "ResolvConfPath",
            "HostnamePath",
            "HostsPath",
            "LogPath",
        ),
        *(
            "Name",
            "RestartCount",
            "Driver",
            "Platform",
            "MountLabel",
            "ProcessLabel",
            "AppArmorProfile",
            "ExecIDs",
        ),
        *("HostConfig", "GraphDriver", "Mounts", "Config", "NetworkSettings"),
    }
    assert (found["Id"], found["Name"], found["Path"], found["Args"]) == (identity, "/seen", "sleep", ["600"])
    assert found["Platform"] == "linux"
    assert found["Config"]["Env"][0] == "A=1"
    assert found["Config"]["Hostname"] == identity[:12]
    assert found["Config"]["Image"] == busybox
    assert found["Config"]["Cmd"] == ["sleep", "600"]
    assert found["Image"] == docker.ok("image", "inspect", "-f", "{{.Id}}", busybox)
    assert found["State"]["Running"]
    assert found["State"]["Pid"] > 0
    network = found["NetworkSettings"]["Networks"]["bridge"]
    assert re.fullmatch(r"\d+\.\d+\.\d+\.\d+", network["IPAddress"])
    assert re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", network["MacAddress"])
    assert found["NetworkSettings"]["Ports"]["80/tcp"][0]["HostIp"] == "0.0.0.0"


def test_host_config_defaults(docker: Cli, busybox: str) -> None:
    docker.ok("create", "--name", "plain", busybox)
    settings = json.loads(docker.ok("inspect", "-f", "{{json .HostConfig}}", "plain"))
    expected = {
        "Binds": None,
        "ContainerIDFile": "",
        "LogConfig": {"Type": "json-file", "Config": {}},
        "NetworkMode": "bridge",
        "PortBindings": {},
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "AutoRemove": False,
        "VolumeDriver": "",
        "VolumesFrom": None,
        "ConsoleSize": [0, 0],
        "CapAdd": None,
        "CapDrop": None,
        "Dns": [],
        "DnsOptions": [],
        "DnsSearch": [],
        "ExtraHosts": None,
        "GroupAdd": None,
        "IpcMode": "private",
        "Cgroup": "",
        "Links": None,
        "OomScoreAdj": 0,
        "PidMode": "",
        "Privileged": False,
        "PublishAllPorts": False,
        "ReadonlyRootfs": False,
        "SecurityOpt": None,
        "UTSMode": "",
        "UsernsMode": "",
        "ShmSize": 64 << 20,
        "Runtime": "runc",
        "Isolation": "",
        "CpuShares": 0,
        "Memory": 0,
        "NanoCpus": 0,
        "CgroupParent": "",
        "BlkioWeight": 0,
        "Devices": [],
        "DeviceCgroupRules": None,
        "MemoryReservation": 0,
        "MemorySwap": 0,
        "MemorySwappiness": None,
        "PidsLimit": None,
        "Ulimits": [],
    }
    del expected["Runtime"]
    assert {name: settings.get(name, "missing") for name in expected} == expected
    assert settings["CgroupnsMode"] in ("host", "private")
    assert "/proc/kcore" in settings["MaskedPaths"]
    assert "/proc/sys" in settings["ReadonlyPaths"]


def test_inspect_unknown(docker: Cli) -> None:
    result = docker("inspect", "nosuch")
    assert (result.code, result.out, result.err) == (1, "[]\n", "Error: No such object: nosuch\n")
    result = docker("container", "inspect", "nosuch")
    assert result.err == "Error response from daemon: No such container: nosuch\n"


def test_prefix_of_an_id(docker: Cli, busybox: str) -> None:
    identity = docker.ok("create", busybox)
    assert docker.ok("inspect", "-f", "{{.Id}}", identity[:5]) == identity


def test_inspect_size(docker: Cli, busybox: str) -> None:
    docker.ok("run", "--name", "writer", busybox, "sh", "-c", "head -c 5000 /dev/zero > /file")
    sizes = docker.ok("inspect", "-s", "-f", "{{.SizeRw}} {{.SizeRootFs}}", "writer").split()
    assert int(sizes[0]) >= 5000
    assert int(sizes[1]) > 1_000_000


# top, stats, port, diff


def test_top(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "busy", busybox, "sh", "-c", "sleep 601 & sleep 602; true")
    eventually(lambda: len(docker.ok("top", "busy").splitlines()) == 4)
    header, *rows = docker.ok("top", "busy").splitlines()
    assert header.split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert {row.split(maxsplit=7)[7] for row in rows} == {
        "sh -c sleep 601 & sleep 602; true",
        "sleep 601",
        "sleep 602",
    }
    header, *rows = docker.ok("top", "busy", "-o", "pid,args").splitlines()
    assert header.split() == ["PID", "COMMAND"]
    assert len(rows) == 3


def test_top_needs_a_running_container(docker: Cli, busybox: str) -> None:
    identity = docker.ok("create", "--name", "idle", busybox)
    result = docker("top", "idle")
    assert (result.code, result.err) == (
        1,
        f"Error response from daemon: container {identity} is not running\n",
    )


@pytest.mark.rootful("control groups")
def test_stats(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "busy", "-m", "64m", busybox, "sh", "-c", "while :; do :; done")
    row = json.loads(docker.ok("stats", "--no-stream", "--format", "json", "busy"))
    assert row["Name"] == "busy"
    assert float(row["CPUPerc"].rstrip("%")) > 10
    assert row["MemUsage"].endswith(" / 64MiB")
    assert int(row["PIDs"]) == 1
    assert re.fullmatch(r"[\d.]+k?M?B / [\d.]+k?M?B", row["NetIO"])


def test_port(docker: Cli, busybox: str) -> None:
    docker.ok(
        "run",
        "-d",
        "--name",
        "open",
        "-p",
        "127.0.0.1:0:80",
        "-p",
        "127.0.0.1:0:53/udp",
        busybox,
        "sleep",
        "600",
    )
    lines = docker.ok("port", "open").splitlines()
    assert re.fullmatch(r"53/udp -> 127\.0\.0\.1:\d+", lines[0])
    assert re.fullmatch(r"80/tcp -> 127\.0\.0\.1:\d+", lines[1])
    assert docker.ok("port", "open", "80") == lines[1].split(" -> ")[1]
    result = docker("port", "open", "81")
    assert (result.code, result.err) == (1, "Error: No public port '81' published for open\n")


def test_diff(docker: Cli, busybox: str) -> None:
    script = (
        "echo x > /new; echo y >> /etc/passwd; rm /etc/group; mkdir -p /var/a/b; rm -r /home; mkdir /home"
    )
    docker.ok("run", "--name", "changed", busybox, "sh", "-c", script)
    assert sorted(docker.ok("diff", "changed").splitlines()) == [
        *("A /new", "A /var/a", "A /var/a/b", "C /etc", "C /etc/passwd", "C /home", "C /var"),
        *("D /etc/group", "D /home/user"),
    ]
    assert docker.ok("run", "-d", "--name", "same", busybox, "true")
    docker.ok("wait", "same")
    assert docker.ok("diff", "same") == ""
