"""One repository in a registry: its manifests, blobs and tags (OCI distribution-spec), everything verified.

A manifest says what it is three times, by its Content-Type, its mediaType and its fields; one that is not
the same in all is refused, since readers that look at different places would see different images
(CVE-2021-41190).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urljoin, urlsplit

import requests
import urllib3

from guest_agent.errors import InternalError, InvalidParameter, NotFound, Unauthorized
from guest_agent.images import manifest, reference
from guest_agent.images.manifest import Descriptor
from guest_agent.images.registry import Registry, RegistryError, Unreachable

_MAX_MANIFEST = 4 << 20  # bytes, the distribution-spec's least that registries must take
_MAX_CONFIG = 8 << 20
_MAX_TAGS = 1_000_000
_CHUNK = 1 << 18
_INDEXES = (manifest.OCI_INDEX, manifest.DOCKER_LIST)
_MANIFESTS = (manifest.OCI_MANIFEST, manifest.DOCKER_MANIFEST)
_ACCEPT = ", ".join((*_INDEXES, *_MANIFESTS))
CONFIGS = (manifest.OCI_CONFIG, manifest.DOCKER_CONFIG)
_LAYERS = frozenset(
    (
        manifest.OCI_LAYER,
        f"{manifest.OCI_LAYER}+gzip",
        f"{manifest.OCI_LAYER}+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    )
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A verified manifest or index."""

    digest: str
    media_type: str
    data: bytes
    document: dict[str, Any]

    @property
    def is_index(self) -> bool:
        """Whether it lists manifests for several platforms."""
        return self.media_type in _INDEXES

    def config(self) -> Descriptor:
        """The image configuration's descriptor. InvalidParameter for what is no image."""
        found = descriptor(self.document.get("config"), "config")
        if found.media_type not in CONFIGS:
            raise InvalidParameter(
                f'Encountered remote "{found.media_type}"(unknown) when fetching',
                "It is an artifact of another kind, not a container image.",
            )
        return found

    def layers(self) -> list[Descriptor]:
        """The layers' descriptors, bottom first. InvalidParameter for layers of another kind."""
        items = self.document.get("layers")
        if not isinstance(items, list):
            raise InvalidParameter(f"manifest {self.digest} has no layers")
        found = [descriptor(item, "layer") for item in items]
        for layer in found:
            if layer.media_type not in _LAYERS:
                raise InvalidParameter(f"unsupported layer media type {layer.media_type!r}")
        return found

    def manifests(self) -> list[tuple[Descriptor, dict[str, Any]]]:
        """What an index lists, each with its `platform`."""
        items = self.document.get("manifests")
        if not isinstance(items, list):
            raise InvalidParameter(f"index {self.digest} lists no manifests")
        found = []
        for item in items:
            platform = item.get("platform") if isinstance(item, dict) else None
            found.append((descriptor(item, "manifest"), platform if isinstance(platform, dict) else {}))
        return found


def descriptor(item: Any, what: str) -> Descriptor:
    """A descriptor from a document somebody else wrote. InvalidParameter."""
    if not isinstance(item, dict):
        raise InvalidParameter(f"malformed manifest: a {what} is no descriptor")
    media_type, digest, size = item.get("mediaType"), item.get("digest"), item.get("size")
    if (
        not isinstance(media_type, str)
        or not isinstance(digest, str)
        or not isinstance(size, int)
        or size < 0
    ):
        raise InvalidParameter(f"malformed manifest: a {what} without mediaType, digest or size")
    reference.check_digest(digest)
    return Descriptor(media_type, digest, size)


def parse_manifest(data: bytes, content_type: str, expected: str = "") -> Manifest:
    """A manifest from its bytes.

    InternalError when it has not the digest `expected`, InvalidParameter otherwise.
    """
    algorithm = expected.partition(":")[0] or "sha256"
    digest = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
    if expected and digest != expected:
        raise InternalError(
            f"manifest verification failed for digest {expected}",
            "The registry, or somebody on the way, gave something else. Try again.",
        )
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise InvalidParameter(f"malformed manifest: {e}")
    if not isinstance(document, dict):
        raise InvalidParameter("malformed manifest: not a JSON object")
    content_type = content_type.partition(";")[0].strip().lower()
    inner = document.get("mediaType")
    if document.get("schemaVersion") == 1:
        raise InvalidParameter(
            "Docker Image manifest version 2, schema 1 is not supported",
            "Have the image pushed again by a newer client.",
        )
    media_type = inner or content_type
    if media_type not in (*_INDEXES, *_MANIFESTS):
        if content_type in (*_INDEXES, *_MANIFESTS) or not content_type:
            raise InvalidParameter(f"unsupported manifest media type {media_type!r}")
        # A registry that serves manifests as plain JSON.
        raise InvalidParameter(f"unsupported manifest media type and no default available: {content_type}")
    if inner and content_type in (*_INDEXES, *_MANIFESTS) and inner != content_type:
        raise InvalidParameter(
            f"manifest is ambiguous: served as {content_type} but says it is {inner}",
            "The registry or the image is broken, or somebody tries to deceive.",
        )
    wrong = ("config", "layers") if media_type in _INDEXES else ("manifests",)
    if any(key in document for key in (*wrong, "fsLayers")):
        raise InvalidParameter(
            f"manifest is ambiguous: a {media_type} with fields of another kind",
            "The image is broken, or somebody tries to deceive.",
        )
    return Manifest(digest, media_type, data, document)


