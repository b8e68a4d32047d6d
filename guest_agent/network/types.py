"""What the engine says to the network side, and what comes back. Plain values, no behaviour but rendering."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Docker's default address pools (docs: "default-address-pools"): CIDR and the prefix length of what is cut
# from it.
DEFAULT_POOLS: tuple[tuple[str, int], ...] = (
    ("172.17.0.0/16", 16),
    ("172.18.0.0/16", 16),
    ("172.19.0.0/16", 16),
    ("172.20.0.0/14", 16),
    ("172.24.0.0/14", 16),
    ("172.28.0.0/14", 16),
    ("192.168.0.0/16", 20),
)


MTU = 1500
MTU_WITHOUT_ROOT = 65520
"""pasta's and slirp4netns's: with short packets they pass on a fifth as much."""


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The engine's network options, named and meant as dockerd's."""

    bridge: str = ""  # bridge of the default network; empty: our own, "none": no default network
    bip: str = ""  # address and prefix of the default bridge; empty: chosen from the pools
    fixed_cidr: str = ""  # the part of the default bridge's subnet that addresses are given out of
    default_gateway: str = ""  # containers' gateway there; empty: the bridge's address
    ip_forward: bool = True
    mtu: int = 0  # of the default bridge; 0: `usual_mtu`
    icc: bool = True
    ip_masq: bool = True
    ip: str = "0.0.0.0"  # default host address of published ports; 0.0.0.0 also means [::]
    default_address_pools: tuple[tuple[str, int], ...] = DEFAULT_POOLS
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_opts: tuple[str, ...] = ()
    outer_host: str = ""  # in a virtual machine: the device to its supervisor, see `outer_host`
    namespace: int = -1  # descriptor of the network namespace for all of it; -1: the host's, which we are in
    host_gateway_ip: str = ""  # what `host-gateway` means in --add-host; empty: the default bridge's address

    @property
    def usual_mtu(self) -> int:
        """Of bridges for which nobody says another; the way out of a namespace of ours takes long packets."""
        return MTU if self.namespace < 0 else MTU_WITHOUT_ROOT


@dataclass(frozen=True, slots=True)
class PortBinding:
    """One container port to publish: what `-p HOST_IP:HOST_PORT-HOST_PORT_END:PORT/PROTOCOL` says."""

    port: int
    protocol: str = "tcp"  # "tcp" or "udp"
    host_ip: str = ""  # empty: every address, IPv4 and IPv6
    host_port: int = 0  # 0: any free port of the ephemeral range
    host_port_end: int = 0  # last port of the range to choose from; 0: host_port alone


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """What a request may ask of a container's connection to one network (Docker's EndpointSettings)."""

    aliases: tuple[str, ...] = ()
    links: tuple[str, ...] = ()  # "container:alias", user-defined networks only
    ipv4_address: str = ""
    ipv6_address: str = ""
    mac_address: str = ""
    driver_opts: dict[str, str] = field(default_factory=dict)
    gw_priority: int = 0
    link_local: tuple[str, ...] = ()  # addresses to have as well, of 169.254.0.0/16 or fe80::/10


@dataclass(frozen=True, slots=True)
class Link:
    """A legacy link on the default bridge: another container by id and the names it gets in /etc/hosts."""

    container_id: str
    names: tuple[str, ...]  # alias, hostname, container name: in the order they are written


