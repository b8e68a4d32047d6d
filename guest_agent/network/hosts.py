"""The files that give a container its names: hosts, hostname, resolv.conf. Content as dockerd writes it."""

from __future__ import annotations

import ipaddress
import os

from guest_agent.errors import InvalidParameter
from guest_agent.network.resolvconf import ResolvConf

Record = tuple[str, str]  # address, names separated by spaces

_IPV4_HOSTS: tuple[Record, ...] = (("127.0.0.1", "localhost"),)
_IPV6_HOSTS: tuple[Record, ...] = (
    ("::1", "localhost ip6-localhost ip6-loopback"),
    ("fe00::", "ip6-localnet"),
    ("ff00::", "ip6-mcastprefix"),
    ("ff02::1", "ip6-allnodes"),
    ("ff02::2", "ip6-allrouters"),
)


def render(records: list[Record]) -> str:
    """An /etc/hosts: the fixed entries, then `records` in order."""
    return "".join(f"{address}\t{names}\n" for address, names in (*_IPV4_HOSTS, *_IPV6_HOSTS, *records))


def of_host() -> str:
    """The host's own hosts file, for containers in its network namespace; empty when it has none."""
    try:
        with open("/etc/hosts", encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def own_names(hostname: str, domainname: str) -> str:
    """What a container is called in its own hosts file: the full name, then the bare host name."""
    full = f"{hostname}.{domainname}" if domainname else hostname
    bare, dot, _ = full.partition(".")
    return f"{full} {bare}" if dot else full


def extra_host(entry: str, host_gateway: str) -> Record:
    """One --add-host entry, "name:address". Raises InvalidParameter when it is none.

    The address may be in brackets, or `host-gateway` for the host as the container reaches it.
    """
    name, colon, address = entry.partition(":")
    if not colon or not name:
        raise InvalidParameter(f'bad format for add-host: "{entry}"', "Write it as NAME:ADDRESS.")
    if address == "host-gateway":
        if not host_gateway:
            raise InvalidParameter(
                "unable to derive the IP value for host-gateway",
                "The engine has no default bridge; name an address, or set host-gateway-ip.",
            )
        return host_gateway, name
    text = address.removeprefix("[").removesuffix("]")
    try:
        return str(ipaddress.ip_address(text)), name
    except ValueError:
        raise InvalidParameter(
            f'invalid IP address in add-host: "{address}"', "Write an IPv4 or IPv6 address, or host-gateway."
        )


def without_names(text: str, names: str) -> str:
    """A hosts file without the entries for exactly these names; what the user wrote stays."""
    return "".join(line + "\n" for line in text.splitlines() if line.partition("\t")[2] != names)


def write(directory: str, hosts_text: str, hostname: str, resolv: ResolvConf) -> None:
    """Write the three files into the container's directory, as each start needs them. Raises OSError."""
    write_file(directory, "hosts", hosts_text)
    write_file(directory, "hostname", hostname + "\n")
    write_file(directory, "resolv.conf", resolv.render())


def write_file(directory: str, name: str, text: str) -> None:
    """Make one file anew. Raises OSError.

    Every start writes these files, so a crash can cost nothing. The old one is removed rather than replaced
    by rename or truncated: for those ext4 would write to the disk at once.
    """
    path = os.path.join(directory, name)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(path, flags, 0o644)
    except FileExistsError:
        os.unlink(path)
        fd = os.open(path, flags, 0o644)
    try:
        os.fchmod(fd, 0o644)
        os.write(fd, text.encode("utf-8", "surrogateescape"))
    finally:
        os.close(fd)


def rewrite_in_place(path: str, text: str) -> None:
    """Replace the content of a file that is bind-mounted into a running container. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.write(fd, text.encode("utf-8", "surrogateescape"))
    finally:
        os.close(fd)
