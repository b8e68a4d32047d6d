"""Names an engine uses in what all engines of a machine share: links, nftables tables."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

from guest_agent.kernel import userns
from guest_agent.roots import Roots

DEFAULT_DATA_ROOT = "/var/lib/wherry"


def bridge_name(roots: Roots) -> str:
    """The default bridge: `wherry0`, or for another data root than the default one `wherry-` and a hash."""
    return "wherry0" if roots.data == DEFAULT_DATA_ROOT else f"wherry-{_digest(roots)}"


def table_name(roots: Roots) -> str:
    """The engine's nftables table: `wherry`, or `wherry-` and a hash."""
    return "wherry" if roots.data == DEFAULT_DATA_ROOT else f"wherry-{_digest(roots)}"


def _digest(roots: Roots) -> str:
    return hashlib.sha256(roots.data.encode()).hexdigest()[:8]


@contextmanager
def subnet_lock() -> Iterator[None]:
    """Held while a free subnet is looked for and taken, so that two engines never choose the same.

    An engine without root has a network namespace to itself, and no business in /run.
    """
    if userns.inside():
        yield
        return
    fd = os.open("/run/wherry-networks.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
