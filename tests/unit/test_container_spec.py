"""OCI configurations against what dockerd 20.10 hands to runc for the same request."""

from __future__ import annotations

from typing import Any

import pytest

from guest_agent.engine.container import Record
from guest_agent.engine.container_config import (
    ContainerConfig,
    DeviceMapping,
    HostConfig,
    ThrottleDevice,
    Ulimit,
)
from guest_agent.engine.security import parse_security_options
from guest_agent.engine.spec import Surroundings, merge_environment, oci_config
from guest_agent.engine.spec_mounts import BindMount
from guest_agent.errors import InvalidParameter, NotSupported
from guest_agent.runtime import capabilities

ID = "ab" * 32
FILES = {f"/etc/{name}": f"/data/{name}" for name in ("resolv.conf", "hostname", "hosts")}


def spec(
    config: dict[str, Any] | None = None,
    host: dict[str, Any] | None = None,
    around: Surroundings | None = None,
) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "network_mode": "bridge",
        "ipc_mode": "private",
        "cgroupns_mode": "host",
        "shm_size": 64 << 20,
    }
    record = Record(
        id=ID,
        name="one",
        created=1,
        image_id="sha256:0",
        config=ContainerConfig(**({"hostname": "host1"} | (config or {}))),
        host_config=HostConfig(**(settings | (host or {}))),
        path="sleep",
        args=["1"],
    )
    security = parse_security_options(record.host_config.security_opt or (), False, False)
    return oci_config(record, security, around or Surroundings(network_files=FILES))


def mount(value: dict[str, Any], destination: str) -> dict[str, Any]:
    found = [each for each in value["mounts"] if each["destination"] == destination]
    assert len(found) == 1, f"{destination} is mounted {len(found)} times"
    result: dict[str, Any] = found[0]
    return result


def namespaces(value: dict[str, Any]) -> dict[str, str]:
    return {each["type"]: each.get("path", "") for each in value["linux"]["namespaces"]}