@dataclass(frozen=True, slots=True)
class SandboxRequest:
    """All there is to know to connect a container that is about to start."""

    container_id: str
    name: str  # without the slash
    hostname: str
    files: str  # existing directory for `hosts`, `hostname` and `resolv.conf`
    domainname: str = ""
    network_mode: str = "bridge"  # "bridge", "default", "none", "host", or a network's name or id
    endpoints: dict[str, EndpointConfig] = field(default_factory=dict)  # by network name or id; may be empty
    ports: tuple[PortBinding, ...] = ()
    exposed: tuple[str, ...] = ()  # "80/tcp": listed in NetworkSettings.Ports even when not published
    extra_hosts: tuple[str, ...] = ()  # "name:address", address may be "host-gateway"
    links: tuple[Link, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SandboxState:
    """A container that was running when the agent started, as the monitor knows it."""

    container_id: str
    pid: int


@dataclass(slots=True)
class Endpoint:
    """A container's connection to one network."""

    network: str  # name
    network_id: str
    endpoint_id: str
    interface: str  # name inside the container, empty for none and host
    host_interface: str  # the veth in the host's namespace
    config: EndpointConfig
    dns_names: tuple[str, ...] = ()
    mac_address: str = ""
    ipv4_address: str = ""
    ipv4_prefix: int = 0
    ipv4_gateway: str = ""
    ipv6_address: str = ""
    ipv6_prefix: int = 0
    ipv6_gateway: str = ""

    def to_docker(self) -> dict[str, Any]:
        """The value of NetworkSettings.Networks (EndpointSettings)."""
        return {
            **endpoint_settings(self.config),
            "MacAddress": self.mac_address,
            "NetworkID": self.network_id,
            "EndpointID": self.endpoint_id,
            "Gateway": self.ipv4_gateway,
            "IPAddress": self.ipv4_address,
            "IPPrefixLen": self.ipv4_prefix,
            "IPv6Gateway": self.ipv6_gateway,
            "GlobalIPv6Address": self.ipv6_address,
            "GlobalIPv6PrefixLen": self.ipv6_prefix,
            "DNSNames": list(self.dns_names) or None,
        }


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """A container port as it is published on one host address."""

    port: int
    protocol: str
    host_ip: str
    host_port: int  # 0: routed, at the container's own address


@dataclass(slots=True)
class Sandbox:
    """A connected container. `netns_path` is what the runtime joins; empty for network mode host."""

    container_id: str
    sandbox_id: str
    netns_path: str
    endpoints: dict[str, Endpoint]  # by network name
    published: list[PublishedPort] = field(default_factory=list)
    exposed: tuple[str, ...] = ()
    resolv_digest: str = ""  # SHA-256 of the resolv.conf that we wrote

    @property
    def ports(self) -> dict[str, list[dict[str, str]] | None]:
        """NetworkSettings.Ports: container port to host bindings, None where only exposed."""
        ports: dict[str, list[dict[str, str]] | None] = {}
        for item in self.published:
            bindings = ports.setdefault(f"{item.port}/{item.protocol}", []) or []
            bindings.append(
                {"HostIp": item.host_ip, "HostPort": str(item.host_port) if item.host_port else ""}
            )
            ports[f"{item.port}/{item.protocol}"] = bindings
        for name in self.exposed:
            ports.setdefault(name, None)
        return ports

    def to_docker(self) -> dict[str, Any]:
        """Docker's NetworkSettings of a running container."""
        settings = _network_settings(self.sandbox_id, self.netns_path, self.ports)
        settings["Networks"] = {name: endpoint.to_docker() for name, endpoint in self.endpoints.items()}
        if (bridge := settings["Networks"].get("bridge")) is not None:
            settings.update({key: bridge[key] for key in _DEFAULT_BRIDGE_KEYS})
        return settings


_DEFAULT_BRIDGE_KEYS = (
    "EndpointID",
    "Gateway",
    "GlobalIPv6Address",
    "GlobalIPv6PrefixLen",
    "IPAddress",
    "IPPrefixLen",
    "IPv6Gateway",
    "MacAddress",
)


def endpoint_settings(config: EndpointConfig) -> dict[str, Any]:
    """Docker's EndpointSettings of a container that is not connected now."""
    ipam: dict[str, str | list[str]] = {
        "IPv4Address": config.ipv4_address,
        "IPv6Address": config.ipv6_address,
        "LinkLocalIPs": list(config.link_local),
    }
    given = {key: value for key, value in ipam.items() if value}
    return {
        "IPAMConfig": given or None,
        "Links": list(config.links) or None,
        "Aliases": list(config.aliases) or None,
        "MacAddress": config.mac_address,
        "DriverOpts": dict(config.driver_opts) or None,
        "GwPriority": config.gw_priority,
        "NetworkID": "",
        "EndpointID": "",
        "Gateway": "",
        "IPAddress": "",
        "IPPrefixLen": 0,
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "DNSNames": None,
    }


def stopped_settings(networks: dict[str, EndpointConfig]) -> dict[str, Any]:
    """Docker's NetworkSettings of a container that is not running; `networks` by the names it will join."""
    settings = _network_settings("", "", {})
    settings["Networks"] = {name: endpoint_settings(config) for name, config in networks.items()}
    return settings


def _network_settings(sandbox_id: str, key: str, ports: dict[str, Any]) -> dict[str, Any]:
    return {
        "Bridge": "",
        "SandboxID": sandbox_id,
        "SandboxKey": key,
        "Ports": ports,
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        "EndpointID": "",
        "Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "IPAddress": "",
        "IPPrefixLen": 0,
        "IPv6Gateway": "",
        "MacAddress": "",
        "Networks": {},
    }


@dataclass(frozen=True, slots=True)
class IpamConfig:
    """One subnet of a network, in Docker's words; empty strings where nothing was given."""

    subnet: str = ""
    ip_range: str = ""
    gateway: str = ""
    aux_addresses: dict[str, str] = field(default_factory=dict)
    gateway_chosen: bool = False  # by us, for a subnet that was asked for: not shown, as dockerd does
    subnet_chosen: bool = False  # by us: containers cannot ask for an address of it
    unused: bool = False  # of an IP version the network does not have: shown only, as dockerd does

    def to_docker(self) -> dict[str, Any]:
        """Docker's IPAMConfig, without what was not given."""
        value: dict[str, Any] = {"Subnet": self.subnet}
        if self.ip_range:
            value["IPRange"] = self.ip_range
        if self.gateway and not self.gateway_chosen:
            value["Gateway"] = self.gateway
        if self.aux_addresses:
            value["AuxiliaryAddresses"] = dict(self.aux_addresses)
        return value


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """What a request to create a network asks for, in the words of Docker's API."""

    name: str
    driver: str = "bridge"
    internal: bool = False
    attachable: bool = False
    enable_ipv4: bool = True
    enable_ipv6: bool = False
    ipam_driver: str = "default"
    ipam_options: dict[str, str] | None = None
    ipam: tuple[IpamConfig, ...] = ()
    options: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    scope: str = ""
    ingress: bool = False
    config_only: bool = False
    config_from: str = ""


@dataclass(slots=True)
class Network:
    """A network as it is defined and stored."""

    id: str
    name: str
    driver: str  # "bridge", "macvlan", "ipvlan", "host", "null"
    created: str  # RFC 3339 with nanoseconds
    internal: bool = False
    attachable: bool = False
    enable_ipv4: bool = True
    enable_ipv6: bool = False
    ipam: tuple[IpamConfig, ...] = ()
    ipam_options: dict[str, str] | None = None
    options: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    scope: str = "local"
    config_only: bool = False  # settings for other networks, nobody is ever on it
    config_from: str = ""  # the network these settings are of
    made_parent: bool = False  # the parent link of a macvlan or ipvlan network is ours to remove

    @property
    def predefined(self) -> bool:
        """One of bridge, host and none, which cannot be removed."""
        return self.name in PREDEFINED

    def to_docker(self) -> dict[str, Any]:
        """Docker's Network without the connected containers."""
        return {
            "Name": self.name,
            "Id": self.id,
            "Created": self.created,
            "Scope": self.scope,
            "Driver": self.driver,
            "EnableIPv4": self.enable_ipv4,
            "EnableIPv6": self.enable_ipv6,
            "IPAM": {
                "Driver": "default",
                "Options": self.ipam_options,
                "Config": [config.to_docker() for config in self.ipam] or None,
            },
            "Internal": self.internal,
            "Attachable": self.attachable,
            "Ingress": False,
            "ConfigFrom": {"Network": self.config_from},
            "ConfigOnly": self.config_only,
            "Containers": {},
            "Options": dict(self.options),
            "Labels": dict(self.labels),
        }


PREDEFINED = ("bridge", "host", "none")
