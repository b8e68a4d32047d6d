"""The documentation says what the code does, as far as a program can tell."""

from __future__ import annotations

import re
from dataclasses import fields

from guest_agent.engine.config import Config, usage
from tests.support.cli import REPOSITORY


def test_every_setting_is_documented() -> None:
    """Each option of the engine with its key, and no others."""
    text = (REPOSITORY / "docs" / "configuration.md").read_text()
    documented = re.findall(r"^\| `(--[a-z-]+)`(?:, `-\w`)? \| `([a-z-]+)` ", text, re.MULTILINE)
    assert {option for option, _ in documented} == {line.split()[0] for line in usage().splitlines()}
    assert {key for _, key in documented} == {each.name.replace("_", "-") for each in fields(Config)}


def test_links_lead_somewhere() -> None:
    for page in (
        REPOSITORY / "README.md",
        REPOSITORY / "CONTRIBUTING.md",
        *(REPOSITORY / "docs").glob("*.md"),
    ):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
