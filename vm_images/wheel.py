"""An image as a Python wheel: the package wherry_image_ARCH with the files as they are.

Format: PyPA specifications, "Binary distribution format". Dates are fixed, so the same image gives the same
bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zipfile

from vm_images.packages import BuildError

PARTS = ("manifest.json", "kernel", "initrd", "root.erofs")
DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that zip has


def make(image: str, out: str, version: str) -> str:
    """Writes the wheel of the image in folder `image` to folder `out`; its path. Raises BuildError."""
    try:
        with open(os.path.join(image, "manifest.json")) as file:
            arch = json.load(file)["arch"]
    except (OSError, ValueError, KeyError) as error:
        raise BuildError(f"{image} is not an image: {error}")
    package = f"wherry_image_{arch}"
    info = f"{package}-{version}.dist-info"
    os.makedirs(out, exist_ok=True)
    path = os.path.join(out, f"{package}-{version}-py3-none-any.whl")
    record: list[str] = []
    with zipfile.ZipFile(path + ".tmp", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as wheel:

        def add(name: str, data: bytes) -> None:
            entry = zipfile.ZipInfo(name, DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o100644 << 16
            wheel.writestr(entry, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(data)}\n")

        add(f"{package}/__init__.py", f'"""The VM image of Wherry for {arch}."""\n'.encode())
        for part in PARTS:
            with open(os.path.join(image, part), "rb") as content:
                add(f"{package}/{part}", content.read())
        summary = f"Linux image of Wherry's virtual machine, {arch}"
        fields = ("Metadata-Version: 2.1", f"Name: {package}", f"Version: {version}", f"Summary: {summary}")
        add(f"{info}/METADATA", "".join(f"{field}\n" for field in fields).encode())
        fields = ("Wheel-Version: 1.0", "Generator: vm_images", "Root-Is-Purelib: true", "Tag: py3-none-any")
        add(f"{info}/WHEEL", "".join(f"{field}\n" for field in fields).encode())
        record.append(f"{info}/RECORD,,\n")
        wheel.writestr(zipfile.ZipInfo(f"{info}/RECORD", DATE), "".join(record))
    os.replace(path + ".tmp", path)
    return path
