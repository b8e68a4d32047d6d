"""`machine`: virtual machines that run engines."""

from __future__ import annotations

import json
import os

from host_client import vm
from host_client.cli import output, tabwriter, units
from host_client.cli.commands.prune import confirm
from host_client.cli.errors import CliError
from host_client.cli.flags import Command

vm.import_packages()

from host_client.machine import config, layout, machines  # noqa: E402 - installed packages are needed
from host_client.machine.errors import MachineError  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session

NOT_RUNNING = 3  # as `systemctl status` has it
SIZE_FLAGS = (
    ("cpus", "", "int", "Number of processors"),
    ("memory", "m", "bytes", "Memory, such as 4g"),
    ("disk", "", "bytes", "What the data disk may grow to, such as 100g"),
    (
        "idle-stop",
        "",
        "int",
        "Minutes without containers and clients after which it sleeps (default 0: never)",
    ),
    (
        "warm-start",
        "",
        "bool",
        "Keep the booted state before any data in a file, and start from it (default true)",
    ),
    ("share", "", "list", "Folder of this computer that containers can mount (default: yours and /tmp)"),
)
FORCE_FLAG = ("force", "f", "bool", "Do not ask for confirmation")


def guarded(command: Callable[[Session, Parsed], int]) -> Callable[[Session, Parsed], int]:
    """A machine's errors as the command line's."""

    def run(session: Session, parsed: Parsed) -> int:
        try:
            return command(session, parsed)
        except MachineError as error:
            raise CliError(error.message, error.hint)

    return run


def named(parsed: Parsed) -> machines.Machine:
    """The machine a command is about."""
    return machines.Machine(parsed.args[0] if parsed.args else layout.DEFAULT_NAME)


def tell(text: str) -> None:
    output.err(text + "\n")


def show_progress(message: dict[str, Any]) -> None:
    """What the supervisor reports while a machine boots."""
    if "step" in message:
        tell(message["step"])
    elif "warning" in message:
        output.warn(message["warning"])


def boot(machine: machines.Machine) -> None:
    status = machine.start(show_progress)
    tell(f"Machine {machine.name} is running; its engine: {layout.address(status['socket'])}")


def _folders(parsed: Parsed) -> list[str] | None:
    """Folders to share; None when nothing was said of them, an empty --share shares nothing."""
    return [folder for folder in parsed["share"] if folder] if "share" in parsed.given else None


@guarded
def init(session: Session, parsed: Parsed) -> int:
    """`wherry machine init`."""
    wanted = parsed["image"]
    picture = vm.take_image(wanted, tell) if wanted else vm.provide_image(tell, parsed["arch"])
    machine = named(parsed)
    made = machine.init(
        picture,
        parsed["cpus"],
        parsed["memory"],
        parsed["disk"],
        _folders(parsed),
        parsed["idle-stop"],
        parsed["warm-start"] or "warm-start" not in parsed.given,
    )
    tell(
        f"Machine {machine.name}: {made.cpus} CPUs, {units.binary_size(made.memory)} of memory, "
        f"a disk of at most {units.binary_size(made.disk)}"
    )
    if parsed["now"]:
        boot(machine)
    return 0


INIT = Command(
    "[OPTIONS] [NAME]",
    init,
    maximum=1,
    flags=(
        ("arch", "", "string", "Architecture of the machine: amd64 or arm64 (default: this one's)"),
        ("image", "", "string", "Folder or URL of the VM image (default: the installed one)"),
        ("now", "", "bool", "Start it too"),
        *SIZE_FLAGS,
    ),
    examples=(
        ("wherry machine init --now", "make and boot the default machine"),
        ("wherry machine init --cpus 2 -m 4g dev", "another one, of the wanted size"),
    ),
)


@guarded
def start(session: Session, parsed: Parsed) -> int:
    """`wherry machine start`."""
    boot(named(parsed))
    return 0


