"""Signatures and the policy that asks for them, with real registries, and skopeo as a second opinion of the policy."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from guest_agent.errors import EngineError, Forbidden, InvalidParameter, NotSupported
from guest_agent.images import ImageStore, platforms, reference
from guest_agent.images.config import RegistryConfig
from guest_agent.roots import Roots
from tests.support import cosign, registry
from tests.support.images import ARCHITECTURE, skopeo
from tests.support.images import Image as Recipe

pytestmark = pytest.mark.root

REPOSITORY = {"type": "matchRepository"}
REJECT: list[dict[str, Any]] = [{"type": "reject"}]


class Place:
    """A registry with signed and unsigned images, and a store that asks a policy."""

    def __init__(self, directory: Path, served: registry.Registry, recipe: Recipe) -> None:
        self.directory = directory
        self.registry = served
        self.recipe = recipe
        self.policy = directory / "policy.json"
        roots = Roots(str(directory / "data"), str(directory / "run"))
        self.store = ImageStore(roots, RegistryConfig(signature_policy=str(self.policy)))

    def demand(self, requirements: Any, scope: str = "", default: Any = REJECT) -> None:
        scopes = {scope or self.registry.address: requirements}
        self.policy.write_text(json.dumps({"default": default, "transports": {"docker": scopes}}))

    def key(self, kind: str = "ecdsa") -> tuple[cosign.PrivateKey, Path]:
        """A key and the file of its public half."""
        key = cosign.generate(kind)
        path = self.directory / f"{kind}-{len(list(self.directory.iterdir()))}.pub"
        path.write_bytes(cosign.public(key))
        return key, path

    def image(self, name: str) -> tuple[str, str]:
        """An image under a name of its own: reference and manifest digest."""
        ref = self.registry.push(self.recipe, name)
        digest = json.loads((self.recipe.layout / "index.json").read_text())["manifests"][0]["digest"]
        return ref, digest

    def signed(self, name: str, key: cosign.PrivateKey, **critical: Any) -> str:
        ref, digest = self.image(name)
        repository = name.partition(":")[0]
        document = cosign.payload(f"{self.registry.address}/{repository}", digest, **critical)
        cosign.attach(self.registry.address, repository, digest, [(document, cosign.signed(key, document))])
        return ref

    def pull(self, ref: str) -> str:
        return asyncio.run(self.store.pull(reference.parse(ref)))

    def refused(self, ref: str, words: str, kind: type[EngineError] = Forbidden) -> EngineError:
        with pytest.raises(kind) as caught:
            self.pull(ref)
        assert words in caught.value.message
        assert not self.store.named(reference.parse(ref).with_default_tag())
        return caught.value


@pytest.fixture
def place(
    tmp_path: Path, plain_registry: registry.Registry, image: Callable[[str], Recipe]
) -> Iterator[Place]:
    made = Place(tmp_path, plain_registry, image("busybox:latest"))
    yield made
    made.store.close()


@pytest.mark.parametrize("kind", ["ecdsa", "ed25519", "rsa"])
def test_signed_by_the_right_key(place: Place, kind: str) -> None:
    key, path = place.key(kind)
    _, other = place.key(kind)
    ref = place.signed(f"signed/{kind}:1", key)
    place.demand([{"type": "sigstoreSigned", "keyPath": str(other), "signedIdentity": REPOSITORY}])
    place.refused(ref, "Source image rejected: invalid signature")
    place.demand([{"type": "sigstoreSigned", "keyPath": str(path), "signedIdentity": REPOSITORY}])
    place.pull(ref)
    place.pull(ref)  # again, when it is here


def test_not_signed(place: Place) -> None:
    _, path = place.key()
    ref, _ = place.image("unsigned/image:1")
    place.demand([{"type": "sigstoreSigned", "keyPath": str(path)}])
    error = place.refused(ref, "Source image rejected: A signature was required, but no signature exists")
    assert "cosign sign" in error.hint


def test_signatures_for_another_image_or_name(place: Place) -> None:
    key, path = place.key()
    place.demand([{"type": "sigstoreSigned", "keyPath": str(path), "signedIdentity": REPOSITORY}])
    moved = place.signed(
        "moved/here:1", key, identity={"docker-reference": f"{place.registry.address}/moved/away"}
    )
    place.refused(moved, "is not accepted")
    swapped = place.signed("swapped/image:1", key, image={"docker-manifest-digest": f"sha256:{'a' * 64}"})
    place.refused(swapped, "Digest mismatch")
    kind = place.signed("other/kind:1", key, type="atomic container signature")
    place.refused(kind, "another type")
    malformed = place.signed("mal/formed:1", key, identity=["x"])
    place.refused(malformed, "malformed")


def test_a_repository_is_enough_only_where_the_policy_says_so(place: Place) -> None:
    key, path = place.key()
    ref = place.signed("only/repository:1", key)
    place.demand([{"type": "sigstoreSigned", "keyPath": str(path)}])
    error = place.refused(ref, "is not accepted")
    assert "matchRepository" in error.hint


@pytest.mark.parametrize(
    ("identity", "accepted"),
    [
        ({"type": "exactRepository", "dockerRepository": "r.test/signed/there"}, True),
        ({"type": "exactRepository", "dockerRepository": "r.test/other"}, False),
        ({"type": "exactReference", "dockerReference": "r.test/signed/there:1"}, False),
        ({"type": "remapIdentity", "prefix": "HOST/mirrored", "signedPrefix": "r.test/signed"}, False),
        ({"type": "matchExact"}, False),
    ],
)
def test_identities(place: Place, identity: dict[str, str], accepted: bool) -> None:
    key, path = place.key()
    ref = place.signed("mirrored/there:1", key, identity={"docker-reference": "r.test/signed/there"})
    given = {name: value.replace("HOST", place.registry.address) for name, value in identity.items()}
    place.demand([{"type": "sigstoreSigned", "keyPath": str(path), "signedIdentity": given}])
    if accepted:
        place.pull(ref)
    else:
        place.refused(ref, "is not accepted")


def test_a_remapped_name(place: Place) -> None:
    key, path = place.key()
    ref = place.signed("mirror/there:1", key, identity={"docker-reference": "r.test/signed/there:1"})
    identity = {
        "type": "remapIdentity",
        "prefix": f"{place.registry.address}/mirror",
        "signedPrefix": "r.test/signed",
    }
    place.demand([{"type": "sigstoreSigned", "keyPath": str(path), "signedIdentity": identity}])
    place.pull(ref)


def test_key_data_and_several_keys(place: Place) -> None:
    key, path = place.key()
    _, other = place.key()
    ref = place.signed("several/keys:1", key)
    data = base64.b64encode(path.read_bytes()).decode()
    place.demand([{"type": "sigstoreSigned", "keyData": data, "signedIdentity": REPOSITORY}])
    place.pull(ref)
    place.demand(
        [{"type": "sigstoreSigned", "keyPaths": [str(other), str(path)], "signedIdentity": REPOSITORY}]
    )
    place.pull(ref)
    both = [
        {"type": "sigstoreSigned", "keyPath": str(each), "signedIdentity": REPOSITORY}
        for each in (path, other)
    ]
    place.demand(both)  # all requirements have to be met
    with pytest.raises(Forbidden):
        place.pull(ref)


def test_a_signature_of_the_index_is_one_of_its_images(place: Place, image: Callable[[str], Recipe]) -> None:
    key, path = place.key()
    ref = place.registry.push(image("foreign:latest"), "signed/index:1")
    platform = platforms.parse("linux/arm64" if ARCHITECTURE == "amd64" else "linux/amd64")
    digest = asyncio.run(_describe(place.store, ref))
    document = cosign.payload(f"{place.registry.address}/signed/index", digest)
    cosign.attach(place.registry.address, "signed/index", digest, [(document, cosign.signed(key, document))])
    place.demand([{"type": "sigstoreSigned", "keyPath": str(path), "signedIdentity": REPOSITORY}])
    asyncio.run(place.store.pull(reference.parse(ref), platform))


async def _describe(store: ImageStore, ref: str) -> str:
    described, _ = await asyncio.to_thread(lambda: store.puller().describe(reference.parse(ref), None))
    return described.digest


def test_which_scope_counts(place: Place, tmp_path: Path) -> None:
    ref, _ = place.image("deep/er/image:1")
    host = place.registry.address
    accept: list[dict[str, Any]] = [{"type": "insecureAcceptAnything"}]
    for scope, count in (
        ("", False),
        (host, True),
        (f"{host}/deep", False),
        (f"{host}/deep/er", True),
        (f"{host}/deep/er/image", False),
        (f"{host}/deep/er/image:1", True),
    ):
        document = (
            json.loads(place.policy.read_text()) if place.policy.exists() else {"transports": {"docker": {}}}
        )
        document["default"] = accept
        document["transports"]["docker"][scope] = accept if count else REJECT
        place.policy.write_text(json.dumps(document))
        assert judged(ref, place.policy, tmp_path) == count
        if count:
            place.pull(ref)
        else:
            with pytest.raises(Forbidden, match="is rejected by policy"):
                place.pull(ref)


def judged(ref: str, policy: Path, scratch: Path) -> bool:
    """Whether containers/image, in skopeo, lets an image in by a policy."""
    target = scratch / f"judged-{len(list(scratch.iterdir()))}"
    try:
        skopeo(
            f"--policy={policy}",
            "copy",
            "--src-tls-verify=false",
            f"docker://{ref}",
            f"dir:{target}",
            insecure=False,
        )
    except RuntimeError as e:
        if "is rejected by policy" in str(e):
            return False
        raise
    return True


def test_a_policy_that_cannot_be_used_lets_nothing_in(place: Place) -> None:
    ref, _ = place.image("no/policy:1")
    place.refused(ref, "is not there", InvalidParameter)
    for text in (
        "{",
        "[]",
        "{}",
        '{"default": []}',
        '{"default": [{"type": "maybe"}]}',
        '{"default": [], "x": 1}',
    ):
        place.policy.write_text(text)
        place.refused(ref, f"invalid policy in {place.policy}", InvalidParameter)
    place.demand([{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/x"}])
    place.refused(ref, "signedBy", NotSupported)
    key, path = place.key()
    ref = place.signed("no/key:1", key)
    for content in ("", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"):
        path.write_text(content)
        place.demand([{"type": "sigstoreSigned", "keyPath": str(path)}])
        place.refused(ref, f"cannot use the key {path}", InvalidParameter)
