"""/images/…"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from guest_agent.api.http import Request, Response, StreamingResponse
from guest_agent.api.router import Router
from guest_agent.engine import image_filters
from guest_agent.engine.background import Messages
from guest_agent.engine.config_changes import apply_changes
from guest_agent.engine.container_config import ContainerConfig
from guest_agent.engine.engine import Engine
from guest_agent.engine.images import Images, repository_tag
from guest_agent.errors import EngineError, InvalidParameter
from guest_agent.images import platforms, reference
from guest_agent.images.auth import Credentials
from guest_agent.images.platforms import Platform


def register(router: Router, engine: Engine) -> None:
    """Adds the routes of images."""
    routes = _Routes(Images(engine.images, engine.events, engine.containers.of_image))
    router.add("GET", "/images/json", routes.list)
    router.add("POST", "/images/create", routes.create)
    router.add("POST", "/images/load", routes.load)
    router.add("POST", "/images/prune", routes.prune)
    router.add("GET", "/images/get", routes.get)
    router.add("GET", "/images/search", routes.search)
    router.add("GET", "/images/{name...}/get", routes.get)
    router.add("GET", "/images/{name...}/json", routes.inspect)
    router.add("GET", "/images/{name...}/history", routes.history)
    router.add("POST", "/images/{name...}/tag", routes.tag)
    router.add("POST", "/images/{name...}/push", routes.push)
    router.add("DELETE", "/images/{name...}", routes.delete)
    router.add("GET", "/distribution/{name...}/json", routes.distribution)
    router.add("POST", "/auth", routes.auth)


class _Routes:
    def __init__(self, images: Images) -> None:
        self._images = images

    async def list(self, request: Request) -> Response:
        query = request.query
        filters = query.filters(image_filters.LIST_FILTERS)
        if query.get("filter") and request.version < (1, 41):  # older clients' way to say reference
            filters.setdefault("reference", []).append(query.get("filter"))
        return Response(
            200,
            self._images.summaries(filters, query.flag("all"), query.flag("shared-size"), request.version),
        )

    async def inspect(self, request: Request) -> Response:
        platform = _platform_json(request.query.get("platform"))
        if platform and request.query.flag("manifests"):
            raise InvalidParameter(
                "conflicting options: manifests and platform options are mutually exclusive"
            )
        return Response(200, self._images.inspect(request.params["name"], request.version, platform))

    async def history(self, request: Request) -> Response:
        platform = _platform_json(request.query.get("platform"))
        return Response(200, self._images.history(request.params["name"], platform))

    async def tag(self, request: Request) -> Response:
        ref = repository_tag(request.query.get("repo"), request.query.get("tag"))
        await self._images.tag(request.params["name"], ref)
        return Response(201)

    async def delete(self, request: Request) -> Response:
        query = request.query
        for platform in query.all("platforms"):  # an image here has one platform, so it is all or nothing
            self._images.get(request.params["name"], _platform_json(platform))
        records = await self._images.remove(
            request.params["name"], query.flag("force"), not query.flag("noprune")
        )
        return Response(200, records)

    async def prune(self, request: Request) -> Response:
        return Response(200, await self._images.prune(request.query.filters(image_filters.PRUNE_FILTERS)))

    async def search(self, request: Request) -> Response:
        query = request.query
        filters = query.filters(("is-automated", "is-official", "stars"))
        return Response(
            200, await self._images.search(query.get("term"), query.integer("limit", 25), filters)
        )

    async def push(self, request: Request) -> StreamingResponse:
        name, tag = request.params["name"], request.query.get("tag")
        # Without a tag it is all of them, but a name may bring one.
        ref = repository_tag(name, tag) if tag else reference.parse(name)
        auth = _credentials_or_none(request)
        platform = None
        if request.version >= (1, 46):  # until then clients sent it although nobody read it
            platform = _platform_json(request.query.get("platform"))
        return await _messages(lambda messages: self._images.push(ref, platform, auth, messages.emit))

    async def distribution(self, request: Request) -> Response:
        auth = _credentials_or_none(request)
        return Response(200, await self._images.distribution(reference.parse(request.params["name"]), auth))

    async def auth(self, request: Request) -> Response:
        config = await request.json(dict[str, Any])
        token = await self._images.login(_registry_host(config), _credentials(config))
        return Response(200, {"Status": "Login Succeeded", "IdentityToken": token})

    async def load(self, request: Request) -> StreamingResponse:
        query = request.query
        quiet, platform = query.flag("quiet"), _platform_json(query.get("platform"))

        async def work(messages: Messages) -> None:
            try:
                await self._images.load(aiter(request.body), messages.emit, quiet, platform)
            except EngineError as error:  # as in dockerd, a bad archive is a message; clients look for that
                messages.emit(_error(error))

        return await _messages(work)

    async def get(self, request: Request) -> StreamingResponse:
        names = [request.params["name"]] if "name" in request.params else request.query.all("names")
        platform = _platform_json(request.query.get("platform"))
        return StreamingResponse(200, "application/x-tar", await self._images.save(names, platform))

    async def create(self, request: Request) -> StreamingResponse:
        query = request.query
        platform = platforms.parse(query.get("platform")) if query.get("platform") else None
        if query.get("fromImage"):
            return await self._pull(request, platform)
        config = apply_changes(ContainerConfig(), query.all("changes"))
        name = None
        if query.get("repo"):
            name = repository_tag(query.get("repo"), query.get("tag"))

        async def import_(messages: Messages) -> None:
            source, comment = query.get("fromSrc"), query.get("message")
            if source == "-":
                loaded = await self._images.import_(aiter(request.body), name, config, comment, platform)
            else:
                loaded = await self._images.import_url(source, name, config, comment, platform, messages.emit)
            messages.emit({"status": loaded.image.id})

        return await _messages(import_)

    async def _pull(self, request: Request, platform: Platform | None) -> StreamingResponse:
        auth = _credentials_or_none(request)
        ref = reference.parse(request.query.get("fromImage"))
        tag = request.query.get("tag")
        if tag:
            ref = ref.with_digest(tag) if ":" in tag else ref.with_tag(tag)
        pull = self._images.pull if ref.tag or ref.digest else self._images.pull_all
        return await _messages(lambda messages: pull(ref, platform, auth, messages.emit))


def credentials(header: str) -> Credentials | None:
    """The X-Registry-Auth header: base64url of Docker's AuthConfig as JSON. InvalidParameter."""
    if not header:
        return None
    try:
        return _credentials(_decoded(header))
    except (ValueError, AttributeError, TypeError, RecursionError) as e:
        raise InvalidParameter(f"invalid X-Registry-Auth header: {e}")


