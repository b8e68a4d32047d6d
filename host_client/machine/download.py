"""A VM image from a URL: its manifest, and each part beside it, compressed with zstd.

What `python -m vm_images pack` writes can be put on any web server. The parts are checked by the manifest's
sums; the manifest is trusted for coming by HTTPS, or for its own SHA-256 at the URL's end.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import ssl
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any
from urllib.error import HTTPError, URLError

from host_client.machine import image, zstd
from host_client.machine.errors import MachineError
from host_client.machine.layout import data_folder

MANIFEST = "manifest.json"
MANIFEST_MAX = 1 << 20
SECONDS = 30.0  # without a byte
CHUNK = 1 << 20


def is_url(source: str) -> bool:
    """Whether an image's place is one for `fetch`, not a folder."""
    return source.startswith(("https://", "http://"))


def fetch(url: str, tell: Callable[[str], None]) -> image.Image:
    """Installs the image at `url`: that of its folder or manifest, with "#sha256=…" of the manifest at will.

    `tell` is given a line for each part that is fetched. Raises MachineError, naming what failed.
    """
    place, _, pin = url.partition("#")
    if pin and not re.fullmatch(r"sha256=[0-9a-f]{64}", pin):
        raise MachineError(
            f"#{pin} is not a manifest's sum", "Write it as #sha256= and 64 hexadecimal digits."
        )
    if not pin and not place.startswith("https://"):
        raise MachineError(
            f"an image from {place} could be anybody's: it comes without encryption",
            "Use https://, or add #sha256= and the SHA-256 of its manifest.json.",
        )
    base = place.removesuffix(MANIFEST).rstrip("/")
    with _get(f"{base}/{MANIFEST}", pinned=bool(pin)) as response:
        manifest = response.read(MANIFEST_MAX)
    found = hashlib.sha256(manifest).hexdigest()
    if pin and pin != f"sha256={found}":
        raise MachineError(
            f"the manifest at {base} is not the expected one: its SHA-256 is {found}",
            "Compare the URL with that of who offers the image.",
        )
    os.makedirs(data_folder("images"), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data_folder("images"), suffix=".tmp") as folder:
        with open(os.path.join(folder, MANIFEST), "wb") as file:
            file.write(manifest)
        about = image.read_manifest(folder, base)
        known = image.find(about)
        if known is not None:
            return known
        for part in image.PARTS:
            size = about.size(part)
            tell(f"Fetching the VM image: {part}, {size / 1e6:.1f} MB before compression")
            _fetch_part(f"{base}/{part}.zst", about.path(part), size, bool(pin))
        return image.install(folder)


def _fetch_part(url: str, target: str, size: int, pinned: bool) -> None:
    """Writes what is compressed at `url`, never more than the manifest says it is."""
    with _get(url, pinned) as response, open(target, "wb") as file:
        try:
            with zstd.opened(response, "rb") as stream:
                left = size
                while data := stream.read(min(CHUNK, left + 1)):
                    left -= len(data)
                    if left < 0:
                        raise MachineError(f"{url} is larger than its manifest says", "Try another place.")
                    file.write(data)
        except zstd.errors() as error:
            raise MachineError(f"{url} is damaged: {error}", "Try again, or another place.")


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.startswith("https://"):
            raise MachineError(f"{req.full_url} leads to {newurl}, without encryption", "Use another URL.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def _get(url: str, pinned: bool) -> Iterator[IO[bytes]]:
    """The body of an answer, by this system's proxies and trusted authorities."""
    handlers: list[Any] = [urllib.request.HTTPSHandler(context=ssl.create_default_context())]
    handlers += [] if pinned else [_OnlyHttps()]
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=SECONDS) as response:
            yield response
    except HTTPError as error:
        raise MachineError(f"cannot fetch {url}: the server says {error.code} {error.reason}")
    except URLError as error:
        raise MachineError(f"cannot fetch {url}: {error.reason}", "Is the address right and the host online?")
    except (OSError, http.client.HTTPException) as error:
        raise MachineError(f"cannot fetch {url}: {error!r}", "Try again.")
