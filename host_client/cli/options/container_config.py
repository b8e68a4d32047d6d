"""From the flags of `run` and `create` to the body of `POST /containers/create`, field for field as docker
sends it.
"""

from __future__ import annotations

import os

from host_client.cli.options.networks import endpoints, valid_mac

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from host_client.cli.flags import Parsed


def create_body(parsed: Parsed, image: str, arguments: list[str], environment: list[str]) -> dict[str, Any]:
    """The request body. `environment` is the value of `--env` after the proxies of the configuration were
    added.

    Raises:
        ValueError: a value is wrong or contradicts another; docker's words.
    """
    attached = parsed["attach"]
    stdin = parsed["interactive"]
    attach_stdin = stdin or "stdin" in attached
    if parsed["mac-address"] and not valid_mac(parsed["mac-address"].strip()):
        raise ValueError(f"{parsed['mac-address']} is not a valid mac address")
    swappiness = parsed["memory-swappiness"]
    if swappiness != -1 and not 0 <= swappiness <= 100:
        raise ValueError(f"invalid value: {swappiness}. Valid memory swappiness range is 0-100")
    binds, volumes = _volumes(parsed["volume"])
    bindings, exposed = _ports(parsed)
    devices, requests = _devices(parsed["device"], parsed["gpus"])
    variables = read_pairs(parsed["env-file"], os.environ) + environment
    labels = read_pairs(parsed["label-file"], None) + parsed["label"]
    _check_namespaces(parsed)
    policy = restart_policy(parsed["restart"])
    log_options = _log_options(parsed)
    security, masked = _security(parsed["security-opt"])
    storage = _storage_options(parsed["storage-opt"])
    health = _health(parsed)
    if parsed["rm"] and policy["Name"] not in ("no", ""):
        raise ValueError("conflicting options: cannot specify both --restart and --rm")
    body: dict[str, Any] = {
        "Hostname": parsed["hostname"],
        "Domainname": parsed["domainname"],
        "User": parsed["user"],
        "AttachStdin": attach_stdin,
        "AttachStdout": not attached or "stdout" in attached,
        "AttachStderr": not attached or "stderr" in attached,
        "Tty": parsed["tty"],
        "OpenStdin": stdin,
        "StdinOnce": stdin and attach_stdin,
        "Env": variables or None,
        "Cmd": arguments or None,
        "Image": image,
        "Volumes": {path: {} for path in volumes},
        "WorkingDir": parsed["workdir"],
        "Entrypoint": [parsed["entrypoint"]] if "entrypoint" in parsed.given else None,
        "OnBuild": None,
        "Labels": _pairs(labels),
    }
    if exposed:
        body["ExposedPorts"] = {port: {} for port in exposed}
    if parsed["stop-signal"]:
        body["StopSignal"] = parsed["stop-signal"]
    if "stop-timeout" in parsed.given:
        body["StopTimeout"] = parsed["stop-timeout"]
    if health is not None:
        body["Healthcheck"] = health
    host: dict[str, Any] = {
        "Binds": binds or None,
        "ContainerIDFile": parsed["cidfile"],
        "LogConfig": {"Type": parsed["log-driver"], "Config": log_options},
        "NetworkMode": parsed["network"][0].target if parsed["network"] else "default",
        "PortBindings": bindings,
        "RestartPolicy": policy,
        "AutoRemove": parsed["rm"],
        "VolumeDriver": parsed["volume-driver"],
        "VolumesFrom": parsed["volumes-from"] or None,
        "ConsoleSize": [0, 0],
        "CapAdd": parsed["cap-add"] or None,
        "CapDrop": parsed["cap-drop"] or None,
        "CgroupnsMode": parsed["cgroupns"],
        "Dns": parsed["dns"],
        "DnsOptions": parsed["dns-option"],
        "DnsSearch": parsed["dns-search"],
        "ExtraHosts": parsed["add-host"] or None,
        "GroupAdd": parsed["group-add"] or None,
        "IpcMode": parsed["ipc"],
        "Cgroup": "",
        "Links": parsed["link"] or None,
        "OomScoreAdj": parsed["oom-score-adj"],
        "PidMode": parsed["pid"],
        "Privileged": parsed["privileged"],
        "PublishAllPorts": parsed["publish-all"],
        "ReadonlyRootfs": parsed["read-only"],
        "SecurityOpt": security,
        "UTSMode": parsed["uts"],
        "UsernsMode": parsed["userns"],
        "ShmSize": parsed["shm-size"],
        "Isolation": parsed["isolation"],
        **_resources(parsed, devices, requests),
        "MaskedPaths": [] if masked else None,
        "ReadonlyPaths": [] if masked else None,
    }
    for name, value in (
        ("Annotations", parsed["annotation"]),
        ("StorageOpt", storage),
        ("Tmpfs", dict(item.partition(":")[::2] for item in parsed["tmpfs"])),
        ("Sysctls", parsed["sysctl"]),
        ("Runtime", parsed["runtime"]),
        ("Mounts", parsed["mount"]),
    ):
        if value:
            host[name] = value
    if "init" in parsed.given:
        host["Init"] = parsed["init"]
    body["HostConfig"] = host
    body["NetworkingConfig"] = {"EndpointsConfig": endpoints(parsed)}
    return body


