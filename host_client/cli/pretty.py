"""Rich tables for `--format pretty`."""

from __future__ import annotations

import io

from rich.box import ROUNDED
from rich.console import Console
from rich.table import Table
from rich.text import Text

from host_client.cli import output

STATES = {
    "Up": "green", "Exited": "bright_black", "Created": "yellow", "Restarting": "yellow", "Dead": "red",
}  # fmt: skip


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A table with a frame, coloured when standard output is a terminal."""
    made = Table(box=ROUNDED, header_style="bold", highlight=False)
    for heading in headings:
        made.add_column(heading, overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell, style=STATES.get(cell.split(" ")[0], "")) for cell in row))
    terminal = output.is_terminal(output.OUT)
    buffer = io.StringIO()
    console = Console(file=buffer, force_terminal=terminal, width=None if terminal else 200)
    console.print(made)
    return buffer.getvalue()
