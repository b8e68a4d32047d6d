"""Starting the file server beside a machine's QEMU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from host_client.machine import system
from host_client.machine.channels import Channels

NAMES = ("files", "changes")  # of its channels
STOP_SECONDS = 5.0


class FileServerProcess:
    """One file server, from before QEMU's start to after its end, which ends it."""

    def __init__(self, channels: Channels, folders: Sequence[str]) -> None:
        """Starts it with its ends of the two channels."""
        # Isolated from the user's environment; the package may be in a checkout, which is on no path.
        code = "import sys; sys.path.insert(0, sys.argv.pop(1))"
        code += "; from host_client.machine.file_server import serve; sys.exit(serve.main())"
        package = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 3))
        with channels.blocking("files", 0.0) as files, channels.blocking("changes", 0.0) as changes:
            _enlarge(files)
            ends = [files.fileno(), changes.fileno()]
            command = [sys.executable, "-I", "-c", code, package]
            self._process = subprocess.Popen(
                [*command, *map(str, ends), *folders],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=ends,
                preexec_fn=system.tie_to_this_process(),
            )

    def wait(self) -> int:
        """Blocks until it ends; its exit status."""
        return self._process.wait()

    def close(self) -> None:
        """QEMU has ended, so it does; it is made to when it is busy for long."""
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _enlarge(connection: socket.socket) -> None:
    """Whole reads fit into the channel, as far as this system lets them."""
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        connection.setsockopt(socket.SOL_SOCKET, option, 1 << 20)
