"""`push`."""

from __future__ import annotations

from host_client import reference
from host_client.cli import output, progress
from host_client.cli.commands.pull import registry_header
from host_client.cli.errors import CliError
from host_client.cli.flags import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session


_NOTE = (
    """
 Info -> Using --platform pushes only the specified platform manifest of a multi-platform image index.
         Other components, like attestations, will not be included.
         To push the complete multi-platform image, remove the --platform flag.
"""
    + " " * 9
    + "\n"
)


def push(session: Session, parsed: Parsed) -> int:
    """`wherry push`."""
    everything, quiet = parsed["all-tags"], parsed["quiet"]
    query = {}
    if parsed["platform"]:
        query["platform"] = _platform(parsed["platform"])
        output.out(_NOTE)
    try:
        name = reference.parse(parsed.args[0])
    except ValueError as error:
        raise CliError(str(error), "write it as name, name:tag or registry/name:tag")
    if everything and (name.tag or name.digest):
        raise CliError("tag can't be used with --all-tags/-a")
    if not everything and not (name.tag or name.digest):
        name = name.tagged()
        if not quiet:
            output.line(f"Using default tag: {name.tag}")
    if name.digest:
        raise CliError("cannot push a digest reference", "push a tag; 'tag' gives the image one")
    if not everything:
        query["tag"] = name.tag
    messages = session.client.messages(
        "POST", f"/images/{name.familiar_name()}/push", query, None, registry_header(session, name.domain)
    )
    progress.show(messages, output.OUT, quiet)
    if quiet:
        output.line(f"{name.name()}:{name.tag}" if name.tag else name.name())
    return 0


def _platform(text: str) -> str:
    """OS[/ARCH[/VARIANT]] as the API has it, a JSON object."""
    from host_client.engine_api.wire import dumps

    system, _, rest = text.lower().partition("/")
    architecture, _, variant = rest.partition("/")
    if not system or not architecture or "/" in variant:
        raise CliError(f"invalid platform {text!r}", "write it as linux/amd64 or linux/arm/v7")
    parts = {"os": system, "architecture": architecture, "variant": variant}
    return dumps({key: value for key, value in parts.items() if value})


PUSH = Command(
    "[OPTIONS] NAME[:TAG]",
    push,
    1,
    1,
    (
        ("all-tags", "a", "bool", "Push every tag of the repository"),
        ("platform", "", "string", "Push the image only if it is for this platform (linux/arm64)"),
        ("quiet", "q", "bool", "Do not show progress"),
    ),
    complete="image",
    detail="Layers go up as they came down, so that an image keeps its digest. What the registry has, "
    "in this repository or another that you may read, is not sent.",
    examples=(
        (
            "wherry push registry.example/team/app:1.2",
            "an image, after 'wherry tag app registry.example/team/app:1.2'",
        ),
        ("wherry push --all-tags registry.example/team/app", "all its tags"),
    ),
)