START = Command("[NAME]", start, maximum=1, examples=(("wherry machine start dev", "boot one by name"),))


@guarded
def stop(session: Session, parsed: Parsed) -> int:
    """`wherry machine stop`."""
    machine = named(parsed)
    config.load(machine.layout)
    tell(
        f"Machine {machine.name} is stopped" if machine.stop() else f"Machine {machine.name} was not running"
    )
    return 0


STOP = Command("[NAME]", stop, maximum=1, examples=(("wherry machine stop dev", "and what runs in it"),))


@guarded
def restart(session: Session, parsed: Parsed) -> int:
    """`wherry machine restart`."""
    machine = named(parsed)
    machine.stop()
    boot(machine)
    return 0


RESTART = Command("[NAME]", restart, maximum=1, examples=(("wherry machine restart", "the default machine"),))


def _size_of(machine: machines.Machine) -> int:
    """Bytes the data disk takes on this host: of a file with holes, what is not a hole."""
    status = os.stat(machine.layout.disk)
    return getattr(status, "st_blocks", 0) * 512 or status.st_size


def _state(status: dict[str, Any] | None) -> str:
    if status is None:
        return "stopped"
    return "asleep" if status.get("asleep") else "running"


@guarded
def status(session: Session, parsed: Parsed) -> int:
    """`wherry machine status`."""
    machine = named(parsed)
    made = config.load(machine.layout)
    running = machine.status()
    rows = [("Machine", machine.name), ("State", _state(running))]
    if running and not running.get("asleep"):
        rows += [
            ("Accelerator", running["accelerator"].upper()),
            ("Engine", layout.address(running["socket"])),
            ("Processes", f"supervisor {running['supervisor']}, QEMU {running['qemu']}"),
            (
                "Resumed in" if running.get("resumed") else "Booted in",
                f"{running['boot_milliseconds']['ready'] / 1000:.1f} s",
            ),
        ]
    used = f"{units.binary_size(_size_of(machine))} of at most {units.binary_size(made.disk)}"
    rows += [("CPUs", str(made.cpus)), ("Memory", units.binary_size(made.memory)), ("Disk", used)]
    output.out("".join(f"{label + ':':<13}{value}\n" for label, value in rows))
    return 0 if running else NOT_RUNNING


STATUS = Command(
    "[NAME]",
    status,
    maximum=1,
    detail=f"The exit status is {NOT_RUNNING} when it does not run.",
    examples=(("wherry machine status dev", "whether it runs, and where its docker socket is"),),
)


@guarded
def list_machines(session: Session, parsed: Parsed) -> int:
    """`wherry machine list`."""
    names = layout.machine_names()
    if parsed["quiet"]:
        output.out("".join(name + "\n" for name in names))
        return 0
    rows = ["NAME\tSTATE\tARCH\tCPUS\tMEMORY\tDISK USED\tDISK\n"]
    for name in names:
        machine = machines.Machine(name)
        made = config.load(machine.layout)
        rows.append(
            f"{name}\t{_state(machine.status())}\t{made.arch}\t{made.cpus}"
            f"\t{units.binary_size(made.memory)}\t{units.binary_size(_size_of(machine))}"
            f"\t{units.binary_size(made.disk)}\n"
        )
    output.out(tabwriter.align("".join(rows)))
    return 0


LIST = Command(
    "[OPTIONS]",
    list_machines,
    flags=(("quiet", "q", "bool", "Show only names"),),
    examples=(("wherry machine list -q", "their names"),),
)


@guarded
def inspect(session: Session, parsed: Parsed) -> int:
    """`wherry machine inspect`."""
    found = [machines.Machine(name).describe() for name in parsed.args or [layout.DEFAULT_NAME]]
    output.out(json.dumps(found, indent=4) + "\n")
    return 0


INSPECT = Command(
    "[NAME...]", inspect, maximum=None, examples=(("wherry machine inspect", "the default machine's paths"),)
)


