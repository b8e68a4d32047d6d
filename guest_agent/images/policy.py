"""Which images may be pulled: a policy file in the format of containers-policy.json(5), as podman has it.

A policy is a list of requirements for a scope, all of which an image must meet: `insecureAcceptAnything`,
`reject`, or `sigstoreSigned` by a key. Of the transports only `docker` is looked at: registries are what
is pulled from. The most specific scope counts alone. What the format has and is not honoured here, such as
GPG's `signedBy`, refuses the images it is for.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from guest_agent.errors import Forbidden, InvalidParameter, NotSupported
from guest_agent.images import reference
from guest_agent.images.reference import Reference

DEFAULT_PATH = "/etc/wherry/policy.json"
_MAX_FILE = 16 << 20  # bytes
_KEYS = ("keyPath", "keyPaths", "keyData", "keyDatas")
# Of sigstoreSigned: certificates of an identity provider, and proofs of a transparency log.
_NOT_HONOURED = (
    "fulcio", "pki", "rekorPublicKeyPath", "rekorPublicKeyPaths", "rekorPublicKeyData", "rekorPublicKeyDatas",
)  # fmt: skip
_IDENTITIES = {
    "matchExact": (),
    "matchRepoDigestOrExact": (),
    "matchRepository": (),
    "exactReference": ("dockerReference",),
    "exactRepository": ("dockerRepository",),
    "remapIdentity": ("prefix", "signedPrefix"),
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Which name a signature has to be for (`signedIdentity`)."""

    type: str = "matchRepoDigestOrExact"
    first: str = ""  # dockerReference, dockerRepository or prefix
    second: str = ""  # signedPrefix

    def accepts(self, wanted: Reference, signed: Reference) -> bool:
        """Whether a signature for the name `signed` is one for what is wanted."""
        match self.type:
            case "matchRepository":
                return wanted.name == signed.name
            case "matchExact":
                return str(wanted) == str(signed)
            case "exactReference":
                return str(reference.parse(self.first)) == str(signed)
            case "exactRepository":
                return reference.parse(self.first).name == signed.name
            case "remapIdentity":
                wanted = self._remapped(wanted)
        return wanted.name == signed.name if wanted.digest else str(wanted) == str(signed)

    def _remapped(self, wanted: Reference) -> Reference:
        name = wanted.name
        if name != self.first and not name.startswith(self.first + "/"):
            return wanted
        suffix = (f":{wanted.tag}" if wanted.tag else "") + (f"@{wanted.digest}" if wanted.digest else "")
        return reference.parse(self.second + name[len(self.first) :] + suffix)


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing that is asked of an image."""

    type: str
    keys: tuple[str | bytes, ...] = ()  # files by name, or PEM
    identity: Identity = Identity()
    unsupported: str = ""  # what of it is not honoured


@dataclass(frozen=True, slots=True)
class Rules:
    """The requirements that count for one image, and where they stand."""

    scope: str
    path: str
    requirements: tuple[Requirement, ...]

    @property
    def signed(self) -> tuple[Requirement, ...]:
        """Those that ask for a signature."""
        return tuple(each for each in self.requirements if each.type == "sigstoreSigned")

    def check(self, ref: Reference) -> None:
        """Raises Forbidden when `ref` is refused whatever it is signed by, NotSupported for what is not
        honoured.
        """
        where = f"{self.path} says so for {self.scope}; who runs this engine may change that."
        for each in self.requirements:
            if each.type == "reject":
                raise Forbidden(
                    f"Source image rejected: Running image docker://{ref} is rejected by policy.", where
                )
            if each.unsupported:
                raise NotSupported(
                    f"Source image rejected: {each.unsupported} in the policy for {self.scope} is not "
                    "supported",
                    f"Use sigstoreSigned with a key in {self.path}.",
                )


ANYTHING = Rules("", "", ())


def rules_for(ref: Reference, path: str = "") -> Rules:
    """What the policy in the file `path` asks of an image.

    It is read anew each time. Without a path it is DEFAULT_PATH, and without that file anything is accepted.
    Raises InvalidParameter, naming the file, when it cannot be used: then nothing is pulled.
    """
    try:
        with open(path or DEFAULT_PATH, "rb") as file:
            data = file.read(_MAX_FILE)
    except FileNotFoundError:
        if not path:
            return ANYTHING
        raise InvalidParameter(f"the signature policy {path} is not there", "Nothing is pulled without it.")
    except OSError as e:
        raise InvalidParameter(f"cannot read the signature policy {path or DEFAULT_PATH}: {e.strerror}")
    try:
        return parse(data, path or DEFAULT_PATH).rules(ref)
    except ValueError as e:
        raise InvalidParameter(
            f"invalid policy in {path or DEFAULT_PATH}: {e}", "Its format is containers-policy.json(5)."
        )


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy file."""

    path: str
    default: tuple[Requirement, ...]
    docker: dict[str, tuple[Requirement, ...]]

    def rules(self, ref: Reference) -> Rules:
        """What counts for an image: the requirements of the most specific scope."""
        for scope in scopes(ref):
            if scope in self.docker:
                return Rules(scope or "all registries", self.path, self.docker[scope])
        return Rules("all images (default)", self.path, self.default)


