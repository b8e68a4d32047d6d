"""Debian packages, downloaded, verified and unpacked by mmdebstrap for any architecture; none runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from vm_images.recipe import ARCHIVES, PYTHON, SUITE, WHEELS, Arch

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class BuildError(Exception):
    """The image cannot be built; the message says which step failed on what, and what to do."""


def run(command: Sequence[str], what: str, env: dict[str, str] | None = None) -> str:
    """Runs a build tool and returns its output. Raises BuildError with the end of what it said."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | (env or {})
        )
    except FileNotFoundError:
        raise BuildError(f"{what}: the tool {command[0]} is not installed")
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-12:])
        raise BuildError(f"{what}: {command[0]} ended with status {done.returncode}:\n{last}")
    return done.stdout


def _sources(mirror: str | None) -> str:
    """Lines for apt: `mirror` for all suites, else the Debian archives this machine's apt uses.

    Empty where it uses none, as on Ubuntu: mmdebstrap then takes Debian's own.
    """
    form = ("apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages")
    known = dict(line.split(" ", 1) for line in run(form, "reading apt's sources").splitlines())
    lines = []
    for label, suites in ARCHIVES.items():
        url = mirror or known.get(label)
        lines += [f"deb [signed-by={KEYRING}] {url} {suite}\n" for suite in suites if url]
    return "".join(lines)


def unpack(arch: Arch, packages: Sequence[str], into: str, mirror: str | None) -> dict[str, str]:
    """Unpacks packages and what they depend on into an empty folder; returns their versions by name."""
    sources = _sources(mirror)
    apt = ("APT::Install-Recommends=0", "Acquire::Languages=none", "Acquire::Retries=3")
    command = ["mmdebstrap", "--variant=extract", f"--arch={arch.name}", f"--include={','.join(packages)}"]
    command += [f"--aptopt={option.replace('=', ' ')}" for option in apt]
    # The list of what was unpacked is only in apt's cache of packages, which mmdebstrap deletes at the end.
    listing = into + ".packages"
    command += [
        f'--extract-hook=ls "$1/var/cache/apt/archives" > {listing}',
        SUITE,
        into,
        *(["-"] if sources else []),
    ]
    try:
        done = subprocess.run(command, input=sources, capture_output=True, text=True)
    except FileNotFoundError:
        raise BuildError("unpacking Debian packages: the tool mmdebstrap is not installed")
    if done.returncode:
        raise BuildError(f"unpacking Debian packages for {arch.name} failed:\n{done.stderr[-2000:]}")
    versions = {}
    with open(listing) as names:
        for name in sorted(names.read().split()):
            if name.endswith(".deb"):
                package, version, _ = name.rsplit("_", 2)
                versions[package] = version.replace("%3a", ":")
    return versions


def unpack_wheels(arch: Arch, into: str) -> None:
    """Installs the pinned wheels for the guest's Python into a folder, without running any of them."""
    requirements = into + ".requirements"
    with open(requirements, "w") as file:
        file.write(WHEELS)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--target",
        into,
        "--no-deps",
        "--no-compile",
    ]
    command += ["--only-binary=:all:", "--platform", arch.wheel, "--python-version", PYTHON]
    command += ["--implementation", "cp", "--require-hashes", "-r", requirements]
    run(command, "installing wheels for the guest", {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