def _resources(parsed: Parsed, devices: list[Any], requests: list[Any] | None) -> dict[str, Any]:
    limits = parsed["ulimit"]
    return {
        "CpuShares": parsed["cpu-shares"],
        "Memory": parsed["memory"],
        "NanoCpus": parsed["cpus"],
        "CgroupParent": parsed["cgroup-parent"],
        "BlkioWeight": parsed["blkio-weight"],
        "BlkioWeightDevice": parsed["blkio-weight-device"],
        "BlkioDeviceReadBps": parsed["device-read-bps"],
        "BlkioDeviceWriteBps": parsed["device-write-bps"],
        "BlkioDeviceReadIOps": parsed["device-read-iops"],
        "BlkioDeviceWriteIOps": parsed["device-write-iops"],
        "CpuPeriod": parsed["cpu-period"],
        "CpuQuota": parsed["cpu-quota"],
        "CpuRealtimePeriod": parsed["cpu-rt-period"],
        "CpuRealtimeRuntime": parsed["cpu-rt-runtime"],
        "CpusetCpus": parsed["cpuset-cpus"],
        "CpusetMems": parsed["cpuset-mems"],
        "Devices": devices,
        "DeviceCgroupRules": parsed["device-cgroup-rule"] or None,
        "DeviceRequests": requests,
        "MemoryReservation": parsed["memory-reservation"],
        "MemorySwap": parsed["memory-swap"],
        "MemorySwappiness": parsed["memory-swappiness"],
        "OomKillDisable": parsed["oom-kill-disable"],
        "PidsLimit": parsed["pids-limit"],
        "Ulimits": [limits[name] for name in sorted(limits)],
        "CpuCount": parsed["cpu-count"],
        "CpuPercent": parsed["cpu-percent"],
        "IOMaximumIOps": parsed["io-maxiops"],
        "IOMaximumBandwidth": parsed["io-maxbandwidth"],
    }


def _volumes(specs: list[str]) -> tuple[list[str], list[str]]:
    if not specs:
        return [], []
    from host_client.cli.options.mounts import split_volume

    binds, volumes = [], []
    for spec in dict.fromkeys(specs):
        bind, target = split_volume(spec)
        if bind is not None:
            binds.append(bind)
        elif target is not None:
            volumes.append(target)
    return binds, volumes


def _ports(parsed: Parsed) -> tuple[dict[str, Any], list[str]]:
    if not parsed["publish"] and not parsed["expose"]:
        return {}, []
    from host_client.cli.options import ports

    bindings = ports.published(parsed["publish"])
    return bindings, [*bindings, *ports.exposed(parsed["expose"])]


def _devices(specs: list[str], gpus: list[Any]) -> tuple[list[Any], list[Any] | None]:
    mappings: list[Any] = []
    injected: list[str] = []
    for spec in specs:
        if _cdi_name(spec):
            injected.append(spec)
        else:
            mappings.append(_device(spec))
    requests = list(gpus)
    if injected:
        requests.append(
            {"Driver": "cdi", "Count": 0, "DeviceIDs": injected, "Capabilities": None, "Options": None}
        )
    return mappings, requests or None


def _cdi_name(spec: str) -> bool:
    """A qualified Container Device Interface name: vendor/class=device (CDI specification, `kind`)."""
    kind, equals, name = spec.partition("=")
    vendor, slash, family = kind.partition("/")
    return (
        bool(equals and slash and vendor and family and name) and vendor[0].isalpha() and family[0].isalpha()
    )


def _access(text: str) -> bool:
    return bool(text) and not text.strip("rwm") and len(set(text)) == len(text)


def _device(spec: str) -> dict[str, str]:
    parts = spec.split(":")
    if len(parts) > 3 or not parts[0]:
        raise ValueError(f"bad format for path: {spec}")
    host, inside, access = parts[0], "", "rwm"
    if len(parts) == 3:
        inside, access = parts[1], parts[2]
        if not _access(access):
            raise ValueError(f"bad mode specified: {access}")
    elif len(parts) == 2 and _access(parts[1]):
        access = parts[1]
    elif len(parts) == 2:
        inside = parts[1]
    checked = inside or host if len(parts) < 3 else inside
    if not checked.startswith("/"):
        raise ValueError(f"{checked} is not an absolute path")
    if len(parts) == 1 or not inside:
        host = _clean(host)
    return {
        "PathOnHost": host,
        "PathInContainer": _clean(inside) if inside and len(parts) == 2 else inside or host,
        "CgroupPermissions": access,
    }


def _clean(path: str) -> str:
    import posixpath

    cleaned = posixpath.normpath(path)
    return cleaned[1:] if cleaned.startswith("//") else cleaned


