"""`search`."""

from __future__ import annotations

from host_client.cli import units
from host_client.cli.commands.pull import registry_header
from host_client.cli.flags import Command
from host_client.cli.listing import FORMAT_FLAG, Listing
from host_client.engine_api.client import filters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session


def search(session: Session, parsed: Parsed) -> int:
    """`wherry search`."""
    term = parsed.args[0]
    domain, slash, _ = term.partition("/")
    if not slash or not ("." in domain or ":" in domain or domain == "localhost"):
        domain = "docker.io"
    query = {"term": term, "limit": parsed["limit"] or None, "filters": filters(parsed["filter"])}
    found = session.client.json("GET", "/images/search", query, None, registry_header(session, domain))
    full = parsed["no-trunc"]

    def description(item: Any) -> str:
        text = str(item.get("description") or "").replace("\n", " ").replace("\r", " ")
        return text if full else units.ellipsis(text, 45)

    def flag(key: str) -> Any:
        return lambda item: "[OK]" if item.get(key) else ""

    Listing(
        "registry.searchContext",
        {
            "Name": ("NAME", lambda item: item["name"]),
            "Description": ("DESCRIPTION", description),
            "StarCount": ("STARS", lambda item: str(item.get("star_count", 0))),
            "IsOfficial": ("OFFICIAL", flag("is_official")),
            "IsAutomated": ("AUTOMATED", flag("is_automated")),
        },
        ("Name", "Description", "StarCount", "IsOfficial"),
    ).show(found, parsed["format"])
    return 0


SEARCH = Command(
    "[OPTIONS] TERM",
    search,
    1,
    1,
    (
        ("filter", "f", "filter", "Show only those that fit (is-official=true, stars=3)"),
        FORMAT_FLAG,
        ("limit", "", "int", "How many to show at most"),
        ("no-trunc", "", "bool", "Do not shorten anything"),
    ),
    examples=(("wherry search -f is-official=true postgres", "the official image only"),),
)
