"""`build` and `builder prune`."""

from __future__ import annotations

import binascii
import os

from host_client import credentials, reference
from host_client.cli import context, output, progress, units
from host_client.cli.build_output import Output
from host_client.cli.commands.prune import build_cache, confirm, prune_filters
from host_client.cli.errors import CliError
from host_client.cli.flags import Command
from host_client.engine_api.errors import ApiError
from host_client.engine_api.wire import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session

_SECRETS_MAX = 20_000  # bytes that the engine takes in a header
_PROGRESS = ("auto", "tty", "plain", "quiet")


def build(session: Session, parsed: Parsed) -> int:
    """`wherry build`."""
    path, query = parsed.args[0], _query(parsed)
    body: Any = None
    if context.is_remote(path):
        query["remote"] = path
        query["dockerfile"] = parsed["file"]
    elif path == "-":
        body, query["dockerfile"] = context.from_input(parsed["file"])
    else:
        body, query["dockerfile"] = context.from_folder(path, parsed["file"])
    if parsed["compress"] and body is not None:
        body = context.compressed(body)
    if parsed["isolation"] not in ("", "default"):
        raise CliError(f"invalid isolation {parsed['isolation']}: Linux has only the default one")
    headers = [("Content-Type", "application/x-tar"), *_credentials(session)]
    if parsed["secret"]:
        headers.append(("X-Wherry-Build-Secrets", _secrets(parsed["secret"])))
    shown = parsed["progress"]
    if shown not in _PROGRESS:
        raise CliError(f"invalid progress mode: {shown}", f"it can be {', '.join(_PROGRESS)}")
    quiet = parsed["quiet"] or shown == "quiet"
    tree = not quiet and (shown == "tty" or (shown == "auto" and output.is_terminal(output.ERR)))
    if tree:
        query["progress"] = "steps"
    query["q"] = quiet
    target = Output(parsed["output"]) if parsed["output"] else None
    if target is not None and parsed["iidfile"]:
        raise CliError("--iidfile and --output exclude each other: no image is made")
    if target is None:
        messages = session.client.messages("POST", "/build", query, b"" if body is None else body, headers)
    else:
        query["output"] = target.kind
        body = b"" if body is None else body
        messages = target.messages(session.client.request("POST", "/build", query, body, headers))
    if tree:
        from host_client.cli import build_screen

        image = build_screen.show(messages, output.ERR)
    else:
        shown_on = output.ERR if target is not None and target.to_standard_output else output.OUT
        image = _plain(messages, quiet, shown_on)
    if parsed["iidfile"]:
        _write(parsed["iidfile"], image)
    return 0


def _plain(messages: Any, quiet: bool, descriptor: int) -> str:
    """Print as it comes; the image's id."""
    found: list[str] = []

    def noted() -> Any:
        for message in messages:
            if quiet and str(message.get("stream", "")).startswith("sha256:"):
                found.append(message["stream"].strip())
            yield message

    try:
        extra = progress.show(noted(), descriptor)
    except ApiError as error:
        raise CliError(error.message, error.hint, error.status if error.status < 256 else 1)
    ids = [str(item["ID"]) for item in extra if isinstance(item, dict) and item.get("ID")]
    return "".join(ids or found)


