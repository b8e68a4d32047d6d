"""`version`."""

from __future__ import annotations

import os
import sys

from host_client import VERSION as CLIENT_VERSION
from host_client.cli import output
from host_client.cli.flags import Command
from host_client.cli.tabwriter import align
from host_client.engine_api import API_VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session

ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64", "armv7l": "arm"}
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def machine() -> str:
    """This machine's architecture, by Docker's name."""
    name = (
        os.uname().machine if hasattr(os, "uname") else os.environ.get("PROCESSOR_ARCHITECTURE", "").lower()
    )
    return ARCHITECTURES.get(name, name)


def client_part(api_version: str) -> dict[str, Any]:
    """What there is to say of the client."""
    system = {"win32": "windows"}.get(sys.platform, sys.platform)
    return {
        "Platform": {"Name": "Wherry"},
        "Version": CLIENT_VERSION,
        "ApiVersion": api_version,
        "DefaultAPIVersion": API_VERSION,
        "PythonVersion": ".".join(str(part) for part in sys.version_info[:3]),
        "Os": system,
        "Arch": machine(),
        "Context": "default",
    }


def _client_text(client: dict[str, Any]) -> str:
    version, newest = client["ApiVersion"], client["DefaultAPIVersion"]
    downgraded = f" (downgraded from {newest})" if version != newest else ""
    return (
        f"Client: Wherry\n Version:\t{client['Version']}\n API version:\t{version}{downgraded}\n"
        f" Python version:\t{client['PythonVersion']}\n OS/Arch:\t{client['Os']}/{client['Arch']}\n"
    )


def _server_text(server: dict[str, Any]) -> str:
    platform = (server.get("Platform") or {}).get("Name", "")
    text = f"\nServer:{' ' + platform if platform else ''}\n"
    for component in server.get("Components") or ():
        details = component.get("Details") or {}
        text += f" {component['Name']}:\n  Version:\t{component['Version']}\n"
        if component["Name"] != "Engine":
            text += "".join(f"  {key}:\t{details[key]}\n" for key in sorted(details))
            continue
        text += (
            f"  API version:\t{details.get('ApiVersion')} (minimum version {details.get('MinAPIVersion')})\n"
        )
        for label, key in (("Go version", "GoVersion"), ("Git commit", "GitCommit"), ("Built", "BuildTime")):
            if details.get(key):
                text += f"  {label}:\t{_plain_date(details[key]) if key == 'BuildTime' else details[key]}\n"
        text += f"  OS/Arch:\t{details.get('Os')}/{details.get('Arch')}\n"
        text += f"  Experimental:\t{details.get('Experimental', 'false')}\n"
    return text


def _plain_date(text: str) -> str:
    """An API time as Go's ANSIC layout."""
    from host_client.cli.units import days, parse_rfc3339

    try:
        parse_rfc3339(text)
        year, month, day = (int(part) for part in text[:10].split("-"))
    except ValueError:
        return text
    return f"{DAYS[(days(year, month, day) + 3) % 7]} {MONTHS[month - 1]} {day:2} {text[11:19]} {year}"


def version(session: Session, parsed: Parsed) -> int:
    """`wherry version`."""
    layout = parsed["format"]
    template = None
    if layout not in ("", "json"):
        from host_client.cli import formats

        template = formats.template(layout)
    problem = None
    server: dict[str, Any] | None = None
    api_version = API_VERSION
    if not parsed["client"]:
        from host_client.engine_api.errors import EngineApiError

        try:
            server = session.client.get("/version")
            api_version = session.client.version
        except EngineApiError as error:
            problem = error
    client = client_part(api_version)
    if not layout:
        output.out(align(_client_text(client) + (_server_text(server) if server else ""), 20, 1))
    else:
        _formatted(client, server, template)
    if problem is not None:
        raise problem
    return 0


def _formatted(client: dict[str, Any], server: dict[str, Any] | None, template: Any) -> None:
    from host_client.engine_api.wire import dumps

    both = {"Client": client, "Server": server}
    if template is None:
        output.line(dumps(both))
        return
    from host_client.cli import formats

    output.line(formats.filled(template, both))


VERSION = Command(
    "[OPTIONS]",
    version,
    flags=(
        ("client", "", "bool", "Only the client's version; no engine is asked"),
        ("format", "f", "string", "How to print: json, or a Go TEMPLATE ({{.Server.Version}})"),
    ),
    examples=(("wherry version -f '{{.Server.Version}}'", "the engine's version only"),),
)
