"""`completion`."""

from __future__ import annotations

from host_client.cli.errors import CliError
from host_client.cli.flags import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session

SHELLS = ("bash", "zsh", "fish", "powershell")


def completion(_session: Session, parsed: Parsed) -> int:
    """`wherry completion`."""
    shell = parsed.args[0]
    if shell not in SHELLS:
        raise CliError(f"no completion for {shell}", f"it can be {', '.join(SHELLS)}")
    from host_client.cli.app import complete

    return complete(f"source_{shell}")


COMPLETION = Command(
    "SHELL",
    completion,
    1,
    1,
    detail="SHELL is bash, zsh, fish or powershell.",
    examples=(
        ("wherry completion bash > /etc/bash_completion.d/wherry", "for everybody, from the next shell on"),
        ("wherry completion fish > ~/.config/fish/completions/wherry.fish", "for yourself"),
    ),
)
