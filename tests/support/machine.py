"""The suite's second mode: the engine in a virtual machine made from the image of this checkout."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from host_client.machine import image as images
from host_client.machine.machines import Machine
from tests.support.cli import eventually
from tests.support.engine import Engine

MEMORY = 2 << 30  # bytes


@contextmanager
def mounted(folder: Path, place: Path) -> Iterator[Path]:
    """The root file system of the VM image in `folder`. Needs root."""
    place.mkdir()
    subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", folder / "root.erofs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


class MachineEngine(Engine):
    """A machine with folders of its own, booted; `picture` is the folder of the VM image.

    `config` is the folder of the user's configuration. Until it is closed, this process has the user's variables.
    """

    ours = True

    def __init__(self, picture: Path) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="wherry-vm-"))
        self._before: dict[str, str | None] = {}
        for name in ("DATA_HOME", "CACHE_HOME", "RUNTIME_DIR", "CONFIG_HOME"):
            folder = self.root / name.lower()
            folder.mkdir(mode=0o700)
            self._before[f"XDG_{name}"] = os.environ.get(f"XDG_{name}")
            os.environ[f"XDG_{name}"] = str(folder)
        self.config = self.root / "config_home" / "wherry"
        images.install(str(picture))
        self.machine = Machine("default")
        super().__init__(f"unix://{self.machine.layout.api_socket}")

    def start(self) -> MachineEngine:
        """Boot it, made anew if there is none, and return when its engine answers."""
        if not self.machine.exists():
            self.machine.init(images.installed("amd64")[0], cpus=2, memory=MEMORY)
        self.machine.start()
        return self

    def kill(self) -> None:
        """SIGKILL QEMU: the machine loses its power."""
        process = json.loads(Path(self.machine.layout.state).read_text())["qemu"]
        os.kill(process, signal.SIGKILL)
        eventually(lambda: not self.machine.running(), 20, what="the supervisor ended")
        if self._client is not None:
            self._client.close()
            self._client = None

    def check(self) -> None:
        assert self.machine.running(), Path(self.machine.layout.console).read_text(errors="replace")[-4000:]

    def close(self) -> None:
        try:
            self.machine.stop()
        finally:
            super().close()
            shutil.rmtree(self.root, ignore_errors=True)
            for name, value in self._before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
