"""What the image has at a volume's mount point, copied into the volume while that is empty.

The tree is the image's, so it is hostile, and another container may have the volume and do there what it
likes meanwhile.
"""

from __future__ import annotations

import os
import tempfile

from guest_agent.errors import InternalError, InvalidParameter
from guest_agent.kernel.copies import Owners, copy_tree
from guest_agent.kernel.paths import RootFd
from guest_agent.runtime.layers import open_layers
from guest_agent.runtime.types import Overlay


def layers_root(overlay: Overlay) -> RootFd:
    """The image's file system as a tree that is mounted nowhere; it goes when the descriptor is closed."""
    if len(overlay.lower) == 1:
        return RootFd.at(overlay.lower[0])
    with tempfile.TemporaryDirectory(prefix="wherry-") as staging:
        return RootFd(open_layers(overlay.lower, "", "", staging))


def copy_up(overlay: Overlay, destination: str, volume: str, owners: Owners | None = None) -> None:
    """Copies the directory `destination` of the image into the directory `volume`, unless that has entries.

    `owners` is called with users and groups of the image, for those that the copies are to have.
    Raises InvalidParameter when the image has a file there, InternalError when the copy fails.
    """
    with os.scandir(volume) as entries:
        if next(entries, None) is not None:
            return
    with layers_root(overlay) as root:
        try:
            source = root.open(destination, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return
        except NotADirectoryError:
            raise InvalidParameter(f"cannot mount volume over existing file, file exists {destination}")
        target = os.open(volume, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            copy_tree(source, target, owners)
        except OSError as error:
            raise InternalError(
                f"failed to populate volume: error copying {destination} to {volume}: "
                f"{error.strerror or error}"
            )
        finally:
            os.close(source)
            os.close(target)
