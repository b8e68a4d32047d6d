"""Signatures as cosign keeps them in a registry, verified with public keys.

A signature of the manifest sha256:X is an image under the tag `sha256-X.sig` of the same repository; each of
its layers is a "simple signing" document (containers/image's containers-signature(5)) and has its signature,
in base64, as an annotation (sigstore/cosign, specs/SIGNATURE_SPEC.md).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from guest_agent.errors import EngineError, Forbidden, InvalidParameter
from guest_agent.images import reference
from guest_agent.images.policy import Requirement, Rules
from guest_agent.images.reference import Reference
from guest_agent.images.registry import CertificateError, RegistryError, Unreachable
from guest_agent.images.repository import Repository, descriptor

_PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"
_ANNOTATION = "dev.cosignproject.cosign/signature"
_TYPE = "cosign container image signature"
_MAX_SIGNATURES = 64
_MAX_PAYLOAD = 1 << 20  # bytes
_MAX_KEY = 64 << 10

Key = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True)
class Signature:
    """What a registry has for a manifest; nothing of it is to be trusted before it has been verified."""

    payload: bytes
    signature: bytes


def verify(rules: Rules, ref: Reference, digests: Sequence[str], sources: Sequence[Repository]) -> None:
    """Checks that an image is signed as `rules` ask.

    `digests`: of its index, where it has one, and its manifest: a signature of either is one of the image.
    Raises Forbidden that says what is missing, InvalidParameter for a key that cannot be used.
    """
    wanted = rules.signed
    if not wanted:
        return
    found = [(digest, each) for digest in digests for each in _fetch(digest, sources)]
    for requirement in wanted:
        reasons = []
        for digest, each in found:
            reason = _wrong(requirement, ref, digest, each)
            if not reason:
                break
            reasons.append(reason)
        else:
            why = "A signature was required, but no signature exists"
            if reasons:
                why = "; ".join(dict.fromkeys(reasons))
            raise Forbidden(f"Source image rejected: {why}", _hint(rules, reasons))


def _hint(rules: Rules, reasons: Sequence[str]) -> str:
    if any("identity" in each for each in reasons):
        return 'cosign signs for a repository: "signedIdentity": {"type": "matchRepository"} accepts that.'
    return f"Sign it with 'cosign sign --key', or change the rule for {rules.scope} in {rules.path}."


def _fetch(digest: str, sources: Sequence[Repository]) -> list[Signature]:
    """The signatures of a manifest, from the first source that has any."""
    tag = f"{digest.replace(':', '-')}.sig"
    for source in sources:
        try:
            document = source.manifest(tag).document
        except RegistryError as e:
            if e.status in (403, 404):
                continue
            raise
        except (CertificateError, Unreachable):
            if source is sources[0]:
                raise
            continue  # the other of an insecure registry's two ways, or what the mirror in use mirrors
        layers = document.get("layers")
        found = [
            _signature(item, source)
            for item in (layers if isinstance(layers, list) else [])[:_MAX_SIGNATURES]
            if isinstance(item, dict) and item.get("mediaType") == _PAYLOAD
        ]
        return [each for each in found if each is not None]
    return []


def _signature(item: dict[str, Any], source: Repository) -> Signature | None:
    described = descriptor(item, "signature")
    annotations = item.get("annotations")
    text = annotations.get(_ANNOTATION) if isinstance(annotations, dict) else None
    if not isinstance(text, str) or described.size > _MAX_PAYLOAD:
        return None
    try:
        return Signature(source.config(described), base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        return None


def _wrong(requirement: Requirement, ref: Reference, digest: str, found: Signature) -> str:
    """What is wrong with a signature; "" when nothing is."""
    if not any(_made_by(key, found) for key in map(load_key, requirement.keys)):
        return "invalid signature when validating ASN.1 encoded signature: no trusted key has made it"
    # Only from here on is the payload one that somebody trusted has written.
    try:
        critical = json.loads(found.payload)["critical"]
        kind, signed = critical["type"], critical["image"]["docker-manifest-digest"]
        name = critical["identity"]["docker-reference"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "the signed document is malformed"
    if kind != _TYPE:
        return f"the signed document is of another type: {kind!r}"
    if signed != digest:
        return f"Digest mismatch: the signature is for {signed}"
    try:
        identity = reference.parse(name) if isinstance(name, str) else None
    except InvalidParameter:
        identity = None
    if identity is None or not requirement.identity.accepts(ref, identity):
        return f"Signature for identity {name!r} is not accepted"
    return ""


def _made_by(key: Key, found: Signature) -> bool:
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(found.signature, found.payload, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(found.signature, found.payload, padding.PKCS1v15(), hashes.SHA256())
        else:
            key.verify(found.signature, found.payload)
    except InvalidSignature:
        return False
    return True


def load_key(source: str | bytes) -> Key:
    """A public key from PEM, or from a file of it: ECDSA, Ed25519 or RSA of 2048 bits at least.

    Raises InvalidParameter, naming the file.
    """
    name = source if isinstance(source, str) else "keyData"
    try:
        data = source
        if isinstance(data, str):
            with open(data, "rb") as file:
                data = file.read(_MAX_KEY)
        key = serialization.load_pem_public_key(data)
    except OSError as e:
        raise _unusable(name, (e.strerror or str(e)).lower()) from None
    except (ValueError, UnsupportedAlgorithm):
        raise _unusable(name, "it is no public key in PEM") from None
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < 2048:
        raise _unusable(name, f"an RSA key of {key.key_size} bits is too short")
    if not isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey):
        raise _unusable(name, "it is neither ECDSA nor Ed25519 nor RSA")
    return key


def _unusable(name: str, why: str) -> EngineError:
    return InvalidParameter(
        f"Source image rejected: cannot use the key {name} of the signature policy: {why}",
        "'cosign generate-key-pair' makes a pair; the policy names cosign.pub.",
    )
