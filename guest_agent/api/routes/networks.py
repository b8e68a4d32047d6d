"""Routes of networks."""

from __future__ import annotations

from msgspec import Struct, field

from guest_agent.api.http import Request, Response
from guest_agent.api.router import Router
from guest_agent.engine.container_config import EndpointSettings, docker_name
from guest_agent.engine.engine import Engine
from guest_agent.engine.networks import LIST_FILTERS, PRUNE_FILTERS
from guest_agent.errors import InvalidParameter, NotFound
from guest_agent.network.types import IpamConfig, NetworkSpec


class IpamEntry(Struct, rename=docker_name):
    """One subnet in a request to create a network."""

    subnet: str = ""
    ip_range: str = field(default="", name="IPRange")
    gateway: str = ""
    auxiliary_addresses: dict[str, str] = field(default_factory=dict)


class Ipam(Struct, rename=docker_name):
    """The address part of a request to create a network."""

    driver: str = "default"
    options: dict[str, str] | None = None
    config: list[IpamEntry] | None = None


class ConfigReference(Struct, rename=docker_name):
    """Names a configuration-only network."""

    network: str = ""


class CreateNetwork(Struct, rename=docker_name):
    """`POST /networks/create`."""

    name: str = ""
    driver: str = "bridge"
    scope: str = ""
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    config_from: ConfigReference = field(default_factory=ConfigReference)
    ipam: Ipam = field(default_factory=Ipam, name="IPAM")
    enable_ipv4: bool | None = field(default=None, name="EnableIPv4")
    enable_ipv6: bool | None = field(default=None, name="EnableIPv6")
    options: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    def spec(self, version: tuple[int, int]) -> NetworkSpec:
        """The request in the network side's terms; EnableIPv4 is known from API 1.48 on."""
        ipv4 = self.enable_ipv4 if version >= (1, 48) else None
        return NetworkSpec(
            name=self.name,
            driver=self.driver or "bridge",
            internal=self.internal,
            attachable=self.attachable,
            enable_ipv4=True if ipv4 is None else ipv4,
            enable_ipv6=bool(self.enable_ipv6),
            ipam_driver=self.ipam.driver,
            ipam_options=self.ipam.options,
            ipam=tuple(
                IpamConfig(entry.subnet, entry.ip_range, entry.gateway, entry.auxiliary_addresses)
                for entry in self.ipam.config or ()
            ),
            options=self.options,
            labels=self.labels,
            scope=self.scope,
            ingress=self.ingress,
            config_only=self.config_only,
            config_from=self.config_from.network,
        )


class ConnectNetwork(Struct, rename=docker_name):
    """`POST /networks/{id}/connect` and `disconnect`."""

    container: str = ""
    endpoint_config: EndpointSettings = field(default_factory=EndpointSettings)
    force: bool = False


_BOOLEANS = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}


def register(router: Router, engine: Engine) -> None:
    """Adds the routes."""

    async def list(request: Request) -> Response:
        return Response(body=engine.networks.select(request.query.filters(LIST_FILTERS)))

    async def inspect(request: Request) -> Response:
        verbose, scope = request.query.get("verbose"), request.query.get("scope")
        if verbose and verbose.lower() not in _BOOLEANS:
            raise InvalidParameter(
                f"invalid value for verbose: {verbose}: "
                f'strconv.ParseBool: parsing "{verbose}": invalid syntax'
            )
        network = engine.networks.get(request.params["id"])
        if scope not in ("", network.scope):
            raise NotFound(f"network {request.params['id']} not found")
        return Response(body=engine.networks.describe(network))

    async def create(request: Request) -> Response:
        body = await request.json(CreateNetwork)
        network = await engine.networks.create(body.spec(request.version))
        return Response(201, {"Id": network.id, "Warning": ""})

    async def connect(request: Request) -> Response:
        body = await request.json(ConnectNetwork)
        await engine.networks.connect(request.params["id"], body.container, body.endpoint_config)
        return Response(200)

    async def disconnect(request: Request) -> Response:
        body = await request.json(ConnectNetwork)
        await engine.networks.disconnect(request.params["id"], body.container)
        return Response(200)

    async def remove(request: Request) -> Response:
        await engine.networks.remove(request.params["id"])
        return Response(204)

    async def prune(request: Request) -> Response:
        removed = await engine.networks.prune(request.query.filters(PRUNE_FILTERS))
        return Response(body={"NetworksDeleted": removed or None})

    router.add("GET", "/networks", list)
    router.add("GET", "/networks/", list)
    router.add("POST", "/networks/create", create)
    router.add("POST", "/networks/prune", prune)
    router.add("GET", "/networks/{id}", inspect)
    router.add("POST", "/networks/{id}/connect", connect)
    router.add("POST", "/networks/{id}/disconnect", disconnect)
    router.add("DELETE", "/networks/{id}", remove)
