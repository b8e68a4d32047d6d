"""`run` and `create`."""

from __future__ import annotations

import os

from host_client.cli import output
from host_client.cli.errors import CliError, UsageError
from host_client.cli.flags import Command
from host_client.cli.options.container_flags import CONTAINER_ALIASES, CONTAINER_FLAGS, CREATE_FLAGS
from host_client.cli.session import import_attached
from host_client.engine_api.errors import ApiError, EngineApiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session

PULL_CHOICES = ("always", "missing", "never")

RUN_FLAGS = (
    *CONTAINER_FLAGS,
    *CREATE_FLAGS,
    ("detach", "d", "bool", "Run in the background and print the container ID"),
    ("detach-keys", "", "string", "Key sequence that detaches from the container (ctrl-p,ctrl-q)"),
    ("sig-proxy", "", "bool", "Pass signals on to the process", True),
)


def _body(session: Session, parsed: Parsed) -> dict[str, Any]:
    if parsed["pull"] not in PULL_CHOICES:
        choices = ", ".join(f'"{choice}"' for choice in PULL_CHOICES[:2])
        raise UsageError(
            f"invalid pull option: '{parsed['pull']}': must be one of {choices} or \"{PULL_CHOICES[2]}\"",
            f"see 'wherry {parsed.name} --help'",
        )
    from host_client.cli.options.container_config import create_body

    image, arguments = parsed.args[0], parsed.args[1:]
    environment = list(parsed["env"])
    proxies = session.config.proxies(session.chosen_host())
    if proxies:
        named = {item.partition("=")[0] for item in environment}
        environment += [f"{name}={value}" for name, value in proxies.items() if name not in named]
    try:
        return create_body(parsed, image, arguments, environment)
    except ValueError as error:
        raise UsageError(str(error), f"see 'wherry {parsed.name} --help'")


def create_container(session: Session, parsed: Parsed, body: dict[str, Any]) -> str:
    """Create the container, pulling its image where that is wanted; its id.

    Raises:
        CliError, EngineApiError: it could not be made.
    """
    from host_client import reference

    image = parsed.args[0]
    platform = parsed["platform"] or os.environ.get("DOCKER_DEFAULT_PLATFORM", "")
    cid_path = parsed["cidfile"]
    if cid_path and os.path.exists(cid_path):
        raise CliError(
            f"container ID file found, make sure the other container isn't running or delete {cid_path}"
        )
    name = None
    if not reference.is_image_id(image) and not image.startswith("sha256:"):
        try:
            name = reference.parse(image).tagged()
        except ValueError as error:
            raise CliError(
                str(error), f"write an image as name, name:tag or registry/name:tag, not {image!r}"
            )
    cid_file = _open_cid_file(cid_path) if cid_path else -1
    try:
        if output.is_terminal(output.OUT):
            from host_client.cli.terminal import for_this_system

            body["HostConfig"]["ConsoleSize"] = list(for_this_system().size(output.OUT))
        if parsed["pull"] == "always" and name is not None:
            _pull(session, image, platform, parsed["quiet"])
        query = {"name": parsed["name"], "platform": platform}
        try:
            created = session.client.post("/containers/create", query, body, meanwhile=import_attached)
        except ApiError as error:
            # A volume driver or a container can be what is not found, too, which no pull brings.
            lacks_image = error.status == 404 and "image" in error.message.lower()
            if not lacks_image or name is None or parsed["pull"] != "missing":
                raise
            if not parsed["quiet"]:
                output.err(f"Unable to find image '{name.familiar()}' locally\n")
            _pull(session, image, platform, parsed["quiet"])
            created = session.client.post("/containers/create", query, body)
        for address in parsed["dns"]:
            if address.startswith("127.") or address == "::1":
                output.warn(f"Localhost DNS setting (--dns={address}) may fail in containers.")
        for warning in created.get("Warnings") or ():
            output.warn(str(warning))
        container: str = created["Id"]
        if cid_file >= 0:
            output.write_bytes(cid_file, container.encode())
            cid_path = ""
        return container
    finally:
        if cid_file >= 0:
            os.close(cid_file)
            if cid_path:
                os.unlink(cid_path)


