"""The root file system's content, taken file by file from unpacked packages: what is named or needed."""

from __future__ import annotations

import glob
import os
import subprocess
import sys

from vm_images import elf, pyc, recipe
from vm_images.kernel import Modules
from vm_images.packages import BuildError, run
from vm_images.recipe import PYTHON, Arch

STDLIB = f"usr/lib/python{PYTHON}"


class Root:
    """A root file system being put together in `target` from the packages unpacked in `source`."""

    def __init__(self, arch: Arch, source: str, target: str) -> None:
        self.arch = arch
        self.source = source
        self.target = target
        self._libraries = [f"usr/lib/{arch.triplet}", f"usr/lib/{arch.triplet}/gconv"]

    def build(self, wheels: str, modules: Modules, init: bytes) -> None:
        """Everything but compiling Python code."""
        for path in recipe.DIRECTORIES:
            os.makedirs(self._to(path), exist_ok=True)
        self._python(wheels)
        for program in (*recipe.PROGRAMS, self.arch.loader):
            self._copy(program)
        for path in recipe.CONFIGURATION:
            self._copy(path)
        authorities = sorted(glob.glob(os.path.join(self.source, recipe.CA_FOLDER, "*.crt")))
        self._write(recipe.CA_BUNDLE, b"".join(_read(path).rstrip() + b"\n" for path in authorities))
        for path, text in recipe.FILES.items():
            self._write(path, text.encode())
        for path, to in recipe.LINKS.items():
            os.symlink(to, self._to(path))
        self._write("/usr/sbin/modprobe", init, 0o755)
        self._emulator()
        self._modules(modules)

    def _python(self, wheels: str) -> None:
        source = os.path.join(self.source, STDLIB)
        for name in sorted(set(os.listdir(source)) - recipe.STDLIB_WITHOUT - {"lib-dynload", "__pycache__"}):
            self._copy_code(os.path.join(source, name), os.path.join(STDLIB, name))
        for name in sorted(os.listdir(os.path.join(source, "lib-dynload"))):
            if not name.startswith(recipe.EXTENSIONS_WITHOUT):
                self._copy(f"/{STDLIB}/lib-dynload/{name}")
        places = [wheels, os.path.join(self.source, "usr/lib/python3/dist-packages")]
        for name in recipe.PYTHON_PACKAGES:
            found = next((path for place in places if (path := _module(place, name))), None)
            if found is None:
                raise BuildError(f"neither the packages nor the wheels have the Python package {name}")
            self._copy_code(found, os.path.join(STDLIB, os.path.basename(found)))

    def _emulator(self) -> None:
        self._copy(recipe.EMULATOR.format(self.arch.other))
        rule = _read(os.path.join(self.source, recipe.EMULATOR_RULE.format(self.arch.other).lstrip("/")))
        self._write("/usr/lib/binfmt.d/emulator.conf", rule.rstrip() + recipe.EMULATOR_FLAGS.encode() + b"\n")

    def _copy_code(self, source: str, to: str) -> None:
        """A module or package: its code, extensions and data; no caches, tests, stubs or text for people."""
        if os.path.isdir(source):
            for name in sorted(os.listdir(source)):
                if name not in ("__pycache__", "tests", "test") and not name.endswith(
                    (".pyi", ".pyx", ".c", ".h")
                ):
                    self._copy_code(os.path.join(source, name), os.path.join(to, name))
        elif source.endswith(".so"):
            if not _foreign_version(source):
                self._write("/" + to, _read(source), 0o644)
                self._needs(_read(source))
        elif source.endswith((".py", ".pem", ".json", ".txt")) or os.path.basename(source) == "py.typed":
            self._write("/" + to, _read(source))

    def _copy(self, path: str) -> None:
        """One file at the same place, links followed, with the libraries it needs."""
        data = _read(os.path.join(self.source, path.lstrip("/")))
        self._write(path, data, 0o755 if data[:4] == b"\x7fELF" else 0o644)
        self._needs(data)

    def _needs(self, data: bytes) -> None:
        for name in elf.needed(data):
            self._library(name)

    def _library(self, name: str) -> None:
        if name == os.path.basename(self.arch.loader):
            return
        for folder in self._libraries:
            if os.path.exists(os.path.join(self.source, folder, name)):
                if not os.path.exists(self._to(os.path.join(folder, name))):
                    self._copy(f"/{folder}/{name}")
                return
        raise BuildError(f"no package in the recipe has the library {name}")

    def _modules(self, modules: Modules) -> None:
        extra = [
            m for m in modules.in_folders(recipe.MODULE_FOLDERS) if not m.startswith(recipe.MODULES_WITHOUT)
        ]
        later = [*recipe.MODULES, *extra]
        names = {
            m for name in (*recipe.BOOT_MODULES, *recipe.LATER_MODULES, *later) for m in modules.order(name)
        }
        for name in sorted(names):
            self._write(f"/usr/lib/modules/{name}.ko", modules.content(name))
        self._write("/usr/lib/modules/table", modules.table(names).encode())
        self._write("/usr/lib/modules/boot", "\n".join(recipe.BOOT_MODULES).encode())
        self._write("/usr/lib/modules/later", "\n".join(recipe.LATER_MODULES).encode())

    def _to(self, path: str) -> str:
        return os.path.join(self.target, path.lstrip("/"))

    def _write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        to = self._to(path)
        os.makedirs(os.path.dirname(to), exist_ok=True)
        with open(to, "wb") as file:
            file.write(data)
        os.chmod(to, mode)


def compile_python(target: str, native: str, arch: Arch) -> int:
    """Compiles the root's Python code with the same Python for the building machine, unpacked in `native`.

    Returns the number (PEP 3147 "magic") by which Python tells compatible code.
    """
    loader = os.path.join(native, arch.loader.lstrip("/"))
    libraries = os.path.join(native, "usr/lib", arch.triplet)
    python = os.path.join(native, f"usr/bin/python{PYTHON}")
    command = [loader, "--library-path", libraries, "--argv0", python, python, "-I", "-S", pyc.__file__]
    output = run(
        [*command, os.path.join(target, STDLIB), "/" + STDLIB, "2"], "compiling the guest's Python code"
    )
    return int(output.split()[-1])


def _module(place: str, name: str) -> str | None:
    """Path of a package, or of an extension module for the guest's Python."""
    path = os.path.join(place, name)
    if os.path.isdir(path):
        return path
    found = glob.glob(f"{path}.cpython-{PYTHON.replace('.', '')}-*.so")
    return found[0] if found else None


def _foreign_version(path: str) -> bool:
    """Debian packages carry extensions for every Python of the release."""
    name = os.path.basename(path)
    return ".cpython-" in name and f".cpython-{PYTHON.replace('.', '')}-" not in name


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def strip(target: str, arch: Arch) -> None:
    """Takes symbols out of what was built outside Debian, which strips its own."""
    for path in sorted(glob.glob(os.path.join(target, STDLIB, "**/*.so"), recursive=True)):
        subprocess.run([f"{arch.triplet}-strip", "--strip-unneeded", path], check=True, stdout=sys.stderr)
