"""`python -m guest_agent held FD FILE`: an agent that has loaded its code and waits to be told to serve.

A virtual machine may be saved in this state and resumed many times (docs/internals.md, "template"), so
nothing that belongs to one boot happens before: no data root, no network, no keys, and no random number that
anybody relies on.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys

from guest_agent import serve
from guest_agent.engine.config import Config
from guest_agent.kernel.malloc import keep_small
from guest_agent.roots import Roots
from guest_agent.runtime.client import begin

ENTROPY_BYTES = 64


def main(channel: int, path: str) -> int:
    """Says "loaded" on the socket `channel`; when told "go", serves with what the file at `path` has.

    That is a JSON object: `environment`, variables to add, and `arguments` of `serve`. "ready" is said on the
    channel when the API is served.
    """
    keep_small()
    serve.without_charset_detection()
    gc.disable()
    _load()
    os.makedirs(Config().exec_root, 0o710, exist_ok=True)
    monitor = begin(Roots(Config().data_root, Config().exec_root))
    os.write(channel, b"loaded\n")
    if not os.read(channel, 16):
        monitor.abandon()
        return 1
    become_unique()
    with open(path) as file:
        start = json.load(file)
    os.environ.update(start["environment"])
    return serve.main([*start["arguments"], "--ready-fd", str(channel)], monitor)


def _load() -> None:
    """Imports what serving and a first container need."""
    import guest_agent.api.routes
    import guest_agent.api.server
    import guest_agent.engine.engine  # noqa: F401


def become_unique() -> None:
    """Mixes new entropy into the generators that this process has besides the kernel's."""
    random.seed(os.urandom(ENTROPY_BYTES))
    if "_ssl" in sys.modules:
        import ssl

        ssl.RAND_add(os.urandom(ENTROPY_BYTES), ENTROPY_BYTES)
