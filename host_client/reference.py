"""Image names as a client needs them: split, completed and shortened the way docker shows them.

Source of the grammar: the distribution project's reference package (domain, path, tag, digest).
"""

from __future__ import annotations

DEFAULT_DOMAIN = "docker.io"
OFFICIAL = "library/"
LOWER = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
WORD = LOWER | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ_")
HEX = frozenset("0123456789abcdef")
DIGEST_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}


class Reference:
    """`domain/path[:tag][@digest]`, completed: `alpine` is `docker.io/library/alpine`."""

    __slots__ = ("digest", "domain", "path", "tag")

    def __init__(self, domain: str, path: str, tag: str, digest: str) -> None:
        self.domain = domain
        self.path = path
        self.tag = tag
        self.digest = digest

    def name(self) -> str:
        """The repository in full: `docker.io/library/alpine`."""
        return f"{self.domain}/{self.path}"

    def familiar_name(self) -> str:
        """The repository as docker shows it: without `docker.io/` and `library/`."""
        if self.domain != DEFAULT_DOMAIN:
            return f"{self.domain}/{self.path}"
        rest = self.path.removeprefix(OFFICIAL)
        return rest if "/" not in rest else self.path

    def familiar(self) -> str:
        """The whole reference as docker shows it."""
        return (
            self.familiar_name()
            + (f":{self.tag}" if self.tag else "")
            + (f"@{self.digest}" if self.digest else "")
        )

    def tagged(self) -> Reference:
        """This reference, with `latest` where it names neither tag nor digest."""
        if self.tag or self.digest:
            return self
        return Reference(self.domain, self.path, "latest", "")


def is_image_id(text: str) -> bool:
    """Whether this is a whole image id, which is never a name."""
    return len(text) == 64 and HEX.issuperset(text)


def parse(text: str) -> Reference:
    """Read an image name.

    Raises:
        ValueError: docker's words.
    """
    if is_image_id(text):
        raise ValueError(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
    rest, at, digest = text.partition("@")
    if at and not _valid_digest(digest):
        raise ValueError("invalid reference format")
    tag = ""
    colon = rest.rfind(":")
    if colon > rest.rfind("/"):
        rest, tag = rest[:colon], rest[colon + 1 :]
        if (
            not tag
            or len(tag) > 128
            or not WORD.issuperset(tag[0])
            or not (WORD | {".", "-"}).issuperset(tag)
        ):
            raise ValueError("invalid reference format")
    domain, slash, path = rest.partition("/")
    if not slash or not ("." in domain or ":" in domain or domain == "localhost" or domain.lower() != domain):
        domain, path = DEFAULT_DOMAIN, rest
    if domain == "index.docker.io":
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and "/" not in path:
        path = OFFICIAL + path
    if path.lower() != path:
        raise ValueError(f"invalid reference format: repository name ({path}) must be lowercase")
    if not _valid_domain(domain) or not all(_valid_component(part) for part in path.split("/")):
        raise ValueError("invalid reference format")
    if len(path) > 255:
        raise ValueError("repository name must not be more than 255 characters")
    return Reference(domain, path, tag, digest)


def _valid_digest(text: str) -> bool:
    algorithm, _, value = text.partition(":")
    expected = DIGEST_LENGTHS.get(algorithm)
    if expected is not None:
        return len(value) == expected and HEX.issuperset(value)
    return bool(algorithm) and len(value) >= 32 and (HEX | frozenset("ABCDEF")).issuperset(value)


def _valid_domain(text: str) -> bool:
    host, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        host = text
    elif not port.isdigit():
        return False
    if host.startswith("["):
        return host.endswith("]") and not host[1:-1].strip("0123456789abcdefABCDEF:")
    return all(
        part and part.strip("-") == part and part.isascii() and part.replace("-", "").isalnum()
        for part in host.split(".")
    )


def _valid_component(text: str) -> bool:
    """Lower-case letters and digits, joined by one `.`, one or two `_`, or any number of `-`."""
    joiner = ""
    previous = ""
    for character in text:
        if character in LOWER:
            if joiner and not (joiner in (".", "_", "__") or not joiner.strip("-")):
                return False
            joiner = ""
        elif character in "._-":
            if not previous:
                return False
            joiner += character
        else:
            return False
        previous = character
    return bool(text) and not joiner
