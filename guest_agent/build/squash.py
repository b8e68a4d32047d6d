"""`--squash`: what the layers above the base image come to, as one layer.

Each is applied to the base's tree in order, as a pull would extract it, and what has been written is the new
layer.
"""

from __future__ import annotations

import os
import stat
from dataclasses import replace

from guest_agent.build.state import State
from guest_agent.engine.ids import new_id
from guest_agent.images.decompress import Decompressed
from guest_agent.images.extract import Extractor, clean
from guest_agent.images.layer import OPAQUE_MARKER, WHITEOUT
from guest_agent.images.step_layer import take_layer
from guest_agent.images.store import ImageStore, LayerRow, Lease
from guest_agent.images.tar import Entry, TarReader
from guest_agent.images.unpack import reading
from guest_agent.kernel.paths import O_PATH, RootFd
from guest_agent.kernel.trees import remove_tree
from guest_agent.runtime.view import with_view


def squash(store: ImageStore, lease: Lease, state: State, scratch: str, created: str) -> State:
    """The state with one layer for all that is new. Blocks. `scratch` is where a view can be mounted."""
    kept = len(store.by_id(state.base).chains) if state.base else 0
    new = state.layers[kept:]
    if len(new) < 2:
        return state
    below = replace(state, layers=state.layers[:kept])
    id = new_id()
    overlay = store.prepare_on(id, "", below.chains)
    try:
        with_view(overlay, (), scratch, lambda root: _apply(store, root, new))
        layer = take_layer(store, lease, id, below.diffs)
    finally:
        store.remove_now(id)
    steps = len(store.by_id(state.base).config.get("history") or ()) if state.base else 0
    history = (*state.history[:steps], *({**step, "empty_layer": True} for step in state.history[steps:]))
    squashed = replace(below, history=history).with_step(created, "", layer)
    comment = f"merge {state.image_id()} to {state.base or 'scratch'}"
    return replace(squashed, history=(*history, {**squashed.history[-1], "comment": comment}))


def _apply(store: ImageStore, root: RootFd, layers: tuple[LayerRow, ...]) -> None:
    for layer in layers:
        with open(store.content.open(layer.blob), "rb") as blob, _Applier(root) as applier:
            applier.extract(TarReader(Decompressed(reading(blob.fileno())).read))


class _Applier(Extractor):
    """Extracts over what is there, and removes what a layer says is gone."""

    def __init__(self, root: RootFd) -> None:
        super().__init__(root)
        self._top = root

    def add(self, entry: Entry, reader: TarReader) -> None:
        """One entry, or what its whiteout stands for."""
        path = clean(entry.name)
        parent, _, name = path.rpartition("/")
        if not name.startswith(WHITEOUT):
            super().add(entry, reader)
            return
        if name == OPAQUE_MARKER:
            for inside in self._top.listdir(parent or "."):
                self._gone(parent, inside)
        else:
            self._gone(parent, name.removeprefix(WHITEOUT))

    def _gone(self, parent: str, name: str) -> None:
        self._forget_dirs()
        try:
            directory = self._top.open(parent or ".", O_PATH | os.O_DIRECTORY)
        except OSError:
            return
        try:
            if stat.S_ISDIR(os.lstat(name, dir_fd=directory).st_mode):
                remove_tree(name, directory)
            else:
                os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            pass
        finally:
            os.close(directory)
