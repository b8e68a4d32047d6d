"""The engine in this user's default virtual machine:

its socket, and booting the machine when a command needs it.
"""

from __future__ import annotations

import os
import sys

from host_client.engine_api.endpoint import Endpoint, parse_host
from host_client.engine_api.errors import ConnectError
from host_client.engine_api.http import Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from host_client.machine.image import Image

MACHINE = "default"
MODES = ("native", "vm")


def chosen_mode(flag: str = "") -> str:
    """Where containers run when no engine is named: `--mode`, WHERRY_MODE, or what this system can do.

    Raises:
        ConnectError: there is no such mode.
    """
    mode = flag or os.environ.get("WHERRY_MODE", "")
    if not mode:
        if sys.platform == "linux":
            _refuse_wsl1()
            return "native"
        return "vm"
    if mode not in MODES:
        raise ConnectError(
            f"there is no mode {mode!r}", "use native (Linux only) or vm, in --mode or WHERRY_MODE"
        )
    return mode


def _refuse_wsl1() -> None:
    """In WSL 2 there is a Linux kernel, whose engine is the native one; in WSL 1 there is none.

    Raises:
        ConnectError: this is WSL 1, which only imitates Linux's system calls.
    """
    if "WSL_DISTRO_NAME" not in os.environ:
        return
    release = os.uname().release  # 4.4.0-19041-Microsoft there, 5.15.90.1-microsoft-standard-WSL2 in WSL 2
    if release.endswith("-Microsoft"):
        raise ConnectError(
            f"containers need a Linux kernel, and WSL 1 ({release}) has none",
            f"in Windows: wsl --set-version {os.environ['WSL_DISTRO_NAME']} 2",
        )


def _socket_of_a_running_machine() -> str:
    """Where the socket is for most users, found without importing anything; "" when it is not there."""
    base = os.environ.get("XDG_RUNTIME_DIR") or (f"/run/user/{os.getuid()}" if hasattr(os, "getuid") else "")
    path = os.path.join(base, "wherry", MACHINE, "docker.sock")
    return path if base and os.path.exists(path) else ""


def _at(path: str) -> Endpoint:
    return Endpoint(f"unix://{path}", "unix", path)


def find_or_start(tell: Callable[[str], None]) -> Connection:
    """A connection to the engine in the default machine, which is made and booted if need be.

    Args:
        tell: shows the user what is going on while that takes seconds.

    Raises:
        ConnectError: it cannot be had; says why.
    """
    path = _socket_of_a_running_machine()
    if path:
        try:
            return Connection(_at(path))
        except ConnectError as error:
            if not error.absent:
                raise
    import_packages()
    from host_client.machine.errors import MachineError
    from host_client.machine.layout import address
    from host_client.machine.machines import Machine

    try:
        machine = Machine(MACHINE)
        if not machine.exists():
            image = provide_image(tell)
            tell(f"Making machine {MACHINE}")
            machine.init(image)
        machine.start(lambda message: _tell_step(message, tell))
        return Connection(parse_host(address(machine.layout.api_socket)))
    except MachineError as error:
        raise ConnectError(error.message, error.hint)


def _tell_step(message: dict[str, Any], tell: Callable[[str], None]) -> None:
    if "step" in message:
        tell(message["step"])
    elif "warning" in message:
        tell(f"WARNING: {message['warning']}")


def provide_image(tell: Callable[[str], None], arch: str = "") -> Image:
    """An image for new machines: an installed one, one that a package brought, or one built here.

    Raises:
        MachineError: there is none; says how to get one.
    """
    from host_client.machine import image, system

    arch = arch or system.host_arch()
    found = image.installed(arch)
    if found:
        return found[0]
    packaged = image.packaged(arch)
    if packaged:
        tell("Installing the VM image")
        return image.install(packaged)
    return image.build(arch, tell)


def take_image(source: str, tell: Callable[[str], None]) -> Image:
    """Install the image that a user named by a folder or a URL.

    Raises:
        MachineError: it cannot be had, or is not what its manifest says.
    """
    from host_client.machine import download, image

    return download.fetch(source, tell) if download.is_url(source) else image.install(source)


def import_packages() -> None:
    """Make installed packages importable, which the launcher leaves out to start faster."""
    if sys.flags.no_site:
        import site

        site.main()
