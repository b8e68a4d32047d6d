"""`machine export` and `machine import`."""

from __future__ import annotations

from host_client import vm
from host_client.cli import output, units
from host_client.cli.commands.machine import guarded, named, tell
from host_client.cli.flags import Command
from host_client.machine import machines, transfer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session


@guarded
def export(session: Session, parsed: Parsed) -> int:
    """`wherry machine export`."""
    size = transfer.export(named(parsed), parsed["output"] or f"{named(parsed).name}.wherry-machine")
    tell(f"{units.human_size(size)} written")
    return 0


EXPORT = Command(
    "[OPTIONS] [NAME]",
    export,
    maximum=1,
    flags=(("output", "o", "string", "File to write (default: NAME.wherry-machine)"),),
    examples=(("wherry machine export -o backup.wherry-machine dev", "the whole machine in one file"),),
)


@guarded
def load(session: Session, parsed: Parsed) -> int:
    """`wherry machine import`."""
    machine = machines.Machine(parsed.args[1] if len(parsed.args) > 1 else vm.MACHINE)
    transfer.load(machine, parsed.args[0], vm.provide_image(tell))
    output.line(machine.name)
    return 0


IMPORT = Command(
    "FILE [NAME]",
    load,
    1,
    2,
    examples=(("wherry machine import backup.wherry-machine dev2", "under another name"),),
)
