"""Notices when others change nftables so that our rules may be gone, or no longer enough.

dockerd starts and sets a policy, somebody says `nft flush ruleset`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from guest_agent.kernel import nftables as nft
from guest_agent.kernel.netlink import Netlink
from guest_agent.network import coexist

DELAY = 0.2  # seconds: a firewall that restarts makes many changes in a row


class RuleWatch:
    """Calls `changed` on the event loop after changes by others, or by ourselves: it has to check."""

    def __init__(self, table: str, changed: Callable[[], None], kernel: Netlink) -> None:
        """`kernel`: a socket to netfilter, in the namespace whose rules these are; ours from now on."""
        self._table = table
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._kernel = kernel
        self._kernel.join(nft.GROUP)
        self._loop.add_reader(self._kernel.fileno(), self._ready)

    def close(self) -> None:
        """Watch no more."""
        self._loop.remove_reader(self._kernel.fileno())
        self._kernel.close()
        if self._timer is not None:
            self._timer.cancel()

    def _ready(self) -> None:
        try:
            changes = [nft.changed_table(kind, payload) for kind, payload in self._kernel.notifications()]
        except OSError:
            changes = []  # too many at once: some were lost, and may have been relevant
        else:
            if not any(change is not None and self._is_relevant(*change) for change in changes):
                return
        if self._timer is None:
            self._timer = self._loop.call_later(DELAY, self._call)

    def _is_relevant(self, operation: int, family: int, table: str) -> bool:
        if table == self._table:
            return operation in (nft.DELTABLE, nft.DELCHAIN, nft.DELRULE)
        return coexist.is_relevant(operation, family, table)

    def _call(self) -> None:
        self._timer = None
        self._changed()
