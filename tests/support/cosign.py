"""Signing images as cosign does (sigstore/cosign, specs/SIGNATURE_SPEC.md); no distribution has the program itself."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import requests
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from tests.support.faulty_registry import digest

OCI = "application/vnd.oci.image.manifest.v1+json"
PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"
PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


def generate(kind: str = "ecdsa") -> PrivateKey:
    """A private key: ecdsa (P-256, cosign's own), ed25519 or rsa."""
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind == "rsa":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP256R1())


def public(key: PrivateKey) -> bytes:
    """What cosign writes to cosign.pub."""
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def payload(name: str, of: str, **critical: Any) -> bytes:
    """The document that is signed: manifest `of` under the repository `name`."""
    document = {
        "identity": {"docker-reference": name},
        "image": {"docker-manifest-digest": of},
        "type": "cosign container image signature",
    } | critical
    return json.dumps({"critical": document, "optional": None}).encode()


def signed(key: PrivateKey, data: bytes) -> bytes:
    """A signature as cosign makes it."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(hashes.SHA256()))
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    return key.sign(data)


def attach(
    registry: str, repository: str, of: str, signatures: list[tuple[bytes, bytes]], ca: Path | None = None
) -> None:
    """Keeps (document, signature) pairs in a registry, as the signatures of the manifest `of`.

    The registry is a plain one, else `ca` has its authority.
    """
    base = f"{'https' if ca else 'http'}://{registry}/v2/{repository}"
    session = requests.Session()
    session.trust_env = False  # which would go before `verify`
    session.verify = str(ca) if ca else True

    def blob(data: bytes, media_type: str) -> dict[str, Any]:
        upload = session.post(f"{base}/blobs/uploads/", timeout=10).headers["Location"]
        answer = session.put(upload, params={"digest": digest(data)}, data=data, timeout=10)
        answer.raise_for_status()
        return {"mediaType": media_type, "digest": digest(data), "size": len(data)}

    layers = []
    for document, signature in signatures:
        annotations = {"dev.cosignproject.cosign/signature": base64.b64encode(signature).decode()}
        layers.append(blob(document, PAYLOAD) | {"annotations": annotations})
    config = {
        "architecture": "",
        "os": "",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [each["digest"] for each in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI,
        "config": blob(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": layers,
    }
    answer = session.put(
        f"{base}/manifests/{of.replace(':', '-')}.sig",
        data=json.dumps(manifest),
        headers={"Content-Type": OCI},
        timeout=10,
    )
    answer.raise_for_status()
