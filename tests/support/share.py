"""A shared folder without a machine: the real file server, and the guest's part of it on a mount of this host's."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from guest_agent.kernel import syscalls
from tests.support.cli import eventually
from vm_images.build import COMPILE, GUEST_SOURCES

ROOT = Path(__file__).parents[2]
MNT_DETACH = 2
# Becomes another user when it is loaded: the interpreter may be where only root can read.
SERVE = """
import ctypes, os, sys
sys.path.insert(0, sys.argv.pop(1))
from host_client.machine.file_server import serve
user = int(sys.argv.pop(1))
os.setgroups([])
os.setgid(user)
os.setuid(user)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self is its own, as if it had been started so
sys.exit(serve.main(sys.argv.pop(1)))
"""


def compile_mount(target: Path) -> Path:
    """The guest's `shares.c` as a program of its own."""
    sources = [
        f"{GUEST_SOURCES}/shares.c",
        f"{GUEST_SOURCES}/strings.c",
        f"{ROOT}/tests/support/share_mount.c",
    ]
    subprocess.run(["gcc", *COMPILE, "-I", GUEST_SOURCES, "-o", target, *sources], check=True)
    return target


class Share:
    """A folder `host` of this computer, seen by the guest's processes as `guest`.

    `user`: whom the file server runs as; `system`: whose way it watches the folder in, by `sys.platform`.
    """

    def __init__(self, program: Path, scratch: Path, user: int = 0, system: str = "linux") -> None:
        self.host = scratch / "host"
        self.mount = scratch / "mount"
        self.guest = self.mount / "share0"
        for folder in (self.host, self.mount):
            folder.mkdir()
        os.chown(self.host, user, user)
        ours, theirs = socket.socketpair(), socket.socketpair()
        files, changes = ours[0].fileno(), theirs[0].fileno()
        command = [sys.executable, "-c", SERVE, str(ROOT), str(user), system]
        self.log = scratch / "log"
        with open(self.log, "wb") as log:
            self._server = subprocess.Popen(
                [*command, str(files), str(changes), str(self.host)],
                pass_fds=(files, changes),
                stderr=log,
            )
        files, changes = ours[1].fileno(), theirs[1].fileno()
        subprocess.run(
            [program, self.mount, str(files), str(changes)], pass_fds=(files, changes), check=True, timeout=60
        )
        for end in (*ours, *theirs):
            end.close()
        eventually(lambda: "are replayed" in self.log.read_text(), 30, what="the guest's part is there")

    @property
    def server(self) -> int:
        """Process id of the file server."""
        return self._server.pid

    def close(self) -> None:
        """Unmount: that ends the guest's processes, and their end the file server."""
        syscalls.umount2(str(self.mount), MNT_DETACH)
        try:
            assert eventually(lambda: self._server.poll() is not None, 30, what=self.log.read_text())
            assert self._server.returncode == 0, self.log.read_text()
        finally:
            self._server.kill()
