"""What machines need of this host, checked one by one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from host_client.doctor.finding import BAD, GOOD, Finding
from host_client.machine import accelerator, image, layout, qemu, system
from host_client.machine.errors import MachineError
from host_client.machine.machines import Machine


def examine() -> Iterator[Finding]:
    """All checks, each as soon as it is done."""
    yield _checked("VM image", _image)
    yield _checked("QEMU", lambda: _describe_qemu(qemu.find(system.host_arch())))
    yield _checked("Accelerator", _accelerator)
    for name in layout.machine_names():
        yield _checked(f"Machine {name}", lambda name=name: _machine(name))  # type: ignore[misc]


def _checked(what: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(what, GOOD, check())
    except MachineError as error:
        return Finding(what, BAD, error.message, error.hint)


def _image() -> str:
    found = image.installed(system.host_arch())
    if not found:
        raise MachineError("none is installed", "wherry machine init installs one.")
    image.verify(found[0])
    return f"{found[0].folder}, kernel {found[0].manifest['kernel']}, every byte as its manifest says"


def _describe_qemu(found: qemu.Qemu) -> str:
    return f"{found.program}, version {found.version_text}"


def _accelerator() -> str:
    found = image.installed(system.host_arch())
    if not found:
        raise MachineError("cannot be tried without a VM image")
    name, why = accelerator.choose(qemu.find(system.host_arch()), found[0], again=True)
    if why:
        raise MachineError(f"machines are emulated, which is slow: {why}", "Turn on hardware virtualisation.")
    return name.upper()


def _machine(name: str) -> str:
    machine = Machine(name)
    if machine.running():
        status = machine.status()
        assert status is not None
        if status.get("asleep"):
            return "asleep: the next command that needs it wakes it"
        return f"runs with {status['accelerator'].upper()}, process {status['qemu']}"
    left = [p for p in (machine.layout.api_socket, machine.layout.control_socket) if os.path.exists(p)]
    if left:
        return "stopped; its supervisor was killed: what it left is cleared away at the next start"
    return "stopped"
