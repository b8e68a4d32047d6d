"""What a check has found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

GOOD, NOTE, BAD = "ok", "note", "BAD"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, and one sentence.

    `level` is GOOD, NOTE (works, but something is lacking or slow) or BAD (something will not work).
    `hint` is the remedy, a sentence for the user. `fix` applies it and says what it did; only where that
    takes nothing away from the user.
    """

    what: str
    level: str
    text: str
    hint: str = ""
    fix: Callable[[], str] | None = None
