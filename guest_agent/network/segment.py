"""A network in use: its link on the host, and which of its addresses are taken.

Bookkeeping only, on the event loop only.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from guest_agent.errors import Forbidden, InternalError, InvalidParameter
from guest_agent.kernel.netlink import Interface
from guest_agent.network import lan
from guest_agent.network.bridge import Address, Bridge, Wire, host_interface_name, mac_of, random_mac
from guest_agent.network.firewall import Filtered
from guest_agent.network.ipam import AddressPool
from guest_agent.network.lan import Lan
from guest_agent.network.types import MTU, Endpoint, EndpointConfig, IpamConfig, Network, NetworkConfig

OPTION_NAME = "com.docker.network.bridge.name"
OPTION_ICC = "com.docker.network.bridge.enable_icc"
OPTION_MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
OPTION_HOST_BINDING = "com.docker.network.bridge.host_binding_ipv4"
OPTION_DEFAULT = "com.docker.network.bridge.default_bridge"
OPTION_MTU = "com.docker.network.driver.mtu"
# Where dockerd keeps its option default-gateway, too.
AUX_GATEWAY = "DefaultGatewayIPv4"
OPTION_INHIBIT = "com.docker.network.bridge.inhibit_ipv4"
OPTION_TRUSTED = "com.docker.network.bridge.trusted_host_interfaces"
OPTION_HOST = {4: "com.docker.network.host_ipv4", 6: "com.docker.network.host_ipv6"}
OPTION_GATEWAY_MODE = {
    4: "com.docker.network.bridge.gateway_mode_ipv4",
    6: "com.docker.network.bridge.gateway_mode_ipv6",
}
GATEWAY_MODES = ("nat", "nat-unprotected", "routed", "isolated")
OPTION_INTERFACE_PREFIX = "com.docker.network.container_iface_prefix"
ENDPOINT_INTERFACE = "com.docker.network.endpoint.ifname"
ENDPOINT_SYSCTLS = "com.docker.network.endpoint.sysctls"
IFNAME_MAX = 15
CHOSEN_SUBNETS = (
    "user specified IP address is supported only when connecting to networks with user configured subnets"
)
# A default route to these has no gateway: everything is on the link.
_ON_LINK: dict[int, Address] = {4: ipaddress.IPv4Address(0), 6: ipaddress.IPv6Address(0)}


class Segment:
    """One network with addresses of its own: their pools, and the link containers are connected to."""

    def __init__(self, network: Network, usual_mtu: int = MTU) -> None:
        options = network.options
        self.network = network
        self.masquerade = flag(options, OPTION_MASQUERADE, True)
        self.host_binding = options.get(OPTION_HOST_BINDING, "")
        self.interface_prefix = options.get(OPTION_INTERFACE_PREFIX, "eth")
        self._pools: list[AddressPool] = []
        self._gateways: list[Address] = []
        # Addresses of interfaces the kernel has not removed yet: two holders of one address would confuse
        # the bridge.
        self._retired: dict[str, Wire] = {}
        addresses = []
        modes = {version: options.get(name, "nat") for version, name in OPTION_GATEWAY_MODE.items()}
        self.routed = frozenset(version for version, mode in modes.items() if mode == "routed")
        self._unprotected = frozenset(version for version, mode in modes.items() if mode == "nat-unprotected")
        self._trusted = tuple(filter(None, options.get(OPTION_TRUSTED, "").split(":")))
        for config in network.ipam:
            if config.unused:
                continue
            subnet = ipaddress.ip_network(config.subnet)
            ip_range = ipaddress.ip_network(config.ip_range) if config.ip_range else None
            pool = AddressPool(subnet, ip_range, f"{network.name} ({network.id})")
            for reserved in config.aux_addresses.values():
                pool.take(ipaddress.ip_address(reserved))
            self._pools.append(pool)
            if not config.gateway:
                continue
            gateway = ipaddress.ip_address(config.gateway)
            pool.take(gateway)
            self._gateways.append(ipaddress.ip_address(config.aux_addresses.get(AUX_GATEWAY, gateway)))
            if modes[subnet.version] != "isolated" and not (
                subnet.version == 4 and flag(options, OPTION_INHIBIT, False)
            ):
                addresses.append(ipaddress.ip_interface(f"{gateway}/{subnet.prefixlen}"))
        self.link: Bridge | Lan
        if network.driver in lan.DRIVERS:
            self.link = lan.plan(network)
            if self.link.routed and not network.internal and not self.link.own_dummy:
                versions = {pool.subnet.version for pool in self._pools}
                self._gateways = [_ON_LINK[version] for version in sorted(versions)]
            return
        self.link = Bridge(
            name=options.get(OPTION_NAME) or f"br-{network.id[:12]}",
            addresses=tuple(addresses),
            mtu=int(options.get(OPTION_MTU) or usual_mtu),
            icc=flag(options, OPTION_ICC, True),
            internal=network.internal,
        )

    @property
    def bridge(self) -> Bridge:
        """The bridge of a network that has one."""
        assert isinstance(self.link, Bridge)
        return self.link

    def filtered(self) -> Filtered:
        """A network with a bridge as the firewall sees it."""
        bridge, options = self.bridge, self.network.options
        return Filtered(
            bridge.name,
            tuple(self.subnets),
            bridge.icc,
            bridge.internal,
            masquerade=frozenset((4, 6)) - self.routed if self.masquerade else frozenset(),
            sources={
                version: ipaddress.ip_address(options[name])
                for version, name in OPTION_HOST.items()
                if options.get(name)
            },
            routed=self.routed,
            unprotected=self._unprotected,
            trusted=self._trusted,
        )

    @property
    def open_versions(self) -> frozenset[int]:
        """IP versions whose published ports are let through to the containers' own addresses."""
        return frozenset((4, 6)) if self._trusted else self.routed

    @property
    def subnets(self) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        """The network's subnets."""
        return [pool.subnet for pool in self._pools]

    def objections(self, text: str, version: int) -> list[str]:
        """Why a container cannot ask for that address, in dockerd's words; empty when it can."""
        outside = f"no configured subnet or ip-range contain the IP address {text}"
        try:
            address = ipaddress.ip_address(text)
            if address.version != version:
                raise ValueError
        except ValueError:
            return [f"invalid IPv{version} address: {text}", outside]
        configs = [item for item in self.network.ipam if not (item.unused or item.subnet_chosen)]
        if self.network.predefined or not any((":" in item.subnet) == (version == 6) for item in configs):
            return [CHOSEN_SUBNETS]
        return [] if any(address in subnet for subnet in self.subnets) else [outside]

    def gateways(self) -> tuple[Address, ...]:
        """The addresses containers reach the outside by; none for an internal network."""
        nowhere = isinstance(self.link, Lan) and self.link.own_dummy
        return () if self.network.internal or nowhere else tuple(self._gateways)

    def nearest(self, gateway: Address, addresses: Iterable[Address]) -> Address:
        """The gateway in the subnet of one of these addresses, on a network with several subnets."""
        for other in self._gateways:
            if other.version == gateway.version:
                for subnet in self.subnets:
                    if other in subnet and any(address in subnet for address in addresses):
                        return other
        return gateway

    def wire(self, interface: str, config: EndpointConfig, gateways: tuple[Address, ...]) -> Wire:
        """Allocate the addresses of a connection.

        Raises InvalidParameter for an address outside the subnets, Forbidden for one that is taken or when
        none is left.
        """
        wanted = [ipaddress.ip_address(text) for text in (config.ipv4_address, config.ipv6_address) if text]
        taken: list[tuple[AddressPool, Address]] = []
        try:
            for address in wanted:
                pool = next((pool for pool in self._pools if address in pool.subnet), None)
                if pool is None:
                    raise InvalidParameter(
                        f"invalid endpoint settings:\nno configured subnet contains IP address {address}",
                        f"The network's subnets are {', '.join(str(subnet) for subnet in self.subnets)}.",
                    )
                pool.take(address)
                taken.append((pool, address))
            for version in (4, 6):
                if not any(address.version == version for _, address in taken):
                    self._allocate(version, taken)
        except BaseException:
            for pool, address in taken:
                pool.free(address)
            raise
        interfaces = tuple(
            ipaddress.ip_interface(f"{address}/{pool.subnet.prefixlen}") for pool, address in taken
        )
        gateways = tuple(self.nearest(item, [address for _, address in taken]) for item in gateways)
        mac = config.mac_address or (mac_of(taken[0][1]) if taken else random_mac())
        host_interface = host_interface_name()
        if isinstance(self.link, Lan):
            host_interface = ""  # there is only the container's end
            if self.link.driver == "ipvlan":
                mac = ""  # its parent's
        try:
            extra = tuple(map(link_local, config.link_local))
            name = _interface_name(config, interface)
        except BaseException:
            for pool, address in taken:
                pool.free(address)
            raise
        return Wire(
            name,
            host_interface,
            mac,
            interfaces,
            gateways,
            announce=bool(config.mac_address),
            link_local=extra,
            sysctls=tuple(filter(None, config.driver_opts.get(ENDPOINT_SYSCTLS, "").split(","))),
        )

    def _allocate(self, version: int, taken: list[tuple[AddressPool, Address]]) -> None:
        """Add the lowest free address of that IP version, when the network has such a subnet."""
        pools = [pool for pool in self._pools if pool.subnet.version == version]
        for number, pool in enumerate(pools):
            try:
                taken.append((pool, pool.allocate()))
                return
            except Forbidden:
                if number == len(pools) - 1:
                    raise

    def claim(self, endpoint: Endpoint) -> None:
        """Mark the addresses of an adopted container as taken."""
        for text in (endpoint.ipv4_address, endpoint.ipv6_address):
            for pool in self._pools:
                if text and ipaddress.ip_address(text) in pool.subnet:
                    try:
                        pool.take(ipaddress.ip_address(text))
                    except Forbidden:
                        pass

    def free(self, wire: Wire) -> None:
        """Give back the addresses of a connection that is gone or never was."""
        for interface in wire.addresses:
            for pool in self._pools:
                if interface.ip in pool.subnet:
                    pool.free(interface.ip)

    def retire(self, wire: Wire) -> None:
        """Give back the addresses as soon as `reclaim` learns that the interface is gone."""
        if wire.host_interface:
            self._retired[wire.host_interface] = wire
        else:
            self.free(wire)

    @property
    def retired(self) -> set[str]:
        """Host interfaces whose addresses wait for their end."""
        return set(self._retired)

    def retired_holder(self, config: EndpointConfig) -> str:
        """The host interface that still holds an address the request insists on; empty when none does."""
        wanted = {config.ipv4_address, config.ipv6_address}
        for name, wire in self._retired.items():
            if any(str(interface.ip) in wanted for interface in wire.addresses):
                return name
        return ""

    def reclaim(self, existing: set[str]) -> None:
        """Free the addresses of all retired interfaces but those in `existing`."""
        for name in self._retired.keys() - existing:
            self.free(self._retired.pop(name))

    def endpoint(
        self, endpoint_id: str, wire: Wire, config: EndpointConfig, names: tuple[str, ...]
    ) -> Endpoint:
        """What inspect shows of a connection."""
        endpoint = Endpoint(
            network=self.network.name,
            network_id=self.network.id,
            endpoint_id=endpoint_id,
            interface=wire.interface,
            host_interface=wire.host_interface,
            config=config,
            dns_names=names,
            mac_address=wire.mac,
        )
        own = [interface.ip for interface in wire.addresses]
        gateways = {
            gateway.version: "" if gateway.is_unspecified else str(self.nearest(gateway, own))
            for gateway in reversed(self.gateways())
        }
        for interface in wire.addresses:
            if interface.version == 4:
                endpoint.ipv4_address = str(interface.ip)
                endpoint.ipv4_prefix = interface.network.prefixlen
                endpoint.ipv4_gateway = gateways.get(4, "")
            else:
                endpoint.ipv6_address = str(interface.ip)
                endpoint.ipv6_prefix = interface.network.prefixlen
                endpoint.ipv6_gateway = gateways.get(6, "")
        return endpoint


