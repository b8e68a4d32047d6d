"""The kernel file QEMU boots directly, and the modules the image takes along."""

from __future__ import annotations

import glob
import lzma
import os
import re
import struct
from collections.abc import Iterable

from vm_images.packages import BuildError


def kernel_version(tree: str) -> str:
    versions = os.listdir(os.path.join(tree, "usr/lib/modules"))
    if len(versions) != 1:
        raise BuildError(f"expected one kernel in the packages, found {versions}")
    return versions[0]


def boot_file(tree: str) -> bytes:
    """The file for QEMU's -kernel.

    On x86 that is the ELF kernel from inside Debian's self-extracting one: QEMU enters it by its PVH note and
    the guest need not decompress 57 MB, which is a quarter of the kernel's boot under TCG. On arm64 Debian's
    file is that already.
    """
    with open(os.path.join(tree, "boot", "vmlinuz-" + kernel_version(tree)), "rb") as file:
        image = file.read()
    if image[0x202:0x206] != b"HdrS":
        # Documentation/arch/x86/boot.rst in the kernel: no x86 boot header
        if image[0x38:0x3C] != b"ARMd":
            raise BuildError("the kernel is neither an x86 nor an arm64 boot image")
        return image
    # image[0x202:0x206] is the header's magic
    set_up = ((image[0x1F1] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[set_up + offset : set_up + offset + length]
    if payload[:4] != b"\x28\xb5\x2f\xfd":
        raise BuildError(f"the kernel is compressed in an unknown way (magic {payload[:4].hex()})")
    kernel = _zstd(payload)
    if kernel[:4] != b"\x7fELF":
        raise BuildError("what the kernel image holds is not an ELF file")
    return kernel


def _zstd(data: bytes) -> bytes:
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        from backports import zstd
    # Not zstd.decompress: the payload's last four bytes, its length, are no frame.
    output: bytes = zstd.ZstdDecompressor().decompress(data)
    return output


class Modules:
    """The modules of one kernel package: names, aliases and needs, read from the modules themselves."""

    def __init__(self, tree: str) -> None:
        base = os.path.join(tree, "usr/lib/modules", kernel_version(tree))
        self.folder = os.path.join(base, "kernel")
        found = glob.glob("**/*.ko*", root_dir=self.folder, recursive=True)
        self._paths = {_name(path): path for path in found}
        with open(os.path.join(base, "modules.builtin")) as file:
            self._builtin = {_name(line.strip()) for line in file}
        self._content: dict[str, bytes] = {}
        self._info: dict[str, dict[str, list[str]]] = {}
        self._aliases: dict[str, str] = {}

    def in_folders(self, folders: Iterable[str]) -> list[str]:
        """Names of all modules directly below these folders of the package."""
        wanted = set(folders)
        return sorted(name for name, path in self._paths.items() if os.path.dirname(path) in wanted)

    def content(self, name: str) -> bytes:
        if name not in self._content:
            with open(os.path.join(self.folder, self._paths[name]), "rb") as file:
                data = file.read()
            self._content[name] = lzma.decompress(data) if self._paths[name].endswith(".xz") else data
        return self._content[name]

    def info(self, name: str) -> dict[str, list[str]]:
        """The module's own description, as modinfo shows it."""
        if name not in self._info:
            info: dict[str, list[str]] = {}
            pattern = rb"\0(alias|depends|softdep)=([^\0]*)"
            for key, value in re.findall(pattern, self.content(name)):
                info.setdefault(key.decode(), []).append(value.decode())
            self._info[name] = info
        return self._info[name]

    def order(self, name: str, above: tuple[str, ...] = ()) -> list[str]:
        """The modules to load for one, in order, itself last; nothing for what the kernel has built in.

        Raises BuildError for a name the kernel does not have.
        """
        name = name.replace("-", "_")
        if name in self._builtin or name in above:
            return []
        if name not in self._paths:
            raise BuildError(f"the kernel has no module {name}")
        result: list[str] = []
        needs = [need for text in self.info(name).get("depends", []) for need in text.split(",") if need]
        needs += [need for need in self._soft(name) if need in self._paths]
        for need in needs:
            result += [module for module in self.order(need, (*above, name)) if module not in result]
        return [*result, name]

    def _soft(self, name: str) -> list[str]:
        """Modules a module works badly without: "softdep=pre: crc32c" names an algorithm, not a file."""
        found = []
        for text in self.info(name).get("softdep", []):
            words = text.partition("pre:")[2].partition("post:")[0].split()
            for word in (w.replace("-", "_") for w in words):
                found.append(word if word in self._paths else f"{word}_generic")
        return found

    def table(self, names: Iterable[str]) -> str:
        """For the guest's modprobe: a line for each name and alias, with the files to load."""
        lines: dict[str, str] = {}
        for name in sorted(names):
            files = " ".join(self.order(name))
            lines[name] = files
            for alias in sorted(set(self.info(name).get("alias", []))):
                # Aliases with patterns are for devices, which a virtual machine does not gain while it runs.
                if not set(alias) & set("*?[: "):
                    lines.setdefault(alias.replace("-", "_"), files)
        return "".join(f"{alias} {files}\n" for alias, files in sorted(lines.items()))


def _name(path: str) -> str:
    return os.path.basename(path).partition(".ko")[0].replace("-", "_")
