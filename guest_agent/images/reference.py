"""Image references as Docker reads them: `alpine`, `ghcr.io/a/b:c@sha256:…`, `localhost:5000/x`. Pure.

The grammar and the normalising are those of github.com/distribution/reference, whose error texts dockerd
passes on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from guest_agent.errors import InvalidParameter

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
_LEGACY_DOMAIN = "index.docker.io"
_OFFICIAL = "library/"
_MAX_NAME = 255

_COMPONENT = r"[a-z0-9]+(?:(?:[_.]|__|[-]+)[a-z0-9]+)*"
_DOMAIN_COMPONENT = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = rf"(?:{_DOMAIN_COMPONENT}(?:\.{_DOMAIN_COMPONENT})*|\[[a-fA-F0-9:]+\])"
_DOMAIN = rf"{_HOST}(?::[0-9]+)?"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"

_REFERENCE = re.compile(
    rf"(?P<name>(?:(?P<domain>{_DOMAIN})/)?(?P<path>{_COMPONENT}(?:/{_COMPONENT})*))"
    rf"(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?"
)
_TAG_ONLY = re.compile(_TAG)
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")
_DIGEST_LENGTH = {"sha256": 64, "sha384": 96, "sha512": 128}
_HEX = re.compile(r"[a-f0-9]+")


@dataclass(frozen=True, slots=True)
class Reference:
    """A normalised image name with an optional tag and an optional digest."""

    domain: str  # "docker.io", "localhost:5000"
    path: str  # "library/alpine"
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """The whole repository name: `docker.io/library/alpine`."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The repository name as users write it: `alpine`."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        rest = self.path.removeprefix(_OFFICIAL)
        return rest if "/" not in rest else self.path

    @property
    def familiar(self) -> str:
        """The reference as users write it: `alpine:3.20@sha256:…`."""
        return self.familiar_name + self._suffix()

    def __str__(self) -> str:
        return self.name + self._suffix()

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def with_default_tag(self) -> Reference:
        """This reference, tagged `latest` when it has neither tag nor digest."""
        return self if self.tag or self.digest else self.with_tag(DEFAULT_TAG)

    def with_tag(self, tag: str) -> Reference:
        """This repository with another tag and no digest; InvalidParameter for a tag outside the grammar."""
        if not _TAG_ONLY.fullmatch(tag):
            raise InvalidParameter("invalid tag format", _TAG_HINT)
        return Reference(self.domain, self.path, tag)

    def with_digest(self, digest: str) -> Reference:
        """This repository at a digest, without a tag."""
        check_digest(digest)
        return Reference(self.domain, self.path, "", digest)


_HINT = "A reference is [HOST[:PORT]/]NAME[:TAG][@DIGEST], with a lowercase NAME."
_TAG_HINT = "A tag is up to 128 letters, digits, '_', '.' and '-', and starts with none of the last two."


def parse(text: str) -> Reference:
    """The reference `text` stands for, normalised (no tag is added).

    Raises InvalidParameter with the text of distribution/reference.
    """
    if _IDENTIFIER.fullmatch(text):
        raise InvalidParameter(
            f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings", _HINT
        )
    domain, remainder = _split_domain(text)
    path = remainder.split(":", 1)[0]
    if path.lower() != path:
        raise InvalidParameter(
            f"invalid reference format: repository name ({path}) must be lowercase", f"Try {text.lower()!r}."
        )
    match = _REFERENCE.fullmatch(f"{domain}/{remainder}")
    if match is None or match["domain"] != domain:
        raise InvalidParameter("invalid reference format", _HINT)
    path, tag, digest = match["path"], match["tag"] or "", match["digest"] or ""
    if len(path) > _MAX_NAME:
        raise InvalidParameter(f"repository name must not be more than {_MAX_NAME} characters", _HINT)
    if digest:
        check_digest(digest)
    return Reference(domain, path, tag, digest)


def _split_domain(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    if not slash or (
        "." not in first and ":" not in first and first != "localhost" and first.lower() == first
    ):
        domain, remainder = DEFAULT_DOMAIN, text
    else:
        domain, remainder = first, rest
    if domain == _LEGACY_DOMAIN:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in remainder:
        remainder = _OFFICIAL + remainder
    return domain, remainder


def is_digest(text: str) -> bool:
    """Whether `text` is `algorithm:hex` of a known algorithm with the right length."""
    algorithm, _, value = text.partition(":")
    return _DIGEST_LENGTH.get(algorithm) == len(value) and _HEX.fullmatch(value) is not None


def check_digest(text: str) -> None:
    """Raises InvalidParameter when `text` is no digest we can verify."""
    algorithm, colon, value = text.partition(":")
    if not colon:
        raise InvalidParameter("invalid checksum digest format")
    if algorithm not in _DIGEST_LENGTH:
        raise InvalidParameter("unsupported digest algorithm", f"Use one of {', '.join(_DIGEST_LENGTH)}.")
    if len(value) != _DIGEST_LENGTH[algorithm]:
        raise InvalidParameter("invalid checksum digest length")
    if not _HEX.fullmatch(value):
        raise InvalidParameter("invalid checksum digest format")


def image_id(text: str) -> str:
    """`sha256:…` when `text` is a whole image id (with or without the algorithm), else an empty string."""
    if _IDENTIFIER.fullmatch(text):
        return f"sha256:{text}"
    return text if is_digest(text) else ""
