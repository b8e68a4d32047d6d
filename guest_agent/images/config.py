"""How registries are reached: mirrors, plain HTTP, certificates, patience."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from guest_agent.images.reference import DEFAULT_DOMAIN

HUB = "registry-1.docker.io"  # where docker.io's API is


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """Settings of daemon.json that concern registries."""

    mirrors: Mapping[str, Sequence[str]] = field(default_factory=dict)  # registry → URLs, tried in this order
    insecure: Sequence[str] = ()  # HOST, HOST:PORT or a network: plain HTTP or unverified TLS is fine
    # CA certificates and client keys are in DIRECTORY/HOST[:PORT]/{*.crt,*.cert,*.key}, as Docker has them.
    certificates: Sequence[str] = ("/etc/wherry/certs.d", "/etc/docker/certs.d")
    concurrent_downloads: int = 3
    concurrent_uploads: int = 5
    signature_policy: str = ""  # a file of containers-policy.json(5); "": policy.DEFAULT_PATH, if it is there
    attempts: int = 5  # to get one manifest or blob, counted anew whenever bytes arrive

    def is_insecure(self, host: str) -> bool:
        """Whether HOST[:PORT] may be spoken to without verified TLS; the loopback network always may."""
        name = split_port(host)[0]
        networks = [ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")]
        for entry in self.insecure:
            if entry in (host, name):
                return True
            try:
                networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                pass
        if name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            addresses = [ipaddress.ip_address(name)]
        except ValueError:
            if len(networks) == 2:
                return False  # a name is looked up only when networks are configured
            try:
                found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            except OSError:
                return False
            addresses = [ipaddress.ip_address(str(item[4][0]).partition("%")[0]) for item in found]
        return any(address in network for address in addresses for network in networks)

    def endpoints(self, domain: str) -> list[Endpoint]:
        """Where to ask for images of a registry, in this order."""
        found = []
        for url in self.mirrors.get(domain, ()):
            scheme, _, rest = url.rpartition("://")
            host, slash, prefix = rest.rstrip("/").partition("/")
            insecure = self.is_insecure(host)
            schemes = [scheme] if scheme else ["https", "http"] if insecure else ["https"]
            found += [Endpoint(each, host, slash + prefix, not insecure, True) for each in schemes]
        if domain == DEFAULT_DOMAIN:
            found.append(Endpoint("https", HUB))
        elif self.is_insecure(domain):
            found += [Endpoint("https", domain, verify=False), Endpoint("http", domain, verify=False)]
        else:
            found.append(Endpoint("https", domain))
        return found


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One registry API: `url` + "/v2/…"."""

    scheme: str
    host: str  # HOST[:PORT]
    prefix: str = ""
    verify: bool = True
    mirror: bool = False

    @property
    def url(self) -> str:
        """The base, without a slash at its end."""
        return f"{self.scheme}://{self.host}{self.prefix}"


def split_port(host: str) -> tuple[str, str]:
    """HOST and PORT of `HOST[:PORT]`, an IPv6 address without its brackets."""
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
        return name, rest.removeprefix(":")
    name, _, port = host.partition(":")
    return name, port
