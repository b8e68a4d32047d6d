"""A Dockerfile as a whole: its global arguments and its stages."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from guest_agent.build.dockerfile import instructions, lines
from guest_agent.build.dockerfile.errors import DockerfileError, DockerfileSyntaxError
from guest_agent.build.dockerfile.types import Arg, Dockerfile, Instruction, Lines, Stage


@lru_cache(maxsize=16)  # the same one is built again and again
def parse(source: bytes | str) -> Dockerfile:
    """The Dockerfile's stages and global arguments. DockerfileError, with the lines, for what BuildKit
    refuses."""
    split = lines.split(source)
    stages: list[Stage] = []
    arguments: list[Arg] = []
    current: list[Instruction] = []
    for statement in split.statements:
        try:
            parsed = instructions.instruction(statement, split.escape)
        except DockerfileSyntaxError:
            raise
        except DockerfileError as error:
            error.message = f"dockerfile parse error on line {statement.lines.start}: {error.message}"
            raise
        if isinstance(parsed, Stage):
            _close(stages, current)
            stages.append(parsed)
            current = []
        elif stages:
            current.append(parsed)
        elif isinstance(parsed, Arg):
            arguments.append(parsed)
        else:
            raise DockerfileError("no build stage in current context", parsed.lines)
    if not stages:
        raise DockerfileError("dockerfile contains no stages to build")
    _close(stages, current)
    return Dockerfile(
        stages=tuple(stages),
        arguments=tuple(arguments),
        escape=split.escape,
        syntax=split.directives.get("syntax", ""),
        check=split.directives.get("check", ""),
        warnings=split.warnings,
    )


def _close(stages: list[Stage], current: list[Instruction]) -> None:
    if stages:
        stages[-1] = replace(stages[-1], instructions=tuple(current))


def parse_instruction(text: str, escape: str = "\\", at: Lines | None = None) -> Instruction:
    """One instruction on its own: an ONBUILD trigger (`at`: the lines of the FROM it came by), `commit
    --change`. DockerfileError when it is none, or several, or FROM."""
    split = lines.split(text, escape)
    if len(split.statements) != 1:
        raise DockerfileError("onbuild trigger should be a single expression", at)
    statement = split.statements[0]
    parsed = instructions.instruction(replace(statement, lines=at or statement.lines), split.escape)
    if isinstance(parsed, Stage):
        raise DockerfileError("FROM is not a command type", parsed.lines)
    return parsed
