"""The built image: what its manifest says is what is there, and a second build gives the same bytes."""

from __future__ import annotations

import ast
import hashlib
import json
import lzma
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from host_client.machine import image as images
from tests.support.cli import REPOSITORY
from tests.support.machine import mounted
from vm_images import elf, wheel
from vm_images.build import build
from vm_images.recipe import ARCHES, PYTHON

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]


@pytest.fixture(params=["amd64", "arm64"])
def folder(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue({"amd64": "image", "arm64": "arm_image"}[request.param])
    return path


@pytest.fixture
def root(folder: Path, tmp_path: Path) -> Iterator[Path]:
    with mounted(folder, tmp_path / "root") as place:
        yield place


def test_the_manifest_says_what_is_there(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert folder.name.startswith(manifest["arch"])
    assert manifest["packages"]["python3-msgspec"]
    for name, about in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert (about["size"], about["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_it_is_small_enough_to_download(folder: Path) -> None:
    sizes = {
        n: len(lzma.compress((folder / n).read_bytes(), preset=1)) for n in ("kernel", "initrd", "root.erofs")
    }
    assert sum(sizes.values()) < 60e6, sizes


def test_a_second_build_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    first = json.loads((folder / "manifest.json").read_text())
    second = build(first["arch"], str(tmp_path), None, None)
    if first["packages"] != second["packages"]:  # the archive has moved on since the first build was cached
        first = build(first["arch"], str(tmp_path / "again"), None, None)
    assert second["files"] == first["files"]


def test_pip_installs_it_as_a_package(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = wheel.make(str(folder), str(tmp_path), "1.0")
    assert Path(path).stat().st_size < 60e6
    packages = tmp_path / "packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--target", str(packages), path]
    subprocess.run(pip, check=True)
    monkeypatch.syspath_prepend(packages)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    arch = folder.name.partition("-")[0]
    packaged = images.packaged(arch)
    assert packaged is not None
    images.verify(images.install(packaged))
    assert [image.arch for image in images.installed(arch)] == [arch]


def test_only_what_the_agent_and_a_look_inside_need_is_in_the_root(root: Path) -> None:
    programs = sorted(p.name for folder in ("usr/bin", "usr/sbin") for p in (root / folder).iterdir())
    assert programs == ["busybox", "e2fsck", "mke2fs", "modprobe", "python3.13", "sh"]
    assert not list(root.rglob("*.py")), "code is compiled ahead, and imported without a look at its source"
    for name in ("requests", "msgspec", "isal", "backports", "ssl.pyc", "sqlite3", "asyncio", "ctypes"):
        assert (root / "usr/lib/python3.13" / name).exists(), name
    assert "BEGIN CERTIFICATE" in (root / "etc/ssl/certs/ca-certificates.crt").read_text()


def test_it_emulates_the_other_architecture(root: Path, folder: Path) -> None:
    here = ARCHES[folder.name.partition("-")[0]]
    [rule] = (root / "usr/lib/binfmt.d/emulator.conf").read_text().splitlines()
    _, name, kind, *_, interpreter, flags = rule.split(":")
    assert (name, kind, set(flags)) == (f"qemu-{here.other}", "M", set("POCF"))
    program = root / interpreter.lstrip("/")
    assert [path for path in (root / "usr/libexec").rglob("*") if path.is_file()] == [program]
    headers = subprocess.run(["readelf", "-hl", program], capture_output=True, text=True, check=True).stdout
    assert {"amd64": "X86-64", "arm64": "AArch64"}[here.name] in headers
    assert "INTERP" not in headers, "it is kept open for containers, which have no libraries of it"
    assert elf.needed(program.read_bytes()) == []


def imports(package: Path) -> list[str]:
    """Every module of a package, and every one that its code imports anywhere."""
    found = set()
    for path in package.rglob("*.py"):
        found.add(".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module)
    return sorted(found)


def test_its_python_has_all_that_the_agent_imports(image: Path, tmp_path: Path) -> None:
    code = (
        "import importlib, json, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "missing = {}\n"
        "for name in json.load(sys.stdin):\n"
        "    try: importlib.import_module(name)\n"
        "    except ImportError as error: missing[name] = str(error)\n"
        "print(json.dumps(missing))\n"
    )
    with mounted(image, tmp_path / "root") as root:
        python: list[str | Path] = [
            *(root / ARCHES["amd64"].loader.lstrip("/"), "--library-path"),
            *(root / "usr/lib" / ARCHES["amd64"].triplet, root / f"usr/bin/python{PYTHON}"),
        ]
        done = subprocess.run(
            [*python, "-I", "-S", "-B", "-c", code, REPOSITORY],
            input=json.dumps(imports(REPOSITORY / "guest_agent")),
            capture_output=True,
            text=True,
            check=True,
        )
    missing = json.loads(done.stdout)
    # Newer Pythons' own.
    assert set(missing) <= {"compression", "compression.zstd"}, missing


def test_every_module_the_table_names_is_there(root: Path) -> None:
    modules = root / "usr/lib/modules"
    table = dict(line.split(" ", 1) for line in (modules / "table").read_text().splitlines())
    for files in table.values():
        for name in files.split():
            assert (modules / f"{name}.ko").exists(), name
    for name in (modules / "boot").read_text().split() + (modules / "later").read_text().split():
        assert name in table
    for alias in (
        "fs_overlay",
        "fs_binfmt_misc",
        "rtnl_link_veth",
        "nft_chain_2_nat",
        "fs_nfs",
        "nft_expr_masq",
        "crypto_crc32c",
    ):
        assert alias in table, alias
