"""Where an engine listens: the values of `--host` and `DOCKER_HOST`."""

from __future__ import annotations

from host_client.engine_api.errors import ConnectError

DEFAULT_PORT, DEFAULT_TLS_PORT = 2375, 2376


class Tls:
    """How to speak TLS to an engine: certificate files (PEM), each "" when there is none, and whether to
    verify.
    """

    __slots__ = ("ca", "certificate", "key", "verify")

    def __init__(self, ca: str, certificate: str, key: str, verify: bool) -> None:
        self.ca = ca
        self.certificate = certificate
        self.key = key
        self.verify = verify


class Endpoint:
    """One engine's address. `scheme` is `unix`, `tcp`, `ssh` or `npipe`; `address` a path, or a host name
    with `port`.
    """

    __slots__ = ("address", "port", "scheme", "tls", "url")

    def __init__(self, url: str, scheme: str, address: str, port: int = 0, tls: Tls | None = None) -> None:
        self.url = url
        self.scheme = scheme
        self.address = address
        self.port = port
        self.tls = tls


def parse_host(value: str, tls: Tls | None = None) -> Endpoint:
    """Read a host as docker's CLI does:

    `unix:///path`, `tcp://host:port`, `host:port`, `ssh://user@host:port`, `npipe:////./pipe/name`.

    Raises:
        ConnectError: not an address, or a scheme that this client does not speak.
    """
    scheme, separator, rest = value.strip().partition("://")
    if not separator:
        scheme, rest = "tcp", scheme
    if scheme == "unix":
        if not rest:
            raise ConnectError(f"unable to parse docker host `{value}`", "write it as unix:///path/to/socket")
        return Endpoint(value, "unix", rest)
    if scheme in ("tcp", "http", "https"):
        host, port = _host_port(rest.partition("/")[0], value, tls is not None or scheme == "https")
        return Endpoint(
            value, "tcp", host, port, tls or (Tls("", "", "", True) if scheme == "https" else None)
        )
    if scheme == "ssh":
        _, host, port, _ = parse_ssh(value)
        return Endpoint(value, "ssh", host, port)
    if scheme == "npipe":
        return Endpoint(value, "npipe", rest.replace("/", "\\"))
    raise ConnectError(
        f"unable to parse docker host `{value}`: the scheme {scheme}:// is not supported",
        "use unix:///path, tcp://host:port or ssh://user@host",
    )


def parse_ssh(value: str) -> tuple[str, str, int, str]:
    """User, host, port and path of `ssh://[user@]host[:port][/path]`; "" and 0 for what is not said.

    Raises:
        ConnectError: not such an address.
    """
    place, slash, path = value.strip().removeprefix("ssh://").partition("/")
    user, _, where = place.rpartition("@")
    host, port = where, ""
    if where.startswith("["):
        host, _, after = where[1:].partition("]")
        port = after.removeprefix(":")
    elif where.count(":") == 1:
        host, _, port = where.partition(":")
    problem = ""
    if ":" in user:
        problem = "plain-text password is not supported"
    elif not host or host.startswith("-"):
        problem = "no host specified"
    elif port and (not port.isdigit() or not 0 < int(port) < 65536):
        problem = f"invalid port {port!r}"
    elif "?" in value or "#" in value:
        problem = "extra query or fragment after the host"
    if problem:
        raise ConnectError(f"unable to parse docker host `{value}`: {problem}", "write it as ssh://user@host")
    return user, host, int(port or 0), f"/{path}" if slash and path else ""


def _host_port(text: str, value: str, tls: bool) -> tuple[str, int]:
    host, port = text, ""
    if text.startswith("["):
        host, _, after = text[1:].partition("]")
        port = after.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not port:
        return host or "localhost", DEFAULT_TLS_PORT if tls else DEFAULT_PORT
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ConnectError(f"unable to parse docker host `{value}`: invalid port {port!r}")
    return host or "localhost", int(port)
