"""`system df`."""

from __future__ import annotations

from host_client.cli import output, units
from host_client.cli.commands import images, ps, volumes
from host_client.cli.errors import CliError
from host_client.cli.flags import Command
from host_client.cli.listing import FORMAT_FLAG, Listing, compile_layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session

ACTIVE_STATES = ("running", "paused", "restarting")


def _reclaimable(freed: int, total: int) -> str:
    shown = units.human_size(freed)
    return f"{shown} ({freed * 100 // total}%)" if total > 0 else shown


def _sums(found: dict[str, Any]) -> list[dict[str, str]]:
    layers = found.get("LayersSize", 0)
    image_list = found.get("Images") or []
    used = sum(
        image["Size"] - image["SharedSize"]
        for image in image_list
        if image.get("Containers", 0) > 0 and image["Size"] != -1 and image.get("SharedSize", -1) != -1
    )
    containers = found.get("Containers") or []
    own = sum(item.get("SizeRw", 0) for item in containers)
    stopped = sum(item.get("SizeRw", 0) for item in containers if item["State"] not in ACTIVE_STATES)
    volume_list = [item for item in found.get("Volumes") or [] if item.get("UsageData")]
    stored = sum(max(item["UsageData"]["Size"], 0) for item in volume_list)
    unused = sum(
        item["UsageData"]["Size"]
        for item in volume_list
        if item["UsageData"]["RefCount"] == 0 and item["UsageData"]["Size"] != -1
    )
    cache = found.get("BuildCache") or []
    cached = sum(item["Size"] for item in cache if not item.get("Shared"))
    cache_used = sum(item["Size"] for item in cache if item.get("InUse") and not item.get("Shared"))
    return [
        {
            "Type": "Images",
            "TotalCount": str(len(image_list)),
            "Active": str(sum(1 for image in image_list if image.get("Containers", 0) > 0)),
            "Size": units.human_size(layers),
            "Reclaimable": _reclaimable(layers - used, layers),
        },
        {
            "Type": "Containers",
            "TotalCount": str(len(containers)),
            "Active": str(sum(1 for item in containers if item["State"] in ACTIVE_STATES)),
            "Size": units.human_size(own),
            "Reclaimable": _reclaimable(stopped, own),
        },
        {
            "Type": "Local Volumes",
            "TotalCount": str(len(found.get("Volumes") or [])),
            "Active": str(sum(1 for item in volume_list if item["UsageData"]["RefCount"] > 0)),
            "Size": units.human_size(stored),
            "Reclaimable": _reclaimable(unused, stored),
        },
        {
            "Type": "Build Cache",
            "TotalCount": str(len(cache)),
            "Active": str(sum(1 for item in cache if item.get("InUse"))),
            "Size": units.human_size(cached),
            "Reclaimable": units.human_size(cached - cache_used),
        },
    ]


def _one_per_image(found: list[Any]) -> list[Any]:
    rows = []
    for image in found:
        rows += images.rows(
            [{**image, "RepoTags": (image.get("RepoTags") or [])[:1], "RepoDigests": None}], False
        )
    return rows


def _moment(item: dict[str, Any], key: str) -> float | None:
    """Seconds since 1970 of one of a cache record's times; None where it was never used."""
    text = item.get(key)
    if not text:
        return None
    seconds, fraction = units.parse_rfc3339(text)
    return seconds + float(fraction or 0)


def _cache_listing(full: bool) -> Listing:
    def since(key: str) -> Callable[[dict[str, Any]], str]:
        def text(item: dict[str, Any]) -> str:
            moment = _moment(item, key)
            return "" if moment is None else units.since(moment)

        return text

    def identity(item: dict[str, Any]) -> str:
        name: str = item["ID"] if full else units.short_id(item["ID"])
        return name + "*" if item.get("InUse") else name

    def parent(item: dict[str, Any]) -> str:
        text = ", ".join(item.get("Parents") or ())
        return text if full else units.short_id(text)

    return Listing(
        "formatter.buildCacheContext",
        {
            "ID": ("CACHE ID", identity),
            "Parent": ("PARENT", parent),
            "CacheType": ("CACHE TYPE", lambda item: item["Type"]),
            "Size": ("SIZE", lambda item: units.human_size(item["Size"], 3)),
            "CreatedSince": ("CREATED", since("CreatedAt")),
            "LastUsedSince": ("LAST USED", since("LastUsedAt")),
            "UsageCount": ("USAGE", lambda item: str(item["UsageCount"])),
            "InUse": ("IN USE", lambda item: str(item["InUse"]).lower()),
            "Shared": ("SHARED", lambda item: str(item["Shared"]).lower()),
            "Description": ("DESCRIPTION", lambda item: item["Description"]),
        },
        ("ID", "CacheType", "Size", "CreatedSince", "LastUsedSince", "UsageCount", "Shared"),
    )


