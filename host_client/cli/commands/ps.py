"""`ps`, also `container ls`."""

from __future__ import annotations

from host_client.cli import output, units
from host_client.cli.flags import Command
from host_client.cli.listing import FORMAT_FLAG, Listing, label_method, labels_text
from host_client.engine_api.client import filters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session

DEFAULT = ("ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names")


def listing(full: bool, size: bool = False) -> Listing:
    """The listing of containers; `full` leaves nothing shortened."""

    def names(item: Any) -> str:
        found = [name.removeprefix("/") for name in item["Names"] or ()]
        if full:
            return ",".join(found)
        return next((name for name in found if "/" not in name), "")

    def mounts(item: Any) -> str:
        shown = [mount.get("Name") or mount.get("Source", "") for mount in item.get("Mounts") or ()]
        return ",".join(shown if full else [units.ellipsis(text, 15) for text in shown])

    return Listing(
        "formatter.ContainerContext",
        {
            "ID": ("CONTAINER ID", lambda item: item["Id"] if full else units.short_id(item["Id"])),
            "Names": ("NAMES", names),
            "Image": ("IMAGE", lambda item: image_name(item, full)),
            "Command": ("COMMAND", lambda item: go_quote(_command(item, full))),
            "CreatedAt": ("CREATED AT", lambda item: units.local_time(item["Created"])),
            "RunningFor": ("CREATED", lambda item: units.since(item["Created"])),
            "Ports": ("PORTS", lambda item: ports_text(item.get("Ports") or [])),
            "State": ("STATE", lambda item: item["State"]),
            "Status": ("STATUS", lambda item: item["Status"]),
            "Size": ("SIZE", size_text),
            "Labels": ("LABELS", lambda item: labels_text(item.get("Labels"))),
            "Mounts": ("MOUNTS", mounts),
            "LocalVolumes": ("LOCAL VOLUMES", _local_volumes),
            "Networks": ("NETWORKS", lambda item: ",".join(_networks(item))),
            "Platform": ("PLATFORM", _platform),
        },
        (*DEFAULT, "Size") if size else DEFAULT,
        {"Label": label_method},
        raw=RAW + ("size: {{.Size}}\n" if size else ""),
    )


RAW = """container_id: {{.ID}}
image: {{.Image}}
command: {{.Command}}
created_at: {{.CreatedAt}}
state: {{- pad .State 1 0}}
status: {{- pad .Status 1 0}}
names: {{.Names}}
labels: {{- pad .Labels 1 0}}
ports: {{- pad .Ports 1 0}}
"""


def _command(item: Any, full: bool) -> str:
    command: str = item["Command"]
    return command if full else units.ellipsis(command, 20)


def _networks(item: Any) -> list[str]:
    return list(((item.get("NetworkSettings") or {}).get("Networks") or {}).keys())


def _local_volumes(item: Any) -> str:
    return str(sum(1 for mount in item.get("Mounts") or () if mount.get("Driver") == "local"))


def _platform(item: Any) -> Any:
    platform = (item.get("ImageManifestDescriptor") or {}).get("platform")
    if not platform:
        return None
    return "/".join(
        part for part in (platform["os"], platform["architecture"], platform.get("variant")) if part
    )


def image_name(item: Any, full: bool) -> str:
    """The image as it was named, without a digest; a short id when it has no name any more."""
    name: str = item["Image"]
    if not name:
        return "<no image>"
    if full:
        return name
    short = units.short_id(item.get("ImageID", ""))
    if short == units.short_id(name):
        return short
    if "@" not in name:
        return name.removeprefix("docker.io/library/")
    from host_client import reference

    try:
        parsed = reference.parse(name)
    except ValueError:
        return name
    parsed.digest = ""
    return parsed.familiar()


def size_text(item: Any) -> str:
    """What the container itself takes, and with its image."""
    own = units.human_size(item.get("SizeRw", 0), 3)
    whole = item.get("SizeRootFs", 0)
    return f"{own} (virtual {units.human_size(whole, 3)})" if whole > 0 else own