def credentials_by_host(header: str) -> dict[str, Credentials]:
    """The X-Registry-Config header: the same, of an object with an AuthConfig for each registry."""
    if not header:
        return {}
    try:
        configs = _decoded(header)
        return {
            _registry_host({"serveraddress": address}): _credentials(config)
            for address, config in configs.items()
        }
    except (ValueError, AttributeError, TypeError, RecursionError) as e:
        raise InvalidParameter(f"invalid X-Registry-Config header: {e}")


def _decoded(header: str) -> dict[str, Any]:
    bare = header.rstrip("=")
    padded = bare.translate(str.maketrans("+/", "-_")) + "=" * (-len(bare) % 4)
    value: dict[str, Any] = json.loads(base64.urlsafe_b64decode(padded) or b"{}")
    return value


def _credentials_or_none(request: Request) -> Credentials | None:
    """What the request brings for a registry; an unreadable header is none, as dockerd has it."""
    try:
        return credentials(request.headers.get("x-registry-auth", ""))
    except InvalidParameter:
        return None


def _credentials(config: dict[str, Any]) -> Credentials:
    """Docker's AuthConfig."""
    username, password = (str(config.get(key) or "") for key in ("username", "password"))
    if not username and config.get("auth"):
        username, _, password = base64.b64decode(config["auth"]).decode().partition(":")
    return Credentials(
        username, password, str(config.get("identitytoken") or ""), str(config.get("registrytoken") or "")
    )


def _registry_host(config: dict[str, Any]) -> str:
    """The registry that an AuthConfig is for; Docker Hub goes by an address of old."""
    address = str(config.get("serveraddress") or "")
    host = address.partition("://")[2] or address
    host = host.partition("/")[0]
    return reference.DEFAULT_DOMAIN if host in ("", "index.docker.io", "docker.io") else host


def _platform_json(text: str) -> Platform | None:
    """A platform as a JSON object, as `load` and `save` take it."""
    if not text:
        return None
    try:
        value = json.loads(text)
        return platforms.normalise(value["os"], value["architecture"], value.get("variant") or "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InvalidParameter(f"failed to parse platform: {text}")


async def _messages(work: Callable[[Messages], Awaitable[None]]) -> StreamingResponse:
    """Answers with what `work` says. An error before it says anything is the request's.

    Later it is a message.
    """
    messages = Messages()
    await messages.begin(work(messages))

    async def lines() -> AsyncIterator[bytes]:
        try:
            async with aclosing(messages.stream()) as stream:
                async for message in stream:
                    yield message_line(message)
        except EngineError as e:
            yield message_line(_error(e))

    return StreamingResponse(200, "application/json", lines())


def _error(error: EngineError) -> dict[str, Any]:
    detail: dict[str, Any] = {"message": error.message}
    if error.hint:
        detail["hint"] = error.hint
    return {"errorDetail": detail, "error": error.message}


def message_line(message: dict[str, Any]) -> bytes:
    """One message of a progress stream."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\r\n"
