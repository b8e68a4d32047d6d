"""Columns of text laid out as Go's tabwriter does it for docker: at least 10 wide, 3 spaces between, left-
aligned.

A column is a run of neighbouring lines that have a cell there; the last cell of a line belongs to none.
"""

from __future__ import annotations

MINIMUM, PADDING = 10, 3


def align(text: str, minimum: int = MINIMUM, padding: int = PADDING) -> str:
    """The text with its tabs turned into aligned columns."""
    trailing = text.endswith("\n")
    lines = [line.split("\t") for line in (text[:-1] if trailing else text).split("\n")]
    widths = [[0] * (len(cells) - 1) for cells in lines]
    _measure(lines, widths, 0, len(lines), 0, minimum, padding)
    shown = []
    for cells, wide in zip(lines, widths, strict=True):
        padded = [cell + " " * (width - width_of(cell)) for cell, width in zip(cells, wide, strict=False)]
        shown.append("".join(padded) + cells[-1])
    return "\n".join(shown) + ("\n" if trailing else "")


def _measure(
    lines: list[list[str]],
    widths: list[list[int]],
    start: int,
    end: int,
    column: int,
    minimum: int,
    padding: int,
) -> None:
    at = start
    while at < end:
        if column >= len(lines[at]) - 1:
            at += 1
            continue
        first = at
        width = minimum
        while at < end and column < len(lines[at]) - 1:
            width = max(width, width_of(lines[at][column]) + padding)
            at += 1
        for index in range(first, at):
            widths[index][column] = width
        _measure(lines, widths, first, at, column + 1, minimum, padding)


def width_of(text: str) -> int:
    """How many terminal columns a text takes."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )
