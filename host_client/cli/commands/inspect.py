"""`inspect`, for anything or for one kind of object."""

from __future__ import annotations

from host_client.cli import output
from host_client.cli.errors import CliError
from host_client.cli.flags import Command
from host_client.engine_api.client import quote
from host_client.engine_api.errors import ApiError
from host_client.engine_api.wire import dumps, pretty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session

KINDS = ("container", "image", "network", "volume")
DOCKER_KINDS = (
    "config", "container", "image", "network", "node", "plugin", "secret", "service", "task", "volume",
)  # fmt: skip


def _path(kind: str, name: str) -> str:
    collection, suffix = {
        "container": ("containers", "/json"),
        "image": ("images", "/json"),
        "network": ("networks", ""),
        "volume": ("volumes", ""),
    }[kind]
    return f"/{collection}/{quote(name, '/:@')}{suffix}"


def look_up(session: Session, kind: str, name: str, query: dict[str, Any]) -> Any:
    """One object of a kind.

    Raises:
        ApiError: there is none of that name.
    """
    return session.client.get(_path(kind, name), query)


def _find(session: Session, name: str, size: bool) -> Any:
    """The first object of that name, of any kind.

    Raises:
        ApiError: there is none.
    """
    for kind in KINDS:
        try:
            return look_up(session, kind, name, {"size": size} if kind == "container" else {})
        except ApiError as error:
            skip = (
                error.status == 404
                or "not supported" in error.message
                or "invalid reference" in error.message
            )
            if not skip:
                raise
    raise ApiError(404, f"No such object: {name}")


def inspect_all(names: Sequence[str], layout: str, find: Callable[[str], Any]) -> int:
    """Print what `find` returns for each name as JSON or by template; errors come after what was found."""
    template = None
    if layout not in ("", "json"):
        from host_client.cli import formats

        template = formats.template(layout)
    found: list[Any] = []
    text = ""
    problems: list[tuple[str, str]] = []
    for name in names:
        try:
            item = find(name)
        except ApiError as error:
            problems.append((error.message, error.hint))
            continue
        if template is None:
            found.append(item)
            continue
        from host_client.cli.inspect_defaults import DEFAULTS

        try:
            text += formats.filled(template, item, DEFAULTS) + "\n"
        except CliError as error:
            problems.append((error.message, error.hint))
    if template is not None:
        output.out(text or "\n")
    else:
        output.line(dumps(found) if layout == "json" else pretty(found))
    for message, hint in problems:
        output.report(message, hint)
    return 1 if problems else 0


def inspect_any(session: Session, parsed: Parsed) -> int:
    """`wherry inspect`."""
    kind, size = parsed["type"], parsed["size"]
    choices = ", ".join(f'"{name}"' for name in DOCKER_KINDS)
    if "type" in parsed.given and not kind:
        raise CliError(f"type is empty: must be one of {choices}")
    if kind and kind not in DOCKER_KINDS:
        raise CliError(f'unknown type: "{kind}": must be one of {choices}')
    if kind and kind not in KINDS:
        raise CliError(f"--type {kind} is not supported", f"it can be {', '.join(KINDS)}")
    if not kind:
        return inspect_all(parsed.args, parsed["format"], lambda name: _find(session, name, size))
    if size and kind != "container":
        output.warn(f"--size ignored for {kind}")
    query = {"size": size} if kind == "container" else {}
    return inspect_all(parsed.args, parsed["format"], lambda name: look_up(session, kind, name, query))


def _of_kind(kind: str) -> Callable[[Session, Parsed], int]:
    def run(session: Session, parsed: Parsed) -> int:
        query: dict[str, Any] = {
            flag: parsed[flag]
            for flag in ("size", "verbose", "platform")
            if flag in parsed.values and parsed[flag]
        }
        if "platform" in query:
            query["platform"] = _platform(query["platform"])
        if "verbose" in query:
            query["verbose"] = "true"
        return inspect_all(parsed.args, parsed["format"], lambda name: look_up(session, kind, name, query))

    return run


def _platform(text: str) -> str:
    parts = [*text.split("/"), "", ""][:3]
    return dumps(
        {name: part for name, part in zip(("os", "architecture", "variant"), parts, strict=True) if part}
    )


_FORMAT = ("format", "f", "string", "How to print: json, or a Go TEMPLATE ({{.State.Status}})")

ANY = Command(
    "[OPTIONS] NAME|ID [NAME|ID...]",
    inspect_any,
    1,
    None,
    (
        _FORMAT,
        ("size", "s", "bool", "Show the sizes of containers, too"),
        ("type", "", "string", "Look only for this kind: container, image, network or volume"),
    ),
    complete="container",
    examples=(
        ("wherry inspect web", "everything about it"),
        ("wherry inspect -f '{{.State.Status}}' web", "one field"),
    ),
)
CONTAINER = Command(
    "[OPTIONS] CONTAINER [CONTAINER...]",
    _of_kind("container"),
    1,
    None,
    (_FORMAT, ("size", "s", "bool", "Show the sizes, too")),
    complete="container",
    examples=(("wherry container inspect -f '{{.State.Status}}' web", "whether it runs"),),
)
IMAGE = Command(
    "[OPTIONS] IMAGE [IMAGE...]",
    _of_kind("image"),
    1,
    None,
    (_FORMAT, ("platform", "", "string", "The variant for this platform (os[/arch[/variant]])")),
    complete="image",
    examples=(("wherry image inspect -f '{{.Config.Cmd}}' alpine", "what it runs by default"),),
)
NETWORK = Command(
    "[OPTIONS] NETWORK [NETWORK...]",
    _of_kind("network"),
    1,
    None,
    (_FORMAT, ("verbose", "v", "bool", "More, for finding faults")),
    complete="network",
    examples=(("wherry network inspect -f '{{range .Containers}}{{.Name}} {{end}}' mine", "who is on it"),),
)
VOLUME = Command(
    "[OPTIONS] VOLUME [VOLUME...]",
    _of_kind("volume"),
    1,
    None,
    (_FORMAT,),
    complete="volume",
    examples=(("wherry volume inspect -f '{{.Mountpoint}}' data", "where its files are"),),
)
