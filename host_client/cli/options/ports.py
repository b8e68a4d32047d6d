"""`--publish` and `--expose`: Docker's port specifications."""

from __future__ import annotations

from host_client.cli.values import address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Bindings = dict[str, list[dict[str, str]]]

PROTOCOLS = ("tcp", "udp", "sctp")


def published(specs: Iterable[str]) -> Bindings:
    """Port bindings by container port, for `[ip:][host[-last]:]container[-last][/proto]` or
    `published=…,target=…`.

    Raises:
        ValueError: with docker's words.
    """
    bindings: Bindings = {}
    for spec in specs:
        for port, binding in _mappings(_short_form(spec)):
            bindings.setdefault(port, []).append(binding)
    return bindings


def _short_form(spec: str) -> str:
    if "=" not in spec:
        return spec
    given = {"protocol": "tcp"}
    for field in spec.split(","):
        key, equals, value = field.partition("=")
        if not equals or not key:
            raise ValueError(f"invalid publish opts format (should be name=value but got '{field}')")
        given[key] = value
    return f"{given.get('published', '')}:{given.get('target', '')}/{given['protocol']}"


def _mappings(spec: str) -> Iterator[tuple[str, dict[str, str]]]:
    parts = spec.rsplit(":", 2)
    ip, host, container = ("", "", *parts)[-3:]
    ports, protocol = _split_protocol(container)
    if ports and protocol not in PROTOCOLS:
        raise ValueError(f"invalid proto: {protocol}")
    if ip.startswith("["):
        if not ip.endswith("]"):
            raise ValueError(f"invalid IP address {ip}: address {ip}:: missing ']' in address")
        ip = ip[1:-1]
    if ip and not address(ip):
        raise ValueError(f"invalid IP address: {ip}")
    if not ports:
        raise ValueError(f"no port specified: {spec}<empty>")
    span = port_range(ports)
    if span is None:
        raise ValueError(f"invalid containerPort: {ports}")
    first, last = span
    count = last - first + 1
    outer: tuple[int, int] | None = None
    if host:
        outer = port_range(host)
        if outer is None:
            raise ValueError(f"invalid hostPort: {host}")
        if outer[1] - outer[0] != last - first and last != first:
            raise ValueError(f"invalid ranges specified for container and host Ports: {ports} and {host}")
    for offset in range(count):
        host_port = ""
        if outer is not None:
            host_port = str(outer[0] + offset)
            if count == 1 and outer[0] != outer[1]:
                host_port += f"-{outer[1]}"
        yield f"{first + offset}/{protocol}", {"HostIp": ip, "HostPort": host_port}


def exposed(specs: Iterable[str]) -> list[str]:
    """The ports of `--expose`.

    Raises:
        ValueError: with docker's words.
    """
    found = []
    for spec in specs:
        if ":" in spec:
            raise ValueError(f"invalid port format for --expose: {spec}")
        ports, protocol = _split_protocol(spec)
        span = port_range(ports)
        if span is None:
            raise ValueError(f"invalid range format for --expose: {spec}, error: {_range_error(ports)}")
        if protocol not in PROTOCOLS:
            raise ValueError(f"invalid proto: {protocol}")
        found += [f"{port}/{protocol}" for port in range(span[0], span[1] + 1)]
    return found


def _split_protocol(text: str) -> tuple[str, str]:
    ports, _, protocol = text.partition("/")
    if not ports:
        return "", "tcp" if text else ""
    return ports, protocol.lower() or "tcp"


def port_range(text: str) -> tuple[int, int] | None:
    """First and last port of `80` or `80-90`; None when it is neither."""
    first, dash, last = text.partition("-")
    numbers = []
    for part in (first, last if dash else first):
        if not part.isascii() or not part.isdigit() or int(part) > 65535:
            return None
        numbers.append(int(part))
    return None if numbers[1] < numbers[0] else (numbers[0], numbers[1])


def _range_error(text: str) -> str:
    if not text:
        return "empty string specified for ports"
    first, dash, last = text.partition("-")
    for part in (first, last if dash else first):
        if not part.isascii() or not part.isdigit():
            return f'strconv.ParseUint: parsing "{part}": invalid syntax'
        if int(part) > 65535:
            return f'strconv.ParseUint: parsing "{part}": value out of range'
    return f"invalid range specified for the port: {text}"
