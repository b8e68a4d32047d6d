"""An engine in a chroot: the machine's own tree is above its root, and must not be above its containers'."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.cli import REPOSITORY
from tests.support.engine import AGENT, OurEngine
from tests.support.images import image

pytestmark = [pytest.mark.root, pytest.mark.ours]

ENTER = """
mount --make-rprivate /
mount --rbind / "$1"
mount -t tmpfs none /mnt
: >/mnt/outside
mount -t tmpfs none "$1/mnt"
: >"$1/mnt/inside"
exec chroot "$@"
"""
CLIMB = """
#include <sys/stat.h>
#include <unistd.h>
int main(void) {
    mkdir("/deeper", 0755);
    if (chroot("/deeper")) return 3;
    for (int i = 0; i < 64; i++) if (chdir("..")) return 4;
    if (chroot(".")) return 5;
    return access("/mnt/outside", F_OK) == 0;
}
"""


@pytest.fixture
def engine(tmp_path: Path) -> OurEngine:
    root = tmp_path / "root"
    root.mkdir()
    agent = ("unshare", "-m", "sh", "-ec", ENTER, "sh", str(root), *AGENT)
    return OurEngine(agent=agent, env={"PYTHONPATH": str(REPOSITORY)})


def test_containers_see_nothing_above_their_root(engine: OurEngine, tmp_path: Path) -> None:
    (tmp_path / "climb.c").write_text(CLIMB)
    subprocess.run(["gcc", "-static", "-o", tmp_path / "climb", tmp_path / "climb.c"], check=True)
    engine.start()
    try:
        docker = engine.docker
        docker.ok("load", "--quiet", "--input", image("busybox:latest").archive())
        docker.ok("run", "-d", "--name", "box", "-v", "/mnt:/given", "busybox", "sleep", "600")
        assert docker.ok("exec", "box", "ls", "/given").split() == ["inside"]
        seen = docker.ok("exec", "box", "sh", "-c", "ls /mnt 2>/dev/null; cat /etc/hosts")
        assert "outside" not in seen
        assert docker.ok("exec", "box", "hostname") in seen
        docker.ok("cp", tmp_path / "climb", "box:/climb")
        assert docker("exec", "box", "/climb").code == 0
        assert docker("run", "--rm", "-v", f"{tmp_path}/climb:/climb", "busybox", "/climb").code == 0
    finally:
        engine.close()
