"""The image builder's own formats, against tools that know them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from host_client.machine.cpio import Cpio
from vm_images import elf, pyc


def test_a_cpio_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    archive = Cpio()
    archive.directory("d")
    archive.file("d/f", b"odd", 0o755)
    archive.symlink("l", "d/f")
    archive.device("null", 1, 3, 0o666)
    first = archive.finish()
    second = Cpio()
    second.file("later", b"x" * 1000)
    listing = subprocess.run(
        ["cpio", "-itvn", "--quiet"], input=first, capture_output=True, check=True
    ).stdout
    lines = [line.split() for line in listing.decode().splitlines()]
    assert [(line[0], line[-1]) for line in lines] == [
        ("drwxr-xr-x", "d"),
        ("-rwxr-xr-x", "d/f"),
        ("lrwxrwxrwx", "d/f"),
        ("crw-rw-rw-", "null"),
    ]
    assert {(line[2], line[3]) for line in lines} == {("0", "0")}
    assert len(first) % 512 == 0, "the kernel finds a second archive only at an aligned place"
    subprocess.run(["cpio", "-id", "--quiet"], input=second.finish(), cwd=tmp_path, check=True)
    assert (tmp_path / "later").read_bytes() == b"x" * 1000


def test_needed_libraries_are_those_of_readelf() -> None:
    path = os.path.realpath(sys.executable)
    output = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
    expected = [line.split("[")[1].rstrip("]") for line in output.splitlines() if "(NEEDED)" in line]
    assert expected
    assert elf.needed(Path(path).read_bytes()) == expected
    assert elf.needed(b"#!/bin/sh\n") == []


def test_code_is_compiled_to_the_same_bytes_and_imports_without_a_source(tmp_path: Path) -> None:
    outputs = []
    for name in ("one", "two"):
        folder = tmp_path / name / "package"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text('"""Doc."""\nfrom package.part import value\n')
        (folder / "part.py").write_text('value = [x for x in ("a", "b")]\n')
        pyc.compile_tree(str(folder), "/usr/lib/package", 2)
        assert sorted(os.listdir(folder)) == ["__init__.pyc", "part.pyc"]
        outputs.append([(folder / file).read_bytes() for file in sorted(os.listdir(folder))])
    assert outputs[0] == outputs[1]
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'one')!r}); import package; print(package.value, package.__doc__)"
    got = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert got == "['a', 'b'] None\n"
