"""A parsed Dockerfile: plain values, no behaviour.

Words are as written, quotes and variables in them, until `expand` has been over the instruction. Times are
nanoseconds, as in the image configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Lines:
    """A range of lines of the source, counted from 1, both ends included."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Pair:
    """`key=value` of ENV and LABEL."""

    key: str
    value: str
    legacy: bool = False  # was written `KEY value`


@dataclass(frozen=True, slots=True)
class ArgumentDefinition:
    """One name of an ARG instruction."""

    name: str
    default: str | None = None


@dataclass(frozen=True, slots=True)
class InlineFile:
    """A heredoc: a file written in the Dockerfile."""

    name: str  # the delimiter without its quotes; the file's name for COPY and ADD
    # as in the source; `strip_tabs` is still to be applied for RUN, and has been for COPY and ADD
    content: str
    # the delimiter was not quoted: variables are replaced (COPY and ADD: by `expand`; RUN: by the shell)
    expand: bool
    strip_tabs: bool = False  # `<<-`
    descriptor: int = 0  # `3<<EOF`


@dataclass(frozen=True, slots=True)
class Mount:
    """`RUN --mount=…`. Before `expand` only `flag` and `from_` say something."""

    flag: str  # as written
    type: Literal["bind", "cache", "tmpfs", "secret", "ssh"] = "bind"
    from_: str = ""  # stage, image or context
    source: str = ""
    target: str = ""
    read_only: bool = True
    size: int = 0  # bytes, tmpfs; 0: no limit
    id: str = ""  # of the cache, secret or agent; empty: from target or source
    sharing: Literal["", "shared", "private", "locked"] = ""  # of a cache; empty: shared
    required: bool = False
    env: str | None = None  # secret: the variable that holds it; "": named as its id
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """`RUN --device=…`: a CDI device."""

    name: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Instruction:
    """What every instruction has."""

    # the whole instruction on one line, continuations joined, as progress and history show it; no heredocs
    code: str
    lines: Lines

    @property
    def name(self) -> str:
        """RUN, COPY, …"""
        return type(self).__name__.upper()


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What RUN, CMD and ENTRYPOINT execute."""

    arguments: tuple[str, ...]  # of the shell form: one string
    shell: bool  # shell form: the words of SHELL go in front
    files: tuple[InlineFile, ...] = ()  # RUN's heredocs


@dataclass(frozen=True, slots=True)
class Arg(Instruction):
    definitions: tuple[ArgumentDefinition, ...]


@dataclass(frozen=True, slots=True)
class Env(Instruction):
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class Label(Instruction):
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class Maintainer(Instruction):
    maintainer: str


@dataclass(frozen=True, slots=True)
class Files(Instruction):
    """What COPY and ADD have in common."""

    sources: tuple[str, ...]
    inline: tuple[InlineFile, ...]
    destination: str
    chown: str = ""
    chmod: str = ""
    link: bool = False
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Copy(Files):
    from_: str = ""  # stage name or index, image, context
    parents: bool = False


@dataclass(frozen=True, slots=True)
class Add(Files):
    checksum: str = ""
    keep_git_dir: bool | None = None  # None: not said
    unpack: bool | None = None  # None: local archives are unpacked, remote ones not


@dataclass(frozen=True, slots=True)
class Run(Instruction):
    command: CommandLine
    mounts: tuple[Mount, ...] = ()
    network: str = "default"  # or none, host
    security: str = "sandbox"  # or insecure
    devices: tuple[Device, ...] = ()


@dataclass(frozen=True, slots=True)
class Cmd(Instruction):
    command: CommandLine


@dataclass(frozen=True, slots=True)
class Entrypoint(Instruction):
    command: CommandLine


@dataclass(frozen=True, slots=True)
class Shell(Instruction):
    shell: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Healthcheck(Instruction):
    test: tuple[str, ...]  # ("NONE",), ("CMD", …) or ("CMD-SHELL", command)
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True)
class Expose(Instruction):
    ports: tuple[str, ...]  # sorted, as written: "80", "80-90/udp"


@dataclass(frozen=True, slots=True)
class User(Instruction):
    user: str


@dataclass(frozen=True, slots=True)
class Volume(Instruction):
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Workdir(Instruction):
    path: str


@dataclass(frozen=True, slots=True)
class Stopsignal(Instruction):
    signal: str


@dataclass(frozen=True, slots=True)
class Onbuild(Instruction):
    trigger: str  # the instruction as text, with its heredocs; checked when it is carried out


@dataclass(frozen=True, slots=True)
class Stage:
    """From one FROM to the next."""

    name: str  # lower case; empty: has only an index
    base: str  # stage, image or `scratch`, as written
    platform: str  # --platform, as written
    instructions: tuple[Instruction, ...]
    code: str  # FROM's
    lines: Lines  # FROM's


@dataclass(frozen=True, slots=True)
class Warning:
    """Something BuildKit warns of while parsing."""

    message: str
    lines: Lines


@dataclass(frozen=True, slots=True)
class Dockerfile:
    stages: tuple[Stage, ...]
    arguments: tuple[Arg, ...]  # before the first FROM
    escape: str = "\\"
    syntax: str = ""  # of the parser directives
    check: str = ""
    warnings: tuple[Warning, ...] = ()

    def stage_index(self, name: str) -> int | None:
        """Index of the stage with this name (in any case) or number; None: there is none."""
        for index, stage in enumerate(self.stages):
            if stage.name and stage.name == name.lower():
                return index
        return int(name) if name.isdecimal() and int(name) < len(self.stages) else None
