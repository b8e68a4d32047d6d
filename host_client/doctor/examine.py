"""Which checks are for whom."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from host_client.doctor import docker, network
from host_client.doctor.finding import Finding


def examine(mode: str, config: str = "") -> Iterator[Finding]:
    """All checks of a mode, "native" or "vm", each as soon as it is done.

    `config` is docker's configuration folder, "" for the user's.
    """
    if sys.platform == "linux" and mode == "native":
        from host_client.doctor import engine, kernel, rootless

        root = os.geteuid() == 0
        home = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
        yield from kernel.all_checks(kernel.DATA_ROOT if root else os.path.join(home, "wherry"))
        if not root:
            yield from rootless.all_checks()
        yield from engine.all_checks()
    else:
        from host_client.machine.doctor import examine as machines

        yield from machines()
    yield from network.all_checks()
    yield from docker.all_checks(config)
