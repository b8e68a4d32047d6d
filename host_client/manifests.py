"""Manifest lists that are being put together, kept where docker's CLI keeps them and as it does.

`manifests/LIST/MANIFEST` in the configuration directory is docker's ImageManifest as JSON: the reference, the
descriptor with its platform, and the manifest itself.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from typing import Any

from host_client import reference
from host_client.reference import Reference
from host_client.registry import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Registry,
    RegistryError,
)

Entry = dict[str, Any]  # docker's ImageManifest
_PLATFORM_KEYS = ("architecture", "os", "os.version", "os.features", "variant")


class ManifestStore:
    """The lists below one configuration directory."""

    def __init__(self, directory: str) -> None:
        self.root = os.path.join(directory, "manifests")

    def get(self, target: Reference, image: Reference) -> Entry | None:
        """One image's manifest in a list; None when it is not there."""
        try:
            with open(os.path.join(self._place(target), _file_name(image)), "rb") as file:
                entry: Entry = json.load(file)
                return entry
        except FileNotFoundError:
            return None

    def entries(self, target: Reference) -> list[Entry] | None:
        """All manifests of a list; None when there is no such list."""
        try:
            names = sorted(os.listdir(self._place(target)))
        except FileNotFoundError:
            return None
        found = []
        for name in names:
            with open(os.path.join(self._place(target), name), "rb") as file:
                found.append(json.load(file))
        return found

    def save(self, target: Reference, image: Reference, entry: Entry) -> None:
        """Keeps a manifest in a list: temporary name, synced, renamed."""
        place = self._place(target)
        os.makedirs(place, mode=0o755, exist_ok=True)
        path = os.path.join(place, _file_name(image))
        # Beside the list's directory, since all that is in it is read as a part of the list.
        temporary = f"{place}.{os.getpid()}"
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps(entry, separators=(",", ":"), ensure_ascii=False))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def remove(self, target: Reference) -> None:
        """Removes a list."""
        shutil.rmtree(self._place(target))

    def _place(self, target: Reference) -> str:
        return os.path.join(self.root, _file_name(target))


def _file_name(name: Reference) -> str:
    return full(name).replace(":", "-").replace("/", "_")


def full(name: Reference) -> str:
    """The whole reference."""
    suffix = f":{name.tag}" if name.tag else ""
    return f"{name.name()}{suffix}" + (f"@{name.digest}" if name.digest else "")


def fetch(registry: Registry, name: Reference) -> Entry:
    """An image's manifest from its registry, with the platform that its configuration says.

    Raises RegistryError.
    """
    media_type, data = registry.manifest(name)
    if media_type in (OCI_INDEX, DOCKER_LIST):
        raise RegistryError(f"{full(name)} is a manifest list")
    try:
        return _entry(registry, name, media_type, data, {})
    except (KeyError, TypeError, ValueError, AttributeError):
        raise RegistryError(f"the manifest of {full(name)} is malformed") from None


def fetch_list(registry: Registry, name: Reference) -> list[Entry]:
    """The manifests of a list in a registry. Raises RegistryError."""
    media_type, data = registry.manifest(name)
    if media_type not in (OCI_INDEX, DOCKER_LIST):
        raise RegistryError(f"{full(name)} is not a manifest list")
    found = []
    try:
        for item in json.loads(data).get("manifests") or ():
            one = Reference(name.domain, name.path, name.tag, item["digest"])
            kind, content = registry.manifest(Reference(name.domain, name.path, "", item["digest"]))
            if kind in (OCI_MANIFEST, DOCKER_MANIFEST):
                found.append(_entry(registry, one, kind, content, item.get("platform") or {}))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise RegistryError(f"the manifest list {full(name)} is malformed") from None
    return found


def _entry(
    registry: Registry, name: Reference, media_type: str, data: bytes, platform: dict[str, Any]
) -> Entry:
    document = json.loads(data)
    if not platform:
        config = json.loads(registry.blob(name.path, document["config"]["digest"]))
        platform = {key: config[key] for key in _PLATFORM_KEYS if config.get(key)}
    from hashlib import sha256

    return {
        "Ref": full(name),
        "Descriptor": {
            "mediaType": media_type,
            "digest": name.digest or f"sha256:{sha256(data).hexdigest()}",
            "size": len(data),
            "platform": {key: platform[key] for key in _PLATFORM_KEYS if platform.get(key)},
        },
        "Raw": base64.b64encode(data).decode(),
        "SchemaV2Manifest" if media_type == DOCKER_MANIFEST else "OCIManifest": document,
    }


def manifest_of(entry: Entry) -> dict[str, Any]:
    """The manifest as a document."""
    found: dict[str, Any] = entry.get("OCIManifest") or entry.get("SchemaV2Manifest") or {}
    return found


def raw(entry: Entry) -> bytes:
    """The manifest's bytes as they came."""
    return base64.b64decode(entry.get("Raw") or "")


def reference_of(entry: Entry) -> Reference:
    """The image that a manifest is of."""
    return reference.parse(entry["Ref"])


def index(entries: list[Entry], target: Reference) -> tuple[str, bytes]:
    """The list as it is pushed: its media type and its bytes, which are docker's.

    ValueError with docker's words when a manifest cannot be in it.
    """
    described = []
    for entry in entries:
        domain = reference_of(entry).domain
        if domain != target.domain:
            raise ValueError(
                "cannot use source images from a different registry than the target image: "
                f"{domain} != {target.domain}"
            )
        own = entry["Descriptor"]
        platform = own.get("platform") or {}
        shown = {key: platform.get(key) or "" for key in ("architecture", "os")}
        shown |= {key: platform[key] for key in _PLATFORM_KEYS if platform.get(key)}
        described.append(
            {
                "mediaType": own["mediaType"],
                "size": own["size"],
                "digest": own["digest"],
                "platform": shown,
            }
        )
    oci = all(entry["Descriptor"]["mediaType"] == OCI_MANIFEST for entry in entries)
    media_type = OCI_INDEX if oci else DOCKER_LIST
    document = {"schemaVersion": 2, "mediaType": media_type, "manifests": described}
    return media_type, json.dumps(document, indent=3, ensure_ascii=False).encode()
