"""Networks: create, list, remove, connect, disconnect."""

from __future__ import annotations

from host_client.cli import output, units
from host_client.cli.commands.lifecycle import each
from host_client.cli.errors import CliError
from host_client.cli.flags import Command
from host_client.cli.listing import FORMAT_FLAG, Listing, label_method, labels_text
from host_client.engine_api.client import filters, quote
from host_client.engine_api.errors import ApiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session


def _created(item: Any) -> str:
    try:
        seconds, fraction = units.parse_rfc3339(item["Created"])
    except (KeyError, ValueError):
        return ""
    return units.local_time(seconds, fraction)


def list_networks(session: Session, parsed: Parsed) -> int:
    """`wherry network ls`."""
    items = session.client.get("/networks", {"filters": filters(parsed["filter"])})
    items.sort(key=lambda item: item["Name"])
    full = parsed["no-trunc"]
    layout = parsed["format"] or ("" if parsed["quiet"] else session.config.text("networksFormat"))
    if parsed["quiet"] and layout in ("", "table"):
        output.out("".join((item["Id"] if full else item["Id"][:12]) + "\n" for item in items))
        return 0

    def flag(name: str) -> Any:
        return lambda item: str(bool(item.get(name))).lower()

    Listing(
        "network.networkContext",
        {
            "ID": ("NETWORK ID", lambda item: item["Id"] if full else item["Id"][:12]),
            "Name": ("NAME", lambda item: item["Name"]),
            "Driver": ("DRIVER", lambda item: item["Driver"]),
            "Scope": ("SCOPE", lambda item: item["Scope"]),
            "IPv4": ("IPV4", flag("EnableIPv4")),
            "IPv6": ("IPV6", flag("EnableIPv6")),
            "Internal": ("INTERNAL", flag("Internal")),
            "Labels": ("LABELS", lambda item: labels_text(item.get("Labels"))),
            "CreatedAt": ("CREATED AT", _created),
        },
        ("ID", "Name", "Driver", "Scope"),
        {"Label": label_method},
        raw="network_id: {{.ID}}\nname: {{.Name}}\ndriver: {{.Driver}}\nscope: {{.Scope}}\n",
    ).show(items, layout)
    return 0


LIST = Command(
    "[OPTIONS]",
    list_networks,
    flags=(
        ("filter", "f", "filter", "Show only those that fit (driver=bridge, label=key=value, …)"),
        FORMAT_FLAG,
        ("no-trunc", "", "bool", "Do not shorten anything"),
        ("quiet", "q", "bool", "Show only ids"),
    ),
    examples=(("wherry network ls -f driver=bridge", "those of one kind"),),
)


def create(session: Session, parsed: Parsed) -> int:
    """`wherry network create`."""
    body: dict[str, Any] = {
        "Driver": parsed["driver"],
        "Scope": parsed["scope"],
        "IPAM": {"Driver": parsed["ipam-driver"], "Options": parsed["ipam-opt"], "Config": _ranges(parsed)},
        "Internal": parsed["internal"],
        "Attachable": parsed["attachable"],
        "Ingress": parsed["ingress"],
        "ConfigOnly": parsed["config-only"],
        "ConfigFrom": {"Network": parsed["config-from"]} if parsed["config-from"] else None,
        "Options": parsed["opt"],
        "Labels": dict(label.partition("=")[::2] for label in parsed["label"]),
        "Name": parsed.args[0],
    }
    for flag, field in (("ipv4", "EnableIPv4"), ("ipv6", "EnableIPv6")):
        if flag in parsed.given:
            body[field] = parsed[flag]
    answer = session.client.post("/networks/create", None, body)
    if answer.get("Warning"):
        output.warn(answer["Warning"])
    output.line(answer["Id"])
    return 0


def _ranges(parsed: Parsed) -> list[dict[str, Any]]:
    """Join `--subnet`, `--ip-range`, `--gateway` and `--aux-address` by the subnet that they lie in."""
    subnets, ranges = parsed["subnet"], parsed["ip-range"]
    gateways, reserved = parsed["gateway"], parsed["aux-address"]
    if not (subnets or ranges or gateways or reserved):
        return []
    import ipaddress
    from functools import partial

    if not subnets and (ranges or gateways):
        raise CliError("every ip-range or gateway must have a corresponding subnet")

    def network(text: str, what: str) -> Any:
        try:
            return ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise CliError(f"invalid {what}: invalid CIDR address: {text}", "write it as 172.28.0.0/16")

    def address(text: str) -> Any:
        try:
            return ipaddress.ip_address(text)
        except ValueError:
            raise CliError(f"invalid IP address: {text}")

    configs: list[dict[str, Any]] = []
    known: list[Any] = []
    for text in subnets:
        made = network(text, "subnet")
        if any(made.version == other.version and made.overlaps(other) for other in known):
            raise CliError("multiple overlapping subnet configuration is not supported")
        known.append(made)
        configs.append({"Subnet": text})

    def place(what: str, text: str, inside: Callable[[Any], bool], key: str, name: str = "") -> None:
        for made, config in zip(known, configs, strict=True):
            if not inside(made):
                continue
            if key == "AuxiliaryAddresses":
                config.setdefault(key, {})[name] = text
            elif key in config:
                raise CliError(
                    f"cannot configure multiple {what}s ({text}, {config[key]}) on the same subnet ({made})"
                )
            else:
                config[key] = text
            return
        raise CliError(f"no matching subnet for {what} {text}")

    for text in ranges:
        place("range", text, partial(_holds_network, network(text, "range")), "IPRange")
    for text in gateways:
        place("gateway", text, partial(_holds_address, address(text)), "Gateway")
    for name, text in reserved.items():
        place("aux-address", text, partial(_holds_address, address(text)), "AuxiliaryAddresses", name)
    return configs


def _holds_network(part: Any, subnet: Any) -> bool:
    return part.version == subnet.version and bool(part.subnet_of(subnet))


def _holds_address(ip: Any, subnet: Any) -> bool:
    return ip in subnet


CREATE = Command(
    "[OPTIONS] NETWORK",
    create,
    1,
    1,
    (
        ("attachable", "", "bool", "Let containers be attached by hand"),
        ("aux-address", "", "map", "Reserve an address for something else (name=address)"),
        ("config-from", "", "string", "Take the configuration from this network"),
        ("config-only", "", "bool", "Make a network that is only a configuration for others"),
        ("driver", "d", "string", "Driver of the network", "bridge"),
        ("gateway", "", "strings", "Address of the gateway"),
        ("ingress", "", "bool", "Make the routing mesh of a swarm"),
        ("internal", "", "bool", "No way out of it"),
        ("ip-range", "", "strings", "Take addresses from this part of the subnet"),
        ("ipam-driver", "", "string", "Driver that gives out addresses", "default"),
        ("ipam-opt", "", "map", "Option of that driver"),
        ("ipv4", "", "bool", "Give out IPv4 addresses", True),
        ("ipv6", "", "bool", "Give out IPv6 addresses"),
        ("label", "", "list:label", "Set a label (key=value)"),
        ("opt", "o", "map", "Option of the driver"),
        ("scope", "", "string", "Scope of the network"),
        ("subnet", "", "strings", "Addresses of the network (172.28.0.0/16)"),
    ),
    examples=(
        (
            "wherry network create --subnet 172.28.0.0/16 back",
            "a network whose containers find each other by name",
        ),
    ),
)


def remove(session: Session, parsed: Parsed) -> int:
    """`wherry network rm`."""

    def action(name: str) -> str | None:
        try:
            session.client.delete(f"/networks/{quote(name)}")
        except ApiError as error:
            if parsed["force"] and error.status == 404:
                return None
            raise
        return name

    return each(parsed.args, action)


REMOVE = Command(
    "NETWORK [NETWORK...]",
    remove,
    1,
    None,
    (("force", "f", "bool", "No error when there is no such network"),),
    complete="network",
    examples=(("wherry network rm mine", "no container may be on it"),),
)


def connect(session: Session, parsed: Parsed) -> int:
    """`wherry network connect`."""
    network, container = parsed.args
    ipam: dict[str, Any] = {}
    for flag, field in (("ip", "IPv4Address"), ("ip6", "IPv6Address"), ("link-local-ip", "LinkLocalIPs")):
        if parsed[flag]:
            ipam[field] = parsed[flag]
    options = {}
    for option in parsed["driver-opt"]:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise CliError("invalid key/value pair format in driver options")
        options[key] = value
    from host_client.cli.options.networks import Attachment, settings

    endpoint = {
        **settings(Attachment(network)),
        "IPAMConfig": ipam,
        "Links": parsed["link"] or None,
        "Aliases": parsed["alias"],
        "DriverOpts": options,
        "GwPriority": parsed["gw-priority"],
    }
    body = {"Container": container, "EndpointConfig": endpoint}
    session.client.post(f"/networks/{quote(network)}/connect", None, body)
    return 0


CONNECT = Command(
    "[OPTIONS] NETWORK CONTAINER",
    connect,
    2,
    2,
    (
        ("alias", "", "strings", "Further name of the container on the network"),
        ("driver-opt", "", "strings", "Option of the driver"),
        ("gw-priority", "", "int", "The network with the highest one gives the default gateway"),
        ("ip", "", "string:ip", "IPv4 address (172.30.100.104)"),
        ("ip6", "", "string:ip", "IPv6 address (2001:db8::33)"),
        ("link", "", "list:link", "Add a link to another container"),
        ("link-local-ip", "", "strings", "Link-local address"),
    ),
    complete="network",
    examples=(("wherry network connect --alias db mine web", "there it answers to db as well"),),
)


def disconnect(session: Session, parsed: Parsed) -> int:
    """`wherry network disconnect`."""
    network, container = parsed.args
    body = {"Container": container, "Force": parsed["force"]}
    session.client.post(f"/networks/{quote(network)}/disconnect", None, body)
    return 0


DISCONNECT = Command(
    "[OPTIONS] NETWORK CONTAINER",
    disconnect,
    2,
    2,
    (("force", "f", "bool", "Even if the container does not answer"),),
    complete="network",
    examples=(("wherry network disconnect mine web", "it keeps its other networks"),),
)
