"""Manifests and image configurations as JSON: media types, and the ones written here.

OCI image-spec manifest.md and config.md; Docker's image manifest version 2, schema 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from guest_agent.errors import InvalidParameter
from guest_agent.images import reference

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"


class _Run(msgspec.Struct, rename="pascal"):
    user: str | None = None
    exposed_ports: dict[str, Any] | None = None
    env: list[str] | None = None
    entrypoint: list[str] | str | None = None
    cmd: list[str] | str | None = None
    volumes: dict[str, Any] | None = None
    working_dir: str | None = None
    labels: dict[str, str] | None = None
    stop_signal: str | None = None
    args_escaped: bool | None = None
    on_build: list[str] | None = None
    shell: list[str] | str | None = None
    healthcheck: dict[str, Any] | None = None


class _Step(msgspec.Struct):
    created: str | None = None
    author: str | None = None
    created_by: str | None = None
    comment: str | None = None
    empty_layer: bool | None = None


class _RootFs(msgspec.Struct):
    diff_ids: list[str] | None = None


class _Image(msgspec.Struct):
    created: str | None = None
    author: str | None = None
    comment: str | None = None
    architecture: str | None = None
    os: str | None = None
    variant: str | None = None
    config: _Run | None = None
    container_config: dict[str, Any] | None = None
    rootfs: _RootFs | None = None
    history: list[_Step] | None = None


def parse_config(data: bytes) -> dict[str, Any]:
    """An image configuration that somebody else wrote, of which every field used here has its type.

    Commands that are one string become lists, as Docker reads them. InvalidParameter names the field
    (CVE-2021-21285: a malformed one crashed the daemon).
    """
    try:
        msgspec.json.decode(data, type=_Image)
        document: dict[str, Any] = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise InvalidParameter(f"malformed image configuration: {e}", "Have the image built again.")
    run = document.get("config") or {}
    for key in ("Entrypoint", "Cmd", "Shell"):
        if isinstance(run.get(key), str):
            run[key] = [run[key]]
    for diff in (document.get("rootfs") or {}).get("diff_ids") or ():
        reference.check_digest(diff)
    return document


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob as a manifest names it."""

    media_type: str
    digest: str
    size: int

    def json(self) -> dict[str, Any]:
        """The descriptor as it stands in a manifest."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


def layer_type(compression: str) -> str:
    """The media type of a layer blob with this compression ("" or gzip, zstd …)."""
    return f"{OCI_LAYER}+{compression}" if compression else OCI_LAYER


def encode(document: Any) -> bytes:
    """Canonical enough: the same document gives the same bytes."""
    return msgspec.json.encode(document)


def image_index(manifests: Sequence[tuple[Descriptor, Mapping[str, str]]]) -> bytes:
    """An OCI index of manifests, each with its platform."""
    return encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [each.json() | {"platform": dict(platform)} for each, platform in manifests],
        }
    )


def image_manifest(config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
    """An OCI manifest."""
    return encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config.json(),
            "layers": [layer.json() for layer in layers],
        }
    )