class Repository:
    """A repository at one endpoint. `actions`: what a token has to allow: "pull", or "pull,push"."""

    def __init__(self, registry: Registry, path: str, actions: str = "pull") -> None:
        self.registry = registry
        self.path = path
        self.scope = f"repository:{path}:{actions}"

    def manifest(self, name: str, size: int = _MAX_MANIFEST) -> Manifest:
        """The manifest of a tag or digest. Raises RegistryError and what `Registry.get` does."""
        response = self.registry.get(f"{self.path}/manifests/{name}", self.scope, {"Accept": _ACCEPT})
        with response:
            data = _whole(response, min(size, _MAX_MANIFEST), "manifest")
            expected = name if ":" in name else response.headers.get("Docker-Content-Digest", "")
            if expected and not reference.is_digest(expected):
                expected = ""
            return parse_manifest(data, response.headers.get("Content-Type", ""), expected)

    def head(self, tag: str) -> str:
        """The digest a tag has now, "" when the registry does not tell without being asked for the whole."""
        try:
            response = self.registry.get(
                f"{self.path}/manifests/{tag}", self.scope, {"Accept": _ACCEPT}, "HEAD"
            )
        except (RegistryError, Unauthorized):
            return ""  # the answer to a GET says why
        with response:
            digest = response.headers.get("Docker-Content-Digest", "")
        return digest if reference.is_digest(digest) else ""

    def config(self, blob: Descriptor) -> bytes:
        """A small blob in memory, verified."""
        if blob.size > _MAX_CONFIG:
            raise InvalidParameter(
                f"image configuration of {blob.size} bytes: at most {_MAX_CONFIG} are taken"
            )
        response = self._blob(blob.digest, 0)
        with response:
            data = _whole(response, blob.size, "image configuration")
        algorithm = blob.digest.partition(":")[0]
        if f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}" != blob.digest:
            raise InternalError(
                f"image config verification failed for digest {blob.digest}",
                "The registry, or somebody on the way, gave something else. Try again.",
            )
        return data

    def blob(self, digest: str, offset: int) -> Iterator[bytes]:
        """A blob's bytes from `offset` on. Unreachable when the connection is cut on the way."""
        response = self._blob(digest, offset)
        with response:
            skip = 0
            if offset and response.status_code == 206:
                start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
                if start != str(offset):
                    raise Unreachable(
                        f"blob {digest}: the registry sent another range than asked for", "", True
                    )
            elif offset:
                skip = offset  # the registry has no ranges
            for chunk in _chunks(response):
                if skip >= len(chunk):
                    skip -= len(chunk)
                else:
                    yield chunk[skip:]
                    skip = 0

    def _blob(self, digest: str, offset: int) -> requests.Response:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        return self.registry.get(f"{self.path}/blobs/{digest}", self.scope, headers)

    def tags(self) -> list[str]:
        """All tags, page by page."""
        found: list[str] = []
        path, query = f"{self.path}/tags/list", {"n": "1000"}
        for _ in range(1000):
            with self.registry.get(path, self.scope, params=query) as response:
                try:
                    page = json.loads(_whole(response, _MAX_MANIFEST, "tag list")).get("tags") or []
                    found += [tag for tag in page if isinstance(tag, str)]
                except (ValueError, AttributeError, TypeError, RecursionError):
                    raise InvalidParameter(f"malformed tag list of {self.path}")
                if len(found) > _MAX_TAGS:
                    break
                following = response.links.get("next", {}).get("url", "")
            if not following:
                return found
            target = urlsplit(urljoin(f"{self.registry.endpoint.url}/v2/{path}", following))
            path = target.path.partition("/v2/")[2]
            query = dict(parse_qsl(target.query))
        raise InvalidParameter(f"the tag list of {self.path} does not end")


def _chunks(response: requests.Response) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.raw.read(_CHUNK, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError) as e:
            raise Unreachable(f'Get "{response.url.partition("?")[0]}": {_cut(e)}', "", True) from e
        if not chunk:
            return
        yield chunk


def _cut(error: Exception) -> str:
    if isinstance(error, urllib3.exceptions.ReadTimeoutError):
        return "i/o timeout"
    return "unexpected EOF"


def _whole(response: requests.Response, limit: int, what: str) -> bytes:
    """A body of at most `limit` bytes."""
    parts = []
    size = 0
    for chunk in _chunks(response):
        size += len(chunk)
        if size > limit:
            raise InvalidParameter(
                f"{what} is longer than {limit} bytes", "The registry is broken or hostile."
            )
        parts.append(chunk)
    return b"".join(parts)


def not_found(error: RegistryError, ref: reference.Reference) -> NotFound | None:
    """dockerd's sentence for what is not there, or not for us; None for other errors."""
    if error.code == "DENIED":
        return NotFound(
            f"pull access denied for {ref.familiar_name}, repository does not exist or may require "
            f"'docker login': {error.message}",
            f"Check the name; if {ref.domain} needs it, log in.",
        )
    if error.code in ("MANIFEST_UNKNOWN", "NOT_FOUND"):
        return NotFound(f"manifest for {ref.familiar} not found: {error.message}", "Check the tag or digest.")
    if error.code == "NAME_UNKNOWN":
        return NotFound(f"repository {ref.familiar_name} not found: {error.message}", "Check the name.")
    return None
