"""`pull`."""

from __future__ import annotations

import os

from host_client import credentials, reference
from host_client.cli import output, progress
from host_client.cli.errors import CliError
from host_client.cli.flags import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session


def registry_header(session: Session, domain: str) -> list[tuple[str, str]]:
    """The header that carries the user's credentials for a registry.

    Raises:
        CliError: a credential helper failed.
    """
    try:
        found = credentials.find(session.config, domain)
    except credentials.CredentialError as error:
        raise CliError(str(error), "credsStore and credHelpers in the docker configuration name the helpers")
    return [("X-Registry-Auth", found.header())]


def fetch(
    session: Session, name: reference.Reference, platform: str, everything: bool, descriptor: int, quiet: bool
) -> None:
    """Have the engine pull an image, or all tags of a repository, and show how it goes."""
    query = {
        "fromImage": name.name(),
        "tag": "" if everything else name.digest or name.tag,
        "platform": platform.lower(),
    }
    messages = session.client.messages(
        "POST", "/images/create", query, None, registry_header(session, name.domain)
    )
    progress.show(messages, descriptor, quiet)


def pull_image(session: Session, image: str, platform: str, show: str) -> None:
    """Pull on behalf of `run` and `create`; `show` is "stderr" or "quiet"."""
    fetch(session, reference.parse(image).tagged(), platform, False, output.ERR, show == "quiet")


def pull(session: Session, parsed: Parsed) -> int:
    """`wherry pull`."""
    try:
        name = reference.parse(parsed.args[0])
    except ValueError as error:
        raise CliError(str(error), "write it as name, name:tag, name@digest or registry/name:tag")
    everything, quiet = parsed["all-tags"], parsed["quiet"]
    if everything and (name.tag or name.digest):
        raise CliError("tag can't be used with --all-tags/-a")
    if not everything and not (name.tag or name.digest):
        name = name.tagged()
        if not quiet:
            output.line(f"Using default tag: {name.tag}")
    platform = parsed["platform"] or os.environ.get("DOCKER_DEFAULT_PLATFORM", "")
    fetch(session, name, platform, everything, output.OUT, quiet)
    output.line(
        name.name() + (f":{name.tag}" if name.tag else "") + (f"@{name.digest}" if name.digest else "")
    )
    return 0


PULL = Command(
    "[OPTIONS] NAME[:TAG|@DIGEST]",
    pull,
    1,
    1,
    (
        ("all-tags", "a", "bool", "Pull every tag of the repository"),
        ("platform", "", "string", "Platform of the image, if it has several (linux/arm64)"),
        ("quiet", "q", "bool", "Do not show progress"),
    ),
    examples=(
        ("wherry pull alpine:3.20", "an image from Docker Hub"),
        ("wherry pull ghcr.io/owner/name", "one from another registry"),
        ("wherry pull --platform linux/arm64 alpine", "the variant for another kind of machine"),
    ),
)
