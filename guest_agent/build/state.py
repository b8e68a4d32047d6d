"""A stage between two instructions: its layers, and the image configuration it would have as an image."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from guest_agent.images import manifest, platforms
from guest_agent.images.manifest import Descriptor
from guest_agent.images.platforms import Platform
from guest_agent.images.store import Image, ImageStore, LayerRow

Config = dict[str, Any]  # an image configuration's "config", Docker's field names


@dataclass(frozen=True, slots=True)
class State:
    """Immutable: an instruction makes a new one. `config` is not to be changed, either."""

    platform: Platform
    config: Config = field(default_factory=dict)
    layers: tuple[LayerRow, ...] = ()
    history: tuple[dict[str, Any], ...] = ()
    author: str = ""
    created: str = ""
    base: str = ""  # id of the image it began with

    @property
    def chain(self) -> str:
        """The topmost layer; "" for none."""
        return self.layers[-1].chain if self.layers else ""

    @property
    def chains(self) -> list[str]:
        """The chain ids, bottom first."""
        return [layer.chain for layer in self.layers]

    @property
    def diffs(self) -> list[str]:
        """The diff ids, bottom first."""
        return [layer.diff for layer in self.layers]

    @property
    def environment(self) -> dict[str, str]:
        """The variables of ENV."""
        return dict(entry.partition("=")[::2] for entry in self.config.get("Env") or ())

    @property
    def shell(self) -> list[str]:
        """The words in front of a shell form."""
        return list(self.config.get("Shell") or ("/bin/sh", "-c"))

    def with_config(self, **changes: Any) -> State:
        """With fields of the configuration changed; one that is None or empty goes."""
        merged = {**self.config, **changes}
        return replace(self, config={key: value for key, value in merged.items() if value not in (None, "")})

    def with_step(self, created: str, created_by: str, layer: LayerRow | None) -> State:
        """After a step, which is noted in the history."""
        step: dict[str, Any] = {"created": created, "created_by": created_by}
        if self.author:
            step["author"] = self.author
        if layer is None:
            step["empty_layer"] = True
        layers = (*self.layers, layer) if layer else self.layers
        return replace(self, layers=layers, history=(*self.history, step), created=created)

    def document(self) -> bytes:
        """The image configuration."""
        value: dict[str, Any] = {"architecture": self.platform.architecture, "os": self.platform.os}
        if self.platform.variant:
            value["variant"] = self.platform.variant
        if self.created:
            value["created"] = self.created
        if self.author:
            value["author"] = self.author
        value |= {
            "config": self.config,
            "history": list(self.history),
            "rootfs": {"type": "layers", "diff_ids": self.diffs},
        }
        return manifest.encode(value)

    def image_id(self) -> str:
        """The id that an image of this state has."""
        return f"sha256:{hashlib.sha256(self.document()).hexdigest()}"

    def blobs(self, store: ImageStore) -> list[Descriptor]:
        """The layers as a manifest names them."""
        return [
            Descriptor(layer.media_type, layer.blob, store.content.size(layer.blob)) for layer in self.layers
        ]


def of_image(store: ImageStore, image: Image) -> State:
    """The state that `FROM image` begins with. Raises InternalError when a layer has been lost."""
    rows = [store.layer(chain) for chain in image.chains]
    config = image.config
    return State(
        platform=platforms.of_config(config),
        config=dict(config.get("config") or {}),
        layers=tuple(row for row in rows if row is not None),
        history=tuple(config.get("history") or ()),
        author=str(config.get("author") or ""),
        created=str(config.get("created") or ""),
        base=image.id,
    )


def key_of(*parts: Any) -> str:
    """A cache key: the digest of JSON values."""
    try:
        data = msgspec.json.encode(parts, order="sorted")
    except UnicodeEncodeError:  # names that are not UTF-8
        data = json.dumps(parts, separators=(",", ":"), sort_keys=True).encode()
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
