"""Images that are there: list, remove, tag, history; and commit, which makes one."""

from __future__ import annotations

from host_client import reference
from host_client.cli import output, units
from host_client.cli.errors import CliError
from host_client.cli.flags import Command
from host_client.cli.listing import FORMAT_FLAG, Listing
from host_client.engine_api.client import filters, quote
from host_client.engine_api.errors import ApiError
from host_client.engine_api.wire import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session

NONE = "<none>"


def image_path(name: str) -> str:
    """The API path of an image."""
    return f"/images/{quote(name, '/:@')}"


def rows(images: list[Any], with_digests: bool) -> list[Any]:
    """A row for every name of every image (and every digest, when those are wanted)."""
    made: list[Any] = []

    def add(image: Any, repository: str, tag: str, digest: str) -> None:
        made.append({**image, "Repository": repository, "Tag": tag, "Digest": digest})

    for image in images:
        tags = _split(image.get("RepoTags"), ":")
        digests = _split(image.get("RepoDigests"), "@")
        if not tags and not digests:
            add(image, NONE, NONE, NONE)
            continue
        for repository, names in tags.items():
            found = digests.pop(repository, []) if with_digests else digests.pop(repository, []) and []
            for tag in names:
                for digest in found or [NONE]:
                    add(image, repository, tag, digest)
        for repository, found in digests.items():
            for digest in found if with_digests else [""]:
                add(image, repository, NONE, digest)
    return made


