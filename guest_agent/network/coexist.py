"""Getting along with other firewalls on the host.

In nftables a packet has to be accepted by every table; ours cannot overrule another's drop. Where the
iptables FORWARD chain has policy DROP (dockerd sets it, so does ufw), packets of our networks would die
there. So a chain of ours is called at the end of FORWARD: the rules of others, DOCKER-USER's among them,
are asked before, only the policy is not. What our own table drops stays dropped.

Nothing is done where the policy is ACCEPT, where there is no such chain, for the older iptables-legacy, or
about rules that drop or reject by themselves, as firewalld's: those are somebody's decision. Blocking.
"""

from __future__ import annotations

from collections.abc import Iterable

from guest_agent.kernel import nftables as nft
from guest_agent.kernel.netlink import NETLINK_NETFILTER, Netlink
from guest_agent.kernel.nftables import Batch

FILTER, FORWARD = "filter", "FORWARD"
FAMILIES = (nft.NFPROTO_IPV4, nft.NFPROTO_IPV6)


def accept(table: str, bridges: Iterable[str]) -> None:
    """Let FORWARD accept what comes from and goes to these bridges. `table` is our table's name."""
    bridges = list(bridges)
    chain = _chain(table)
    with Netlink(NETLINK_NETFILTER) as kernel:
        for family in FAMILIES:
            if nft.chain_policy(kernel, family, FILTER, FORWARD) != nft.POLICY_DROP:
                continue
            batch = Batch(family, FILTER)
            batch.add_chain(chain)
            batch.flush_chain(chain)
            for bridge in bridges:
                # As iptables writes them, so that its listings show them.
                name = bridge.encode() + b"\0"
                for key in (nft.META_OIFNAME, nft.META_IIFNAME):
                    match = nft.meta(key) + nft.compare(name)
                    batch.add_rule(chain, match, nft.counter(), nft.verdict(nft.ACCEPT))
            if not _calls(kernel, family, chain):
                batch.add_rule(FORWARD, nft.counter(), nft.verdict(nft.JUMP, chain))
            batch.commit(kernel)


def accepted(table: str, bridges: Iterable[str]) -> bool:
    """Whether there is nothing for `accept` to do."""
    chain, wanted = _chain(table), 2 * len(list(bridges))
    with Netlink(NETLINK_NETFILTER) as kernel:
        for family in FAMILIES:
            if nft.chain_policy(kernel, family, FILTER, FORWARD) != nft.POLICY_DROP:
                continue
            rules = nft.get_rules(kernel, family, FILTER, chain)
            if len(rules) != wanted or not _calls(kernel, family, chain):
                return False
    return True


def is_relevant(operation: int, family: int, table: str) -> bool:
    """Whether a change of nftables may undo `accept`, or make it necessary."""
    operations = (nft.NEWCHAIN, nft.DELCHAIN, nft.DELTABLE, nft.DELRULE)
    return family in FAMILIES and table == FILTER and operation in operations


def withdraw(table: str) -> None:
    """Undo `accept`."""
    chain = _chain(table)
    with Netlink(NETLINK_NETFILTER) as kernel:
        for family in FAMILIES:
            batch = Batch(family, FILTER)
            for handle in _calls(kernel, family, chain):
                batch.delete_rule(FORWARD, handle)
            if nft.has_chain(kernel, family, FILTER, chain):
                batch.delete_chain(chain)
            batch.commit(kernel)


def _calls(kernel: Netlink, family: int, chain: str) -> list[int]:
    """Handles of the rules in FORWARD that call our chain."""
    rules = nft.get_rules(kernel, family, FILTER, FORWARD)
    return [rule.handle for rule in rules if rule.calls(chain)]


def _chain(table: str) -> str:
    return table.upper()
