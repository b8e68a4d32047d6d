"""The README's first command on a bare Debian (or Ubuntu): Python is there, and nothing else of ours."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cli import REPOSITORY
from tests.support.images import Image

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

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


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, image: Callable[[str], Image]) -> Machine:
    """A fresh one, with Python and apt."""
    root = tmp_path_factory.mktemp("machine")
    root.chmod(0o755)
    image("python:3").unpack(root)
    assert not list((root / "usr" / "lib").glob("python3*/ensurepip")), "it should lack python3-venv"
    assert list((root / "usr" / "lib").glob("python3*/EXTERNALLY-MANAGED"))
    return Machine(root)


def test_install_and_first_container(machine: Machine) -> None:
    """Installs, runs hello-world without any network, installs again, and goes without a trace but its data."""
    installed = machine.run("cd /mnt && ./install.sh")
    assert (installed.returncode, installed.stdout, installed.stderr) == (0, "", "")
    first = machine.run("wherry run hello-world; wherry engine stop", "--net")
    assert first.returncode == 0, first.stderr
    assert "Hello from Wherry!" in first.stdout
    assert "image that ships with Wherry" in first.stderr
    virtual = machine.run("wherry --mode vm run hello-world", "--net")
    assert virtual.returncode == 125
    assert "mmdebstrap" in virtual.stderr.split("sudo apt-get install")[1]
    again = machine.run("cd /mnt && ./install.sh && wherry version --client")
    assert again.returncode == 0, again.stderr
    assert again.stdout.startswith("Client: Wherry\n")
    gone = machine.run("cd /mnt && ./install.sh --uninstall")
    assert gone.returncode == 0, gone.stderr
    assert not (machine.root / "opt" / "wherry").exists()
    assert not (machine.root / "usr" / "local" / "bin" / "wherry").exists()
    assert (machine.root / "var" / "lib" / "wherry").is_dir()