def link_local(text: str) -> Interface:
    """A link-local address with its prefix. Raises InternalError with dockerd's text for any other."""
    address = ipaddress.ip_address(text)
    if not address.is_link_local:
        raise InternalError(
            f"invalid link local IP address: {text}", "Write one of 169.254.0.0/16 or fe80::/10."
        )
    return ipaddress.ip_interface(f"{text}/{16 if address.version == 4 else 64}")


def _interface_name(config: EndpointConfig, otherwise: str) -> str:
    """What the container's interface is to be called."""
    name = config.driver_opts.get(ENDPOINT_INTERFACE, "") or otherwise
    if (
        len(name.encode()) > IFNAME_MAX
        or any(char in "/: \t\n" for char in name)
        or name in (".", "..", "lo")
    ):
        raise InvalidParameter(
            f"invalid value for {ENDPOINT_INTERFACE}: {name!r}",
            f"Use at most {IFNAME_MAX} letters and digits.",
        )
    return name


def wire_of(endpoint: Endpoint) -> Wire:
    """The connection behind an endpoint that was made earlier, maybe by another agent."""
    addresses = []
    if endpoint.ipv4_address:
        addresses.append(ipaddress.ip_interface(f"{endpoint.ipv4_address}/{endpoint.ipv4_prefix}"))
    if endpoint.ipv6_address:
        addresses.append(ipaddress.ip_interface(f"{endpoint.ipv6_address}/{endpoint.ipv6_prefix}"))
    return Wire(endpoint.interface, endpoint.host_interface, endpoint.mac_address, tuple(addresses))


def flag(options: dict[str, str], name: str, default: bool) -> bool:
    """A boolean driver option in Go's spelling. Raises InvalidParameter for anything else."""
    value = options.get(name, "")
    if value == "":
        return default
    if value in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if value in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise InvalidParameter(
        f'failed to parse {name} value: {value} (strconv.ParseBool: parsing "{value}": invalid syntax)',
        "Write true or false.",
    )


def default_network(
    network_id: str, created: str, bridge: str, addresses: IpamConfig, config: NetworkConfig
) -> Network:
    """The definition of the predefined network `bridge`, with the options dockerd lists."""
    return Network(
        id=network_id,
        name="bridge",
        driver="bridge",
        created=created,
        ipam=(addresses,),
        options={
            OPTION_DEFAULT: "true",
            OPTION_ICC: "true" if config.icc else "false",
            OPTION_MASQUERADE: "true" if config.ip_masq else "false",
            OPTION_HOST_BINDING: config.ip,
            OPTION_NAME: bridge,
            OPTION_MTU: str(config.mtu or config.usual_mtu),
        },
    )
