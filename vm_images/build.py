"""Builds the files QEMU boots (kernel, initrd, root file system) with a manifest that says what they are."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import tempfile
from typing import Any

from host_client.machine.cpio import Cpio
from vm_images import erofs, recipe, tools
from vm_images.kernel import Modules, boot_file, kernel_version
from vm_images.packages import BuildError, run, unpack, unpack_wheels
from vm_images.recipe import ARCHES, Arch
from vm_images.root import Root, compile_python, strip

GUEST_SOURCES = os.path.join(os.path.dirname(__file__), "guest")
COMPILE = [
    "-Os",
    "-std=gnu11",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffreestanding",
    "-fno-builtin",
    "-fno-stack-protector",
    "-fno-pic",
    "-no-pie",
    "-fno-asynchronous-unwind-tables",
    "-fno-tree-loop-distribute-patterns",
    "-static",
    "-nostdlib",
    "-s",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
    "-Wl,-z,noseparate-code",
    "-Wl,-z,max-page-size=4096",
]
FORMAT = 2  # of the manifest and of what host and guest expect of each other


def build(arch_name: str, out: str, mirror: str | None, compression: str | None) -> dict[str, Any]:
    """Builds into the folder `out`, which is replaced file by file at the end. Returns the manifest.

    All times in the image are SOURCE_DATE_EPOCH (reproducible-builds.org), 0 when it is not set. Raises
    BuildError.
    """
    arch = ARCHES[arch_name]
    tools.check(arch)
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    os.makedirs(out, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vm-image-") as work:
        source = os.path.join(work, "packages")
        versions = unpack(arch, [*recipe.PACKAGES, arch.kernel_package], source, mirror)
        native = _native_python(arch, source, work, mirror)
        wheels = os.path.join(work, "wheels")
        unpack_wheels(arch, wheels)
        init = compile_init(arch, os.path.join(work, "init"))
        modules = Modules(source)
        root = os.path.join(work, "root")
        Root(arch, source, root).build(wheels, modules, init)
        magic = compile_python(root, native, _native_arch())
        strip(root, arch)
        image = os.path.join(work, "root.erofs")
        erofs.make(root, image, epoch, compression)
        with open(image, "rb") as file:
            files = {"kernel": boot_file(source), "initrd": initrd(modules, init), "root.erofs": file.read()}
        manifest = {
            "format": FORMAT,
            "arch": arch.name,
            "debian": recipe.SUITE,
            "kernel": kernel_version(source),
            "python": recipe.PYTHON,
            "python_magic": magic,
            "files": {name: _describe(data) for name, data in files.items()},
            "packages": versions,
        }
    for name, data in files.items():
        _replace(os.path.join(out, name), data)
    _replace(
        os.path.join(out, "manifest.json"), (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    )
    return manifest


def compile_init(arch: Arch, target: str) -> bytes:
    """The guest's init, also its modprobe: a static program without a C library."""
    sources = sorted(glob.glob(os.path.join(GUEST_SOURCES, "*.c")))
    run(
        [f"{arch.triplet}-gcc", *COMPILE, "-o", target, *sources],
        f"compiling the guest's init for {arch.name}",
    )
    with open(target, "rb") as file:
        return file.read()


def initrd(modules: Modules, init: bytes) -> bytes:
    """The first root: init and the root disk's modules. The host appends its own archive at each boot."""
    archive = Cpio()
    archive.directory("dev")
    archive.device("dev/console", 5, 1)
    archive.file("init", init, 0o755)
    archive.directory("modules")
    names = {m for name in recipe.INITRD_MODULES for m in modules.order(name)}
    for name in sorted(names):
        archive.file(f"modules/{name}.ko", modules.content(name))
    archive.file("modules/table", modules.table(names).encode())
    archive.file("modules/boot", "\n".join(recipe.INITRD_MODULES).encode())
    return archive.finish()


def _native_arch() -> Arch:
    machine = platform.machine()
    name = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine)
    if name is None:
        raise BuildError(f"the image cannot be built on a {machine} machine; use an amd64 or arm64 one")
    return ARCHES[name]


def _native_python(arch: Arch, source: str, work: str, mirror: str | None) -> str:
    """A folder with the guest's Python version for the building machine: only it can compile the code."""
    native = _native_arch()
    if native == arch:
        return source
    folder = os.path.join(work, "native")
    unpack(
        native,
        [package for package in recipe.PACKAGES if "python" + recipe.PYTHON in package],
        folder,
        mirror,
    )
    return folder


def _describe(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _replace(path: str, data: bytes) -> None:
    with open(path + ".tmp", "wb") as file:
        file.write(data)
    os.replace(path + ".tmp", path)