@guarded
def logs(session: Session, parsed: Parsed) -> int:
    """`wherry machine logs`."""
    machine = named(parsed)
    config.load(machine.layout)
    path = machine.layout.log if parsed["supervisor"] else machine.layout.console
    for part in (f"{path}.1", path):
        try:
            with open(part, "rb") as file:
                while data := file.read(1 << 16):
                    output.write_bytes(output.OUT, data)
        except FileNotFoundError:
            pass  # it has not run yet, or not written that much
    return 0


LOGS = Command(
    "[OPTIONS] [NAME]",
    logs,
    maximum=1,
    flags=(("supervisor", "", "bool", "Show the log of the process that runs the machine instead"),),
    examples=(("wherry machine logs dev", "what its kernel and engine said"),),
)


@guarded
def change(session: Session, parsed: Parsed) -> int:
    """`wherry machine set`."""
    if not parsed.given & {flag[0] for flag in SIZE_FLAGS}:
        names = [f"--{flag[0]}" for flag in SIZE_FLAGS]
        raise CliError("nothing to change", f"give {', '.join(names[:-1])} or {names[-1]}")
    idle, warm = (parsed[name] if name in parsed.given else None for name in ("idle-stop", "warm-start"))
    named(parsed).set(parsed["cpus"], parsed["memory"], parsed["disk"], _folders(parsed), idle, warm)
    return 0


SET = Command(
    "[OPTIONS] [NAME]",
    change,
    maximum=1,
    flags=SIZE_FLAGS,
    examples=(("wherry machine set --cpus 4 -m 8g dev", "from its next start on"),),
)


@guarded
def resize(session: Session, parsed: Parsed) -> int:
    """`wherry machine resize`."""
    from host_client.cli import values

    try:
        size = values.size(parsed.args[-1])
    except ValueError as error:
        raise CliError(str(error), "write it like 200g")
    machines.Machine(parsed.args[0] if len(parsed.args) > 1 else layout.DEFAULT_NAME).set(disk=size)
    return 0


RESIZE = Command(
    "[NAME] SIZE",
    resize,
    1,
    2,
    detail="The file system in the machine grows at its next start.",
    examples=(("wherry machine resize dev 200g", "a data disk of 200 GB"),),
)


@guarded
def reset(session: Session, parsed: Parsed) -> int:
    """`wherry machine reset`."""
    machine = named(parsed)
    config.load(machine.layout)
    question = f"All images, containers and volumes in machine {machine.name} will be removed."
    if not confirm(f"WARNING! {question}\nAre you sure you want to continue?", parsed["force"]):
        return 1
    machine.reset()
    return 0


RESET = Command(
    "[OPTIONS] [NAME]",
    reset,
    maximum=1,
    flags=(FORCE_FLAG,),
    examples=(("wherry machine reset dev", "its images, containers and volumes are gone then"),),
)


@guarded
def remove(session: Session, parsed: Parsed) -> int:
    """`wherry machine rm`."""
    found = [machines.Machine(name) for name in parsed.args]
    for machine in found:
        config.load(machine.layout)
    question = f"Machines with all their data will be removed: {' '.join(parsed.args)}"
    if not confirm(f"WARNING! {question}\nAre you sure you want to continue?", parsed["force"]):
        return 1
    for machine in found:
        machine.remove()
        output.line(machine.name)
    return 0


REMOVE = Command(
    "[OPTIONS] NAME [NAME...]",
    remove,
    1,
    None,
    flags=(FORCE_FLAG,),
    examples=(("wherry machine rm -f dev", "without asking"),),
)


@guarded
def doctor(session: Session, parsed: Parsed) -> int:
    """`wherry machine doctor`."""
    from host_client.cli.commands.doctor import show
    from host_client.machine.doctor import examine

    return show(examine())


DOCTOR = Command("", doctor, examples=(("wherry machine doctor", "what is missing, and what to do"),))
