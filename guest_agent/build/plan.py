"""Which stages of a Dockerfile are built, in which order, and what their steps are numbered. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from guest_agent.build.dockerfile import types
from guest_agent.build.dockerfile.arguments import base
from guest_agent.errors import InvalidParameter


@dataclass(slots=True)
class PlannedStage:
    """A stage that is built."""

    index: int
    stage: types.Stage
    base: str  # with variables replaced
    base_stage: int | None  # index of the earlier stage it builds on
    platform: str  # as --platform has it, "" for none
    needs: set[int] = field(default_factory=set)  # the stages it takes from, base_stage included
    first: int = 1  # number of its FROM among all steps

    @property
    def steps(self) -> int:
        """How many numbered steps it has."""
        return 1 + len(self.stage.instructions)


@dataclass(slots=True)
class Plan:
    """The stages that are built, by index, in the Dockerfile's order."""

    stages: dict[int, PlannedStage]
    target: int
    total: int


def make_plan(dockerfile: types.Dockerfile, target: str, global_values: Mapping[str, str]) -> Plan:
    """Decides. Raises InvalidParameter in dockerd's words when there is no such target, DockerfileError."""
    last = len(dockerfile.stages) - 1
    if target:
        found = dockerfile.stage_index(target)
        if found is None:
            raise InvalidParameter(f'target stage "{target}" could not be found')
        last = found
    needed: dict[int, PlannedStage] = {}
    waiting = [last]
    while waiting:
        index = waiting.pop()
        if index in needed:
            continue
        stage = dockerfile.stages[index]
        name, platform = base(stage, global_values, dockerfile.escape)
        base_stage = named_stage(dockerfile, name, index, by_number=False)
        planned = needed[index] = PlannedStage(index, stage, name, base_stage, platform)
        if base_stage is not None:
            planned.needs.add(base_stage)
        for source in _sources(stage):
            other = named_stage(dockerfile, source, index)
            if other is not None:
                planned.needs.add(other)
        waiting += planned.needs
    number = 1
    for index in sorted(needed):
        needed[index].first = number
        number += needed[index].steps
    return Plan({index: needed[index] for index in sorted(needed)}, last, number - 1)


def named_stage(dockerfile: types.Dockerfile, name: str, before: int, by_number: bool = True) -> int | None:
    """The stage before `before` that a --from or FROM names, the latest of that name; None for no stage."""
    for index in range(before - 1, -1, -1):
        if dockerfile.stages[index].name and dockerfile.stages[index].name == name.lower():
            return index
    if by_number and name.isdecimal():
        if int(name) < before:
            return int(name)
        raise InvalidParameter(f"invalid from flag value {name}: not found", "Stages are counted from 0.")
    return None


def _sources(stage: types.Stage) -> list[str]:
    found: list[str] = []
    for instruction in stage.instructions:
        if isinstance(instruction, types.Copy) and instruction.from_:
            found.append(instruction.from_)
        elif isinstance(instruction, types.Run):
            found += [mount.from_ for mount in instruction.mounts if mount.from_]
    return found
