"""Whole images and file systems as tar archives: export, import, save, load."""

from __future__ import annotations

import os

from host_client import reference
from host_client.cli import output, progress
from host_client.cli.errors import CliError
from host_client.cli.flags import Command
from host_client.engine_api.client import messages, quote
from host_client.engine_api.wire import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session
    from host_client.engine_api.http import Response

PIECE = 1024 * 1024


def target(path: str, what: str) -> str:
    """Where to write an archive until it is whole, "" for standard output; checks that it can go there."""
    if not path:
        if output.is_terminal(output.OUT):
            raise CliError(
                "cowardly refusing to save to a terminal", "write to a file with -o, or redirect the output"
            )
        return ""
    directory = os.path.dirname(path) or "."
    if not os.path.isdir(directory):
        raise CliError(
            f'failed to {what}: invalid output path: directory "{directory}" does not exist', "make it first"
        )
    if os.path.isdir(path):
        raise CliError(f'failed to {what}: output path is a directory: "{path}"')
    if os.path.exists(path) and not os.path.isfile(path):
        raise CliError(f'failed to {what}: output path is not a regular file: "{path}"')
    return f"{path}.{os.getpid()}.part"


def save_to(response: Response, path: str, temporary: str) -> None:
    """Write the body to a file under a temporary name that is put in place when it is whole, or to standard
    output.
    """
    if not temporary:
        for piece in response.chunks():
            output.write_bytes(output.OUT, piece)
        return
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with open(descriptor, "wb") as file:
                for piece in response.chunks():
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise CliError(f"cannot write {path}: {error.strerror or error}")


def export(session: Session, parsed: Parsed) -> int:
    """`wherry export`."""
    path = parsed["output"]
    temporary = target(path, "export container")
    response = session.client.request("GET", f"/containers/{quote(parsed.args[0])}/export")
    save_to(response, path, temporary)
    return 0


EXPORT = Command(
    "[OPTIONS] CONTAINER",
    export,
    1,
    1,
    (("output", "o", "string", "Write to a file instead of standard output"),),
    complete="container",
    examples=(("wherry export -o web.tar web", "its file system as an archive"),),
)


def _platforms(platforms: list[str]) -> list[str]:
    names = ("os", "architecture", "variant")
    return [dumps(dict(zip(names, platform.split("/"), strict=False))) for platform in platforms]


def save(session: Session, parsed: Parsed) -> int:
    """`wherry save`."""
    path = parsed["output"]
    temporary = target(path, "save image")
    query: dict[str, Any] = {"names": parsed.args}
    if parsed["platform"]:
        query["platform"] = _platforms(parsed["platform"])
    save_to(session.client.request("GET", "/images/get", query), path, temporary)
    return 0


_PLATFORM = ("platform", "", "strings", "Only the variant for this platform (os[/arch[/variant]])")

SAVE = Command(
    "[OPTIONS] IMAGE [IMAGE...]",
    save,
    1,
    None,
    (("output", "o", "string", "Write to a file instead of standard output"), _PLATFORM),
    complete="image",
    examples=(("wherry save alpine | ssh host wherry load", "take an image to another machine"),),
)


def pieces(path: str) -> Iterator[bytes]:
    """The content of a file, or of standard input for "-"."""
    if path == "-":
        while piece := os.read(0, PIECE):
            yield piece
        return
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            yield piece


def check_readable(path: str) -> None:
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise CliError(f"open {path}: {(error.strerror or str(error)).lower()}")


def load(session: Session, parsed: Parsed) -> int:
    """`wherry load`."""
    path = parsed["input"] or "-"
    if path == "-":
        if output.is_terminal(0):
            raise CliError(
                "requested load from stdin, but stdin is empty", "name an archive with -i, or redirect one"
            )
    else:
        check_readable(path)
    terminal = output.is_terminal(output.OUT)
    query: dict[str, Any] = {"quiet": parsed["quiet"] or not terminal}
    if parsed["platform"]:
        query["platform"] = _platforms(parsed["platform"])
    headers = [("Content-Type", "application/x-tar")]
    response = session.client.request("POST", "/images/load", query, pieces(path), headers)
    if response.headers.get("content-type", "").startswith("application/json"):
        progress.show(messages(response), output.OUT)
        return 0
    for piece in response.chunks():
        output.write_bytes(output.OUT, piece)
    return 0


LOAD = Command(
    "[OPTIONS]",
    load,
    flags=(
        ("input", "i", "string", "Read from a file instead of standard input"),
        _PLATFORM,
        ("quiet", "q", "bool", "Do not show progress"),
    ),
    examples=(("wherry load -i images.tar", "the images of an archive that save has written"),),
)


def import_image(session: Session, parsed: Parsed) -> int:
    """`wherry import`."""
    source = parsed.args[0]
    query: dict[str, Any] = {
        "fromSrc": "-",
        "message": parsed["message"],
        "changes": parsed["change"] or None,
        "platform": (parsed["platform"] or os.environ.get("DOCKER_DEFAULT_PLATFORM", "")).lower(),
    }
    if len(parsed.args) > 1:
        try:
            name = reference.parse(parsed.args[1])
        except ValueError as error:
            raise CliError(str(error))
        query["repo"] = parsed.args[1] if not name.tag else name.familiar_name()
        query["tag"] = name.tag
    body: Any = None
    if source.startswith(("http://", "https://")):
        query["fromSrc"] = source
    else:
        if source != "-":
            check_readable(source)
        body = pieces(source)
    progress.show(session.client.messages("POST", "/images/create", query, body), output.OUT)
    return 0


IMPORT = Command(
    "[OPTIONS] file|URL|- [REPOSITORY[:TAG]]",
    import_image,
    1,
    2,
    (
        ("change", "c", "list", "Apply a Dockerfile instruction to the image"),
        ("message", "m", "string", "What the image is"),
        ("platform", "", "string", "Platform of the image (linux/arm64)"),
    ),
    examples=(("wherry import -c 'CMD [\"sh\"]' rootfs.tar mine:1", "an image of one layer"),),
)
