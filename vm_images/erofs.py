"""The read-only root file system."""

from __future__ import annotations

from vm_images.packages import run

UUID = "77686572-7279-4d00-8000-000000000001"


def make(tree: str, image: str, epoch: int, compression: str | None) -> None:
    """Writes an erofs image whose bytes depend on content alone: owners root, all times `epoch`."""
    command = ["mkfs.erofs", "--all-root", "-T", str(epoch), "-U", UUID, "-x-1"]
    command += [f"-z{compression}"] if compression else []
    run([*command, image, tree], "making the root file system")
