"""`manifest`: lists of images for several platforms under one name, made here and kept in a registry."""

from __future__ import annotations

import json
import os

from host_client import credentials, manifests, reference
from host_client.cli import output
from host_client.cli.errors import CliError
from host_client.cli.flags import Command
from host_client.manifests import Entry, ManifestStore, full
from host_client.reference import Reference
from host_client.registry import Registry, RegistryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session

# What docker's CLI takes for a platform.
_PLATFORMS = {
    "darwin": "386 amd64 arm arm64",
    "dragonfly": "amd64",
    "freebsd": "386 amd64 arm",
    "linux": "386 amd64 arm arm64 ppc64le mips64 mips64le riscv64 s390x",
    "netbsd": "386 amd64 arm",
    "openbsd": "386 amd64 arm",
    "plan9": "386 amd64",
    "solaris": "amd64",
    "windows": "386 amd64",
}
_INSECURE = ("insecure", "", "bool", "Allow unverified TLS, and none")


def _name(text: str, what: str = "") -> Reference:
    try:
        return reference.parse(text).tagged()
    except ValueError as error:
        raise CliError(f"{what}{error}", "write it as registry/name:tag")


def _store(session: Session) -> ManifestStore:
    return ManifestStore(os.path.dirname(session.config.path))


def _registry(session: Session, name: Reference, insecure: bool) -> Registry:
    try:
        found = credentials.find(session.config, name.domain)
    except credentials.CredentialError as error:
        raise CliError(str(error), "credsStore and credHelpers in the docker configuration name the helpers")
    return Registry(name.domain, found, insecure)


def _failed(error: RegistryError) -> CliError:
    hint = ""
    if error.status in (401, 403):
        hint = "log in to the registry: 'wherry login'"
    elif "HTTP response to HTTPS" in error.message or "certificate" in error.message:
        hint = "--insecure allows it"
    return CliError(error.message, hint)


def create(session: Session, parsed: Parsed) -> int:
    """`wherry manifest create`."""
    target = _name(parsed.args[0], f"error parsing name for manifest list {parsed.args[0]}: ")
    store = _store(session)
    if store.entries(target) is not None and not parsed["amend"]:
        raise CliError(
            "refusing to amend an existing manifest list with no --amend flag",
            f"or begin afresh: 'wherry manifest rm {target.familiar()}'",
        )
    for text in parsed.args[1:]:
        image = _name(text)
        entry = store.get(target, image)
        if entry is None or not entry.get("Raw"):
            try:
                with _registry(session, image, parsed["insecure"]) as registry:
                    entry = manifests.fetch(registry, image)
            except RegistryError as error:
                raise _failed(error)
        store.save(target, image, entry)
    output.line(f"Created manifest list {full(target)}")
    return 0


def annotate(session: Session, parsed: Parsed) -> int:
    """`wherry manifest annotate`."""
    target = _name(parsed.args[0], f"annotate: error parsing name for manifest list {parsed.args[0]}: ")
    image = _name(parsed.args[1], f"annotate: error parsing name for manifest {parsed.args[1]}: ")
    store = _store(session)
    entry = store.get(target, image)
    if entry is None:
        raise CliError(
            f"manifest for image {parsed.args[1]} does not exist in {parsed.args[0]}",
            "'wherry manifest create --amend' adds it",
        )
    platform = entry["Descriptor"].setdefault("platform", {})
    for flag, key in (
        ("os", "os"),
        ("arch", "architecture"),
        ("variant", "variant"),
        ("os-version", "os.version"),
    ):
        if parsed[flag]:
            platform[key] = parsed[flag]
    for feature in (part for text in parsed["os-features"] for part in text.split(",")):
        features = platform.setdefault("os.features", [])
        if feature not in features:
            features.append(feature)
    if platform.get("architecture") not in _PLATFORMS.get(platform.get("os", ""), "").split():
        raise CliError(
            f"manifest entry for image has unsupported os/arch combination: {parsed['os']}/{parsed['arch']}"
        )
    store.save(target, image, entry)
    return 0


def inspect(session: Session, parsed: Parsed) -> int:
    """`wherry manifest inspect`."""
    store, verbose = _store(session), parsed["verbose"]
    name = _name(parsed.args[-1])
    if len(parsed.args) == 2:
        entry = store.get(_name(parsed.args[0]), name)
        if entry is None:
            raise CliError(f"No such manifest: {full(name)}")
        _show_one(entry, verbose)
        return 0
    entries = store.entries(name)
    if entries is None:
        try:
            with _registry(session, name, parsed["insecure"]) as registry:
                try:
                    _show_one(manifests.fetch(registry, name), verbose)
                    return 0
                except RegistryError as error:
                    if "is a manifest list" not in error.message:
                        raise
                entries = manifests.fetch_list(registry, name)
        except RegistryError as error:
            raise _failed(error)
    if verbose:
        output.line(_tabs(entries))
    else:
        output.line(_index(entries, name)[1].decode())
    return 0


