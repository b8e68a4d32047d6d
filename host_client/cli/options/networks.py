"""`--network` with its long form, and the older flags that say the same: endpoint settings for the API."""

from __future__ import annotations

from host_client.cli.values import csv_fields

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from host_client.cli.flags import Parsed


class Attachment:
    """One network to attach to, and how."""

    __slots__ = (
        "aliases", "driver_options", "gateway_priority", "ipv4", "ipv6", "link_local", "links", "mac",
        "target",
    )  # fmt: skip

    def __init__(self, target: str) -> None:
        self.target = target
        self.aliases: list[str] = []
        self.links: list[str] = []
        self.link_local: list[str] = []
        self.driver_options: dict[str, str] = {}
        self.ipv4 = ""
        self.ipv6 = ""
        self.mac = ""
        self.gateway_priority = 0


def parse_network(text: str) -> Attachment:
    """One `--network`: a name, or `name=…,alias=…,ip=…,ip6=…,mac-address=…,link-local-ip=…,driver-opt=…`.

    Raises:
        ValueError: with docker's words.
    """
    if not _long_form(text):
        return Attachment(text)
    made = Attachment("")
    for field in csv_fields(text):
        key, equals, value = field.lower().partition("=")
        if not equals or not key:
            raise ValueError(f"invalid field {field}")
        key, value = key.strip(), value.strip()
        if key == "name":
            made.target = value
        elif key == "alias":
            made.aliases.append(value)
        elif key == "ip":
            made.ipv4 = value
        elif key == "ip6":
            made.ipv6 = value
        elif key == "mac-address":
            made.mac = value
        elif key == "link-local-ip":
            made.link_local.append(value)
        elif key == "driver-opt":
            option, equals, setting = value.partition("=")
            if not equals or not option:
                raise ValueError("invalid key value pair format in driver options")
            made.driver_options[option.strip()] = setting.strip()
        elif key == "gw-priority":
            try:
                made.gateway_priority = int(value)
            except ValueError:
                raise ValueError(f"invalid gw-priority ({value}): invalid syntax")
        else:
            raise ValueError(f"invalid field key {key}")
    if not made.target:
        raise ValueError("network name/id is not specified")
    return made


def _long_form(text: str) -> bool:
    key, equals, value = text.partition("=")
    return bool(equals) and _word(key[-1:]) and _word(value[:1])


def _word(character: str) -> bool:
    return character.isascii() and (character.isalnum() or character == "_")


def user_defined(mode: str) -> bool:
    """Whether a network mode names a network of the user's own."""
    return mode not in ("default", "bridge", "host", "none") and not mode.startswith("container:")


def endpoints(parsed: Parsed) -> dict[str, dict[str, Any]]:
    """`NetworkingConfig.EndpointsConfig` for the flags of run and create.

    Raises:
        ValueError: flags contradict each other, or do not fit the network.
    """
    attachments: list[Attachment] = parsed["network"]
    result: dict[str, dict[str, Any]] = {}
    if not attachments:
        only = Attachment("default")
        _apply(only, parsed)
        return {"default": settings(only)}
    own = [user_defined(attachment.target) for attachment in attachments]
    for index, attachment in enumerate(attachments):
        if index == 0:
            _apply(attachment, parsed)
        made = settings(attachment)
        if attachment.target in result:
            raise ValueError(f'network "{attachment.target}" is specified multiple times')
        plain = not any(value for value in made.values())
        if len(attachments) == 1 and plain and not attachment.aliases:
            continue  # the engine adds it by itself
        result[attachment.target] = made
    if any(own) and not all(own):
        raise ValueError(
            "conflicting options: cannot attach both user-defined and non-user-defined network-modes"
        )
    return result


def _apply(attachment: Attachment, parsed: Parsed) -> None:
    """Fold the flags that belong to the first network into it."""
    for there, flag, words in (
        (attachment.aliases, "network-alias", "--network-alias and per-network alias"),
        (attachment.links, "link", "--link and per-network links"),
        (attachment.ipv4, "ip", "--ip and per-network IPv4 address"),
        (attachment.ipv6, "ip6", "--ip6 and per-network IPv6 address"),
        (attachment.mac, "mac-address", "--mac-address and per-network MAC address"),
        (attachment.link_local, "link-local-ip", "--link-local-ip and per-network link-local IP addresses"),
    ):
        if there and parsed[flag]:
            raise ValueError(f"conflicting options: cannot specify both {words}")
    if parsed["network-alias"]:
        attachment.aliases = list(parsed["network-alias"])
    if user_defined(attachment.target) and parsed["link"]:
        attachment.links = list(parsed["link"])
    attachment.ipv4 = parsed["ip"] or attachment.ipv4
    attachment.ipv6 = parsed["ip6"] or attachment.ipv6
    attachment.mac = parsed["mac-address"] or attachment.mac
    attachment.link_local = parsed["link-local-ip"] or attachment.link_local


def settings(attachment: Attachment) -> dict[str, Any]:
    """The API's EndpointSettings, all fields present, as docker's CLI sends them.

    Raises:
        ValueError: with docker's words.
    """
    if not attachment.target.strip():
        raise ValueError("no name set for network")
    if not user_defined(attachment.target):
        if attachment.aliases:
            raise ValueError("network-scoped aliases are only supported for user-defined networks")
        if attachment.links:
            raise ValueError("links are only supported for user-defined networks")
    ipam: dict[str, Any] | None = None
    if attachment.ipv4 or attachment.ipv6 or attachment.link_local:
        ipam = {}
        if attachment.ipv4:
            ipam["IPv4Address"] = attachment.ipv4
        if attachment.ipv6:
            ipam["IPv6Address"] = attachment.ipv6
        if attachment.link_local:
            ipam["LinkLocalIPs"] = list(attachment.link_local)
    if attachment.mac and not valid_mac(attachment.mac.strip()):
        raise ValueError(f"{attachment.mac} is not a valid mac address")
    return {
        "IPAMConfig": ipam,
        "Links": attachment.links or None,
        "Aliases": attachment.aliases or None,
        "MacAddress": attachment.mac.strip(),
        "DriverOpts": attachment.driver_options or None,
        "GwPriority": attachment.gateway_priority,
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


def valid_mac(text: str) -> bool:
    """Whether this is a hardware address in one of the forms that Go's net.ParseMAC takes."""
    for separator, width in ((":", 2), ("-", 2), (".", 4)):
        parts = text.split(separator)
        if len(parts) > 1:
            digits = "".join(parts)
            even = all(len(part) == width for part in parts)
            return even and not digits.strip("0123456789abcdefABCDEF") and len(digits) in (12, 16, 40)
    return False
