"""hello-world without a network: the image is made from a program that ships with Wherry."""

from __future__ import annotations

import io
import os

from guest_agent.images import manifest, platforms, tar
from guest_agent.images.assemble import add_image, extract_layers, store_stream
from guest_agent.images.content import digest_of
from guest_agent.images.platforms import Platform
from guest_agent.images.reference import DEFAULT_DOMAIN, Reference
from guest_agent.images.store import Image, ImageStore

_PROGRAMS = os.path.join(os.path.dirname(os.path.dirname(__file__)), "bin")
_CREATED = "2026-11-24T00:00:00Z"


def covers(ref: Reference, platform: Platform | None) -> bool:
    """Whether this image may stand in for the one asked for:

    hello-world:latest on Docker Hub, and only that.
    """
    wanted = platform or platforms.host()
    return (
        (ref.domain, ref.path, ref.tag, ref.digest) == (DEFAULT_DOMAIN, "library/hello-world", "latest", "")
        and wanted.os == "linux"
        and os.path.exists(_program(wanted))
    )


def _program(platform: Platform) -> str:
    return os.path.join(_PROGRAMS, f"hello-{platform.architecture}")


def make(store: ImageStore, ref: Reference, platform: Platform | None) -> Image:
    """Makes the image and names it `ref`."""
    wanted = platform or platforms.host()
    with open(_program(wanted), "rb") as file:
        program = file.read()
    layer = io.BytesIO()
    writer = tar.TarWriter(layer.write)
    writer.add(tar.Entry("hello", mode=0o755, size=len(program)), [program])
    writer.close()
    diff = digest_of(layer.getvalue())
    config = {
        "architecture": wanted.architecture,
        "os": "linux",
        "created": _CREATED,
        "config": {"Cmd": ["/hello"], "WorkingDir": "/"},
        "history": [{"created": _CREATED, "created_by": "wherry", "comment": "ships with Wherry"}],
        "rootfs": {"type": "layers", "diff_ids": [diff]},
    }
    layer.seek(0)
    with store.lease() as lease:
        blob = store_stream(store, lease, layer.read)
        extract_layers(store, lease, [blob], [diff])
        return add_image(store, lease, manifest.encode(config), [blob], [ref])[0]
