"""The way to registries: name servers, the registry itself, and a clock that its certificates agree with."""

from __future__ import annotations

import email.utils
import os
import time
from collections.abc import Iterator

from host_client.doctor.finding import BAD, GOOD, NOTE, Finding
from host_client.doctor.kernel import read

REGISTRY = "https://registry-1.docker.io/v2/"
TIMEOUT = 5.0  # seconds
OFF_BY = 60.0  # seconds a clock may differ
BUILT = 1_760_000_000  # no clock that is right shows a time before this was written


def resolver(root: str = "/") -> Iterator[Finding]:
    """The name servers that containers will be given."""
    servers = [
        fields[1]
        for line in read(os.path.join(root, "etc/resolv.conf")).splitlines()
        if len(fields := line.split()) > 1 and fields[0] == "nameserver"
    ]
    remedy = 'Set some for containers: --dns 192.0.2.53, or "dns" in the engine\'s configuration.'
    if not servers:
        yield Finding("Name servers", NOTE, "/etc/resolv.conf has none", remedy)
    elif all(server.startswith("127.") or server == "::1" for server in servers):
        stub = read(os.path.join(root, "run/systemd/resolve/resolv.conf"))
        if "nameserver" in stub:
            yield Finding("Name servers", GOOD, "systemd-resolved's own, handed to containers past its stub")
        else:
            text = f"{', '.join(servers)} only, which containers on the default network cannot reach"
            yield Finding("Name servers", NOTE, text, remedy)
    else:
        yield Finding("Name servers", GOOD, ", ".join(servers))


def registry(url: str = REGISTRY) -> Iterator[Finding]:
    """Whether the default registry answers, and whether its clock and ours agree."""
    import requests

    name = url.split("/")[2]
    began = time.time()
    try:
        answer = requests.get(url, timeout=TIMEOUT, allow_redirects=False)
    except requests.exceptions.SSLError as error:
        hint = "A wrong clock may be the cause, or a proxy, whose authority the system must trust."
        yield Finding("Registry", BAD, f"{name}'s certificate is not trusted: {_reason(error)}", hint)
    except requests.exceptions.RequestException as error:
        hint = "Behind a proxy set HTTPS_PROXY for the engine; offline, images that are here still run."
        yield Finding("Registry", NOTE, f"{name} cannot be reached: {_reason(error)}", hint)
    else:
        yield Finding("Registry", GOOD, f"{name} answers (HTTP {answer.status_code})")
        yield from clock(answer.headers.get("Date", ""), (began + time.time()) / 2)
        return
    yield from clock("", began)


def clock(date: str, now: float) -> Iterator[Finding]:
    """Whether `now` (seconds since 1970) is the time of an HTTP `Date` header; without one if it can be."""
    remedy = "Set the clock, and let it be kept by NTP (timedatectl set-ntp true)."
    theirs = email.utils.mktime_tz(parsed) if (parsed := email.utils.parsedate_tz(date)) else None
    if now < BUILT:
        yield Finding("Clock", BAD, f"it shows {time.strftime('%Y-%m-%d', time.gmtime(now))}", remedy)
    elif theirs is None:
        yield Finding("Clock", GOOD, "possible; there was no other to compare it with")
    elif abs(theirs - now) > OFF_BY:
        text = f"{abs(theirs - now):.0f} seconds {'behind' if theirs > now else 'ahead'}"
        yield Finding("Clock", BAD, f"{text}: certificates and builds will go wrong", remedy)
    else:
        yield Finding("Clock", GOOD, "agrees with the registry's")


def _reason(error: BaseException) -> str:
    """The innermost sentence of an error of `requests`."""
    cause = error
    while True:
        inner = getattr(cause, "reason", None) or cause.__cause__ or cause.__context__
        if not isinstance(inner, BaseException) or inner is cause:
            break
        cause = inner
    text = getattr(cause, "strerror", None) or str(cause)
    return str(text).partition(" (_ssl")[0]


def all_checks() -> Iterator[Finding]:
    """Everything above."""
    if os.name == "posix":
        yield from resolver()
    yield from registry()
