"""What a network may be asked to be: checks a request and turns it into a definition. Pure.

Messages are dockerd's.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from dataclasses import replace

from guest_agent.errors import Forbidden, InternalError, InvalidParameter, NotFound
from guest_agent.network import ipam, lan
from guest_agent.network.ipam import AddressPool, Subnet
from guest_agent.network.segment import (
    GATEWAY_MODES,
    IFNAME_MAX,
    OPTION_GATEWAY_MODE,
    OPTION_HOST,
    OPTION_HOST_BINDING,
    OPTION_ICC,
    OPTION_INHIBIT,
    OPTION_INTERFACE_PREFIX,
    OPTION_MASQUERADE,
    OPTION_MTU,
    OPTION_NAME,
    flag,
)
from guest_agent.network.types import PREDEFINED, IpamConfig, Network, NetworkSpec


def check(spec: NetworkSpec) -> None:
    """Refuse what cannot be made. Raises InvalidParameter, Forbidden, NotFound, InternalError."""
    if not spec.name.strip():
        raise InvalidParameter("invalid name: name is empty")
    if spec.name in PREDEFINED:
        raise Forbidden(
            f"operation is not permitted on predefined {spec.name} network ", "Choose another name."
        )
    _check_kind(spec)
    _check_addresses(spec.ipam)
    if spec.config_only:
        if spec.ingress or spec.internal or spec.attachable or spec.scope:
            raise Forbidden(
                "configuration network can only contain network specific fields. Network operator fields "
                "like [ ingress | internal | attachable | scope ] are not supported."
            )
        if spec.config_from:
            raise Forbidden("a configuration network cannot depend on another configuration network")
    elif spec.driver == "bridge":
        _check_options(spec.options, spec.internal)
        if not spec.enable_ipv4 and not spec.enable_ipv6:
            raise InvalidParameter("IPv4 or IPv6 must be enabled")


def configured(spec: NetworkSpec, source: Network | None) -> NetworkSpec:
    """The request with the settings of the configuration network it names. Raises NotFound, Forbidden."""
    if not spec.config_from:
        return spec
    if source is None or not source.config_only:
        raise NotFound(
            f'configuration network "{spec.config_from}" does not exist',
            "Make one: network create --config-only.",
        )
    if not spec.enable_ipv4 or spec.enable_ipv6 or spec.labels or spec.ipam_options or spec.ipam:
        raise Forbidden(
            "user specified configurations are not supported if the network depends on a configuration "
            "network"
        )
    if spec.options:
        raise Forbidden(
            "network driver options are not supported if the network depends on a configuration network"
        )
    return replace(
        spec,
        enable_ipv4=source.enable_ipv4,
        enable_ipv6=source.enable_ipv6,
        ipam=source.ipam,
        ipam_options=source.ipam_options,
        options=dict(source.options),
        labels=dict(source.labels),
    )


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
    if spec.driver not in ("bridge", *lan.DRIVERS):
        raise NotFound(
            f'plugin "{spec.driver}" not found',
            "The drivers are bridge, macvlan and ipvlan; there are no plugins.",
        )
    if spec.ipam_driver not in ("", "default"):
        raise NotFound(f'plugin "{spec.ipam_driver}" not found', "The only address driver is default.")


def _check_options(options: dict[str, str], internal: bool) -> None:
    for name in (OPTION_ICC, OPTION_MASQUERADE, OPTION_INHIBIT):
        flag(options, name, True)
    for name in OPTION_GATEWAY_MODE.values():
        mode = options.get(name, "")
        if mode and mode not in GATEWAY_MODES:
            raise InvalidParameter(
                f"failed to parse {name} value: {mode} (unknown gateway mode {mode})",
                f"Use one of {', '.join(GATEWAY_MODES)}.",
            )
        if mode == "isolated" and not internal:
            raise InternalError("gateway mode 'isolated' can only be used for an internal network")
    if mtu := options.get(OPTION_MTU, ""):
        try:
            number = int(mtu)
        except ValueError:
            raise InvalidParameter(
                f'failed to parse {OPTION_MTU} value: {mtu} (strconv.Atoi: parsing "{mtu}": invalid syntax)'
            )
        if number < 0:
            raise InvalidParameter(f"invalid MTU number: {number}")
        if number and not 68 <= number <= 65535:
            raise InvalidParameter("invalid argument", f"The MTU is {number}; links take 68 to 65535 bytes.")
    for name, version in ((OPTION_HOST_BINDING, 4), (OPTION_HOST[4], 4), (OPTION_HOST[6], 6)):
        text = options.get(name, "")
        try:
            if text and ipaddress.ip_address(text).version != version:
                raise ValueError
        except ValueError:
            raise InvalidParameter(
                f"failed to parse {name} value: {text} (nil ip)", f"Write an IPv{version} address."
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
    enabled = {4: spec.enable_ipv4, 6: spec.enable_ipv6}
    wanted = [(item, enabled[6 if ":" in item.subnet else 4]) for item in spec.ipam]
    configs = [item for item, used in wanted if used]
    taken = list(ours)
    if spec.driver == "bridge":
        versions = [ipaddress.ip_network(item.subnet).version for item in configs]
        if len(set(versions)) < len(versions):
            raise Forbidden(
                "bridge driver doesn't support multiple subnets", "Name one subnet for each IP version."
            )
    for config in configs:
        subnet = ipaddress.ip_network(config.subnet)
        if any(ipam.overlaps(subnet, other) for other in taken):
            raise Forbidden(
                "invalid pool request: Pool overlaps with other one on this address space",
                f"{subnet} overlaps another network's subnet; network inspect shows them.",
            )
        taken.append(subnet)
    settled = [
        _with_gateway(config, _has_gateway(spec, config)) if used else replace(config, unused=True)
        for config, used in wanted
    ]
    found = {ipaddress.ip_network(config.subnet).version for config in configs}
    if spec.enable_ipv4 and 4 not in found:
        settled.append(_chosen(spec, ipam.choose_subnet(pools, taken + routed)))
    if spec.enable_ipv6 and 6 not in found:
        settled.append(_chosen(spec, _unique_local(network_id)))
    return tuple(settled)


def _has_gateway(spec: NetworkSpec, config: IpamConfig) -> bool:
    """Whether a subnet has a gateway although none was asked for: where a bridge is to have its address, or
    containers are to reach the outside.
    """
    if spec.driver == "bridge":
        version = 6 if ":" in config.subnet else 4
        return spec.options.get(OPTION_GATEWAY_MODE[version]) != "isolated"
    leads_out = not spec.internal and bool(spec.options.get(lan.OPTION_PARENT))
    return leads_out and not lan.is_routed(spec.driver, spec.options)


def _with_gateway(config: IpamConfig, wanted: bool) -> IpamConfig:
    ip_range = ipaddress.ip_network(config.ip_range) if config.ip_range else None
    pool = AddressPool(ipaddress.ip_network(config.subnet), ip_range)
    if config.gateway:
        try:
            pool.take(ipaddress.ip_address(config.gateway))
        except Forbidden as error:
            raise InternalError(f"failed to allocate gateway ({config.gateway}): {error.message}", error.hint)
    for name, text in config.aux_addresses.items():
        try:
            pool.take(ipaddress.ip_address(text))
        except Forbidden as error:
            raise InternalError(
                f"failed to allocate secondary ip address ({name}:{text}): {error.message}", error.hint
            )
    if config.gateway or not wanted:
        return config
    return replace(config, gateway=str(pool.allocate()), gateway_chosen=True)


def _chosen(spec: NetworkSpec, subnet: Subnet) -> IpamConfig:
    config = IpamConfig(subnet=str(subnet), subnet_chosen=True)
    if _has_gateway(spec, config):
        return replace(config, gateway=str(subnet.network_address + 1))
    return config


def _unique_local(network_id: str) -> Subnet:
    """A /64 of the unique local addresses (RFC 4193), its global id made from the network's random id."""
    digest = hashlib.sha256(network_id.encode()).digest()
    return ipaddress.IPv6Network((b"\xfd" + digest[:5] + bytes(10), 64))
