"""`logs`."""

from __future__ import annotations

import time

from host_client.cli import output, units
from host_client.cli.errors import CliError
from host_client.cli.flags import Command
from host_client.cli.streams import Demultiplexer
from host_client.engine_api.client import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session


def timestamp(text: str) -> str:
    """`--since` and `--until` for the API: seconds since the epoch, from a time, a duration ago, or such
    seconds.

    Raises:
        ValueError: it is none of them.
    """
    from host_client.cli.values import duration

    if not text:
        return ""
    try:
        ago = duration(text)
    except ValueError:
        pass
    else:
        moment = time.time_ns() - ago
        return f"{moment // 10**9}.{moment % 10**9:09}"
    if text.replace(".", "", 1).isdigit():
        return text
    date, mark, clock = text.partition("T")
    if date.count("-") != 2 or not all(part.isdigit() for part in date.split("-")):
        raise ValueError(text)
    zone = ""
    for sign in ("Z", "+", "-"):
        if sign in clock:
            clock, zone = clock[: clock.index(sign)], clock[clock.index(sign) :]
            break
    clock, dot, fraction = clock.partition(".")
    parts = [part for part in clock.split(":") if part]
    if (mark and not parts) or len(parts) > 3:
        raise ValueError(text)
    full = ":".join([*parts, "00", "00", "00"][:3])
    seconds, rest = units.parse_rfc3339(f"{date}T{full}{dot}{fraction}{zone or 'Z'}")
    if not zone:  # a time without a zone is a local one
        seconds -= time.localtime(seconds).tm_gmtoff
    return f"{seconds}.{(rest[1:] or '0').ljust(9, '0')[:9]}"


def api_time(text: str, flag: str = "") -> str:
    """`timestamp` with docker's error, which names the flag where one is given."""
    try:
        return timestamp(text)
    except ValueError:
        where = f'invalid value for "{flag}": ' if flag else ""
        raise CliError(
            f'{where}failed to parse value as time or duration: "{text}"',
            "write a time as 2013-01-02T13:23:37Z, or a duration ago as 42m",
        )


def logs(session: Session, parsed: Parsed) -> int:
    """`wherry logs`."""
    name = parsed.args[0]
    client = session.client
    details = client.get(f"/containers/{quote(name)}/json")
    query = {
        "stdout": True,
        "stderr": True,
        "follow": parsed["follow"],
        "timestamps": parsed["timestamps"],
        "details": parsed["details"],
        "since": api_time(parsed["since"], "since"),
        "until": api_time(parsed["until"], "until"),
        "tail": parsed["tail"],
    }
    response = client.request("GET", f"/containers/{details['Id']}/logs", query)
    if details["Config"]["Tty"]:
        for chunk in response.chunks():
            output.write_bytes(output.OUT, chunk)
        return 0
    frames = Demultiplexer(output.OUT, output.ERR)
    for chunk in response.chunks():
        frames.feed(chunk)
    return 0


LOGS = Command(
    "[OPTIONS] CONTAINER",
    logs,
    minimum=1,
    maximum=1,
    flags=(
        ("details", "", "bool", "Show the extra details that the logging driver keeps"),
        ("follow", "f", "bool", "Go on as more is written"),
        ("since", "", "string", "Only from this time on (2013-01-02T13:23:37Z, or 42m for 42 minutes ago)"),
        ("tail", "n", "string", "How many lines from the end", "all"),
        ("timestamps", "t", "bool", "Show when each line was written"),
        ("until", "", "string", "Only up to this time (2013-01-02T13:23:37Z, or 42m for 42 minutes ago)"),
    ),
    complete="container",
    examples=(
        ("wherry logs -f --tail 20 web", "the last 20 lines, and what comes"),
        ("wherry logs --since 10m -t web", "the last ten minutes, with times"),
    ),
)
