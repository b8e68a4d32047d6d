"""The programs a build needs, and the Debian packages that have them."""

from __future__ import annotations

import os
import shutil

from vm_images.packages import KEYRING, BuildError
from vm_images.recipe import Arch

_PACKAGES = {
    "apt-get": "apt",
    "mmdebstrap": "mmdebstrap",
    "mkfs.erofs": "erofs-utils",
}


def check(arch: Arch) -> None:
    """Raises BuildError, which names all that is missing at once, before anything is downloaded."""
    foreign = "" if arch.triplet.startswith(os.uname().machine) else "-" + arch.triplet.replace("_", "-")
    wanted = _PACKAGES | {
        f"{arch.triplet}-gcc": f"gcc{foreign}",
        f"{arch.triplet}-strip": f"binutils{foreign}",
    }
    missing = {package: program for program, package in wanted.items() if shutil.which(program) is None}
    if not os.path.exists(KEYRING):
        missing["debian-archive-keyring"] = KEYRING
    if missing:
        raise BuildError(
            f"it takes {', '.join(missing.values())}, which this machine does not have\n"
            f"Install them: sudo apt-get install {' '.join(missing)}"
        )
