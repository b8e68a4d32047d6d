"""Identifiers of containers, execs and anonymous volumes."""

from __future__ import annotations

import secrets


def new_id() -> str:
    """64 hexadecimal digits, the first 12 of which are not all decimal: those could be taken for a number."""
    while True:
        value = secrets.token_hex(32)
        if not value[:12].isdigit():
            return value
