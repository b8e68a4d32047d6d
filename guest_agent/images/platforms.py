"""Platforms: `linux/arm64/v8` and the like, what fits what, and what this kernel can run.

Names and order of preference are those of github.com/containerd/platforms, which dockerd uses.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any, Literal

from guest_agent.errors import InvalidParameter

_ARCHITECTURES = {
    "i386": "386",
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "armhf": "arm",
    "armel": "arm",
    "armv7l": "arm",
    "armv6l": "arm",
}
_KNOWN_ARCHITECTURES = frozenset(
    (
        "386",
        "amd64",
        "arm",
        "arm64",
        "loong64",
        "mips64",
        "mips64le",
        "ppc64",
        "ppc64le",
        "riscv64",
        "s390x",
        "wasm",
    )
)
_KNOWN_OS = frozenset(("linux", "windows", "darwin", "freebsd"))
_PART = re.compile(r"[A-Za-z0-9_.-]+")
_ELF_MACHINE = {  # ELF header: class, data, machine (elf.h), for binfmt_misc's rules
    "amd64": (2, 1, 62),
    "386": (1, 1, 3),
    "arm64": (2, 1, 183),
    "arm": (1, 1, 40),
    "riscv64": (2, 1, 243),
    "ppc64le": (2, 1, 21),
    "s390x": (2, 2, 22),
    "loong64": (2, 1, 258),
    "mips64le": (2, 1, 8),
}
_BINFMT = "/proc/sys/fs/binfmt_misc"


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system, an architecture and, where it matters, its variant; normalised."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def as_json(platform: Platform) -> dict[str, str]:
    """A platform as an index has it."""
    found = {"architecture": platform.architecture, "os": platform.os, "variant": platform.variant}
    return {key: value for key, value in found.items() if value}


def normalise(os_name: str, architecture: str, variant: str = "") -> Platform:
    """The platform under its usual names."""
    os_name, architecture, variant = os_name.lower(), architecture.lower(), variant.lower()
    if architecture == "armel":
        variant = variant or "v6"
    elif architecture in ("armhf", "armv7l"):
        variant = variant or "v7"
    architecture = _ARCHITECTURES.get(architecture, architecture)
    if architecture == "arm":
        variant = f"v{variant}" if variant.isdigit() else variant or "v7"
    elif (
        (architecture == "arm64" and variant in ("8", "v8"))
        or (architecture == "amd64" and variant in ("1", "v1"))
        or architecture == "386"
    ):
        variant = ""
    return Platform(os_name, architecture, variant)


def host() -> Platform:
    """What this machine is."""
    return normalise("linux", os.uname().machine)


def parse(text: str) -> Platform:
    """A `--platform` value: OS[/ARCHITECTURE[/VARIANT]] or ARCHITECTURE. InvalidParameter."""
    parts = text.split("/")
    if not all(_PART.fullmatch(part) for part in parts) or len(parts) > 3:
        raise InvalidParameter(
            f'"{text}" is an invalid platform: must be of the form OS[/ARCHITECTURE[/VARIANT]]',
            "Such as linux/amd64 or linux/arm64.",
        )
    if len(parts) == 1:
        if parts[0].lower() in _KNOWN_OS:
            here = host()
            return Platform(parts[0].lower(), here.architecture, here.variant)
        platform = normalise("linux", parts[0])
        if platform.architecture in _KNOWN_ARCHITECTURES:
            return platform
        raise InvalidParameter(
            f'"{text}": unknown operating system or architecture: invalid argument', "Such as linux/amd64."
        )
    return normalise(*parts)


def of_config(config: dict[str, Any]) -> Platform:
    """What an image configuration says it is for."""
    return normalise(
        str(config.get("os") or "linux"),
        str(config.get("architecture") or ""),
        str(config.get("variant") or ""),
    )


def acceptable(wanted: Platform) -> list[Platform]:
    """What runs on `wanted`, best first."""
    os_name, architecture, variant = wanted.os, wanted.architecture, wanted.variant
    found = [wanted]
    if architecture == "arm64":
        if variant:
            found.append(Platform(os_name, "arm64"))
        architecture, variant = "arm", "v9"
    elif architecture == "amd64":
        if variant[1:].isdigit():
            found += [Platform(os_name, "amd64", f"v{n}") for n in range(int(variant[1:]) - 1, 1, -1)]
            found.append(Platform(os_name, "amd64"))
        found.append(Platform(os_name, "386"))
    if architecture == "arm" and variant[1:].isdigit():
        top = int(variant[1:]) - 1
        found += [Platform(os_name, "arm", f"v{n}") for n in range(min(top, 8), 4, -1)]
    return found


def fits(wanted: Platform, offered: Platform) -> bool:
    """Whether an image for `offered` is one for `wanted`."""
    return offered in acceptable(wanted)


def best(wanted: Platform, offered: list[Platform]) -> int:
    """The index of the platform that fits best, the first of equals; -1 when none does."""
    for platform in acceptable(wanted):
        if platform in offered:
            return offered.index(platform)
    return -1


def can_run(platform: Platform) -> bool:
    """Whether this kernel starts programs of `platform`:

    its own kind, or by emulation registered in binfmt_misc.
    """
    if platform.os != "linux":
        return False
    return not platform.architecture or fits(host(), platform) or _emulated(platform.architecture)


def runnable() -> list[Platform]:
    """The platforms whose programs this kernel starts, its own first."""
    here = host()
    others = (normalise("linux", architecture) for architecture in sorted(_ELF_MACHINE))
    return [here, *(other for other in others if other != here and can_run(other))]


def _emulated(architecture: str) -> bool:
    machine = _ELF_MACHINE.get(architecture)
    if machine is None:
        return False
    bits, order, number = machine
    byte_order: Literal["little", "big"] = "little" if order == 1 else "big"
    header = bytearray(64)
    header[:7] = b"\x7fELF" + bytes((bits, order, 1))
    header[16:18] = (2).to_bytes(2, byte_order)  # ET_EXEC; rules mask ET_DYN's bit
    header[18:20] = number.to_bytes(2, byte_order)
    header[20:24] = (1).to_bytes(4, byte_order)
    try:
        rules = os.listdir(_BINFMT)
    except OSError:
        return False
    for rule in rules:
        if rule not in ("register", "status") and _rule_takes(os.path.join(_BINFMT, rule), bytes(header)):
            return True
    return False


def _rule_takes(path: str, header: bytes) -> bool:
    """Whether an enabled binfmt_misc rule is for files with this header (kernel, binfmt-misc.rst)."""
    try:
        with open(path) as file:
            lines = file.read().splitlines()
    except OSError:
        return False
    fields = dict(line.partition(" ")[::2] for line in lines)
    if "enabled" not in lines or "magic" not in fields:
        return False
    try:
        offset = int(fields.get("offset", "0"))
        magic = bytes.fromhex(fields["magic"])
        mask = bytes.fromhex(fields["mask"]) if "mask" in fields else b"\xff" * len(magic)
    except ValueError:
        return False
    seen = header[offset : offset + len(magic)]
    # Only rules that look at the machine are about an architecture.
    return len(seen) == len(magic) >= 20 and all(
        (a ^ b) & m == 0 for a, b, m in zip(seen, magic, mask, strict=True)
    )
