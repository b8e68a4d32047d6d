"""Where one engine keeps its state. Any number of engines run side by side with different roots."""

from __future__ import annotations

import os


class Roots:
    """The two directories of one engine: `data` survives a reboot, `run` (exec root, a tmpfs) does not."""

    def __init__(self, data: str, run: str) -> None:
        self.data = os.path.abspath(data)
        self.run = os.path.abspath(run)

    def data_path(self, *parts: str) -> str:
        """A path below the data root (our own names only, never names from an image or a container)."""
        return os.path.join(self.data, *parts)

    def run_path(self, *parts: str) -> str:
        """A path below the exec root (our own names only)."""
        return os.path.join(self.run, *parts)
