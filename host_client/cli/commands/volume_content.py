"""The content of volumes: snapshots, clones, restoring, export, import, renaming.

Only Wherry's engine has these.
"""

from __future__ import annotations

from host_client.cli import output, units
from host_client.cli.commands.archives import check_readable, pieces, save_to, target
from host_client.cli.errors import CliError
from host_client.cli.flags import Command
from host_client.cli.listing import FORMAT_FLAG, Listing
from host_client.engine_api.client import quote
from host_client.engine_api.errors import ApiError
from host_client.engine_api.wire import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session
    from host_client.engine_api.client import Query

_NO_PAUSE = ("no-pause", "", "bool", "Do not freeze the containers that run with the volume meanwhile")
_SNAPSHOT = ("snapshot", "", "string", "Take the content of this snapshot")


def _ours(run: Callable[[Session, Parsed], int]) -> Callable[[Session, Parsed], int]:
    """A command with a better answer than "page not found" for engines that are not Wherry's."""

    def checked(session: Session, parsed: Parsed) -> int:
        try:
            return run(session, parsed)
        except ApiError as error:
            if error.status == 404 and error.message == "page not found":
                raise CliError(
                    f"this engine has no 'volume {parsed.name.split()[-1]}'",
                    "it is one of Wherry's own: --host or DOCKER_HOST name another engine",
                )
            raise

    return checked


def _path(volume: str, action: str) -> str:
    return f"/wherry/volumes/{quote(volume)}/{action}"


def _query(parsed: Parsed, **values: str) -> Query:
    return {**values, **({"pause": "0"} if parsed["no-pause"] else {})}


def snapshot(session: Session, parsed: Parsed) -> int:
    """`wherry volume snapshot`."""
    volume, label = parsed.args[0], parsed.args[1] if len(parsed.args) > 1 else ""
    if parsed["delete"]:
        if not label:
            raise CliError("--delete needs the name of a snapshot", f"see 'wherry volume snapshots {volume}'")
        session.client.delete(_path(volume, f"snapshots/{quote(label)}"))
        output.line(label)
        return 0
    made = session.client.post(_path(volume, "snapshots"), _query(parsed, name=label))
    output.line(made["Name"])
    return 0


SNAPSHOT = Command(
    "[OPTIONS] VOLUME [SNAPSHOT]",
    _ours(snapshot),
    1,
    2,
    (("delete", "", "bool", "Delete the snapshot"), _NO_PAUSE),
    complete="volume",
    detail="Without a name it is called by the time. Snapshots go with their volume. Where the file system "
    "shares blocks (XFS, Btrfs) they take no time and no space.",
    examples=(
        ("wherry volume snapshot data before-upgrade", "keep what is in it now"),
        ("wherry volume snapshot --delete data before-upgrade", "no longer"),
    ),
)


def list_snapshots(session: Session, parsed: Parsed) -> int:
    """`wherry volume snapshots`."""
    items = session.client.get(_path(parsed.args[0], "snapshots"))
    if parsed["quiet"]:
        output.out("".join(item["Name"] + "\n" for item in items))
        return 0
    Listing(
        "formatter.snapshotContext",
        {
            "Name": ("SNAPSHOT", lambda item: item["Name"]),
            "CreatedAt": ("CREATED AT", lambda item: item["CreatedAt"]),
            "Size": ("SIZE", lambda item: units.human_size(item["Size"])),
        },
        ("Name", "CreatedAt", "Size"),
        {},
        raw="name: {{.Name}}\ncreated_at: {{.CreatedAt}}\nsize: {{.Size}}\n",
    ).show(items, parsed["format"])
    return 0


SNAPSHOTS = Command(
    "[OPTIONS] VOLUME",
    _ours(list_snapshots),
    1,
    1,
    (FORMAT_FLAG, ("quiet", "q", "bool", "Show only names")),
    complete="volume",
    examples=(("wherry volume snapshots data", "oldest first"),),
)


def restore(session: Session, parsed: Parsed) -> int:
    """`wherry volume restore`."""
    volume, label = parsed.args
    session.client.post(_path(volume, "restore"), {"snapshot": label})
    output.line(volume)
    return 0


RESTORE = Command(
    "VOLUME SNAPSHOT",
    _ours(restore),
    2,
    2,
    complete="volume",
    detail="What is in the volume now is lost. No container may run with it.",
    examples=(("wherry volume restore data before-upgrade", "as it was then"),),
)


def clone(session: Session, parsed: Parsed) -> int:
    """`wherry volume clone`."""
    volume, new = parsed.args
    query = _query(parsed, name=new, snapshot=parsed["snapshot"])
    output.line(session.client.post(_path(volume, "clone"), query)["Name"])
    return 0


CLONE = Command(
    "[OPTIONS] VOLUME NEW_VOLUME",
    _ours(clone),
    2,
    2,
    (_NO_PAUSE, _SNAPSHOT),
    complete="volume",
    examples=(("wherry volume clone data data-for-tests", "a copy that may be spoilt"),),
)


def export(session: Session, parsed: Parsed) -> int:
    """`wherry volume export`."""
    path = parsed["output"]
    temporary = target(path, "export volume")
    query = _query(parsed, snapshot=parsed["snapshot"])
    save_to(session.client.request("GET", _path(parsed.args[0], "export"), query), path, temporary)
    return 0


EXPORT = Command(
    "[OPTIONS] VOLUME",
    _ours(export),
    1,
    1,
    (_NO_PAUSE, ("output", "o", "string", "Write to a file instead of standard output"), _SNAPSHOT),
    complete="volume",
    detail="Owners, modes, extended attributes, links and holes are in it; GNU tar and "
    "'wherry volume import' read it.",
    examples=(("wherry volume export data | zstd > data.tar.zst", "a backup"),),
)


def import_volume(session: Session, parsed: Parsed) -> int:
    """`wherry volume import`."""
    name, path = parsed.args[0], parsed.args[1] if len(parsed.args) > 1 else "-"
    if path == "-" and output.is_terminal(0):
        raise CliError("there is no archive on standard input", "name a file, or redirect one")
    if path != "-":
        check_readable(path)
    labels = dict(label.partition("=")[::2] for label in parsed["label"])
    query = {"name": name, "labels": dumps(labels) if labels else ""}
    headers = [("Content-Type", "application/x-tar")]
    response = session.client.request("POST", "/wherry/volumes/import", query, pieces(path), headers)
    for _ in response.chunks():
        pass
    output.line(name)
    return 0


IMPORT = Command(
    "[OPTIONS] VOLUME [FILE|-]",
    _ours(import_volume),
    1,
    2,
    (("label", "", "list:label", "Set a label (key=value)"),),
    detail="The archive may be compressed with gzip, bzip2, xz or zstd.",
    examples=(("wherry volume import data data.tar.zst", "a new volume from a backup"),),
)


def rename(session: Session, parsed: Parsed) -> int:
    """`wherry volume rename`."""
    volume, new = parsed.args
    session.client.post(_path(volume, "rename"), {"name": new})
    output.line(new)
    return 0


RENAME = Command(
    "VOLUME NEW_NAME",
    _ours(rename),
    2,
    2,
    complete="volume",
    detail="No container may have it, running or not, since containers know their volumes by name.",
    examples=(("wherry volume rename data data-old", "its snapshots go with it"),),
)
