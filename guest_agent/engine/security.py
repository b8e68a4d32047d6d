"""`--security-opt`: what is honoured, and what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from guest_agent.errors import InvalidParameter, NotSupported

UNCONFINED = "unconfined"
BUILTIN = "builtin"
DOCKER_PROFILE = "docker-default"  # of AppArmor


@dataclass(slots=True)
class SecurityOptions:
    """Read from `HostConfig.SecurityOpt`. `seccomp`: a Docker profile; None means the default one."""

    no_new_privileges: bool = False
    seccomp: dict[str, Any] | None = None
    seccomp_unconfined: bool = False
    seccomp_builtin: bool = False  # the default profile by name, also for a privileged container
    apparmor: str = ""
    writable_cgroups: bool | None = None
    discarded: list[str] = field(default_factory=list)  # what this kernel has no use for, as warnings


def parse_security_options(
    options: Iterable[str], apparmor: bool, no_new_privileges: bool, selinux: bool = False
) -> SecurityOptions:
    """Reads the options; `apparmor` and `selinux` tell whether this host's kernel confines by them.

    Where it does not, labels and profiles are discarded as dockerd does, but with a warning.
    Raises InvalidParameter for what Docker does not know, NotSupported for what cannot be honoured here.
    """
    result = SecurityOptions(no_new_privileges=no_new_privileges)
    for option in options:
        separator = "=" if "=" in option else ":"
        key, given, value = option.partition(separator)
        if key == "no-new-privileges":
            result.no_new_privileges = _flag(option, value) if given else True
        elif option == "disable" or option in ("label=disable", "label:disable"):
            pass  # no SELinux label is ever set
        elif not given:
            raise InvalidParameter(f'invalid --security-opt 1: "{option}"')
        elif key == "writable-cgroups":
            result.writable_cgroups = _flag(option, value)
        elif key == "seccomp":
            _seccomp(result, value)
        elif key == "apparmor":
            if value != UNCONFINED and not apparmor:
                result.discarded.append(f"{option} discarded: AppArmor is not enabled in this kernel.")
                continue
            result.apparmor = value
        elif key == "label" and not selinux:
            result.discarded.append(f"{option} discarded: SELinux is not enabled in this kernel.")
        elif key == "label":
            raise NotSupported(
                f'security option "{option}" cannot be honoured: Wherry sets no SELinux labels',
                hint="Use label=disable.",
            )
        else:
            raise InvalidParameter(f'invalid --security-opt 2: "{option}"')
    return result


def _flag(option: str, value: str) -> bool:
    # Go's strconv.ParseBool
    if value in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if value in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise InvalidParameter(f'invalid --security-opt 2: "{option}"')


def _seccomp(result: SecurityOptions, value: str) -> None:
    result.seccomp = None
    result.seccomp_unconfined, result.seccomp_builtin = value == UNCONFINED, value == BUILTIN
    if value not in (UNCONFINED, BUILTIN):
        result.seccomp = _profile(value)


def _profile(text: str) -> dict[str, Any]:
    try:
        profile = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidParameter(f"Decoding seccomp profile failed: {error}")
    if not isinstance(profile, dict):
        raise InvalidParameter("Decoding seccomp profile failed: the profile is not a JSON object")
    return profile


@lru_cache(maxsize=1)
def engine_profile(setting: str) -> dict[str, Any] | None:
    """The profile in the file that the engine's setting names; None for the built-in one.

    Raises InvalidParameter when the file cannot be used.
    """
    if setting in ("", BUILTIN):
        return None
    try:
        with open(setting, encoding="utf-8") as file:
            return _profile(file.read())
    except OSError as error:
        raise InvalidParameter(f"opening seccomp profile ({setting}) failed: {error.strerror}")
