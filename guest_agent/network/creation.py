"""What a network may be asked to be: checks a request and turns it into a definition. Pure.

Messages are dockerd's.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from dataclasses import replace

from guest_agent.errors import Forbidden, InvalidParameter, NotFound, NotSupported
from guest_agent.network import ipam
from guest_agent.network.ipam import AddressPool, Subnet
from guest_agent.network.segment import (
    OPTION_HOST_BINDING,
    OPTION_ICC,
    OPTION_INTERFACE_PREFIX,
    OPTION_MASQUERADE,
    OPTION_MTU,
    OPTION_NAME,
    flag,
)
from guest_agent.network.types import PREDEFINED, IpamConfig, NetworkSpec

# Driver options of dockerd's bridge driver that would change how packets flow, and are not honoured.
UNSUPPORTED_OPTIONS = (
    "com.docker.network.bridge.gateway_mode_ipv4",
    "com.docker.network.bridge.gateway_mode_ipv6",
    "com.docker.network.bridge.inhibit_ipv4",
    "com.docker.network.bridge.trusted_host_interfaces",
    "com.docker.network.host_ipv4",
    "com.docker.network.host_ipv6",
    "com.docker.network.bridge.host_binding_ipv6",
)
IFNAME_MAX = 15


def check(spec: NetworkSpec) -> None:
    """Refuse what cannot be made. Raises InvalidParameter, Forbidden, NotFound, NotSupported."""
    if not spec.name.strip():
        raise InvalidParameter("invalid name: name is empty")
    if spec.name in PREDEFINED:
        raise Forbidden(
            f"operation is not permitted on predefined {spec.name} network ", "Choose another name."
        )
    _check_kind(spec)
    _check_options(spec.options)
    _check_addresses(spec.ipam)
    if not spec.enable_ipv4 and not spec.enable_ipv6:
        raise InvalidParameter("IPv4 or IPv6 must be enabled")
    if not spec.enable_ipv4:
        raise NotSupported("networks without IPv4 are not supported", "Leave out --ipv4=false.")


def _check_kind(spec: NetworkSpec) -> None:
    if spec.scope == "swarm":
        raise Forbidden("cannot create a swarm scoped network when swarm is not active")
    if spec.ingress:
        raise Forbidden("Ingress network can only be global scope network")
    if spec.driver in ("host", "null"):
        raise Forbidden(f'only one instance of "{spec.driver}" network is allowed', "It is there already.")
    if spec.driver == "overlay":
        raise Forbidden(
            'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect '
            "this node to swarm and try again."
        )
    if spec.driver in ("macvlan", "ipvlan"):
        raise NotSupported(f"network driver {spec.driver} is not supported", "Use the driver bridge.")
    if spec.driver != "bridge":
        raise NotFound(
            f'plugin "{spec.driver}" not found', "The only driver is bridge; there are no plugins."
        )
    if spec.ipam_driver not in ("", "default"):
        raise NotFound(f'plugin "{spec.ipam_driver}" not found', "The only address driver is default.")
    if spec.config_only or spec.config_from:
        raise NotSupported("configuration-only networks are not supported", "Create the network directly.")


def _check_options(options: dict[str, str]) -> None:
    for name in UNSUPPORTED_OPTIONS:
        if options.get(name, "") not in ("", "nat"):
            raise NotSupported(f"network option {name} is not supported", "Leave the option out.")
    for name in (OPTION_ICC, OPTION_MASQUERADE):
        flag(options, name, True)
    if mtu := options.get(OPTION_MTU, ""):
        try:
            number = int(mtu)
        except ValueError:
            raise InvalidParameter(
                f'failed to parse {OPTION_MTU} value: {mtu} (strconv.Atoi: parsing "{mtu}": invalid syntax)'
            )
        if not 68 <= number <= 65535:
            raise InvalidParameter(f"invalid MTU {number}: links take 68 to 65535 bytes")
    if binding := options.get(OPTION_HOST_BINDING, ""):
        try:
            ipaddress.IPv4Address(binding)
        except ValueError:
            raise InvalidParameter(
                f"failed to parse {OPTION_HOST_BINDING} value: {binding} (invalid ip address)"
            )
    for name in (OPTION_NAME, OPTION_INTERFACE_PREFIX):
        text = options.get(name, "")
        room = IFNAME_MAX if name == OPTION_NAME else IFNAME_MAX - 2
        if len(text.encode()) > room or any(char in "/: \t\n" for char in text) or text in (".", ".."):
            raise InvalidParameter(
                f"invalid value for {name}: {text!r}", f"Use at most {room} letters and digits."
            )


def _check_addresses(configs: Iterable[IpamConfig]) -> None:
    errors: list[str] = []
    for config in configs:
        errors += _address_errors(config)
    if errors:
        raise InvalidParameter(f"invalid network config:\n{join(errors)}")


def join(errors: list[str]) -> str:
    """Several messages as dockerd joins them: one as it is, more as a list."""
    return errors[0] if len(errors) == 1 else "\n".join(f"* {error}" for error in errors)


def _address_errors(config: IpamConfig) -> list[str]:
    try:
        interface = ipaddress.ip_interface(config.subnet if "/" in config.subnet else "")
    except ValueError:
        return [f"invalid subnet {config.subnet}: invalid CIDR block notation"]
    subnet = interface.network
    errors = []
    if interface.ip != subnet.network_address:
        errors.append(f"invalid subnet {config.subnet}: it should be {subnet}")
    if config.ip_range:
        errors += _range_errors(config.ip_range, subnet)
    named = [("gateway", config.gateway, config.gateway)] if config.gateway else []
    named += [("auxiliary address", name, text) for name, text in config.aux_addresses.items()]
    for what, label, text in named:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            errors.append(f"invalid {what} {label}: invalid address")
            continue
        if address.version != subnet.version:
            errors.append(f"invalid {what} {label}: parent subnet is an IPv{subnet.version} block")
        elif address not in subnet:
            errors.append(f"invalid {what} {label}: parent subnet {subnet} doesn't contain this address")
    return errors


def _range_errors(text: str, subnet: Subnet) -> list[str]:
    try:
        interface = ipaddress.ip_interface(text if "/" in text else "")
    except ValueError:
        return [f"invalid ip-range {text}: invalid CIDR block notation"]
    ip_range = interface.network
    if ip_range.version != subnet.version:
        return [f"invalid ip-range {text}: parent subnet is an IPv{subnet.version} block"]
    errors = []
    if ip_range.prefixlen < subnet.prefixlen:
        errors.append(f"invalid ip-range {text}: CIDR block is bigger than its parent subnet {subnet}")
    if interface.ip != ip_range.network_address:
        errors.append(f"invalid ip-range {text}: it should be {ip_range}")
    if not ipam.overlaps(ip_range, subnet):
        errors.append(f"invalid ip-range {text}: parent subnet {subnet} doesn't contain ip-range")
    return errors


def settle(
    spec: NetworkSpec,
    network_id: str,
    pools: Iterable[tuple[str, int]],
    ours: list[Subnet],
    routed: list[Subnet],
) -> tuple[IpamConfig, ...]:
    """The subnets and gateways the network gets: those asked for, chosen ones for IP versions without.

    Raises Forbidden when a subnet asked for overlaps one of `ours`, InvalidParameter when none is left. A
    chosen subnet also avoids what the host reaches by other routes (`routed`).
    """
    configs = [item for item in spec.ipam if spec.enable_ipv6 or ":" not in item.subnet]
    taken = list(ours)
    for config in configs:
        subnet = ipaddress.ip_network(config.subnet)
        if any(ipam.overlaps(subnet, other) for other in taken):
            raise Forbidden(
                "invalid pool request: Pool overlaps with other one on this address space",
                f"{subnet} overlaps another network's subnet; network inspect shows them.",
            )
        taken.append(subnet)
    settled = [_with_gateway(config) for config in configs]
    versions = {ipaddress.ip_network(config.subnet).version for config in configs}
    if 4 not in versions:
        subnet = ipam.choose_subnet(pools, taken + routed)
        settled.append(_chosen(subnet))
    if spec.enable_ipv6 and 6 not in versions:
        settled.append(_chosen(_unique_local(network_id)))
    return tuple(settled)


def _with_gateway(config: IpamConfig) -> IpamConfig:
    if config.gateway:
        return config
    ip_range = ipaddress.ip_network(config.ip_range) if config.ip_range else None
    pool = AddressPool(ipaddress.ip_network(config.subnet), ip_range)
    for text in config.aux_addresses.values():
        pool.take(ipaddress.ip_address(text))
    return replace(config, gateway=str(pool.allocate()), gateway_chosen=True)


def _chosen(subnet: Subnet) -> IpamConfig:
    return IpamConfig(subnet=str(subnet), gateway=str(subnet.network_address + 1), subnet_chosen=True)


def _unique_local(network_id: str) -> Subnet:
    """A /64 of the unique local addresses (RFC 4193), its global id made from the network's random id."""
    digest = hashlib.sha256(network_id.encode()).digest()
    return ipaddress.IPv6Network((b"\xfd" + digest[:5] + bytes(10), 64))
