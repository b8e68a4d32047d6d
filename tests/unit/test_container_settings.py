"""Checks of settings, the merge with the image's, log options, and what older API versions mean."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from guest_agent.api.compatibility import adapt_create
from guest_agent.api.json_body import decode
from guest_agent.api.models import CreateContainer, plain, words
from guest_agent.engine.config import Config
from guest_agent.engine.container_config import (
    ContainerConfig,
    DeviceRequest,
    EndpointSettings,
    HealthConfig,
    HostConfig,
    LogConfig,
    Mount,
    PortBinding,
    Resources,
    RestartPolicy,
    Ulimit,
    VolumeOptions,
    WeightDevice,
)
from guest_agent.engine.log_config import log_spec, settle_log_config
from guest_agent.engine.merge import merge_image_config
from guest_agent.engine.units import ram_in_bytes
from guest_agent.engine.validate import (
    check_config,
    check_create,
    check_host_config,
    check_resources,
    parse_list,
)
from guest_agent.errors import EngineError, InvalidParameter

MIB = 1 << 20


def message(check: Any, *arguments: Any) -> str:
    with pytest.raises(EngineError) as caught:
        check(*arguments)
    return caught.value.message


@pytest.mark.parametrize(
    ("config", "host", "text"),
    [
        (
            {"hostname": "x"},
            {"network_mode": "container:y"},
            "conflicting options: hostname and the network mode",
        ),
        (
            {},
            {"network_mode": "container:"},
            "invalid network mode: invalid container format container:<name|id>",
        ),
        (
            {},
            {"network_mode": "container:y", "dns": ["1.1.1.1"]},
            "conflicting options: dns and the network mode",
        ),
        (
            {},
            {"network_mode": "container:y", "publish_all_ports": True},
            "conflicting options: port publishing and the container type network mode",
        ),
        ({"hostname": "x"}, {"uts_mode": "host"}, "conflicting options: hostname and the UTS mode"),
        ({}, {"isolation": "hyperv"}, "invalid isolation (hyperv): linux only supports 'default'"),
        ({}, {"cpu_shares": -1}, "invalid CPU shares (-1): value must be a positive integer"),
    ],
)
def test_settings_that_exclude_each_other(config: dict[str, Any], host: dict[str, Any], text: str) -> None:
    assert message(check_create, ContainerConfig(**config), HostConfig(**host)) == text


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"hostname": "h" * 65}, f'hostname "{"h" * 65}" is too long (maximum 64 bytes)'),
        ({"working_dir": "a"}, "the working directory 'a' is invalid, it needs to be an absolute path"),
        ({"stop_signal": "NOSUCH"}, "invalid signal: NOSUCH"),
        ({"env": ["=x"]}, "invalid environment variable: =x"),
        ({"exposed_ports": {"0/tcp": {}}}, 'invalid port specification: "0/tcp"'),
        ({"exposed_ports": {"80/sctp": {}}}, 'port "80/sctp": SCTP ports are not supported'),
        ({"healthcheck": HealthConfig(interval=5)}, "Interval in Healthcheck cannot be less than 1ms"),
        ({"healthcheck": HealthConfig(start_period=5)}, "StartPeriod in Healthcheck cannot be less than 1ms"),
        ({"healthcheck": HealthConfig(retries=-1)}, "Retries in Healthcheck cannot be negative"),
    ],
)
def test_configurations_that_are_wrong(config: dict[str, Any], text: str) -> None:
    assert message(check_config, ContainerConfig(**config)) == text


@pytest.mark.parametrize(
    ("host", "text"),
    [
        (
            {"auto_remove": True, "restart_policy": RestartPolicy("always")},
            "can't create 'AutoRemove' container with restart policy",
        ),
        (
            {"restart_policy": RestartPolicy("odd")},
            "invalid restart policy: unknown policy 'odd'; "
            "use one of 'no', 'always', 'on-failure', or 'unless-stopped'",
        ),
        (
            {"restart_policy": RestartPolicy("always", 3)},
            "invalid restart policy: maximum retry count can only be used with 'on-failure'",
        ),
        ({"extra_hosts": ["nocolon"]}, 'bad format for add-host: "nocolon"'),
        ({"extra_hosts": ["a:1.2.3"]}, 'invalid IP address in add-host: "1.2.3"'),
        ({"cap_add": ["nosuch"]}, 'invalid CapAdd: unknown capability: "CAP_NOSUCH"'),
        ({"ipc_mode": "odd"}, "invalid IPC mode: odd"),
        ({"pid_mode": "odd"}, "invalid PID mode: odd"),
        ({"uts_mode": "odd"}, "invalid UTS mode: odd"),
        ({"cgroupns_mode": "odd"}, "invalid cgroup namespace mode: odd"),
        ({"runtime": "kata"}, "unknown or invalid runtime name: kata"),
        (
            {"device_requests": [DeviceRequest(count=-1, capabilities=[["gpu"]])]},
            'could not select device driver "" with capabilities: [[gpu]]',
        ),
        ({"oom_score_adj": 1001}, "Invalid value 1001, range for oom score adj is [-1000, 1000]"),
        ({"ulimits": [Ulimit("odd", 1, 1)]}, "invalid ulimit type: odd"),
        (
            {"port_bindings": {"80/tcp": [PortBinding("", "90-80")]}},
            'invalid port specification: "90-80"',
        ),
        ({"tmpfs": {"x": ""}}, "invalid mount path: 'x' mount path must be absolute"),
        ({"kernel_memory": 5}, "kernel memory limits (KernelMemory) are not supported: Linux dropped them"),
        ({"storage_opt": {"odd": "1"}}, "Unknown option odd"),
    ],
)
def test_host_settings_that_are_wrong(host: dict[str, Any], text: str) -> None:
    assert message(check_host_config, HostConfig(**host), {}) == text


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ({"memory": 5 * MIB}, "Minimum memory limit allowed is 6MB"),
        (
            {"memory": 8 * MIB, "memory_swap": 7 * MIB},
            "Minimum memoryswap limit should be larger than memory limit, see usage",
        ),
        (
            {"memory_swap": 7 * MIB},
            "You should always set the Memory limit when using Memoryswap limit, see usage",
        ),
        ({"memory_swappiness": 101}, "Invalid value: 101, valid memory swappiness range is 0-100"),
        (
            {"nano_cpus": 1, "cpu_period": 1000},
            "Conflicting options: Nano CPUs and CPU Period cannot both be set",
        ),
        ({"cpu_quota": 999}, "CPU cfs quota can not be less than 1ms (i.e. 1000)"),
        ({"cpuset_cpus": "x"}, "Invalid value x for cpuset cpus: invalid format: x"),
        ({"blkio_weight": 5}, "Range of blkio weight is from 10 to 1000"),
    ],
)
def test_limits_that_are_wrong(wanted: dict[str, Any], text: str) -> None:
    assert message(check_resources, Resources(**wanted), {}) == text


def test_limits_the_kernel_lacks_are_dropped_with_a_warning() -> None:
    wanted = Resources(memory=64 * MIB, pids_limit=5)
    warnings = check_resources(wanted, {"memory_limit": False, "pids_limit": False})
    assert (wanted.memory, wanted.memory_swap, wanted.pids_limit) == (0, -1, None)
    assert [text.partition(".")[0] for text in warnings] == [
        "Your kernel does not support memory limit capabilities or the cgroup is not mounted",
        "Your kernel does not support PIDs limit capabilities or the cgroup is not mounted",
    ]


def test_a_weight_for_a_device_that_cannot_have_one_is_dropped_with_a_warning() -> None:
    wanted = Resources(blkio_weight_device=[WeightDevice(path="/dev/null", weight=300)])
    assert not check_resources(wanted, {"blkio_weight_device": True})
    assert wanted.blkio_weight_device
    assert check_resources(wanted, {"blkio_weight_device": True, "blkio_bfq": True}) == [
        "Your kernel does not support Block I/O weight_device or the cgroup is not mounted. "
        "Weight-device discarded."
    ]
    assert wanted.blkio_weight_device == []


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("0", 0), ("512", 512), ("1.5g", 3 << 29), ("1 GB", 1 << 30), ("1kib", 1 << 10), ("5 ", 5)),
        *((".5k", 512), ("+5", 5), ("1e3", 1000), ("12b", 12), ("2TB", 2 << 40)),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert ram_in_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("abc", "invalid size: 'abc'"),
        ("", "invalid size: ''"),
        ("-1", "invalid size: '-1'"),
        ("1x", "invalid suffix: 'x'"),
        ("1ki", "invalid suffix: 'ki'"),
        ("1bb", "invalid suffix: 'bb'"),
        ("1,5k", 'strconv.ParseFloat: parsing "1,5": invalid syntax'),
        (" 5", 'strconv.ParseFloat: parsing " 5": invalid syntax'),
        ("1  k", 'strconv.ParseFloat: parsing "1 ": invalid syntax'),
        ("1_000", 'strconv.ParseFloat: parsing "1_000": invalid syntax'),
        ("1e999", "invalid size: '1e999'"),
    ],
)
def test_sizes_that_are_wrong(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=re.escape(error) + "$"):
        ram_in_bytes(text)


def test_cpu_lists() -> None:
    assert parse_list("0-2,5") == {0, 1, 2, 5}
    for text in ("2-1", "a", "0-99999"):
        with pytest.raises(ValueError, match=r".*"):
            parse_list(text)


IMAGE = {
    "User": "u",
    "Env": ["A=image", "B=image"],
    "Entrypoint": ["/entry"],
    "Cmd": ["image"],
    "Labels": {"l": "image", "m": "image"},
    "WorkingDir": "/w",
    "ExposedPorts": {"80/tcp": {}},
    "Volumes": {"/v": {}},
    "StopSignal": "SIGINT",
    "Healthcheck": {"Test": ["CMD", "x"], "Interval": 5_000_000_000},
}


def merged(**config: Any) -> ContainerConfig:
    value = ContainerConfig(**config)
    merge_image_config(value, IMAGE)
    return value


def test_the_image_fills_in_what_was_left_open() -> None:
    value = merged(env=["A=mine"], labels={"l": "mine"})
    assert (value.user, value.working_dir, value.stop_signal) == ("u", "/w", "SIGINT")
    assert value.env == ["A=mine", "B=image"]
    assert value.labels == {"l": "mine", "m": "image"}
    assert (value.entrypoint, value.cmd) == (["/entry"], ["image"])
    assert (value.exposed_ports, value.volumes) == ({"80/tcp": {}}, {"/v": {}})


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "result"),
    [
        (None, ["mine"], (["/entry"], ["mine"])),
        (["/mine"], None, (["/mine"], None)),
        (["/mine"], ["a"], (["/mine"], ["a"])),
        ([""], ["a"], (None, ["a"])),
    ],
)
def test_entrypoint_and_command(
    entrypoint: list[str] | None, cmd: list[str] | None, result: tuple[Any, Any]
) -> None:
    value = merged(entrypoint=entrypoint, cmd=cmd)
    assert (value.entrypoint, value.cmd) == result


def test_nothing_to_run() -> None:
    with pytest.raises(InvalidParameter, match="no command specified"):
        merge_image_config(ContainerConfig(), {})


def test_health_checks_are_merged_field_by_field() -> None:
    value = merged(healthcheck=HealthConfig(retries=7)).healthcheck
    assert value == HealthConfig(["CMD", "x"], 5_000_000_000, retries=7)


def test_log_options() -> None:
    settled = settle_log_config(LogConfig("", {"max-size": "10k", "max-file": "3"}), Config())
    assert settled.type == "json-file"
    spec = log_spec(settled, ContainerConfig(), "/log", {})
    assert spec is not None
    assert (spec.path, spec.max_size, spec.max_files) == ("/log", 10_000, 3)
    assert log_spec(LogConfig("none"), ContainerConfig(), "/log", {}) is None


def test_labels_and_variables_in_the_log() -> None:
    log = LogConfig("json-file", {"labels": "a,none", "env-regex": "^V"})
    config = ContainerConfig(labels={"a": "1", "b": "2"}, env=["V1=x", "W=y"])
    spec = log_spec(log, config, "/log", {})
    assert spec is not None
    assert spec.attrs == {"a": "1", "V1": "x"}


def test_log_tags() -> None:
    log = LogConfig("json-file", {"tag": "{{.Name}}/{{ .ID }}"})
    spec = log_spec(log, ContainerConfig(), "/log", {"Name": "one", "ID": "ab"})
    assert spec is not None
    assert spec.attrs == {"tag": "one/ab"}


def test_the_local_driver_rotates_by_itself() -> None:
    log = settle_log_config(LogConfig("local", {"max-file": "3", "mode": "non-blocking"}), Config())
    assert log == LogConfig("local", {"max-file": "3", "mode": "non-blocking"})
    spec = log_spec(log, ContainerConfig(), "/log", {})
    assert spec is not None
    assert (spec.max_size, spec.max_files, spec.compress) == (20_000_000, 3, True)


@pytest.mark.parametrize(
    ("log", "text"),
    [
        (LogConfig("json-file", {"tag": "{{.Odd}}"}), "invalid log tag: {{.Odd}} is not a field"),
        (LogConfig("splunk"), "logger: no log driver named 'splunk' is registered"),
        (LogConfig("odd"), 'error looking up logging plugin odd: plugin "odd" not found'),
        (LogConfig("local", {"tag": "x"}), "unknown log opt 'tag' for log driver local"),
        (LogConfig("local", {"max-size": "x"}), "invalid size: 'x'"),
        (
            LogConfig("json-file", {"max-buffer-size": "1m"}),
            "logger: max-buffer-size option is only supported with 'mode=non-blocking'",
        ),
        (
            LogConfig("json-file", {"mode": "non-blocking", "max-buffer-size": "x"}),
            "error parsing option max-buffer-size: invalid size: 'x'",
        ),
        (LogConfig("json-file", {"mode": "odd"}), "logger: logging mode not supported: odd"),
        (LogConfig("json-file", {"odd": "1"}), "unknown log opt 'odd' for json-file log driver"),
        (LogConfig("json-file", {"max-size": "x"}), "invalid size: 'x'"),
        (LogConfig("json-file", {"max-file": "0"}), "max-file cannot be less than 1"),
        (
            LogConfig("json-file", {"compress": "true"}),
            "compress cannot be true when max-file is less than 2 or max-size is not set",
        ),
    ],
)
def test_log_options_that_are_wrong(log: LogConfig, text: str) -> None:
    assert message(settle_log_config, log, Config()) == text


def body(value: dict[str, Any]) -> CreateContainer:
    return decode(msgspec.json.encode(value), "application/json", CreateContainer, False)


def test_create_body_as_the_docker_cli_sends_it() -> None:
    value = body(
        {
            "Hostname": "",
            "Env": None,
            "Cmd": "sh",
            "Entrypoint": None,
            "ExposedPorts": {"80/tcp": {}},
            "HostConfig": {
                "Binds": None,
                "PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}], "81/tcp": None},
                "ConsoleSize": [24, 80],
                "BlkioDeviceReadIOps": [{"Path": "/dev/sda", "Rate": 5}],
                "UTSMode": "host",
                "OomKillDisable": False,
            },
            "NetworkingConfig": {"EndpointsConfig": {"net": {"IPAMConfig": {"IPv4Address": "10.0.0.2"}}}},
        }
    )
    assert words(value.cmd) == ["sh"]
    host = plain(value.host_config, HostConfig)
    assert host.port_bindings == {"80/tcp": [PortBinding("", "8080")], "81/tcp": None}
    assert host.console_size == (24, 80)
    assert host.blkio_device_read_iops is not None
    assert host.uts_mode == "host"
    endpoint = value.networking_config.endpoints_config["net"]
    assert endpoint is not None
    assert endpoint.ipam_config is not None
    assert endpoint.ipam_config.ipv4_address == "10.0.0.2"


def test_a_field_of_the_wrong_type_is_named() -> None:
    with pytest.raises(InvalidParameter, match=r"HostConfig\.Memory"):
        body({"HostConfig": {"Memory": "much"}})


def test_wire_names_survive_a_round_trip() -> None:
    host = HostConfig(io_maximum_iops=1, kernel_memory_tcp=2, dns_options=["x"], cpuset_mems="0")
    wire = msgspec.to_builtins(host)
    assert {"IOMaximumIOps", "KernelMemoryTCP", "DnsOptions", "CpusetMems", "ReadonlyRootfs"} <= wire.keys()
    assert msgspec.convert(wire, HostConfig) == host


def test_read_only_binds_are_plain_before_1_44() -> None:
    assert adapt_create(body({}), {}, (1, 43))[1]
    assert not adapt_create(body({}), {}, (1, 44))[1]


def test_several_networks_need_1_44() -> None:
    endpoints = {"a": EndpointSettings(), "b": EndpointSettings()}
    with pytest.raises(InvalidParameter, match="multiple network endpoints"):
        adapt_create(body({}), dict(endpoints), (1, 43))
    adapt_create(body({}), dict(endpoints), (1, 44))


def test_the_containers_mac_address_becomes_its_endpoints() -> None:
    endpoints: dict[str, EndpointSettings] = {}
    warnings, _ = adapt_create(body({"MacAddress": "02:00:00:00:00:01"}), endpoints, (1, 51))
    assert endpoints["bridge"].mac_address == "02:00:00:00:00:01"
    assert "MacAddress field is now deprecated" in warnings[0]


def test_options_that_came_later_are_refused_for_older_clients() -> None:
    request = body({})
    request.host_config.mounts = [Mount("volume", "v", "/x", volume_options=VolumeOptions(subpath="a"))]
    assert message(adapt_create, request, {}, (1, 44)) == "VolumeOptions.Subpath needs API v1.45 or newer"
    request.host_config.mounts = [Mount("image", "i", "/x")]
    assert message(adapt_create, request, {}, (1, 47)) == 'Mount type "Image" needs API v1.48 or newer'
    request.host_config.mounts = [Mount("bind", "/", "/x", volume_options=VolumeOptions())]
    assert message(adapt_create, request, {}, (1, 42)) == (
        'VolumeOptions must not be specified on mount type "bind"'
    )


def test_sysctls_of_interfaces_move_to_the_endpoint() -> None:
    request = body({"HostConfig": {"Sysctls": {"net.ipv6.conf.eth0.forwarding": "1", "net.x": "2"}}})
    endpoints: dict[str, EndpointSettings] = {}
    adapt_create(request, endpoints, (1, 47))
    assert request.host_config.sysctls == {"net.x": "2"}
    assert endpoints["bridge"].driver_opts == {
        "com.docker.network.endpoint.sysctls": "net.ipv6.conf.IFNAME.forwarding=1"
    }
    request.host_config.sysctls = {"net.ipv6.conf.eth0.forwarding": "1"}
    with pytest.raises(InvalidParameter, match="must be supplied using driver option"):
        adapt_create(request, {}, (1, 48))
