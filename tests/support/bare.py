"""A root file system to run scripts in as if it were a computer of its own."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.support.cli import REPOSITORY

# A machine in namespaces: its own root, processes and, where asked, network. $1: its root; then a shell script.
ENTER = """
set -e
root=$1; shift
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mount --bind "$WHERRY_SOURCE" "$root/mnt"
cd "$root"
pivot_root . tmp
cd /
umount -l /tmp
exec sh -ec "$1"
"""


class Machine:
    """A root file system to run scripts in as its root, as if it were a computer of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "etc" / "resolv.conf").write_text(Path("/etc/resolv.conf").read_text())
        # How packages are reached here is the machine's business: proxies, an index of one's own, an authority.
        self.env = {
            name: value for name, value in os.environ.items() if re.match(r"PIP_|https?_proxy$", name, re.I)
        }
        if authority := self.env.get("PIP_CERT"):
            (root / "etc" / "authority.pem").write_bytes(Path(authority).read_bytes())
            self.env["PIP_CERT"] = "/etc/authority.pem"
        self.env.pop("PIP_FIND_LINKS", None)
        self.env |= {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}

    def run(self, script: str, *namespaces: str) -> subprocess.CompletedProcess[str]:
        """Run a shell script there; all it started has ended afterwards."""
        return subprocess.run(
            [
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                *namespaces,
                "sh",
                "-c",
                ENTER,
                "sh",
                self.root,
                script,
            ],
            env=self.env | {"WHERRY_SOURCE": str(REPOSITORY)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
