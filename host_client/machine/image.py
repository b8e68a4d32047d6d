"""VM images on this host: folders with a manifest, checked when they come and named by their content."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from host_client.machine.errors import MachineError
from host_client.machine.layout import data_folder

FORMAT = 2  # of the manifest and of what host and guest expect of each other
ARCHES = ("amd64", "arm64")
PARTS = ("kernel", "initrd", "root.erofs")


@dataclass(frozen=True)
class Image:
    """A checked image."""

    folder: str
    manifest: dict[str, Any]

    def path(self, part: str) -> str:
        return os.path.join(self.folder, part)

    def size(self, part: str) -> int:
        """Bytes of a part, by the manifest."""
        return int(self.manifest["files"][part]["size"])

    @property
    def arch(self) -> str:
        return str(self.manifest["arch"])

    @property
    def identity(self) -> str:
        """Changes with every byte of the parts."""
        sums = "".join(self.manifest["files"][part]["sha256"] for part in PARTS)
        return hashlib.sha256(sums.encode()).hexdigest()


def read_manifest(folder: str, place: str = "") -> Image:
    """An image by what its manifest says; its parts need not be there.

    `place`: where the user knows it to be, if not in the folder. Raises MachineError.
    """
    place = place or folder
    path = os.path.join(folder, "manifest.json")
    try:
        with open(path) as file:
            manifest = json.load(file)
        if manifest["format"] != FORMAT:
            raise MachineError(
                f"the VM image in {place} has format {manifest['format']}, this Wherry needs {FORMAT}",
                "Take the image that belongs to this version.",
            )
        image = Image(folder, manifest)
        sizes = [image.size(part) for part in PARTS]
        if not (image.arch in ARCHES and image.identity and all(size > 0 for size in sizes)):
            raise ValueError("arch, files")
        return image
    except OSError as error:
        raise MachineError(f"{place} is not a VM image: {error.strerror}: {error.filename}")
    except (ValueError, KeyError, TypeError) as error:
        raise MachineError(
            f"the manifest of the VM image in {place} is damaged: {error!r}", "Fetch the image again."
        )


def open_image(folder: str) -> Image:
    """An image by its folder; sizes are compared, not every byte. Raises MachineError."""
    image = read_manifest(folder)
    for part in PARTS:
        try:
            size = os.path.getsize(image.path(part))
        except OSError as error:
            raise MachineError(f"{folder} is not a VM image: {error.strerror}: {error.filename}")
        if size != image.size(part):
            raise MachineError(
                f"{image.path(part)} has not the size its manifest says", "Fetch the image again."
            )
    return image


def verify(image: Image) -> None:
    """Compares every byte with the manifest's sums. Raises MachineError, naming the file."""
    for part in PARTS:
        with open(image.path(part), "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != image.manifest["files"][part]["sha256"]:
            raise MachineError(
                f"{image.path(part)} is damaged: its SHA-256 is {found}, "
                f"the manifest has {image.manifest['files'][part]['sha256']}",
                "Fetch the image again.",
            )


def _place(image: Image) -> str:
    return data_folder("images", f"{image.arch}-{image.identity[:16]}")


def find(image: Image) -> Image | None:
    """This user's image with the same content, if it is installed. Raises MachineError when it is damaged."""
    target = _place(image)
    return open_image(target) if os.path.exists(os.path.join(target, "manifest.json")) else None


def install(source: str) -> Image:
    """Copies an image from a folder into this user's, under a name made of its content.

    Raises MachineError.
    """
    image = open_image(source)
    known = find(image)
    if known is not None:
        return known
    target = _place(image)
    partial = f"{target}.{os.getpid()}.tmp"
    os.makedirs(partial)
    try:
        for part in (*PARTS, "manifest.json"):
            shutil.copyfile(image.path(part), os.path.join(partial, part))
        verify(open_image(partial))
        try:
            os.rename(partial, target)
        except OSError:
            if not os.path.exists(os.path.join(target, "manifest.json")):
                raise  # otherwise another process was faster
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_image(target)


def installed(arch: str) -> list[Image]:
    """This user's images for an architecture, the newest first."""
    folder = data_folder("images")
    names = os.listdir(folder) if os.path.isdir(folder) else []
    paths = [os.path.join(folder, n) for n in names if n.startswith(f"{arch}-") and not n.endswith(".tmp")]
    return [open_image(path) for path in sorted(paths, key=os.path.getmtime, reverse=True)]


def packaged(arch: str) -> str | None:
    """The folder of the image that a Python package brought: wherry_image_ARCH."""
    spec = importlib.util.find_spec(f"wherry_image_{arch}")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return places[0] if places else None


def build(arch: str, tell: Callable[[str], None]) -> Image:
    """Builds and installs an image with the recipe that comes with Wherry; `tell` says so.

    Raises MachineError when that is not possible.
    """
    if importlib.util.find_spec("vm_images") is None or shutil.which("apt-get") is None:
        raise MachineError(
            f"there is no VM image for {arch} on this machine",
            f"Install one: pip install wherry-image-{arch}, or: wherry machine init --image FOLDER",
        )
    tell("Building the VM image from Debian packages; this is done once")
    os.makedirs(data_folder("images"), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data_folder("images"), suffix=".tmp") as folder:
        command = [sys.executable, "-m", "vm_images", "build", "--arch", arch, "--out", folder]
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        done = subprocess.run(command, capture_output=True, text=True, cwd=root)
        if done.returncode:
            raise MachineError(f"the VM image cannot be built: {done.stderr.strip().removeprefix('error: ')}")
        return install(folder)
