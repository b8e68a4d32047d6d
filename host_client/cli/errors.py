"""Errors of the command line itself; what an engine reports is in `engine_api.errors`."""

from __future__ import annotations


class CliError(Exception):
    """Ends the command with a sentence, the next step (`hint`) and an exit status."""

    def __init__(self, message: str, hint: str = "", status: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.status = status


class UsageError(CliError):
    """The command was called wrongly: 125 for flags, 1 for a wrong number of arguments, as docker has it."""

    def __init__(self, message: str, hint: str = "", status: int = 125) -> None:
        super().__init__(message, hint, status)


class Exit(Exception):
    """Ends the command with an exit status and nothing more to say."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class HelpWanted(Exception):
    """The user asked for help, `--help` or `-h`, on a command (its words; "" for the program itself)."""

    def __init__(self, command: str = "") -> None:
        super().__init__(command)
        self.path = command.split()