def _split(names: list[str] | None, separator: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names or ():
        if name.startswith(NONE):
            continue
        try:
            parsed = reference.parse(name)
        except ValueError:
            continue
        value = parsed.tag if separator == ":" else parsed.digest
        if value:
            found.setdefault(parsed.familiar_name(), []).append(value)
    return found


def listing(full: bool, digests: bool = False) -> Listing:
    """The listing of images."""
    plain = (*("Repository", "Tag"), *(("Digest",) if digests else ()), "ID", "CreatedSince", "Size")
    return Listing(
        "formatter.imageContext",
        {
            "ID": ("IMAGE ID", lambda item: item["Id"] if full else units.short_id(item["Id"])),
            "Repository": ("REPOSITORY", lambda item: item["Repository"]),
            "Tag": ("TAG", lambda item: item["Tag"]),
            "Digest": ("DIGEST", lambda item: item["Digest"]),
            "CreatedSince": (
                "CREATED",
                lambda item: units.since(item["Created"]) if item["Created"] else "N/A",
            ),
            "CreatedAt": ("CREATED AT", lambda item: units.local_time(item["Created"])),
            "Size": ("SIZE", lambda item: units.human_size(item["Size"], 3)),
            "Containers": ("CONTAINERS", lambda item: _count(item.get("Containers", -1))),
            "VirtualSize": ("SIZE", lambda item: units.human_size(item["Size"])),
            "SharedSize": ("SHARED SIZE", lambda item: _shared(item)),
            "UniqueSize": ("UNIQUE SIZE", lambda item: _unique(item)),
        },
        plain,
        raw="repository: {{ .Repository }}\ntag: {{.Tag}}\n"
        + ("digest: {{.Digest}}\n" if digests else "")
        + "image_id: {{.ID}}\ncreated_at: {{.CreatedAt}}\nvirtual_size: {{.Size}}\n",
    )


def _count(count: int) -> str:
    return "N/A" if count == -1 else str(count)


def _shared(item: Any) -> str:
    return "N/A" if item.get("SharedSize", -1) == -1 else units.human_size(item["SharedSize"])


def _unique(item: Any) -> str:
    if item.get("SharedSize", -1) == -1 or item["Size"] == -1:
        return "N/A"
    return units.human_size(item["Size"] - item["SharedSize"])


def images(session: Session, parsed: Parsed) -> int:
    """`wherry images`."""
    wanted = dict(parsed["filter"])
    if parsed.args:
        wanted["reference"] = [*wanted.get("reference", []), parsed.args[0]]
    query = {"all": parsed["all"], "filters": filters(wanted)}
    found = session.client.get("/images/json", query)
    full, digests = parsed["no-trunc"], parsed["digests"]
    if parsed["quiet"]:
        shown = rows(found, digests)
        output.out("".join((item["Id"] if full else units.short_id(item["Id"])) + "\n" for item in shown))
        return 0
    layout = parsed["format"] or session.config.text("imagesFormat")
    listing(full, digests).show(rows(found, digests or "{{.Digest}}" in layout), layout)
    return 0


IMAGES = Command(
    "[OPTIONS] [REPOSITORY[:TAG]]",
    images,
    0,
    1,
    (
        ("all", "a", "bool", "Show intermediate images, too"),
        ("digests", "", "bool", "Show digests"),
        (
            "filter",
            "f",
            "filter",
            "Show only those that fit (dangling=true, label=key=value, reference=alpine*, …)",
        ),
        FORMAT_FLAG,
        ("no-trunc", "", "bool", "Do not shorten anything"),
        ("quiet", "q", "bool", "Show only ids"),
    ),
    complete="image",
    examples=(
        ("wherry images alpine", "all that are called alpine"),
        ("wherry rmi $(wherry images -q -f dangling=true)", "remove those that have no name"),
    ),
)


def remove(session: Session, parsed: Parsed) -> int:
    """`wherry rmi`."""
    query: dict[str, Any] = {"force": parsed["force"], "noprune": parsed["no-prune"]}
    if parsed["platform"]:
        names = ("os", "architecture", "variant")
        query["platforms"] = [
            dumps(dict(zip(names, platform.split("/"), strict=False))) for platform in parsed["platform"]
        ]
    problems, fatal = [], False
    for name in parsed.args:
        try:
            done = session.client.delete(image_path(name), query)
        except ApiError as error:
            fatal = fatal or error.status != 404
            problems.append((error.message, error.hint))
            continue
        for item in done:
            output.line(
                f"Deleted: {item['Deleted']}" if item.get("Deleted") else f"Untagged: {item['Untagged']}"
            )
    for message, hint in problems:
        output.report(message, hint)
    return 1 if problems and (fatal or not parsed["force"]) else 0


REMOVE = Command(
    "[OPTIONS] IMAGE [IMAGE...]",
    remove,
    1,
    None,
    (
        ("force", "f", "bool", "Remove it even if it has several names or stopped containers use it"),
        ("no-prune", "", "bool", "Keep parents that have no name"),
        ("platform", "", "strings", "Only the variant for this platform (os[/arch[/variant]])"),
    ),
    complete="image",
    examples=(("wherry rmi alpine:3.19", "remove the name, and the image if it was the last one"),),
)


def tag(session: Session, parsed: Parsed) -> int:
    """`wherry tag`."""
    source, target = parsed.args
    try:
        parsed_target = reference.parse(target)
    except ValueError as error:
        raise CliError(f'Error parsing reference: "{target}" is not a valid repository/tag: {error}')
    if parsed_target.digest:
        raise CliError("refusing to create a tag with a digest reference")
    query = {"repo": parsed_target.name(), "tag": parsed_target.tagged().tag}
    session.client.post(f"{image_path(source)}/tag", query)
    return 0


TAG = Command(
    "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
    tag,
    2,
    2,
    complete="image",
    examples=(("wherry tag alpine registry.example/base:1", "a name to push it under"),),
)


def history(session: Session, parsed: Parsed) -> int:
    """`wherry history`."""
    query = {}
    if parsed["platform"]:
        names = ("os", "architecture", "variant")
        query["platform"] = dumps(dict(zip(names, parsed["platform"].split("/"), strict=False)))
    items = session.client.get(f"{image_path(parsed.args[0])}/history", query)
    full, human = parsed["no-trunc"], parsed["human"]
    if parsed["quiet"]:
        output.out("".join((item["Id"] if full else units.short_id(item["Id"])) + "\n" for item in items))
        return 0

    def created_by(item: Any) -> str:
        text = str(item["CreatedBy"]).replace("\t", " ")
        return text if full else units.ellipsis(text, 45)

    def created_since(item: Any) -> str:
        if not human:
            return units.rfc3339(item["Created"])
        return units.since(item["Created"]) if item["Created"] > 946684800 else "N/A"  # docker: before 2000

    Listing(
        "image.historyContext",
        {
            "ID": ("IMAGE", lambda item: item["Id"] if full else units.short_id(item["Id"])),
            "CreatedSince": ("CREATED", created_since),
            "CreatedAt": ("CREATED AT", lambda item: units.rfc3339(item["Created"])),
            "CreatedBy": ("CREATED BY", created_by),
            "Size": ("SIZE", lambda item: units.human_size(item["Size"], 3) if human else str(item["Size"])),
            "Comment": ("COMMENT", lambda item: item["Comment"]),
        },
        ("ID", "CreatedSince" if human else "CreatedAt", "CreatedBy", "Size", "Comment"),
    ).show(items, parsed["format"])
    return 0


HISTORY = Command(
    "[OPTIONS] IMAGE",
    history,
    1,
    1,
    (
        FORMAT_FLAG,
        ("human", "H", "bool", "Sizes and dates for people", True),
        ("no-trunc", "", "bool", "Do not shorten anything"),
        ("platform", "", "string", "The variant for this platform (os[/arch[/variant]])"),
        ("quiet", "q", "bool", "Show only ids"),
    ),
    complete="image",
    examples=(("wherry history --no-trunc alpine", "the commands that made it, in full"),),
)


def commit(session: Session, parsed: Parsed) -> int:
    """`wherry commit`."""
    container = parsed.args[0]
    repository, name_tag = "", ""
    if len(parsed.args) > 1:
        try:
            name = reference.parse(parsed.args[1])
        except ValueError as error:
            raise CliError(str(error))
        if name.digest:
            raise CliError("cannot commit to digest reference")
        repository, name_tag = name.name(), name.tagged().tag
    query = {
        "container": container,
        "repo": repository,
        "tag": name_tag,
        "comment": parsed["message"],
        "author": parsed["author"],
        "changes": parsed["change"] or None,
        "pause": None if parsed["pause"] else "0",
    }
    output.line(session.client.post("/commit", query)["Id"])
    return 0


COMMIT = Command(
    "[OPTIONS] CONTAINER [REPOSITORY[:TAG]]",
    commit,
    1,
    2,
    (
        ("author", "a", "string", "Author (Name <name@example.org>)"),
        ("change", "c", "list", "Apply a Dockerfile instruction to the image"),
        ("message", "m", "string", "What was changed"),
        ("pause", "p", "bool", "Pause the container meanwhile", True),
    ),
    complete="container",
    examples=(
        (
            "wherry commit -c 'CMD [\"httpd\"]' web web:new",
            "an image of what is in it now, with a new command",
        ),
    ),
)