def _check_namespaces(parsed: Parsed) -> None:
    pid, uts = parsed["pid"], parsed["uts"]
    if pid not in ("", "host") and not (pid.startswith("container:") and len(pid) > len("container:")):
        raise ValueError("--pid: invalid PID mode")
    if uts not in ("", "host"):
        raise ValueError("--uts: invalid UTS mode")
    if parsed["userns"] not in ("", "host") and parsed["userns"].partition(":")[0] not in ("auto", "keep-id"):
        raise ValueError("--userns: invalid USER mode")
    if parsed["cgroupns"] not in ("", "host", "private"):
        raise ValueError("--cgroupns: invalid CGROUP mode")


def restart_policy(text: str) -> dict[str, Any]:
    """`name[:maximum]` as the API's RestartPolicy.

    Raises:
        ValueError: the maximum is not a number.
    """
    name, colon, count = text.partition(":")
    if colon and not name:
        raise ValueError("invalid restart policy format: no policy provided before colon")
    maximum = 0
    if count:
        digits = count.removeprefix("-").removeprefix("+")
        if not digits.isascii() or not digits.isdigit():
            raise ValueError("invalid restart policy format: maximum retry count must be an integer")
        maximum = int(count)
    return {"Name": name, "MaximumRetryCount": maximum}


def _log_options(parsed: Parsed) -> dict[str, str]:
    if parsed["log-driver"] == "none" and parsed["log-opt"]:
        raise ValueError("invalid logging opts for driver none")
    return _pairs(parsed["log-opt"])


def _security(options: list[str]) -> tuple[list[str] | None, bool]:
    """The options for the engine, and whether the system paths are to be left unmasked.

    A seccomp profile is read here, where its file is, and sent as JSON.
    """
    sent, unmasked = [], False
    for option in options:
        key, separator, value = option.partition("=")
        if not separator and key != "no-new-privileges":
            key, separator, value = option.partition(":")
        if (not separator or not value) and key != "no-new-privileges":
            raise ValueError(f'Invalid --security-opt: "{option}"')
        if key == "seccomp" and value not in ("builtin", "unconfined"):
            option = f"seccomp={_seccomp_profile(value)}"
        if option == "systempaths=unconfined":
            unmasked = True
        else:
            sent.append(option)
    return (sent if options else None), unmasked


def _seccomp_profile(path: str) -> str:
    from host_client.engine_api.wire import dumps, loads

    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ValueError(f"opening seccomp profile ({path}) failed: open {path}: {reason}")
    try:
        return dumps(loads(text))
    except ValueError as error:
        raise ValueError(f"compacting json for seccomp profile ({path}) failed: {error}")


def _storage_options(options: list[str]) -> dict[str, str]:
    if any("=" not in option for option in options):
        raise ValueError("invalid storage option")
    return _pairs(options)


def _health(parsed: Parsed) -> dict[str, Any] | None:
    times = (
        ("health-interval", "Interval"),
        ("health-timeout", "Timeout"),
        ("health-start-period", "StartPeriod"),
        ("health-start-interval", "StartInterval"),
        ("health-retries", "Retries"),
    )
    wanted = bool(parsed["health-cmd"]) or any(parsed[flag] for flag, _ in times)
    if parsed["no-healthcheck"]:
        if wanted:
            raise ValueError("--no-healthcheck conflicts with --health-* options")
        return {"Test": ["NONE"]}
    if not wanted:
        return None
    health: dict[str, Any] = {}
    if parsed["health-cmd"]:
        health["Test"] = ["CMD-SHELL", parsed["health-cmd"]]
    for flag, field in times:
        if parsed[flag] < 0:
            raise ValueError(f"--{flag} cannot be negative")
        if parsed[flag]:
            health[field] = parsed[flag]
    return health


def _pairs(texts: Iterable[str]) -> dict[str, str]:
    return dict(text.partition("=")[::2] for text in texts)


def read_pairs(paths: list[str], fallback: Any) -> list[str]:
    """The `name=value` lines of files; a bare name takes its value from `fallback`, or is left out.

    Raises:
        ValueError: a file cannot be read, or a line is none.
    """
    found: list[str] = []
    for path in paths:
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError as error:
            raise ValueError(f"open {path}: {(error.strerror or str(error)).lower()}")
        for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
            try:
                line = raw.removesuffix(b"\r").decode("utf-8").lstrip()
            except UnicodeDecodeError:
                raise ValueError(f"invalid env file ({path}): invalid utf8 bytes at line {number}")
            if not line or line[0] == "#":
                continue
            name, equals, _ = line.partition("=")
            if not name:
                raise ValueError(f"invalid env file ({path}): no variable name on line '{line}'")
            if " " in name or "\t" in name:
                raise ValueError(f"invalid env file ({path}): variable '{name}' contains whitespaces")
            if equals:
                found.append(line)
            elif fallback is not None and name in fallback:
                found.append(f"{name}={fallback[name]}")
    return found
