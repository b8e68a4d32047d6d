"""The README's first command on a bare Debian (or Ubuntu): Python is there, and nothing else of ours."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.bare import Machine
from tests.support.images import Image

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


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
