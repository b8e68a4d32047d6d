"""The engine's settings: keys of Docker's daemon.json, from a file and from the command line's options.

Only what is honoured is here. A key of dockerd's that is not is refused by name, as is an unknown one.
"""

# ruff: noqa: RUF009 - _setting() makes a dataclasses.field

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any

from guest_agent.errors import InvalidParameter, NotSupported

from .config_rules import check
from .units import ram_in_bytes


def _setting(default: Any, help: str, option: str = "") -> Any:
    """A field; `option` is its command-line name where that is not the key (a list's singular)."""
    metadata = {"help": help, "option": option}
    if isinstance(default, list | dict):
        return field(default_factory=type(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(slots=True)
class Config:
    """All settings of one engine. A field is the daemon.json key with "_" for "-"."""

    hosts: list[str] = _setting([], "listen on unix:///PATH, fd:// or tcp://ADDRESS:PORT (with TLS)", "host")
    group: str = _setting("", "group that may use the unix socket")
    data_root: str = _setting("/var/lib/wherry", "where images, containers and volumes are kept")
    exec_root: str = _setting("/run/wherry", "where the state of what runs is kept")
    pidfile: str = _setting("", "file for the agent's process id (default: EXEC-ROOT/agent.pid)")
    debug: bool = _setting(False, "log everything")
    log_level: str = _setting("info", "debug, info, warn, error or fatal")
    labels: list[str] = _setting([], "KEY=VALUE, shown by info", "label")
    live_restore: bool = _setting(False, "leave containers running when the engine stops")
    shutdown_timeout: int = _setting(15, "seconds that containers get to stop when the engine stops")

    tls: bool = _setting(False, "as dockerd has it; here only together with tlsverify")
    tlsverify: bool = _setting(False, "use TLS and ask clients for a certificate signed by tlscacert")
    tlscacert: str = _setting("", "file of certificates that clients' are signed by")
    tlscert: str = _setting("", "file of the server's certificate")
    tlskey: str = _setting("", "file of the server's key")

    # A list in the file means mirrors of Docker Hub, a map has them by registry.
    registry_mirrors: dict[str, list[str]] = _setting(
        {}, "mirror of Docker Hub, or REGISTRY=URL for one of any registry", "registry-mirror"
    )
    insecure_registries: list[str] = _setting(
        [], "HOST[:PORT] or network that is spoken to without verified TLS", "insecure-registry"
    )
    signature_policy: str = _setting("", "file that says which images may be pulled, and signed by whom")
    max_concurrent_downloads: int = _setting(3, "layers that a pull downloads at once")
    max_concurrent_uploads: int = _setting(5, "layers that a push uploads at once")
    max_download_attempts: int = _setting(5, "attempts to download a layer")

    bridge: str = _setting("", "bridge of the default network; none: no default network")
    bip: str = _setting("", "the bridge's address and network, such as 172.17.0.1/16")
    fixed_cidr: str = _setting("", "part of the bridge's network that containers get addresses from")
    default_gateway: str = _setting("", "containers' gateway on the default bridge")
    default_address_pools: list[dict[str, Any]] = _setting(
        [], "base=NETWORK,size=BITS: where new networks' addresses are cut from", "default-address-pool"
    )
    mtu: int = _setting(0, "MTU of the default bridge; 0: 1500, without root 65520")
    ip: str = _setting("0.0.0.0", "address that published ports are bound to by default")
    icc: bool = _setting(True, "containers on the default bridge may talk to each other")
    ip_forward: bool = _setting(True, "turn on IP forwarding in the kernel")
    ip_masq: bool = _setting(True, "masquerade containers' addresses")
    host_gateway_ip: str = _setting("", "what host-gateway in --add-host stands for")
    outer_host: str = _setting("", "in a virtual machine: device by which its supervisor forwards ports")
    dns: list[str] = _setting([], "name server of containers")
    dns_opts: list[str] = _setting([], "resolver option of containers", "dns-opt")
    dns_search: list[str] = _setting([], "search domain of containers")

    cgroup_parent: str = _setting("", "cgroup that containers' are made in")
    default_cgroupns_mode: str = _setting("", "host or private")
    default_ipc_mode: str = _setting("private", "private or shareable")
    default_shm_size: int = _setting(64 << 20, "bytes of /dev/shm, or with a unit such as 64m")
    default_ulimits: dict[str, Any] = _setting({}, "NAME=SOFT[:HARD]", "default-ulimit")
    init: bool = _setting(False, "run containers under an init by default")
    no_new_privileges: bool = _setting(False, "set no-new-privileges on containers by default")
    seccomp_profile: str = _setting("builtin", "file of a seccomp profile, builtin or unconfined")
    userns_remap: str = _setting(
        "", "USER[:GROUP] whose subordinate ids containers run with, or default (dockremap)"
    )
    storage_driver: str = _setting("", "overlay2, fuse-overlayfs or vfs (default: the best that works)")
    storage_opts: list[str] = _setting(
        [], "overlay2.size=SIZE: what a container may write, where there are project quotas", "storage-opt"
    )
    log_driver: str = _setting("json-file", "json-file, local, syslog, journald, gelf, fluentd or none")
    log_opts: dict[str, str] = _setting({}, "KEY=VALUE, such as max-size=10m", "log-opt")


# Keys that dockerd 28 knows and this engine does not honour.
UNSUPPORTED = frozenset(
    """
    allow-direct-routing api-cors-header authorization-plugins bip6 bridge-accept-fwmark cdi-spec-dirs
    cluster-advertise cluster-store cluster-store-opts containerd containerd-namespace
    containerd-plugin-namespace cpu-rt-period cpu-rt-runtime default-gateway-v6
    default-network-opts default-runtime dns-search6 exec-opts experimental features firewall-backend
    fixed-cidr-v6 host-gateway-ips http-proxy https-proxy init-path ip6tables iptables
    ipv6 metrics-addr network-control-plane-mtu network-diagnostic-port no-proxy
    node-generic-resources oom-score-adjust proxies raw-logs rootless runtimes selinux-enabled
    swarm-default-advertise-addr userland-proxy userland-proxy-path
    """.split()  # noqa: SIM905 - as a list it has sixty lines
)

_SHORT = {"-H": "hosts", "-G": "group", "-D": "debug", "-l": "log_level", "-p": "pidfile", "-b": "bridge"}

Values = dict[str, Any]  # field name → value of the field's type


def read_file(path: str) -> Values:
    """The settings in a daemon.json. Raises InvalidParameter or NotSupported, naming the file and the key."""
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except OSError as error:
        raise InvalidParameter(f"unable to read the configuration file {path}: {error.strerror}")
    except ValueError as error:
        raise InvalidParameter(f"the configuration file {path} is not valid JSON: {error}")
    if not isinstance(document, dict):
        raise InvalidParameter(f"the configuration file {path} is not a JSON object")
    where = f"unable to configure the engine with file {path}"
    refused = sorted(UNSUPPORTED & document.keys())
    if refused:
        raise NotSupported(f"{where}: not supported by this engine: {', '.join(refused)}")
    kinds = {name.replace("_", "-"): (name, kind) for name, kind in _kinds().items()}
    unknown = sorted(document.keys() - kinds.keys())
    if unknown:
        raise InvalidParameter(
            f"{where}: the following directives don't match any configuration option: {', '.join(unknown)}"
        )
    values = {}
    for key, value in document.items():
        name, kind = kinds[key]
        try:
            values[name] = _checked(name, kind, value)
            check(name, values[name])
        except ValueError as error:
            raise InvalidParameter(f"{where}: {key}: {error}")
    return values


def parse_options(arguments: Sequence[str]) -> tuple[Values, dict[str, str]]:
    """The settings on a command line (`--key value`, `--key=value`, repeated for lists), and what is left.

    An option that is not a setting is returned by name with its text. Raises InvalidParameter.
    """
    kinds = _kinds()
    options = {_option(each): each.name for each in fields(Config)}
    values: Values = {}
    others: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        option, equals, text = rest.pop(0).partition("=")
        name = options.get(option) or _SHORT.get(option, "")
        if not option.startswith("-"):
            raise InvalidParameter(f"unexpected argument: {option}")
        if not equals:
            if kinds.get(name) == "bool":
                text = "true"
            elif not rest:
                raise InvalidParameter(f"option {option} needs a value")
            else:
                text = rest.pop(0)
        if not name:
            others[option] = text
            continue
        try:
            _add(values, name, kinds[name], text)
        except ValueError as error:
            raise InvalidParameter(f"invalid value for {option}: {error}")
    for option, name in options.items():
        try:
            if name in values:
                check(name, values[name])
        except ValueError as error:
            raise InvalidParameter(f"invalid value for {option}: {error}")
    return values, others


def merge(from_file: Values, from_options: Values) -> Config:
    """The settings of both sources. Raises InvalidParameter when one setting is in both, as dockerd does."""
    both = sorted(name.replace("_", "-") for name in from_file.keys() & from_options.keys())
    if both:
        raise InvalidParameter(
            "the following directives are specified both as an option and in the configuration file: "
            + ", ".join(both)
        )
    return Config(**from_file, **from_options)


def usage() -> str:
    """A line for each option."""
    lines = []
    for each in fields(Config):
        lines.append(f"  {_option(each):<28} {each.metadata['help']}")
    return "\n".join(lines)


def _option(setting: Field[Any]) -> str:
    return "--" + (setting.metadata["option"] or setting.name.replace("_", "-"))


def _kinds() -> dict[str, str]:
    """Field name → its type as written in Config."""
    return {each.name: str(each.type) for each in fields(Config)}


def _checked(name: str, kind: str, value: Any) -> Any:
    """A value from JSON as the field's type. Raises ValueError."""
    if name == "registry_mirrors" and isinstance(value, list):
        value = {"docker.io": value}
    if name == "default_shm_size" and isinstance(value, str):
        return ram_in_bytes(value)
    base = kind.partition("[")[0]
    wanted: Any = {"str": str, "bool": bool, "int": int, "list": list, "dict": dict}[base]
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise ValueError(f"{json.dumps(value)} is not {_NAMES[base]}")
    if kind == "list[str]" and not _strings(value):
        raise ValueError("not all of its values are strings")
    if kind == "dict[str, str]" and not _strings(list(value.values())):
        raise ValueError("not all of its values are strings")
    if name == "registry_mirrors" and not all(map(_strings, value.values())):
        raise ValueError("must be a list of URLs, or a map from registry to such a list")
    return value


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


_NAMES = {
    "str": "a string",
    "bool": "true or false",
    "int": "a number",
    "list": "a list",
    "dict": "an object",
}


def _add(values: Values, name: str, kind: str, text: str) -> None:
    """Adds an option's text to the settings. Raises ValueError."""
    if name == "registry_mirrors":
        registry, equals, url = text.partition("=")
        if not equals or "://" in registry:
            registry, url = "docker.io", text
        values.setdefault(name, {}).setdefault(registry, []).append(url)
    elif name == "default_ulimits":
        limit, equals, numbers = text.partition("=")
        soft, _, hard = numbers.partition(":")
        if not equals:
            raise ValueError(f"{text!r} is not NAME=SOFT[:HARD]")
        values.setdefault(name, {})[limit] = {"Name": limit, "Soft": int(soft), "Hard": int(hard or soft)}
    elif name == "default_address_pools":
        pool = dict(part.partition("=")[::2] for part in text.split(","))
        if pool.keys() != {"base", "size"}:
            raise ValueError(f"{text!r} is not base=NETWORK,size=BITS")
        values.setdefault(name, []).append({"base": pool["base"], "size": int(pool["size"])})
    elif kind == "dict[str, str]":
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{text!r} is not KEY=VALUE")
        values.setdefault(name, {})[key] = value
    elif kind == "list[str]":
        values.setdefault(name, []).append(text)
    elif kind == "bool":
        if text not in ("true", "false", "1", "0"):
            raise ValueError(f"{text!r} is neither true nor false")
        values[name] = text in ("true", "1")
    elif name == "default_shm_size":
        values[name] = ram_in_bytes(text)
    else:
        values[name] = int(text) if kind == "int" else text
