"""A bridge network in use: its bridge, and which of its addresses are taken.

Bookkeeping only, on the event loop only.
"""

from __future__ import annotations

import ipaddress

from guest_agent.errors import Forbidden, InvalidParameter
from guest_agent.network.bridge import Address, Bridge, Wire, host_interface_name, mac_of
from guest_agent.network.firewall import Filtered
from guest_agent.network.ipam import AddressPool
from guest_agent.network.types import Endpoint, EndpointConfig, IpamConfig, Network, NetworkConfig

OPTION_NAME = "com.docker.network.bridge.name"
OPTION_ICC = "com.docker.network.bridge.enable_icc"
OPTION_MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
OPTION_HOST_BINDING = "com.docker.network.bridge.host_binding_ipv4"
OPTION_DEFAULT = "com.docker.network.bridge.default_bridge"
OPTION_MTU = "com.docker.network.driver.mtu"
DEFAULT_MTU = 1500
# Where dockerd keeps its option default-gateway, too.
AUX_GATEWAY = "DefaultGatewayIPv4"
OPTION_INTERFACE_PREFIX = "com.docker.network.container_iface_prefix"


class Segment:
    """One bridge network and its address pools."""

    def __init__(self, network: Network) -> None:
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
        for config in network.ipam:
            subnet = ipaddress.ip_network(config.subnet)
            ip_range = ipaddress.ip_network(config.ip_range) if config.ip_range else None
            pool = AddressPool(subnet, ip_range, f"{network.name} ({network.id})")
            for reserved in config.aux_addresses.values():
                pool.take(ipaddress.ip_address(reserved))
            gateway = ipaddress.ip_address(config.gateway)
            pool.take(gateway)
            self._pools.append(pool)
            self._gateways.append(ipaddress.ip_address(config.aux_addresses.get(AUX_GATEWAY, gateway)))
            addresses.append(ipaddress.ip_interface(f"{gateway}/{subnet.prefixlen}"))
        self.bridge = Bridge(
            name=options.get(OPTION_NAME) or f"br-{network.id[:12]}",
            addresses=tuple(addresses),
            mtu=int(options.get(OPTION_MTU) or DEFAULT_MTU),
            icc=flag(options, OPTION_ICC, True),
            internal=network.internal,
        )

    def filtered(self) -> Filtered:
        """The network as the firewall sees it."""
        bridge = self.bridge
        masquerade = self.masquerade
        return Filtered(bridge.name, tuple(self.subnets), bridge.icc, bridge.internal, masquerade)

    @property
    def subnets(self) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        """The network's subnets."""
        return [pool.subnet for pool in self._pools]

    def objections(self, text: str) -> list[str]:
        """Why a container cannot ask for that address, in dockerd's words; empty when it can."""
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return [f"invalid IP address: {text}"]
        if not any(address in subnet for subnet in self.subnets):
            return [f"no configured subnet or ip-range contain the IP address {text}"]
        if not self.network.predefined and all(config.subnet_chosen for config in self.network.ipam):
            return [
                "user specified IP address is supported only when connecting to networks with user "
                "configured subnets"
            ]
        return []

    def gateways(self) -> tuple[Address, ...]:
        """The addresses containers reach the outside by; none for an internal network."""
        return () if self.network.internal else tuple(self._gateways)

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
        mac = config.mac_address or mac_of(taken[0][1])
        return Wire(
            interface, host_interface_name(), mac, interfaces, gateways, announce=bool(config.mac_address)
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
        self._retired[wire.host_interface] = wire

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
        gateways = {gateway.version: str(gateway) for gateway in reversed(self.gateways())}
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
            OPTION_MTU: str(config.mtu or DEFAULT_MTU),
        },
    )