def _query(parsed: Parsed) -> dict[str, Any]:
    for tag in parsed["tag"]:
        try:
            reference.parse(tag)
        except ValueError as error:
            raise CliError(f"invalid argument {tag!r} for -t, --tag: {error}", "write it as name:tag")
    arguments = {}
    for text in parsed["build-arg"]:
        name, equals, value = text.partition("=")
        arguments[name] = value if equals else os.environ.get(name)
    labels = dict(text.partition("=")[::2] for text in parsed["label"])
    return {
        "t": parsed["tag"],
        "target": parsed["target"],
        "nocache": parsed["no-cache"],
        "pull": parsed["pull"],
        "rm": "1" if parsed["rm"] else "0",
        "forcerm": parsed["force-rm"],
        "squash": parsed["squash"],
        "platform": parsed["platform"],
        "networkmode": parsed["network"],
        "memory": parsed["memory"] or None,
        "memswap": parsed["memory-swap"] or None,
        "cpushares": parsed["cpu-shares"] or None,
        "cpuperiod": parsed["cpu-period"] or None,
        "cpuquota": parsed["cpu-quota"] or None,
        "cpusetcpus": parsed["cpuset-cpus"],
        "cpusetmems": parsed["cpuset-mems"],
        "cgroupparent": parsed["cgroup-parent"],
        "shmsize": parsed["shm-size"] or None,
        "extrahosts": parsed["add-host"],
        "buildargs": dumps(arguments) if arguments else "",
        "labels": dumps(labels) if labels else "",
        "cachefrom": dumps(_cache_from(parsed["cache-from"])) if parsed["cache-from"] else "",
        "cacheto": dumps(parsed["cache-to"]) if parsed["cache-to"] else "",
        "ulimits": dumps(list(parsed["ulimit"].values())) if parsed["ulimit"] else "",
        "securityopt": dumps(parsed["security-opt"]) if parsed["security-opt"] else "",
        "version": "1",
    }


def _cache_from(given: list[str]) -> list[str]:
    """A value may be several images with commas between, as docker has it, or one `type=…`.

    An image is sent as `type=…`, too: by its name alone the engine, as dockerd, would take nothing else.
    """
    found = []
    for text in given:
        if "=" in text:
            found.append(text)
        else:
            found += [f"type=registry,ref={name}" for name in text.split(",") if name]
    return found


def _credentials(session: Session) -> list[tuple[str, str]]:
    """All the user's credentials: which registries the Dockerfile names, only the engine will know."""
    known = {**session.config.table("auths"), **session.config.table("credHelpers")}
    found = {}
    for server in known:
        try:
            each = credentials.find(session.config, server if server != credentials.HUB_KEY else "docker.io")
        except credentials.CredentialError as error:
            output.warn(str(error))
            continue
        if each:
            found[server] = each.as_dict()
    if not found:
        return []
    encoded = binascii.b2a_base64(dumps(found).encode(), newline=False).decode()
    return [("X-Registry-Config", encoded.translate({ord("+"): "-", ord("/"): "_"}))]


def _secrets(given: list[str]) -> str:
    values = {}
    for text in given:
        fields = dict(part.partition("=")[::2] for part in text.split(","))
        kind = fields.pop("type", "file" if "env" not in fields else "env")
        source = fields.pop("src", "") or fields.pop("source", "")
        variable = fields.pop("env", "")
        id = fields.pop("id", "") or os.path.basename(source or variable)
        if fields or not id or kind not in ("file", "env"):
            raise CliError(f"invalid secret: {text}", "write it as id=NAME,src=FILE or id=NAME,env=VARIABLE")
        if variable or kind == "env":
            value = os.environ.get(variable or source or id)
            if value is None:
                raise CliError(f"invalid secret {id}: the variable {variable or source or id} is not set")
            data = value.encode("utf-8", "surrogateescape")
        else:
            try:
                with open(source or id, "rb") as file:
                    data = file.read()
            except OSError as error:
                raise CliError(f"cannot read secret {id}: {source or id}: {error.strerror}")
        values[id] = binascii.b2a_base64(data, newline=False).decode()
    encoded = binascii.b2a_base64(dumps(values).encode(), newline=False).decode()
    if len(encoded) > _SECRETS_MAX:
        raise CliError("the secrets are too large", f"they may come to {_SECRETS_MAX // 2} bytes together")
    return encoded


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise CliError(f"cannot write {path}: {error.strerror}")


def prune(session: Session, parsed: Parsed) -> int:
    """`wherry builder prune`."""
    what = "all build cache" if parsed["all"] else "all dangling build cache"
    if not confirm(f"WARNING! This will remove {what}. Are you sure you want to continue?", parsed["force"]):
        return 0
    wanted = prune_filters(session, parsed["filter"])
    freed, text = build_cache(session, wanted, parsed["all"], parsed["keep-storage"])
    if text:
        output.line(text)
    output.line(f"Total reclaimed space: {units.human_size(freed)}")
    return 0


