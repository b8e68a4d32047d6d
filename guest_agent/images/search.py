"""`docker search`: Docker Hub's (or another registry's) version 1 search."""

from __future__ import annotations

import json
from typing import Any

from guest_agent.errors import InvalidParameter, Unavailable
from guest_agent.images.config import RegistryConfig
from guest_agent.images.reference import DEFAULT_DOMAIN

MAX_RESULTS = 100
_HUB_SEARCH = "index.docker.io"
_MAX_ANSWER = 4 << 20


def search(config: RegistryConfig, term: str, limit: int) -> list[dict[str, Any]]:
    """Up to `limit` repositories, as `ImageSearchResponseItem`s. `HOST/TERM` asks that registry.

    Raises InvalidParameter, Unavailable.
    """
    from guest_agent.images.registry import Registry, beginning, refusal

    if not 1 <= limit <= MAX_RESULTS:
        raise InvalidParameter(f"Limit {limit} is outside the range of [1, {MAX_RESULTS}]")
    if not term:
        raise InvalidParameter("search term is empty")
    first, slash, rest = term.partition("/")
    host = _HUB_SEARCH
    if slash and (set(".:") & set(first) or first == "localhost"):
        host, term = first, rest
    (endpoint, *others) = config.endpoints(host if host != DEFAULT_DOMAIN else _HUB_SEARCH)
    with Registry(others[-1] if others else endpoint, config) as registry:
        url = f"{registry.endpoint.url}/v1/search"
        with registry.send("GET", url, params={"q": term, "n": str(limit)}) as response:
            if response.status_code != 200:
                error = refusal(response)
                raise Unavailable(f"Unexpected status code {response.status_code}: {error.message}")
            try:
                found = json.loads(beginning(response, _MAX_ANSWER))["results"]
                return [_item(item) for item in found[:limit]]
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                raise Unavailable(f'Get "{url}": the answer is no search result')


def _item(item: dict[str, Any]) -> dict[str, Any]:
    return {
        "star_count": int(item.get("star_count") or 0),
        "is_official": bool(item.get("is_official")),
        "name": str(item.get("name") or ""),
        "is_automated": False,
        "description": str(item.get("description") or ""),
    }
