"""Small commands on one container: diff, port, top, update."""

from __future__ import annotations

from host_client.cli import output
from host_client.cli.errors import CliError
from host_client.cli.flags import Command
from host_client.cli.listing import Listing
from host_client.cli.tabwriter import align
from host_client.engine_api.client import quote
from host_client.engine_api.errors import ApiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session

CHANGES = "CAD"  # modified, added, deleted, by the API's number


def diff(session: Session, parsed: Parsed) -> int:
    """`wherry diff`."""
    name = parsed.args[0]
    if not name.strip():
        raise CliError("Container name cannot be empty")
    changes = session.client.get(f"/containers/{quote(name)}/changes") or []
    layout = parsed["format"]
    if not layout:
        output.out("".join(f"{CHANGES[item['Kind']]} {item['Path']}\n" for item in changes))
        return 0
    Listing(
        "container.diffContext",
        {
            "Type": ("CHANGE TYPE", lambda item: CHANGES[item["Kind"]]),
            "Path": ("PATH", lambda item: item["Path"]),
        },
        ("Type", "Path"),
    ).show(changes, layout)
    return 0


DIFF = Command(
    "CONTAINER",
    diff,
    1,
    1,
    (("format", "", "string", "How to print: table, json, pretty, or a Go TEMPLATE"),),
    complete="container",
    examples=(("wherry diff web", "files it has added (A), changed (C) and deleted (D)"),),
)


def port(session: Session, parsed: Parsed) -> int:
    """`wherry port`."""
    if len(parsed.args) == 3:
        action, name, spec = parsed.args
        if action not in ("add", "rm"):
            raise CliError(f"unknown action '{action}'", "write wherry port add|rm CONTAINER PORT")
        return _change_port(session, name, action, spec)
    name = parsed.args[0]
    container = session.client.get(f"/containers/{quote(name)}/json")
    published: dict[str, Any] = container["NetworkSettings"].get("Ports") or {}
    if len(parsed.args) > 1:
        wanted, protocol = _port(parsed.args[1])
        found = published.get(f"{wanted}/{protocol}")
        if not found:
            raise CliError(f"no public port '{parsed.args[1]}' published for {name}")
        lines = [_address(binding) for binding in found]
    else:
        lines = [
            f"{inner} -> {_address(binding)}" for inner, found in published.items() for binding in found or ()
        ]
    if lines:
        output.line("\n".join(sorted(lines, key=_natural)))
    return 0


def _port(text: str) -> tuple[int, str]:
    number, slash, protocol = text.partition("/")
    if not number.isdigit() or int(number) > 65535:
        raise CliError(f"invalid port '{text}': invalid syntax")
    return int(number), protocol if slash else "tcp"


