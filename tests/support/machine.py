"""The suite's second mode: the engine in a virtual machine made from the image of this checkout."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from host_client.machine import image as images
from host_client.machine.machines import Machine
from tests.support.engine import Engine

MEMORY = 2 << 30  # bytes


class MachineEngine(Engine):
    """A machine with folders of its own, booted; `picture` is the folder of the VM image."""

    ours = True

    def __init__(self, picture: Path) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="wherry-vm-"))
        for name in ("DATA_HOME", "CACHE_HOME", "RUNTIME_DIR"):
            folder = self.root / name.lower()
            folder.mkdir(mode=0o700)
            os.environ[f"XDG_{name}"] = str(folder)
        images.install(str(picture))
        self.machine = Machine("default")
        super().__init__(f"unix://{self.machine.layout.api_socket}")

    def start(self) -> MachineEngine:
        """Boot it and return when its engine answers."""
        self.machine.init(images.installed("amd64")[0], cpus=2, memory=MEMORY)
        self.machine.start()
        return self

    def check(self) -> None:
        assert self.machine.running(), Path(self.machine.layout.console).read_text(errors="replace")[-4000:]

    def close(self) -> None:
        try:
            self.machine.stop()
        finally:
            super().close()
            shutil.rmtree(self.root, ignore_errors=True)