def scopes(ref: Reference) -> list[str]:
    """The scopes an image is in, the most specific first."""
    found = [str(ref), ref.name]
    while "/" in found[-1]:
        found.append(found[-1].rpartition("/")[0])
    host = ref.domain.partition(":")[0]
    while "." in host:
        host = host.partition(".")[2]
        found.append(f"*.{host}")
    return [*found, ""]


def parse(data: bytes, path: str) -> Policy:
    """A policy from a file's content. Raises ValueError, naming the place in it."""
    try:
        document = json.loads(data, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("too deeply nested") from None
    top = _object(document, "the policy", ("default", "transports"))
    if "default" not in top:
        raise ValueError("default is missing")
    transports = _object(top.get("transports", {}), "transports")
    docker = {
        scope: _requirements(items, f"transports.docker.{scope!r}")
        for scope, items in _object(transports.get("docker", {}), "transports.docker").items()
    }
    return Policy(path, _requirements(top["default"], "default"), docker)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _object(value: Any, where: str, known: Sequence[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is no object")
    for key in value:
        if known is not None and key not in known:
            raise ValueError(f"{where} has an unknown key {key!r}")
    return value


def _requirements(items: Any, where: str) -> tuple[Requirement, ...]:
    if not isinstance(items, list) or not items:
        raise ValueError(f"{where} is no list of requirements")
    return tuple(_requirement(item, f"{where}[{index}]") for index, item in enumerate(items))


def _requirement(item: Any, where: str) -> Requirement:
    kind = _object(item, where).get("type")
    if kind in ("insecureAcceptAnything", "reject"):
        _object(item, where, ("type",))
        return Requirement(kind)
    if kind in ("signedBy", "signedBaseLayer"):
        return Requirement(kind, unsupported=kind)
    if kind != "sigstoreSigned":
        raise ValueError(f"{where} has an unknown type {kind!r}")
    _object(item, where, ("type", "signedIdentity", *_KEYS, *_NOT_HONOURED))
    for key in _NOT_HONOURED:
        if key in item:
            return Requirement(kind, unsupported=key)
    given = [key for key in _KEYS if key in item]
    if len(given) != 1:
        raise ValueError(f"{where} needs exactly one of {', '.join(_KEYS)}")
    keys = _texts(item[given[0]], f"{where}.{given[0]}", given[0].endswith("s"))
    decoded: tuple[str | bytes, ...] = tuple(keys)
    if "Data" in given[0]:
        try:
            decoded = tuple(base64.b64decode(key, validate=True) for key in keys)
        except (binascii.Error, ValueError):
            raise ValueError(f"{where}.{given[0]} is not base64") from None
    identity = (
        _identity(item["signedIdentity"], f"{where}.signedIdentity") if "signedIdentity" in item else None
    )
    return Requirement(kind, decoded, identity or Identity())


def _texts(value: Any, where: str, many: bool) -> list[str]:
    values = value if many else [value]
    if (
        not isinstance(values, list)
        or not values
        or not all(isinstance(each, str) and each for each in values)
    ):
        raise ValueError(f"{where} is no {'list of texts' if many else 'text'}")
    return values


def _identity(item: Any, where: str) -> Identity:
    kind = _object(item, where).get("type")
    if kind not in _IDENTITIES:
        raise ValueError(f"{where} has an unknown type {kind!r}")
    fields = _IDENTITIES[kind]
    _object(item, where, ("type", *fields))
    values = [_texts(item.get(field), f"{where}.{field}", False)[0] for field in fields]
    if kind in ("exactReference", "exactRepository"):
        try:
            ref = reference.parse(values[0])
        except InvalidParameter as e:
            raise ValueError(f"{where}.{fields[0]}: {e.message}") from None
        if kind == "exactReference" and not (ref.tag or ref.digest):
            raise ValueError(f"{where}.{fields[0]} has neither tag nor digest")
    return Identity(kind, *values)
