"""Volumes: create, list, remove."""

from __future__ import annotations

from host_client.cli import output, units
from host_client.cli.commands.lifecycle import each
from host_client.cli.errors import CliError
from host_client.cli.flags import Command
from host_client.cli.listing import FORMAT_FLAG, Listing, label_method, labels_text
from host_client.engine_api.client import filters, quote
from host_client.engine_api.errors import ApiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session

NOT_AVAILABLE = "N/A"


def _usage(item: Any, key: str, show: Any) -> str:
    usage = item.get("UsageData")
    return NOT_AVAILABLE if not usage else show(usage[key])


def listing() -> Listing:
    """The listing of volumes."""
    return Listing(
        "formatter.volumeContext",
        {
            "Name": ("VOLUME NAME", lambda item: item["Name"]),
            "Driver": ("DRIVER", lambda item: item["Driver"]),
            "Scope": ("SCOPE", lambda item: item["Scope"]),
            "Mountpoint": ("MOUNTPOINT", lambda item: item["Mountpoint"]),
            "Labels": ("LABELS", lambda item: labels_text(item.get("Labels"))),
            "Links": ("LINKS", lambda item: _usage(item, "RefCount", str)),
            "Size": ("SIZE", lambda item: _usage(item, "Size", units.human_size)),
            "Group": ("GROUP", lambda _item: NOT_AVAILABLE),
            "Availability": ("AVAILABILITY", lambda _item: NOT_AVAILABLE),
            "Status": ("STATUS", lambda _item: NOT_AVAILABLE),
        },
        ("Driver", "Name"),
        {"Label": label_method},
        raw="name: {{.Name}}\ndriver: {{.Driver}}\n",
    )


def list_volumes(session: Session, parsed: Parsed) -> int:
    """`wherry volume ls`."""
    items = session.client.get("/volumes", {"filters": filters(parsed["filter"])})["Volumes"] or []
    items.sort(key=lambda item: item["Name"])
    layout = parsed["format"] or ("" if parsed["quiet"] else session.config.text("volumesFormat"))
    if parsed["quiet"] and layout in ("", "table"):
        output.out("".join(item["Name"] + "\n" for item in items))
        return 0
    listing().show(items, layout)
    return 0


LIST = Command(
    "[OPTIONS]",
    list_volumes,
    flags=(
        ("filter", "f", "filter", "Show only those that fit (dangling=true, label=key=value, …)"),
        FORMAT_FLAG,
        ("quiet", "q", "bool", "Show only names"),
    ),
    examples=(("wherry volume ls -f dangling=true", "those that no container uses"),),
)


def create(session: Session, parsed: Parsed) -> int:
    """`wherry volume create`."""
    body: dict[str, Any] = {"Driver": parsed["driver"]}
    if parsed["opt"]:
        body["DriverOpts"] = parsed["opt"]
    if parsed["label"]:
        body["Labels"] = dict(label.partition("=")[::2] for label in parsed["label"])
    if parsed.args:
        body["Name"] = parsed.args[0]
    if parsed["name"]:
        if parsed.args:
            raise CliError(
                "conflicting options: cannot specify a volume-name through both --name "
                "and as a positional arg"
            )
        body["Name"] = parsed["name"]
    output.line(session.client.post("/volumes/create", None, body)["Name"])
    return 0


CREATE = Command(
    "[OPTIONS] [VOLUME]",
    create,
    0,
    1,
    (
        ("driver", "d", "string", "Driver of the volume", "local"),
        ("label", "", "list:label", "Set a label (key=value)"),
        ("name", "", "string", "Name of the volume; the argument does the same"),
        ("opt", "o", "map", "Option of the driver (type=nfs)"),
    ),
    examples=(
        ("wherry volume create data", "a volume to be mounted with -v data:/path"),
        ("wherry volume create -o type=tmpfs -o device=tmpfs -o o=size=64m cache", "one in memory"),
    ),
)


def remove(session: Session, parsed: Parsed) -> int:
    """`wherry volume rm`."""

    def action(name: str) -> str | None:
        try:
            session.client.delete(f"/volumes/{quote(name)}", {"force": parsed["force"]})
        except ApiError as error:
            if parsed["force"] and error.status == 404:
                output.report(error.message, error.hint)
                return None
            raise
        return name

    return each(parsed.args, action)


REMOVE = Command(
    "[OPTIONS] VOLUME [VOLUME...]",
    remove,
    1,
    None,
    (("force", "f", "bool", "No error when there is no such volume"),),
    complete="volume",
    detail="A volume that a container uses cannot be removed.",
    examples=(("wherry volume rm data", "with all that is in it"),),
)