def test_defaults_are_dockers() -> None:
    value = spec()
    assert value["process"]["args"] == ["sleep", "1"]
    assert value["process"]["env"] == [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOSTNAME=host1",
    ]
    assert value["process"]["cwd"] == "/"
    assert value["hostname"] == "host1"
    assert namespaces(value) == dict.fromkeys(("mount", "network", "uts", "pid", "ipc"), "")
    assert value["linux"]["cgroupsPath"] == f"/wherry/{ID}"
    assert value["linux"]["sysctl"] == {
        "net.ipv4.ip_unprivileged_port_start": "0",
        "net.ipv4.ping_group_range": "0 2147483647",
    }
    assert [each["destination"] for each in value["mounts"]] == [
        *("/proc", "/dev", "/dev/pts", "/sys", "/sys/fs/cgroup", "/dev/mqueue", "/dev/shm"),
        *("/etc/resolv.conf", "/etc/hostname", "/etc/hosts"),
    ]
    assert mount(value, "/dev/shm")["options"] == ["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]
    assert mount(value, "/sys")["options"] == ["nosuid", "noexec", "nodev", "ro"]


def test_default_device_rules_are_dockers() -> None:
    rules = spec()["linux"]["resources"]["devices"]
    assert rules[0] == {"allow": False, "access": "rwm"}
    assert [(each["allow"], each["type"], each["major"], each["minor"]) for each in rules[1:]] == [
        *((True, "c", 1, minor) for minor in (5, 3, 9, 8)),
        *((True, "c", 5, minor) for minor in (0, 1)),
        (False, "c", 10, 229),
    ]


def test_default_capabilities_are_fourteen_and_none_is_inheritable() -> None:
    value = spec()["process"]["capabilities"]
    assert len(value["bounding"]) == 14
    assert value["bounding"] == value["effective"] == value["permitted"] == list(capabilities.DEFAULT)
    assert "inheritable" not in value  # CVE-2022-24769
    assert "ambient" not in value


@pytest.mark.parametrize(
    ("add", "drop", "has", "lacks"),
    [
        (["NET_ADMIN"], None, "CAP_NET_ADMIN", "CAP_SYS_ADMIN"),
        (["cap_net_admin"], ["CHOWN"], "CAP_NET_ADMIN", "CAP_CHOWN"),
        (["ALL"], ["NET_RAW"], "CAP_NET_ADMIN", "CAP_NET_RAW"),
        (["CHOWN"], ["all"], "CAP_CHOWN", "CAP_KILL"),
    ],
)
def test_capabilities(add: list[str], drop: list[str] | None, has: str, lacks: str) -> None:
    bounding = spec(host={"cap_add": add, "cap_drop": drop})["process"]["capabilities"]["bounding"]
    assert has in bounding
    assert lacks not in bounding


def test_privileged_has_everything() -> None:
    value = spec(host={"privileged": True, "masked_paths": ["/proc/kcore"]})
    assert value["process"]["capabilities"]["bounding"] == list(capabilities.ALL)
    assert value["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert value["linux"]["maskedPaths"] == value["linux"]["readonlyPaths"] == []
    assert "ro" not in mount(value, "/sys")["options"]
    assert "ro" not in mount(value, "/sys/fs/cgroup")["options"]
    assert "/dev/null" in [each["path"] for each in value["linux"]["devices"]]


def test_host_namespaces_are_not_made() -> None:
    modes = {"network_mode": "host", "pid_mode": "host", "uts_mode": "host", "ipc_mode": "host"}
    value = spec(host=modes, around=Surroundings(shm="/dev/shm"))
    assert namespaces(value) == {"mount": ""}
    assert "hostname" not in value
    assert value["linux"]["sysctl"] == {}
    assert mount(value, "/dev/shm")["source"] == "/dev/shm"


def test_joined_namespaces_have_paths() -> None:
    modes = {"network_mode": f"container:{ID}", "pid_mode": f"container:{ID}"}
    around = Surroundings(namespaces={"network": "/proc/7/ns/net", "pid": "/proc/7/ns/pid"})
    value = namespaces(spec(host=modes, around=around))
    assert (value["network"], value["pid"]) == ("/proc/7/ns/net", "/proc/7/ns/pid")


def test_read_only_root_leaves_proc_and_dev_writable() -> None:
    value = spec(host={"readonly_rootfs": True, "tmpfs": {"/run": "size=1m,exec"}})
    assert value["root"]["readonly"] is True
    for path in ("/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/run"):
        assert "ro" not in mount(value, path)["options"], path
    for path in ("/sys", "/etc/hosts"):
        assert "ro" in mount(value, path)["options"], path
    assert mount(value, "/run")["options"] == ["nosuid", "nodev", "rprivate", "size=1m", "exec"]


def test_mounts_are_made_parents_first_and_defaults_give_way() -> None:
    binds = [BindMount("/a", "/mnt/a/b", writable=False), BindMount("/b", "/mnt"), BindMount("/c", "/dev")]
    binds.append(BindMount("/h", "/etc/hosts"))
    value = spec(around=Surroundings(binds=binds, network_files=FILES))
    order = [each["destination"] for each in value["mounts"]]
    assert order.index("/mnt") < order.index("/mnt/a/b")
    assert mount(value, "/dev")["source"] == "/c"
    assert not [path for path in order if path.startswith("/dev/")]
    assert mount(value, "/etc/hosts")["source"] == "/h"
    assert mount(value, "/mnt/a/b")["options"] == ["rbind", "rro"]


def test_plain_and_recursive_read_only() -> None:
    binds = [BindMount("/a", "/x", writable=False, recursive=False, read_only_recursive=False)]
    value = spec(around=Surroundings(binds=binds))
    assert mount(value, "/x")["options"] == ["bind", "ro"]


def test_resources() -> None:
    value = spec(
        host={
            "memory": 64 << 20,
            "memory_swap": 128 << 20,
            "memory_reservation": 10 << 20,
            "nano_cpus": 500_000_000,
            "cpu_shares": 10,
            "cpuset_cpus": "0",
            "pids_limit": 7,
            "blkio_weight": 100,
            "blkio_device_read_bps": [ThrottleDevice("/dev/null", 1024)],
            "oom_kill_disable": True,
        }
    )["linux"]["resources"]
    assert value["memory"] == {
        "limit": 64 << 20,
        "swap": 128 << 20,
        "reservation": 10 << 20,
        "disableOOMKiller": True,
    }
    assert value["cpu"] == {"shares": 10, "cpus": "0", "period": 100_000, "quota": 50_000}
    assert value["pids"] == {"limit": 7}
    assert value["blockIO"] == {
        "weight": 100,
        "throttleReadBpsDevice": [{"major": 1, "minor": 3, "rate": 1024}],
    }


def test_limits_that_are_not_given_are_not_there() -> None:
    assert set(spec()["linux"]["resources"]) == {"devices"}


def test_devices_and_their_rules() -> None:
    value = spec(
        host={
            "devices": [DeviceMapping("/dev/zero", "/dev/zz", "r")],
            "device_cgroup_rules": ["c 13:* rwm"],
        }
    )["linux"]
    assert [(each["path"], each["type"], each["major"], each["minor"]) for each in value["devices"]] == [
        ("/dev/zz", "c", 1, 5)
    ]
    assert value["resources"]["devices"][-2:] == [
        {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "r"},
        {"allow": True, "type": "c", "major": 13, "minor": -1, "access": "rwm"},
    ]


@pytest.mark.parametrize(
    ("host", "text"),
    [
        (
            {"devices": [DeviceMapping("/dev/nonesuch", "/dev/x", "rwm")]},
            'error gathering device information while adding custom device "/dev/nonesuch": '
            "no such file or directory",
        ),
        (
            {"devices": [DeviceMapping("/etc/passwd", "/dev/x", "rwm")]},
            'error gathering device information while adding custom device "/etc/passwd": not a device node',
        ),
        ({"device_cgroup_rules": ["c 1:1 x"]}, "invalid device cgroup rule format: 'c 1:1 x'"),
        ({"tmpfs": {"/x": "nosuchoption=1"}}, 'invalid tmpfs option "nosuchoption"'),
        ({"sysctls": {"kernel.foo": "1"}}, 'sysctl "kernel.foo" is not in a separate kernel namespace'),
        (
            {"sysctls": {"net.ipv4.ip_forward": "1"}, "network_mode": "host"},
            'sysctl "net.ipv4.ip_forward" not allowed in host network namespace',
        ),
        (
            {"sysctls": {"kernel.msgmax": "1"}, "ipc_mode": "host"},
            'sysctl "kernel.msgmax" is not allowed in the hosts ipc namespace',
        ),
    ],
)
def test_refusals(host: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        spec(host=host)
    assert caught.value.message == text


def test_sysctls_of_own_namespaces_are_set() -> None:
    wanted = {"kernel.msgmax": "1", "fs.mqueue.msg_max": "2", "net.ipv4.ip_forward": "1"}
    assert wanted.items() <= spec(host={"sysctls": wanted})["linux"]["sysctl"].items()


def test_process_settings() -> None:
    value = spec(
        {"tty": True, "user": "1:2", "working_dir": "/a/b", "env": ["A=b", "HOSTNAME=x"]},
        {
            "ulimits": [Ulimit("nofile", hard=200, soft=100), Ulimit("core", hard=-1, soft=-1)],
            "oom_score_adj": 100,
            "security_opt": ["no-new-privileges"],
            "group_add": ["5", "video"],
            "init": True,
            "console_size": (24, 80),
        },
    )["process"]
    assert value["user"] == {"name": "1:2", "groups": ["5", "video"]}
    assert value["cwd"] == "/a/b"
    assert value["env"][1:] == ["HOSTNAME=x", "TERM=xterm", "A=b"]
    unlimited = (1 << 64) - 1
    assert value["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        {"type": "RLIMIT_CORE", "soft": unlimited, "hard": unlimited},
    ]
    assert value["oomScoreAdj"] == 100
    assert value["noNewPrivileges"] is True
    assert value["init"] is True
    assert value["consoleSize"] == {"height": 24, "width": 80}


def test_no_init_in_a_shared_pid_namespace() -> None:
    assert "init" not in spec(host={"init": True, "pid_mode": "host"})["process"]


def test_cgroup_parent() -> None:
    for given, path in (("/own", "/own"), ("a/../../own", "/own"), ("", "/wherry"), ("/", "")):
        assert spec(host={"cgroup_parent": given})["linux"]["cgroupsPath"] == f"{path}/{ID}"


def test_environment_entries_without_a_value_remove() -> None:
    assert merge_environment(["A=1", "B=2"], ["A", "C=3", "B=4"]) == ["B=4", "C=3"]


@pytest.mark.parametrize(
    ("option", "error", "text"),
    [
        ("nonsense", InvalidParameter, 'invalid --security-opt 1: "nonsense"'),
        ("a=b", InvalidParameter, 'invalid --security-opt 2: "a=b"'),
        ("no-new-privileges=maybe", InvalidParameter, 'invalid --security-opt 2: "no-new-privileges=maybe"'),
        ("seccomp={", InvalidParameter, "Decoding seccomp profile failed"),
    ],
)
def test_security_options_are_refused_by_name(option: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text.replace("{", r"\{").split(":")[0]):
        parse_security_options([option], apparmor=False, no_new_privileges=False)


def test_what_this_kernel_has_no_use_for_is_discarded_with_a_warning() -> None:
    options = ["label=type:x", "apparmor=docker-default", "apparmor=own"]
    value = parse_security_options(options, False, False)
    assert value.discarded == [
        "label=type:x discarded: SELinux is not enabled in this kernel.",
        "apparmor=docker-default discarded: AppArmor is not enabled in this kernel.",
        "apparmor=own discarded: AppArmor is not enabled in this kernel.",
    ]
    assert value.apparmor == ""
    with pytest.raises(NotSupported, match="label=type:x"):
        parse_security_options(["label=type:x"], False, False, selinux=True)
    assert parse_security_options(["apparmor=docker-default"], True, False).apparmor == "docker-default"


def test_security_options() -> None:
    options = ["seccomp=unconfined", "apparmor=unconfined", "label=disable", "no-new-privileges:true"]
    value = parse_security_options(options, apparmor=False, no_new_privileges=False)
    assert value.seccomp_unconfined
    assert value.no_new_privileges
    profile = parse_security_options(['seccomp={"defaultAction":"SCMP_ACT_ALLOW"}'], False, True)
    assert profile.seccomp == {"defaultAction": "SCMP_ACT_ALLOW"}
    assert profile.no_new_privileges