def _open_cid_file(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CliError(f"failed to create the container ID file: open {path}: {reason}")


def _pull(session: Session, image: str, platform: str, quiet: bool) -> None:
    from host_client.cli.commands.pull import pull_image

    pull_image(session, image, platform, "quiet" if quiet else "stderr")


def create(session: Session, parsed: Parsed) -> int:
    """`wherry create`."""
    body = _body(session, parsed)
    output.line(create_container(session, parsed, body))
    return 0


def status_of(error: EngineApiError) -> int:
    """Docker's exit status for a container that could not be started: 127 not found, 126 not executable, else
    125.
    """
    text = error.message
    if (
        "executable file not found" in text
        or "no such file or directory" in text
        or "system cannot find the file specified" in text
    ):
        return 127
    if "permission denied" in text or "is a directory" in text:
        return 126
    return 125


def run(session: Session, parsed: Parsed) -> int:
    """`wherry run`."""
    body = _body(session, parsed)
    if parsed["detach"]:
        if parsed["attach"]:
            raise CliError("conflicting options: cannot specify both --attach and --detach", status=125)
        body["AttachStdin"] = body["AttachStdout"] = body["AttachStderr"] = body["StdinOnce"] = False
    elif body["AttachStdin"] and body["Tty"] and not output.is_terminal(0):
        raise CliError(
            "the input device is not a TTY", "leave out -t to hand on input that is not a terminal"
        )
    keys = parsed["detach-keys"] or session.config.text("detachKeys")
    if parsed["detach-keys"]:
        _check_keys(keys)
    try:
        container = create_container(session, parsed, body)
    except CliError as error:
        raise CliError(error.message, error.hint, 125)
    except EngineApiError as error:
        raise CliError(error.message, error.hint, status_of(error))
    try:
        return _start(session, parsed, container, body, keys)
    except EngineApiError as error:
        raise CliError(error.message, error.hint, status_of(error))


def _start(session: Session, parsed: Parsed, container: str, body: dict[str, Any], keys: str) -> int:
    streams = body["AttachStdin"], body["AttachStdout"], body["AttachStderr"]
    if not any(streams):
        session.client.post(f"/containers/{container}/start")
        output.line(container)
        return 0
    from host_client.cli.attached import Attachment

    stdin, stdout, stderr = streams
    attachment = Attachment(
        session.client,
        container,
        tty=body["Tty"],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        detach_keys=keys,
        sig_proxy=parsed["sig-proxy"],
    )
    return attachment.follow("removed" if parsed["rm"] else "next-exit", start={})


def _check_keys(keys: str) -> None:
    from host_client.cli.detach import parse_keys

    try:
        parse_keys(keys)
    except ValueError as error:
        raise CliError(f"invalid detach keys ({keys}): {error}", "write them as a, ctrl-p or ctrl-p,ctrl-q")


RUN = Command(
    "[OPTIONS] IMAGE [COMMAND] [ARG...]",
    run,
    minimum=1,
    maximum=None,
    flags=RUN_FLAGS,
    aliases=CONTAINER_ALIASES,
    interspersed=False,
    complete="image",
    examples=(
        ("wherry run --rm -it alpine sh", "a shell in a new container that is gone when you leave it"),
        ("wherry run -d --name web -p 8080:80 nginx", "a server in the background, on port 8080 of the host"),
        ("wherry run --rm -v .:/src -w /src python:3 python app.py", "a program of the current directory"),
    ),
)
CREATE = Command(
    "[OPTIONS] IMAGE [COMMAND] [ARG...]",
    create,
    minimum=1,
    maximum=None,
    flags=(*CONTAINER_FLAGS, *CREATE_FLAGS),
    aliases=CONTAINER_ALIASES,
    interspersed=False,
    complete="image",
    examples=(("wherry create --name job alpine date", "make a container to be started later"),),
)