def _cache_records(found: dict[str, Any]) -> list[dict[str, Any]]:
    """By last use, those that were never used first, as docker sorts them."""
    return sorted(
        found.get("BuildCache") or [], key=lambda item: (_moment(item, "LastUsedAt") or 0.0, item["ID"])
    )


def _verbose(found: dict[str, Any]) -> None:
    image_table = images.listing(full=False)
    image_table.default = (
        "Repository", "Tag", "ID", "CreatedSince", "Size", "SharedSize", "UniqueSize", "Containers",
    )  # fmt: skip
    container_table = ps.listing(full=False)
    container_table.default = (
        "ID", "Image", "Command", "LocalVolumes", "Size", "RunningFor", "Status", "Names",
    )  # fmt: skip
    volume_table = volumes.listing()
    volume_table.default = ("Name", "Links", "Size")
    containers = [{**item, "SizeRootFs": 0} for item in found.get("Containers") or []]
    cached = sum(item["Size"] for item in found.get("BuildCache") or [] if not item.get("Shared"))
    output.out(
        "Images space usage:\n\n"
        + image_table.table(_one_per_image(found.get("Images") or []))
        + "\nContainers space usage:\n\n"
        + container_table.table(containers)
        + "\nLocal Volumes space usage:\n\n"
        + volume_table.table(found.get("Volumes") or [])
        + f"\nBuild cache usage: {units.human_size(cached)}\n\n"
        + _cache_listing(full=False).table(_cache_records(found))
    )


def _verbose_formatted(found: dict[str, Any], layout: str) -> None:
    from host_client.cli.templates import Row, TemplateError
    from host_client.engine_api.wire import dumps, html_safe

    def rows(listing: Listing, items: list[Any]) -> list[Row]:
        fields = {name: column[1] for name, column in listing.columns.items()}
        return [Row(f"*{listing.type_name}", fields, item, listing.methods) for item in items]

    data = {
        "Images": rows(images.listing(full=True), _one_per_image(found.get("Images") or [])),
        "Containers": rows(
            ps.listing(full=True), [{**item, "SizeRootFs": 0} for item in found.get("Containers") or []]
        ),
        "Volumes": rows(volumes.listing(), found.get("Volumes") or []),
        "BuildCache": rows(_cache_listing(full=True), _cache_records(found)),
    }
    if layout == "json":
        shown = {name: [row.as_dict() for row in kind] for name, kind in data.items()}
        output.line(html_safe(dumps(shown)))
        return
    try:
        output.out(compile_layout(layout).render(data))
    except TemplateError as error:
        raise CliError(f"template parsing error: {error}")


def df(session: Session, parsed: Parsed) -> int:
    """`wherry system df`."""
    found = session.client.get("/system/df")
    layout = parsed["format"]
    if parsed["verbose"]:
        if layout in ("", "table"):
            _verbose(found)
        else:
            _verbose_formatted(found, layout)
        return 0

    def field(name: str) -> Any:
        return lambda item: item[name]

    headings = {"TotalCount": "TOTAL"}
    names = ("Type", "TotalCount", "Active", "Size", "Reclaimable")
    columns = {name: (headings.get(name, name.upper()), field(name)) for name in names}
    raw = "type: {{.Type}}\ntotal: {{.TotalCount}}\nactive: {{.Active}}\n"
    raw += "size: {{.Size}}\nreclaimable: {{.Reclaimable}}\n"
    Listing("formatter.diskUsageImagesContext", columns, names, raw=raw).show(_sums(found), layout)
    return 0


DF = Command(
    "[OPTIONS]",
    df,
    flags=(FORMAT_FLAG, ("verbose", "v", "bool", "Show every image, container and volume")),
    examples=(("wherry system df -v", "what takes the space"),),
)