def _address(binding: dict[str, str]) -> str:
    ip = binding["HostIp"]
    return f"[{ip}]:{binding['HostPort']}" if ":" in ip else f"{ip}:{binding['HostPort']}"


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Sorts numbers inside a text by their value."""
    parts: list[tuple[int, int, str]] = []
    digits = ""
    for character in text + "\0":
        if character.isdigit():
            digits += character
            continue
        if digits:
            parts.append((0, int(digits), ""))
            digits = ""
        parts.append((1, 0, character))
    return parts


def _change_port(session: Session, name: str, action: str, spec: str) -> int:
    """Publish a port of a container that exists, or publish it no more."""
    from host_client.cli.options import ports

    try:
        bindings = ports.published([spec])
    except ValueError as error:
        raise CliError(str(error), "write [HOST_ADDRESS:][HOST_PORT:]PORT[/PROTOCOL]")
    path = f"/wherry/containers/{quote(name)}/ports"
    for inner, found in bindings.items():
        for binding in found:
            address, outer = binding["HostIp"], binding["HostPort"]
            if action == "rm":
                session.client.delete(path, {"port": inner, "host_ip": address, "host_port": outer})
                continue
            body = {"Port": inner, "HostIp": address, "HostPort": outer}
            for place in session.client.post(path, None, body)["Published"]:
                output.line(f"{inner} -> {place}")
    return 0


PORT = Command(
    "CONTAINER [PRIVATE_PORT[/PROTO]] | add|rm CONTAINER [[ADDRESS:]PORT:]PRIVATE_PORT[/PROTO]",
    port,
    1,
    3,
    complete="container",
    examples=(
        ("wherry port web 80", "where on the host its port 80 is"),
        ("wherry port add web 8080:80", "publish its port 80 as the host's 8080, while it runs"),
        ("wherry port rm web 8080:80", "publish it no more"),
    ),
)


def top(session: Session, parsed: Parsed) -> int:
    """`wherry top`."""
    name, arguments = parsed.args[0], " ".join(parsed.args[1:])
    listed = session.client.get(f"/containers/{quote(name)}/top", {"ps_args": arguments})
    rows = [listed["Titles"], *(listed["Processes"] or ())]
    output.out(align("".join("\t".join(row) + "\n" for row in rows), 20))
    return 0


TOP = Command(
    "CONTAINER [ps OPTIONS]",
    top,
    1,
    None,
    interspersed=False,
    complete="container",
    examples=(("wherry top web -o pid,comm,rss", "its processes, with the columns of ps that you want"),),
)


def update(session: Session, parsed: Parsed) -> int:
    """`wherry update`."""
    if not parsed.given:
        raise CliError(
            "you must provide one or more flags when using this command", f"see 'wherry {parsed.name} --help'"
        )
    policy: dict[str, Any] = {"Name": "", "MaximumRetryCount": 0}
    if parsed["restart"]:
        from host_client.cli.options.container_config import restart_policy

        try:
            policy = restart_policy(parsed["restart"])
        except ValueError as error:
            raise CliError(str(error))
    body = {
        "BlkioWeight": parsed["blkio-weight"],
        "CpuPeriod": parsed["cpu-period"],
        "CpuQuota": parsed["cpu-quota"],
        "CpuRealtimePeriod": parsed["cpu-rt-period"],
        "CpuRealtimeRuntime": parsed["cpu-rt-runtime"],
        "CpuShares": parsed["cpu-shares"],
        "CpusetCpus": parsed["cpuset-cpus"],
        "CpusetMems": parsed["cpuset-mems"],
        "Memory": parsed["memory"],
        "MemoryReservation": parsed["memory-reservation"],
        "MemorySwap": parsed["memory-swap"],
        "NanoCpus": parsed["cpus"],
        "PidsLimit": parsed["pids-limit"] or None,
        "RestartPolicy": policy,
    }
    warnings: list[str] = []
    status = 0
    for name in parsed.args:
        try:
            answer = session.client.post(f"/containers/{quote(name)}/update", None, body)
        except ApiError as error:
            output.report(error.message, error.hint)
            status = 1
            continue
        warnings += answer.get("Warnings") or []
        output.line(name)
    if warnings:
        output.line("\n".join(warnings))
    return status


UPDATE = Command(
    "[OPTIONS] CONTAINER [CONTAINER...]",
    update,
    1,
    None,
    (
        ("blkio-weight", "", "uint16", "Block IO weight relative to others, 10 to 1000, or 0 for none"),
        ("cpu-period", "", "int", "CPU quota period in microseconds"),
        ("cpu-quota", "", "int", "CPU time per period in microseconds"),
        ("cpu-rt-period", "", "int", "Real-time period in microseconds"),
        ("cpu-rt-runtime", "", "int", "Real-time runtime in microseconds"),
        ("cpu-shares", "c", "int", "CPU shares relative to others"),
        ("cpus", "", "decimal", "Number of CPUs, also a fraction such as 1.5"),
        ("cpuset-cpus", "", "string", "CPUs the container may run on (0-3, 0,1)"),
        ("cpuset-mems", "", "string", "Memory nodes the container may use (0-3, 0,1)"),
        ("memory", "m", "bytes", "Memory limit (512m)"),
        ("memory-reservation", "", "bytes", "Soft memory limit"),
        ("memory-swap", "", "bytes:swap", "Limit of memory and swap together; -1 for unlimited swap"),
        ("pids-limit", "", "int", "Limit of processes and threads; -1 for unlimited"),
        ("restart", "", "string", "Restart policy: no, always, unless-stopped or on-failure[:max]"),
    ),
    complete="container",
    examples=(("wherry update --cpus 1.5 -m 512m web", "new limits, without a restart"),),
)