def _show_one(entry: Entry, verbose: bool) -> None:
    output.line(
        _tabs(entry) if verbose else _tabs(json.loads(manifests.raw(entry)) or manifests.manifest_of(entry))
    )


def _tabs(value: object) -> str:
    return json.dumps(value, indent="\t", ensure_ascii=False)


def _index(entries: list[Entry], target: Reference) -> tuple[str, bytes]:
    try:
        return manifests.index(entries, target)
    except ValueError as error:
        raise CliError(str(error), "push the images to the list's registry first")


def push(session: Session, parsed: Parsed) -> int:
    """`wherry manifest push`."""
    target = _name(parsed.args[0])
    store = _store(session)
    entries = store.entries(target)
    if not entries:
        raise CliError(f"No such manifest: {full(target)}", "'wherry manifest create' makes it")
    for entry in entries:
        platform = entry["Descriptor"].get("platform") or {}
        if not platform.get("os") or not platform.get("architecture"):
            raise CliError(
                f"manifest {entry['Ref']} must have an OS and Architecture to be pushed to a registry",
                "'wherry manifest annotate' sets them",
            )
    media_type, data = _index(entries, target)
    try:
        with _registry(session, target, parsed["insecure"]) as registry:
            for entry in entries:
                if manifests.reference_of(entry).path != target.path:
                    _bring(registry, entry, target)
            output.line(registry.put_manifest(target.path, target.tag or target.digest, data, media_type))
    except RegistryError as error:
        raise _failed(error)
    if parsed["purge"]:
        store.remove(target)
    return 0


def _bring(registry: Registry, entry: Entry, target: Reference) -> None:
    """Takes an image over from another repository of the registry, since a list refers to its own only."""
    source, document = manifests.reference_of(entry).path, manifests.manifest_of(entry)
    for blob in (document["config"], *document["layers"]):
        if not registry.mount(target.path, blob["digest"], source):
            raise CliError(
                f"error mounting {source}@{blob['digest']} to {full(target)}",
                f"push the image to {target.name()} first",
            )
    described = entry["Descriptor"]
    digest = registry.put_manifest(
        target.path, described["digest"], manifests.raw(entry), described["mediaType"]
    )
    output.line(f"Pushed ref {target.name()}@{described['digest']} with digest: {digest}")


def remove(session: Session, parsed: Parsed) -> int:
    """`wherry manifest rm`."""
    store, failed = _store(session), []
    for text in parsed.args:
        target = _name(text)
        if store.entries(target) is None:
            failed.append(f"No such manifest: {full(target)}")
        else:
            store.remove(target)
    if failed:
        raise CliError("\n".join(failed))
    return 0


CREATE = Command(
    "MANIFEST_LIST MANIFEST [MANIFEST...]",
    create,
    2,
    None,
    (("amend", "a", "bool", "Add to a list that is there"), _INSECURE),
    detail="The images have to be in the list's registry. Until it is pushed, the list is kept here, "
    "where docker's CLI has it, too.",
    examples=(
        (
            "wherry manifest create reg.example/app:1 reg.example/app:1-amd64 reg.example/app:1-arm64",
            "one name for two images",
        ),
    ),
)
ANNOTATE = Command(
    "[OPTIONS] MANIFEST_LIST MANIFEST",
    annotate,
    2,
    2,
    (
        ("arch", "", "string", "Architecture"),
        ("os", "", "string", "Operating system"),
        ("os-features", "", "list", "Features of the operating system"),
        ("os-version", "", "string", "Version of the operating system"),
        ("variant", "", "string", "Variant of the architecture"),
    ),
    examples=(
        (
            "wherry manifest annotate --arch arm --variant v7 reg.example/app:1 reg.example/app:1-arm",
            "say what an image is for when it does not itself",
        ),
    ),
)
INSPECT = Command(
    "[OPTIONS] [MANIFEST_LIST] MANIFEST",
    inspect,
    1,
    2,
    (_INSECURE, ("verbose", "v", "bool", "Show layers and platforms, too")),
    examples=(("wherry manifest inspect alpine", "the platforms that an image is there for"),),
)
PUSH = Command(
    "[OPTIONS] MANIFEST_LIST",
    push,
    1,
    1,
    (_INSECURE, ("purge", "p", "bool", "Remove the list from this machine afterwards")),
    examples=(("wherry manifest push --purge reg.example/app:1", "put the list into its registry"),),
)
REMOVE = Command(
    "MANIFEST_LIST [MANIFEST_LIST...]",
    remove,
    1,
    None,
    examples=(("wherry manifest rm reg.example/app:1", "forget a list that was not pushed"),),
)