BUILD = Command(
    "[OPTIONS] PATH | URL | -",
    build,
    1,
    1,
    (
        ("add-host", "", "list:host", "Add a line to /etc/hosts of what is run (name:ip)"),
        ("build-arg", "", "list", "Set an ARG of the Dockerfile (NAME=value, or NAME to pass it on)"),
        (
            "cache-from",
            "",
            "list",
            "Images, or caches (type=registry,ref=NAME), whose steps may be taken over",
        ),
        ("cache-to", "", "list", "Put the steps into a registry (type=registry,ref=NAME[,mode=max])"),
        ("cgroup-parent", "", "string", "Parent of the control groups of what is run"),
        ("compress", "", "bool", "Send the context compressed"),
        ("cpu-period", "", "int", "CPU period in microseconds"),
        ("cpu-quota", "", "int", "CPU time per period in microseconds"),
        ("cpu-shares", "c", "int", "CPU weight beside others (1024 is usual)"),
        ("cpuset-cpus", "", "string", "CPUs that may be used (0-3, 0,1)"),
        ("cpuset-mems", "", "string", "Memory nodes that may be used (0-3, 0,1)"),
        ("file", "f", "string", "Dockerfile (default PATH/Dockerfile; - for standard input)"),
        ("force-rm", "", "bool", "Accepted for docker's sake: intermediate containers always go"),
        ("iidfile", "", "string", "Write the image's ID to a file"),
        ("isolation", "", "string", "Accepted for docker's sake: default is all there is on Linux"),
        ("label", "", "list:label", "Set a label of the image (key=value)"),
        ("load", "", "bool", "Accepted for docker's sake: the image is the engine's in any case"),
        ("memory", "m", "bytes", "Memory limit of what is run (512m)"),
        ("memory-swap", "", "bytes:swap", "Limit of memory and swap together; -1: no limit of swap"),
        ("network", "", "string", "Network of what is run: a name, host or none"),
        ("no-cache", "", "bool", "Carry all steps out anew"),
        (
            "output",
            "o",
            "string",
            "Give the files to a folder, or type=tar|oci|docker,dest=FILE; no image is made",
        ),
        ("platform", "", "string", "Build for this platform (linux/arm64)"),
        ("progress", "", "string", "How to show it: auto, tty (a tree), plain, quiet", "auto"),
        ("pull", "", "bool", "Look for newer versions of base images"),
        ("quiet", "q", "bool", "Print only the image's ID"),
        ("rm", "", "bool", "Accepted for docker's sake: intermediate containers always go", True),
        (
            "secret",
            "",
            "list",
            "For RUN --mount=type=secret (id=NAME,src=FILE or id=NAME,env=VARIABLE)",
        ),
        ("security-opt", "", "list", "Security options of what is run"),
        ("shm-size", "", "bytes", "Size of /dev/shm"),
        ("squash", "", "bool", "One layer for all that is new"),
        ("tag", "t", "list", "Name of the image (name:tag)"),
        ("target", "", "string", "Build this stage"),
        ("ulimit", "", "ulimit", "Set a resource limit (nofile=1024:2048)"),
    ),
    examples=(
        ("wherry build -t app .", "the Dockerfile of this folder"),
        ("wherry build -t app:dev --target dev --build-arg VERSION=2 .", "up to one stage, with an argument"),
        ("wherry build -o out .", "the target's files into a folder, no image"),
        ("wherry build --secret id=token,src=token.txt .", "for RUN --mount=type=secret,id=token"),
    ),
)

PRUNE = Command(
    "[OPTIONS]",
    prune,
    0,
    0,
    (
        ("all", "a", "bool", "What images still use, too"),
        ("filter", "", "filter", "Only what fits (until=24h)"),
        ("force", "f", "bool", "Do not ask"),
        ("keep-storage", "", "bytes", "Leave this much"),
    ),
    examples=(("wherry builder prune -f", "what no image uses any more"),),
)
