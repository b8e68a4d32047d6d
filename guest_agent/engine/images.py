"""Images as the Engine API shows and changes them. Storage and transfer are `guest_agent.images`'."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import msgspec

from guest_agent.engine import image_filters
from guest_agent.engine.background import Piped
from guest_agent.engine.container_config import ContainerConfig
from guest_agent.engine.events import EventBus
from guest_agent.engine.image_delete import Record, Removal, Users, attributes, names
from guest_agent.engine.state import NEVER, rfc3339
from guest_agent.errors import EngineError, InvalidParameter, NotFound
from guest_agent.images import Image, ImageStore, indexes, platforms, reference, save
from guest_agent.images.auth import Credentials
from guest_agent.images.load import Loaded, import_tar, load
from guest_agent.images.platforms import Platform
from guest_agent.images.reference import Reference
from guest_agent.images.search import search
from guest_agent.runtime import layers
from guest_agent.threads import blocking_reader, in_thread

# Keys of an image configuration's "config" that API 1.50 and later show, when they have a value.
_CONFIG_KEYS = (
    "User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal",
    "ArgsEscaped", "Healthcheck", "OnBuild", "Shell",
)  # fmt: skip
# What earlier versions show in any case.
_LEGACY_CONFIG = {
    "Hostname": "", "Domainname": "", "User": "", "AttachStdin": False, "AttachStdout": False,
    "AttachStderr": False, "Tty": False, "OpenStdin": False, "StdinOnce": False, "Env": None, "Cmd": None,
    "Image": "", "Volumes": None, "WorkingDir": "", "Entrypoint": None, "OnBuild": None, "Labels": None,
}  # fmt: skip

Say = Callable[[dict[str, Any]], None]  # takes Docker's progress messages, from any thread


class Images:
    """The images of one engine.

    `users` tells an image's containers. It is not the store that is asked: that keeps a container's files
    for a while after the container is gone for everybody.
    """

    def __init__(self, store: ImageStore, events: EventBus, users: Users) -> None:
        self.store = store
        self._events = events
        self._users = users

    # -- showing -----------------------------------------------------------------------------------

    def summaries(
        self,
        filters: Mapping[str, Sequence[str]],
        all: bool = False,
        shared_size: bool = False,
        version: tuple[int, int] = (1, 51),
        count_containers: bool = False,
    ) -> list[dict[str, Any]]:
        """`ImageSummary` of the images that pass Docker's filters, the newest first."""
        dangling = image_filters.flag(filters, "dangling", False)
        wants_named = "dangling" in filters and not dangling
        patterns = [image_filters.glob(text) for text in filters.get("reference", ())]
        before = self._bound(filters, "before", min)
        since = self._bound(filters, "since", max)
        for text in filters.get("until", ()):
            moment = image_filters.until(text)
            before = moment if before is None else min(before, moment)
        everything = self.store.images()
        parents = {image.parent for image in everything}
        hidden = indexes.hidden(self.store)
        users = self._layer_users(everything) if shared_size else {}
        found = []
        for image in everything:
            created = image_filters.created(image)
            if (before is not None and created >= before) or (since is not None and created <= since):
                continue
            if not image_filters.has_labels(image, filters.get("label", ())):
                continue
            tags, digests = list(image.repo_tags), list(image.repo_digests)
            if patterns:
                tags = [
                    name for name in tags if any(image_filters.matches_pattern(p, name) for p in patterns)
                ]
                digests = [
                    name for name in digests if any(image_filters.matches_pattern(p, name) for p in patterns)
                ]
                if not tags and not digests:
                    continue
            if not tags and not digests:
                if wants_named or (not all and (image.id in parents or image.id in hidden)):
                    continue
            elif dangling and tags:
                continue
            summary: dict[str, Any] = {
                "Containers": len(self._users(image.id)) if count_containers else -1,
                "Created": int(created),
                "Id": image.id,
                "Labels": (image.config.get("config") or {}).get("Labels"),
                "ParentId": image.parent,
                "RepoDigests": digests,
                "RepoTags": tags,
                "SharedSize": self._shared(image, users) if shared_size else -1,
                "Size": image.size,
            }
            if version < (1, 43) and not tags and not digests:
                summary["RepoTags"], summary["RepoDigests"] = ["<none>:<none>"], ["<none>@<none>"]
            if version < (1, 44):
                summary["VirtualSize"] = image.size
            found.append((created, summary))
        found.sort(key=lambda pair: -pair[0])
        return [summary for _, summary in found]

    def _bound(
        self, filters: Mapping[str, Sequence[str]], name: str, choose: Callable[[list[float]], float]
    ) -> float | None:
        times = [image_filters.created(self.store.get(image)) for image in filters.get(name, ())]
        return choose(times) if times else None

    def _layer_users(self, images: list[Image]) -> dict[str, int]:
        users: dict[str, int] = {}
        for image in images:
            for chain in image.chains:
                users[chain] = users.get(chain, 0) + 1
        return users

    def _shared(self, image: Image, users: dict[str, int]) -> int:
        rows = [self.store.layer(chain) for chain in image.chains if users[chain] > 1]
        return sum(row.size for row in rows if row)

    def get(self, name: str, platform: Platform | None = None) -> Image:
        """The image `name`, which must be one for `platform`. Raises NotFound."""
        image = self.store.get(name)
        actual = platforms.of_config(image.config)
        if platform is not None and not platforms.fits(platform, actual):
            if not reference.image_id(name):
                other = indexes.member(self.store, reference.parse(name).with_default_tag(), platform)
                if other is not None:
                    return other
            raise NotFound(
                f"image with reference {name} was found but does not provide the specified platform "
                f"({platform})",
                f"It is for {actual}.",
            )
        return image

    def inspect(
        self, name: str, version: tuple[int, int] = (1, 51), platform: Platform | None = None
    ) -> dict[str, Any]:
        """`ImageInspect` as this API version has it. Raises NotFound."""
        image = self.get(name, platform)
        config = image.config
        run = config.get("config") or {}
        lower = self.store.image_overlay(image).lower
        graph: dict[str, str] | None = {"UpperDir": lower[0]}
        if layers.driver() == layers.VFS:
            graph = None
        elif len(lower) > 1:
            graph = {"UpperDir": lower[0], "LowerDir": ":".join(lower[1:])}
        shown: dict[str, Any] = {
            "Id": image.id,
            "RepoTags": list(image.repo_tags),
            "RepoDigests": list(image.repo_digests),
            "Parent": image.parent,
            "Comment": _comment(config),
            "Created": config.get("created") or NEVER,
            "DockerVersion": config.get("docker_version") or "",
            "Author": config.get("author") or "",
            "Config": {key: run[key] for key in _CONFIG_KEYS if run.get(key)},
            "Architecture": config.get("architecture") or "",
            "Os": config.get("os") or "",
            "Size": image.size,
            "GraphDriver": {"Data": graph, "Name": layers.driver()},
            "RootFS": {"Type": "layers", "Layers": list(image.layers)},
            "Metadata": {"LastTagTime": rfc3339(int(image.tagged * 1e9))},
        }
        for key, shown_key in (("variant", "Variant"), ("os.version", "OsVersion")):
            if config.get(key):
                shown[shown_key] = config[key]
        if not image.layers:
            del shown["RootFS"]["Layers"]
        if version < (1, 50):
            shown["Config"] = _LEGACY_CONFIG | shown["Config"]
        if version < (1, 45):
            shown["Container"] = config.get("container") or ""
            shown["ContainerConfig"] = config.get("container_config") or _LEGACY_CONFIG
        if version < (1, 44):
            shown["VirtualSize"] = image.size
        return shown

    def history(self, name: str, platform: Platform | None = None) -> list[dict[str, Any]]:
        """`HistoryResponseItem`s, the newest first. Raises NotFound."""
        image = self.get(name, platform)
        chains = iter(image.chains)
        shown: list[dict[str, Any]] = []
        steps = [step for step in image.config.get("history") or () if isinstance(step, dict)]
        for step in steps:
            size = 0
            if not step.get("empty_layer") and (chain := next(chains, None)):
                row = self.store.layer(chain)
                size = row.size if row else 0
            shown.append(
                {
                    "Id": "<missing>",
                    "Created": int(image_filters.instant(step.get("created") or "")),
                    "CreatedBy": step.get("created_by") or "",
                    "Tags": None,
                    "Size": size,
                    "Comment": step.get("comment") or "",
                }
            )
        shown.reverse()
        # The steps before an image's own were its parents', as far as they are here.
        ancestor: Image | None = image
        for item in shown:
            if ancestor is None:
                break
            item["Id"] = ancestor.id
            item["Tags"] = list(ancestor.repo_tags) or None
            try:
                ancestor = self.store.by_id(ancestor.parent) if ancestor.parent else None
            except EngineError:
                ancestor = None
        return shown

    # -- changing ----------------------------------------------------------------------------------

    async def tag(self, name: str, ref: Reference) -> None:
        """Makes `ref` stand for the image `name`. Raises NotFound, InvalidParameter."""
        image = self.store.get(name)
        if ref.digest:
            raise InvalidParameter("refusing to create a tag with a digest reference")
        ref = ref.with_default_tag()
        if ref.familiar_name == "sha256":
            raise InvalidParameter("refusing to create an ambiguous tag using digest algorithm as name")
        index = "" if reference.image_id(name) else self._index(name)
        await in_thread(lambda: self.store.tag(image.id, ref, index), "images-tag")
        self._tell("tag", image.id, ref.familiar)

    def tagged(self, ref: Reference) -> None:
        """Tells that a name stands for another image now."""
        self._tell("tag", self.store.named(ref), ref.familiar)

    def _index(self, name: str) -> str:
        """The index that a name, which may be the start of an id, stands for, or ""."""
        return indexes.named(self.store, reference.parse(name).with_default_tag())

    async def remove(self, name: str, force: bool = False, prune: bool = True) -> list[Record]:
        """Removes an image or one of its names; what was done, in order. Raises NotFound, Conflict."""
        removal = Removal(self.store, self._users)
        try:
            await in_thread(lambda: removal.remove(name, force, prune), "images-remove")
        finally:
            for action, id, told in removal.events:
                self._events.publish("image", action, id, told)
        return removal.records

    async def prune(self, filters: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Removes images that no container uses: untagged ones, or with dangling=false all.

        `ImagePruneResponse`.
        """
        dangling = image_filters.flag(filters, "dangling", True)
        before = [image_filters.until(text) for text in filters.get("until", ())]
        if len(before) > 1:
            raise InvalidParameter("more than one until filter specified")
        everything = self.store.images()
        parents = {image.parent for image in everything}
        hidden = indexes.hidden(self.store)
        sizes = {}
        records: list[Record] = []
        for image in everything:
            tagged = bool(image.repo_tags)
            if not names(image) and (image.id in parents or image.id in hidden):
                continue
            if before and not 0 < image_filters.created(image) <= before[0]:
                continue
            if not image_filters.has_labels(image, filters.get("label", ())):
                continue
            unwanted = filters.get("label!", ())
            if unwanted and image_filters.has_labels(image, unwanted):
                continue
            if dangling and tagged:
                continue
            for chain in image.chains:
                row = self.store.layer(chain)
                sizes[chain] = row.size if row else 0
            for name in [ref.familiar for ref in names(image)] or [image.id]:
                try:
                    records += await self.remove(name)
                except EngineError:
                    continue  # in use
        reclaimed = sum(sizes.get(record.get("Deleted", ""), 0) for record in records)
        self._events.publish("image", "prune", "", {"reclaimed": str(reclaimed)})
        return {"ImagesDeleted": records or None, "SpaceReclaimed": reclaimed}

    async def pull(
        self, ref: Reference, platform: Platform | None, credentials: Credentials | None, say: Say
    ) -> None:
        """Pulls a tag or a digest, telling as dockerd does. Raises as `ImageStore.pull` does."""
        await self.store.pull(ref, platform, credentials, say)
        self._tell("pull", ref.familiar, ref.familiar_name)

    async def pull_all(
        self, ref: Reference, platform: Platform | None, credentials: Credentials | None, say: Say
    ) -> None:
        """Pulls all tags of a repository."""
        tags = await in_thread(lambda: self.store.puller().tags(ref, credentials), "images-tags")
        for tag in tags:
            await self.pull(ref.with_tag(tag), platform, credentials, say)

    async def push(
        self, ref: Reference, platform: Platform | None, credentials: Credentials | None, say: Say
    ) -> None:
        """Pushes a tag, or all tags of a repository when `ref` has none. Raises as `ImageStore.push` does."""
        await self.store.push(ref, platform, credentials, say)
        self._tell("push", ref.familiar, ref.familiar_name)

    async def distribution(self, ref: Reference, credentials: Credentials | None) -> dict[str, Any]:
        """`DistributionInspect`: what a name stands for in its registry."""
        described, offered = await in_thread(
            lambda: self.store.puller().describe(ref, credentials), "images-describe"
        )
        parts = [
            {"architecture": each.architecture, "os": each.os, "variant": each.variant} for each in offered
        ]
        return {
            "Descriptor": described.json(),
            "Platforms": [{key: value for key, value in part.items() if value} for part in parts],
        }

    async def login(self, host: str, credentials: Credentials) -> str:
        """Tries credentials on a registry; the identity token it gives for them, or "".

        Raises Unauthorized.
        """
        return await in_thread(lambda: self.store.puller().login(host, credentials), "images-login")

    async def search(
        self, term: str, limit: int, filters: Mapping[str, Sequence[str]]
    ) -> list[dict[str, Any]]:
        """`ImageSearchResponseItem`s."""
        stars = [int(text) if text.isdigit() else -1 for text in filters.get("stars", ())]
        if -1 in stars:
            raise InvalidParameter(f"invalid filter 'stars={filters['stars']}'")
        official = image_filters.flag(filters, "is-official", False)
        automated = image_filters.flag(filters, "is-automated", False)
        found = await in_thread(lambda: search(self.store.registries, term, limit), "images-search")
        return [
            item
            for item in found
            if item["star_count"] >= max(stars, default=0)
            and ("is-official" not in filters or item["is_official"] == official)
            and not automated
        ]

    async def load(
        self, pieces: AsyncIterator[bytes], say: Say, quiet: bool = False, platform: Platform | None = None
    ) -> None:
        """Stores the images of an archive that `docker save` or skopeo wrote, telling as dockerd does."""
        read = blocking_reader(pieces)
        progress: Say = (lambda message: None) if quiet else say
        loaded = await in_thread(lambda: load(self.store, read, progress, platform), "images-load")
        for item in loaded:
            self._tell("load", item.image.id, item.image.id)
            for name in item.names:
                if name.familiar in item.moved:
                    text = f"The image {name.familiar} already exists, renaming the old one to empty string"
                    say({"stream": f"{text}\n"})
                self._tell("tag", item.image.id, name.familiar)
                say({"stream": f"Loaded image: {name.familiar}\n"})
            if not item.names:
                say({"stream": f"Loaded image ID: {item.image.id}\n"})

    async def save(
        self, names: Sequence[str], platform: Platform | None = None
    ) -> AsyncGenerator[bytes, None]:
        """An archive of images. Raises NotFound and InvalidParameter before anything is given."""
        if not names:
            raise InvalidParameter("no images to save", "Name one at least.")
        for name in names if platform else ():
            self.get(name, platform)
        selected = save.select(self.store, names, platform)

        def write(output: Piped[None]) -> None:
            output.announce(None)
            save.save(self.store, selected, output.write)
            output.flush()

        output: Piped[None] = Piped(lambda output: in_thread(lambda: write(output), "images-save"))
        await output.head()
        for item in selected:
            self._tell("save", item.image.id, item.image.id)
        return output.pieces()

    async def import_(
        self,
        pieces: AsyncIterator[bytes],
        name: Reference | None,
        config: ContainerConfig,
        message: str,
        platform: Platform | None,
    ) -> Loaded:
        """Makes an image of a root file system's tar, run as `config` says."""
        read = blocking_reader(pieces)
        done = await in_thread(
            lambda: import_tar(self.store, read, name, image_config(config), message, platform),
            "images-import",
        )
        self._imported(done)
        return done

    async def import_url(
        self,
        url: str,
        name: Reference | None,
        config: ContainerConfig,
        message: str,
        platform: Platform | None,
        say: Say,
    ) -> Loaded:
        """`import_` of the file at a URL. Raises what `images.remote.opened` does, too."""
        cancelled = threading.Event()

        def work() -> Loaded:
            from guest_agent.images.remote import opened

            with opened(url, self.store.registries, say, cancelled) as file:
                say({"status": f"Downloading from {file.url}"})
                found = image_config(config)
                return import_tar(self.store, file.read, name, found, message, platform, file.url)

        try:
            done = await in_thread(work, "images-import")
        finally:
            cancelled.set()
        self._imported(done)
        return done

    def _imported(self, done: Loaded) -> None:
        self._tell("import", done.image.id, done.image.id)
        for ref in done.names:
            self._tell("tag", done.image.id, ref.familiar)

    def _tell(self, action: str, id: str, name: str) -> None:
        """Publishes an event about an image."""
        try:
            image = self.store.get(id)
        except EngineError:
            image = None
        self._events.publish("image", action, id, attributes(image, name))


def _comment(config: Mapping[str, Any]) -> str:
    """An image's own comment, or that of its last step, as dockerd shows it."""
    if config.get("comment"):
        return str(config["comment"])
    steps = config.get("history") or [{}]
    return str(steps[-1].get("comment") or "")


def image_config(config: ContainerConfig) -> dict[str, Any]:
    """The part of a container's configuration that an image has, as it stands in the image's own."""
    values = msgspec.to_builtins(config)
    return {key: values[key] for key in _CONFIG_KEYS if values.get(key)}


def repository_tag(repo: str, tag: str) -> Reference:
    """The reference that a `repo` and a `tag` parameter make. InvalidParameter."""
    ref = reference.parse(repo)
    if ref.digest:
        raise InvalidParameter("refusing to create a tag with a digest reference")
    if tag:
        return ref.with_tag(tag)
    return ref.with_default_tag()
