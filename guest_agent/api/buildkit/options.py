"""What a client asks of a build: the attributes of the frontend `dockerfile.v0` as a BuildRequest's fields.

The names are BuildKit's (`frontend/dockerui`, `frontend/dockerfile`); buildx makes them of its flags.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from guest_agent.build.request import Blobs, CacheFrom
from guest_agent.engine.container_config import HostConfig, Ulimit
from guest_agent.errors import InvalidParameter, NotSupported
from guest_agent.images import platforms
from guest_agent.images.platforms import Platform

_BUILD_ARG, _LABEL, _CONTEXT = "build-arg:", "label:", "context:"
_LOCAL, _IMAGE, _INPUT = "local:", "docker-image:", "input:"


def request_fields(attributes: Mapping[str, str]) -> dict[str, Any]:
    """Fields of `build.request.BuildRequest`. InvalidParameter, NotSupported by the attribute's name."""
    return {
        "target": attributes.get("target", ""),
        "build_args": _prefixed(attributes, _BUILD_ARG),
        "inherit_arguments": True,
        "labels": _prefixed(attributes, _LABEL),
        "no_cache": attributes.get("no-cache") == "",
        "no_cache_stages": frozenset(filter(None, attributes.get("no-cache", "").lower().split(","))),
        "images": _images(attributes),
        "pull": attributes.get("image-resolve-mode") == "pull",
        "host": HostConfig(
            network_mode=attributes.get("force-network-mode", ""),
            extra_hosts=_hosts(attributes.get("add-hosts", "")),
            shm_size=_integer(attributes, "shm-size"),
            ulimits=_ulimits(attributes.get("ulimit", "")),
            cgroup_parent=attributes.get("cgroup-parent", ""),
        ),
    }


def platforms_of(attributes: Mapping[str, str]) -> list[Platform | None]:
    """The platforms to build for, each once; None alone: what the engine runs on. InvalidParameter."""
    names = [name for name in attributes.get("platform", "").split(",") if name]
    return list(dict.fromkeys(map(platforms.parse, names))) or [None]


def named_contexts(attributes: Mapping[str, str]) -> dict[str, str]:
    """The further contexts that are directories of the client: name → the directory's name. NotSupported."""
    found = {}
    for name, value in _prefixed(attributes, _CONTEXT).items():
        if value.startswith((_IMAGE, _INPUT)):
            continue
        if not value.startswith(_LOCAL):
            raise NotSupported(
                f"--build-context {name}={value} is not supported",
                "It can be a directory or docker-image://NAME.",
            )
        found[name] = value.removeprefix(_LOCAL)
    return found


def linked(attributes: Mapping[str, str]) -> dict[str, str]:
    """The further contexts that are results of other builds: name → the input's name."""
    contexts = _prefixed(attributes, _CONTEXT)
    return {name: value.removeprefix(_INPUT) for name, value in contexts.items() if value.startswith(_INPUT)}


def _images(attributes: Mapping[str, str]) -> dict[str, str]:
    """The further contexts that are images: name → the image's name."""
    contexts = _prefixed(attributes, _CONTEXT)
    return {
        name: value.removeprefix(_IMAGE).removeprefix("//")
        for name, value in contexts.items()
        if value.startswith(_IMAGE)
    }


def described(attributes: Mapping[str, str], dockerfile: str) -> Any:
    """The answer to a request of `--call`, None when a build is asked for.

    Raises NotSupported by the option's name, DockerfileError, InvalidParameter.
    """
    from guest_agent.build import describe

    kind = attributes.get("requestid", "").removeprefix("frontend.")
    if kind == "subrequests.describe":
        return describe.requests()
    if kind == "targets":
        return describe.targets(dockerfile)
    if kind == "outline":
        here = str(platforms.host())
        target, wanted = attributes.get("target", ""), attributes.get("platform", "").split(",")[0] or here
        return describe.outline(dockerfile, target, _prefixed(attributes, _BUILD_ARG), wanted, here)
    _refuse(attributes)
    return None


def _refuse(attributes: Mapping[str, str]) -> None:
    if "requestid" in attributes:
        kind = attributes["requestid"].removeprefix("frontend.")
        flag = "--check" if kind == "lint" else f"--call={kind}"
        raise NotSupported(f"{flag} is not supported", "--call can be outline and targets.")


def _prefixed(attributes: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): value for name, value in attributes.items() if name.startswith(prefix)}


def _integer(attributes: Mapping[str, str], name: str) -> int:
    text = attributes.get(name) or "0"
    if not text.isdecimal():
        raise InvalidParameter(f"invalid {name}: {text}")
    return int(text)


def _hosts(text: str) -> list[str] | None:
    found = []
    for pair in filter(None, text.split(",")):
        name, equals, address = pair.partition("=")
        if not equals:
            raise InvalidParameter(f"failed to parse {pair} as an additional host")
        found.append(f"{name}:{address}")
    return found or None


def _ulimits(text: str) -> list[Ulimit] | None:
    found = []
    for item in filter(None, text.split(",")):
        name, _, values = item.partition("=")
        soft, _, hard = values.partition(":")
        try:
            found.append(Ulimit(name=name, soft=int(soft), hard=int(hard or soft)))
        except ValueError:
            raise InvalidParameter(f"failed to parse ulimit: {item}")
    return found or None


def cache_from(attributes: Mapping[str, str], folder: Callable[[str], Blobs]) -> list[CacheFrom]:
    """The sources of `--cache-from`; `folder` gives what reads from a folder of the client's.

    Raises NotSupported by the source's type, InvalidParameter.
    """
    found = [CacheFrom(name) for name in attributes.get("cache-from", "").split(",") if name]
    try:
        imports = json.loads(attributes.get("cache-imports") or "[]")
        for each in imports:
            kind, details = each["Type"], each.get("Attrs") or {}
            if kind == "registry":
                found.append(CacheFrom(details["ref"]))
            elif kind == "local":
                found.append(CacheFrom(details["digest"], folder(details["src"])))
            else:
                raise NotSupported(
                    f"--cache-from type={kind} is not supported", "It can be registry or local."
                )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidParameter(f"failed to unmarshal cache-imports: {error}")
    return found
