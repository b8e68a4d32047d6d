"""`doctor`: what is wrong with this computer, as far as containers are concerned."""

from __future__ import annotations

from host_client.cli import output
from host_client.cli.errors import CliError
from host_client.cli.flags import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session
    from host_client.doctor.finding import Finding


def doctor(session: Session, parsed: Parsed) -> int:
    """`wherry doctor`."""
    from host_client import vm
    from host_client.doctor.examine import examine

    mode = vm.chosen_mode(session.settings["mode"])
    return show(examine(mode, session.settings["config"]), parsed["fix"])


def show(findings: Iterable[Finding], fix: bool = False) -> int:
    """Print findings as they come, repaired where they can be if `fix`; the exit status, 1 if any is bad."""
    from host_client.config import ConfigError
    from host_client.doctor.finding import BAD, GOOD, NOTE

    colours = (
        {GOOD: output.GREEN, NOTE: output.YELLOW, BAD: output.RED} if output.coloured(output.OUT) else {}
    )
    bad = fixable = 0
    for finding in findings:
        colour = colours.get(finding.level, "")
        level = f"{colour}{finding.level:<4}{output.PLAIN if colour else ''}"
        output.line(f"{level} {finding.what}: {finding.text}")
        if finding.fix and fix:
            try:
                output.line(f"     fixed: {finding.fix()}")
            except (OSError, ConfigError) as error:
                raise CliError(f"cannot repair {finding.what}: {error}", finding.hint)
            continue
        fixable += finding.fix is not None
        bad += finding.level == BAD
        if finding.hint:
            output.line(f"     {finding.hint}")
    if fixable:
        output.line(f"{fixable} of these can be repaired: wherry doctor --fix")
    return 1 if bad else 0


DOCTOR = Command(
    "[OPTIONS]",
    doctor,
    flags=(("fix", "", "bool", "Repair what can be repaired without taking anything away"),),
    detail="Nothing is started or changed without --fix. The exit status is 1 when something will not work.",
    examples=(
        ("wherry doctor", "kernel, disk, network, clock, and what other products left behind"),
        ("wherry --mode vm doctor", "what virtual machines need"),
        ("wherry doctor --fix", "the same, and the safe repairs"),
    ),
)
