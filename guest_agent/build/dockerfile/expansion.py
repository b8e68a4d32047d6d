"""The variables in an instruction: which of its words they are replaced in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from guest_agent.build.dockerfile import mounts
from guest_agent.build.dockerfile.errors import DockerfileError
from guest_agent.build.dockerfile.shell import expand_word, expand_words
from guest_agent.build.dockerfile.types import (
    Add,
    Arg,
    Copy,
    Env,
    Expose,
    Files,
    InlineFile,
    Instruction,
    Label,
    Pair,
    Run,
    Stopsignal,
    User,
    Volume,
    Workdir,
)

_I = TypeVar("_I", bound=Instruction)


def expand(instruction: _I, variables: Mapping[str, str], escape: str = "\\") -> _I:
    """The instruction as it is carried out, with `variables` as they were before it.

    The commands of RUN, CMD and ENTRYPOINT are left to their shell, and a HEALTHCHECK, SHELL and ONBUILD
    stay as they are. ARG is not for here, see `arguments`. DockerfileError has the instruction's lines.
    """

    def word(text: str) -> str:
        return expand_word(text, variables, escape)

    try:
        return _expanded(instruction, word, variables, escape)
    except DockerfileError as error:
        if error.lines is None:
            error.lines = instruction.lines
        raise


def _expanded(instruction: _I, word: Callable[[str], str], variables: Mapping[str, str], escape: str) -> _I:
    match instruction:
        case Env(pairs=pairs) | Label(pairs=pairs):
            return replace(
                instruction,
                pairs=tuple(Pair(word(pair.key), word(pair.value), pair.legacy) for pair in pairs),
            )
        case Copy() | Add():
            return _files(instruction, word, variables)
        case Run():
            return replace(
                instruction, mounts=tuple(mounts.expanded(mount.flag, word) for mount in instruction.mounts)
            )
        case Expose():
            ports = [port for text in instruction.ports for port in expand_words(text, variables, escape)]
            return replace(instruction, ports=tuple(ports))
        case User():
            return replace(instruction, user=word(instruction.user))
        case Volume():
            return replace(instruction, paths=tuple(word(path) for path in instruction.paths))
        case Workdir():
            return replace(instruction, path=word(instruction.path))
        case Stopsignal():
            return replace(instruction, signal=word(instruction.signal))
        case Arg():
            raise TypeError("ARG is expanded by its scope")
    return instruction


def _files(instruction: _F, word: Callable[[str], str], variables: Mapping[str, str]) -> _F:
    expanded = replace(
        instruction,
        sources=tuple(word(source) for source in instruction.sources),
        inline=tuple(_inline(file, variables) for file in instruction.inline),
        destination=word(instruction.destination),
        chown=word(instruction.chown),
        chmod=word(instruction.chmod),
    )
    if isinstance(expanded, Add):
        return replace(expanded, checksum=word(expanded.checksum))
    return expanded


def _inline(file: InlineFile, variables: Mapping[str, str]) -> InlineFile:
    if not file.expand:
        return file
    return replace(file, content=expand_word(file.content, variables, keep_quotes=True), expand=False)


_F = TypeVar("_F", bound=Files)