def go_quote(text: str) -> str:
    """Go's strconv.Quote."""
    shown = []
    for character in text:
        if character in '"\\':
            shown.append("\\" + character)
        elif character in "\a\b\f\n\r\t\v":
            shown.append("\\" + "abfnrtv"["\a\b\f\n\r\t\v".index(character)])
        elif character.isprintable():
            shown.append(character)
        else:
            code = ord(character)
            shown.append(
                f"\\x{code:02x}" if code < 128 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
            )
    return '"' + "".join(shown) + '"'


def ports_text(ports: list[dict[str, Any]]) -> str:
    """`0.0.0.0:8080->80/tcp, 443/tcp`; neighbouring ports that map alike are drawn together as ranges."""
    ordered = sorted(
        ports,
        key=lambda port: (
            port["PrivatePort"],
            port.get("IP", ""),
            port.get("PublicPort", 0),
            port["Type"],
        ),
    )
    groups: dict[tuple[str, str], tuple[int, int]] = {}
    finished: list[str] = []
    mapped: list[str] = []
    for port in ordered:
        ip, inner, kind = port.get("IP", ""), port["PrivatePort"], port["Type"]
        if ip and port.get("PublicPort", 0) != inner:
            mapped.append(f"{_host(ip)}:{port.get('PublicPort', 0)}->{inner}/{kind}")
            continue
        key = (ip, kind)
        if key in groups:
            first, last = groups[key]
            if inner == last + 1:
                groups[key] = (first, inner)
                continue
            finished.append(_group(key, groups[key]))
            # Docker keeps the place of the first group of this kind.
            groups[key] = (inner, inner)
            continue
        groups[key] = (inner, inner)
    finished += [_group(key, span) for key, span in groups.items()]
    return ", ".join(finished + mapped)


def _host(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip


def _group(key: tuple[str, str], span: tuple[int, int]) -> str:
    ip, kind = key
    ports = str(span[0]) if span[0] == span[1] else f"{span[0]}-{span[1]}"
    return f"{_host(ip)}:{ports}->{ports}/{kind}" if ip else f"{ports}/{kind}"


def ps(session: Session, parsed: Parsed) -> int:
    """`wherry ps`."""
    layout = parsed["format"] or ("" if parsed["quiet"] else session.config.text("psFormat"))
    last = parsed["last"]
    if parsed["latest"]:
        last = 1
    size = parsed["size"] or (layout not in ("", "table", "pretty", "json") and _wants_size(layout))
    query = {
        "all": parsed["all"] or last > 0,
        "limit": last if last > 0 else None,
        "size": size,
        "filters": filters(parsed["filter"]),
    }
    items = session.client.get("/containers/json", query)
    full = parsed["no-trunc"]
    if parsed["quiet"]:
        if parsed["format"]:
            output.warn("Ignoring custom format, because both --format and --quiet are set.")
        output.out("".join((item["Id"] if full else item["Id"][:12]) + "\n" for item in items))
        return 0
    listing(full, parsed["size"]).show(items, layout)
    return 0


def _wants_size(layout: str) -> bool:
    return ".Size" in layout or any(f"json .{end}" in layout for end in (" ", "}", "|", ")"))


PS = Command(
    "[OPTIONS]",
    ps,
    flags=(
        ("all", "a", "bool", "Show all containers, not only running ones"),
        ("filter", "f", "filter", "Show only those that fit (status=exited, name=web, label=key=value, …)"),
        FORMAT_FLAG,
        ("last", "n", "int", "Show the last n created containers, in any state", -1),
        ("latest", "l", "bool", "Show the last created container, in any state"),
        ("no-trunc", "", "bool", "Do not shorten anything"),
        ("quiet", "q", "bool", "Show only ids"),
        ("size", "s", "bool", "Show how much disk space they take"),
    ),
    examples=(
        ("wherry ps -a --filter status=exited", "containers that have ended"),
        ("wherry ps --format 'table {{.Names}}\\t{{.Status}}'", "a table of your own"),
        ("wherry rm $(wherry ps -aq)", "remove all that do not run"),
    ),
)
