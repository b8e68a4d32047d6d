"""`events`."""

from __future__ import annotations

import time

from host_client.cli import output
from host_client.cli.commands.logs import api_time
from host_client.cli.errors import CliError
from host_client.cli.flags import Command
from host_client.engine_api.client import filters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session


def line_of(event: dict[str, Any]) -> str:
    """One event as docker prints it."""
    nanoseconds = event.get("timeNano") or event.get("time", 0) * 10**9
    moment = time.localtime(nanoseconds // 10**9)
    minutes = abs(moment.tm_gmtoff) // 60
    sign = "-" if moment.tm_gmtoff < 0 else "+"
    zone = f"{sign}{minutes // 60:02}:{minutes % 60:02}" if moment.tm_gmtoff else "Z"
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", moment) + f".{nanoseconds % 10**9:09}{zone}"
    actor = event.get("Actor") or {}
    attributes = actor.get("Attributes") or {}
    more = ", ".join(f"{key}={attributes[key]}" for key in sorted(attributes))
    return f"{stamp} {event['Type']} {event['Action']} {actor.get('ID', '')}" + (f" ({more})" if more else "")


def events(session: Session, parsed: Parsed) -> int:
    """`wherry events`."""
    template = None
    if parsed["format"] not in ("", "json"):
        from host_client.cli.templates import TemplateError, parse

        try:
            template = parse(parsed["format"])
        except TemplateError as error:
            raise CliError(f"Error parsing format: {error}", status=64)
    query = {
        "since": api_time(parsed["since"]),
        "until": api_time(parsed["until"]),
        "filters": filters(parsed["filter"]),
    }
    for event in session.client.messages("GET", "/events", query):
        if template is not None:
            output.line(template.render(event, defaults={"Status": "", "From": "", "ID": ""}))
        elif parsed["format"]:
            from host_client.engine_api.wire import dumps

            output.line(dumps(event))
        else:
            output.line(line_of(event))
    return 0


EVENTS = Command(
    "[OPTIONS]",
    events,
    flags=(
        ("filter", "f", "filter", "Show only those that fit (type=container, event=die, container=web, …)"),
        ("format", "", "string", "How to print: json, or a Go TEMPLATE"),
        ("since", "", "string", "From this time on (2013-01-02T13:23:37Z, or 42m for 42 minutes ago)"),
        ("until", "", "string", "Up to this time"),
    ),
    examples=(
        ("wherry events -f event=die", "tell when containers end"),
        ("wherry events --since 1h --until 0s", "what happened in the last hour"),
    ),
)
