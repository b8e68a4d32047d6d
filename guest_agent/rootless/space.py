"""Enters the namespaces of a rootless engine: those its keeper holds, or new ones."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import time
from dataclasses import asdict, dataclass

from guest_agent.errors import NotSupported, Unavailable
from guest_agent.kernel import netlink, netns, syscalls
from guest_agent.kernel.syscalls import CLONE_NEWNS, CLONE_NEWUSER
from guest_agent.roots import Roots

from . import keeper, scope, uplink
from .ids import HINT, user_name

log = logging.getLogger(__name__)

_UPLINK_SECONDS = 10.0


@dataclass
class Space:
    """The namespaces this process is in, and what is missing there."""

    network: int = -1
    """The engine's network namespace; this process's main thread stays in the host's."""
    driver: str = ""
    """What leads out of it: `pasta`, `slirp4netns`, or "" for nothing."""
    no_driver: str = ""
    single_id: str = ""
    """Why there is only one user and group id; "" when there are more."""
    keeper: keeper.Client | None = None


def enter(roots: Roots) -> Space:
    """Makes this process root of a user namespace of its own; it must have one thread only.

    Raises NotSupported when the kernel does not let users have namespaces, Unavailable when something fails.
    """
    path = roots.run_path("keeper.sock")
    client = keeper.find(path)
    try:
        if client is not None:
            try:
                return _join(client)
            except keeper.KeeperError:
                client.close()  # it was about to end, as its agent did
        scope.leave_unit()
        client = keeper.fork(path, roots.run_path("monitor.pid"))
        return _make(client, roots)
    except keeper.KeeperError as error:
        raise Unavailable(f"cannot set up the namespaces of a rootless engine: {error}")
    except OSError as error:
        raise Unavailable(f"cannot set up the namespaces of a rootless engine: {error.strerror or error}")


def _join(client: keeper.Client) -> Space:
    facts, (user, mounts, network) = client.ask("join")
    scope.follow(client.pid)
    syscalls.setns(user, CLONE_NEWUSER)
    _become_root()
    syscalls.setns(mounts, CLONE_NEWNS)
    os.close(user)
    os.close(mounts)
    return Space(network=network, keeper=client, **facts)


def _make(client: keeper.Client, roots: Roots) -> Space:
    _end_orphaned_monitor(roots)
    try:
        syscalls.unshare(CLONE_NEWUSER)
    except OSError as error:
        raise NotSupported(
            f"an engine without root needs user namespaces, and the kernel refuses: {error.strerror}",
            hint="Allow them: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone (Debian), "
            "kernel.apparmor_restrict_unprivileged_userns (Ubuntu); or start the engine as root.",
        )
    single, _ = client.ask("map", pid=os.getpid())
    if single:
        log.warning(
            "%s: containers have one user and group id, root. %s", single, HINT.format(user=user_name())
        )
    _become_root()
    syscalls.unshare(CLONE_NEWNS)
    # Mounts of the host's appear here, too, ours never there.
    syscalls.mount("", "/", flags=syscalls.MS_REC | syscalls.MS_SLAVE)
    network, _ = netns.create(lambda _: _raise_loopback())
    user = os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        client.ask("hold", (user, mounts, network))
    finally:
        os.close(user)
        os.close(mounts)
    space = Space(network=network, single_id=single)
    space.driver, space.no_driver = _lead_out(client, network)
    facts = asdict(space)
    del facts["network"], facts["keeper"]
    client.ask("facts", facts=facts)
    space.keeper = client
    return space


def _become_root() -> None:
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _end_orphaned_monitor(roots: Roots) -> None:
    """A monitor whose keeper was killed is in namespaces nobody can join any more: it ends, and with it its
    containers.
    """
    try:
        with open(roots.run_path("monitor.pid"), encoding="ascii") as file:
            monitor = int(file.read())
        with open(f"/proc/{monitor}/cmdline", "rb") as file:
            ours = os.fsencode(roots.run) in file.read()
        if ours:
            log.warning("the keeper of the namespaces was killed: ending the containers that ran in them")
            os.kill(monitor, signal.SIGKILL)
    except (OSError, ValueError):
        pass  # there is none


def _raise_loopback() -> None:
    with netlink.Netlink() as kernel:
        kernel.batch([netlink.set_link("lo", up=True)])


def _lead_out(client: keeper.Client, network: int) -> tuple[str, str]:
    """The program that leads out of the network namespace, and why not a better one."""
    reasons: list[str] = []
    here = os.getpid()
    for name in uplink.PROGRAMS:
        try:
            client.ask(
                "uplink", name=name, userns=f"/proc/{here}/ns/user", netns=f"/proc/{here}/fd/{network}"
            )
            netns.enter(network, lambda _: _wait_for_route(client))
            return name, "; ".join(reasons)
        except keeper.KeeperError as error:
            reasons.append(f"{name}: {error}")
    log.warning(
        "containers cannot reach the network: %s. Install pasta (Debian's package passt) or slirp4netns, "
        "and see that /dev/net/tun may be opened.",
        "; ".join(reasons),
    )
    return "", "; ".join(reasons)


def _wait_for_route(client: keeper.Client) -> None:
    deadline = time.monotonic() + _UPLINK_SECONDS
    while time.monotonic() < deadline:
        with open("/proc/thread-self/net/route", encoding="ascii") as routes:
            if any(line.startswith(f"{uplink.INTERFACE}\t00000000\t") for line in routes):
                return
        client.ask("check")
        time.sleep(0.002)
    raise keeper.KeeperError(f"no route after {_UPLINK_SECONDS:.0f} seconds")


def name_servers(space: Space) -> list[str]:
    """Containers' name servers where the host's is on its loopback, which is another one in there: the
    uplink's stands for it. Empty where containers can ask the host's.
    """
    from guest_agent.network.resolvconf import load

    servers = load().nameservers
    if space.driver and servers and all(_is_loopback(server) for server in servers):
        return [uplink.NAME_SERVER]
    return []


def _is_loopback(server: str) -> bool:
    try:
        return ipaddress.ip_address(server.partition("%")[0]).is_loopback
    except ValueError:
        return False
