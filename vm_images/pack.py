"""An image for a web server, as `host_client.machine.download` reads it: manifest and compressed parts."""

from __future__ import annotations

import hashlib
import os
import shutil

from backports import zstd

from host_client.machine.image import PARTS

LEVEL = 19  # it is made once and fetched often: a seventh smaller than 15


def make(image: str, out: str) -> tuple[int, str]:
    """Writes the files to folder `out`; their size together, and the manifest's SHA-256."""
    os.makedirs(out, exist_ok=True)
    for part in PARTS:
        target = os.path.join(out, f"{part}.zst")
        with (
            open(os.path.join(image, part), "rb") as source,
            zstd.ZstdFile(target + ".tmp", "wb", level=LEVEL) as packed,
        ):
            shutil.copyfileobj(source, packed, 1 << 20)
        os.replace(target + ".tmp", target)
    with open(os.path.join(image, "manifest.json"), "rb") as file:
        manifest = file.read()
    with open(os.path.join(out, "manifest.json"), "wb") as file:
        file.write(manifest)
    size = sum(os.path.getsize(os.path.join(out, f"{part}.zst")) for part in PARTS)
    return size, hashlib.sha256(manifest).hexdigest()
