"""What a Dockerfile offers, without building it: BuildKit's requests `outline` and `targets`. Pure.

The documents are those of BuildKit's `frontend/subrequests`; clients print tables of them. A name is
described by a comment right above it that begins with the name.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Any

from guest_agent.build.dockerfile import parse, types
from guest_agent.build.dockerfile.arguments import global_arguments, platform_arguments, stage_arguments
from guest_agent.build.plan import Plan, make_plan

VERSION = "1.0.0"
_REQUESTS = {
    "outline": "List all parameters current build target supports",
    "targets": "List all targets current build supports",
    "subrequests.describe": "List available subrequest types",
}


def requests() -> list[dict[str, Any]]:
    """What can be asked for."""
    return [
        {"name": f"frontend.{name}", "version": VERSION, "type": "rpc", "description": text}
        for name, text in _REQUESTS.items()
    ]


def targets(text: str) -> dict[str, Any]:
    """The stages of a Dockerfile. Raises DockerfileError."""
    dockerfile, comments = parse(text), _Comments(text)
    found = []
    for index, stage in enumerate(dockerfile.stages):
        target: dict[str, Any] = {"name": stage.name} if stage.name else {}
        if index == len(dockerfile.stages) - 1:
            target["default"] = True
        if description := comments.of(stage.name, stage.lines):
            target["description"] = description
        target["base"] = stage.base
        if stage.platform:
            target["platform"] = stage.platform
        found.append(target | _location(stage.lines))
    return {"targets": found, "sources": [_source(text)]}


def outline(
    text: str, target: str, build_args: Mapping[str, str], platform: str, here: str
) -> dict[str, Any]:
    """The arguments, secrets and agents that building a target asks for.

    `platform` is what is built for, `here` what the engine runs on. Raises DockerfileError, InvalidParameter.
    """
    dockerfile, comments = parse(text), _Comments(text)
    values = global_arguments(dockerfile, build_args, platform_arguments(platform, here, target))
    plan = make_plan(dockerfile, target, values)
    stage = dockerfile.stages[plan.target]
    found: dict[str, Any] = {"name": stage.name} if stage.name else {}
    if description := comments.of(stage.name, stage.lines):
        found["description"] = description
    arguments = []
    for name, value, lines in _arguments(dockerfile, plan, build_args, values):
        item = {"name": name, "description": comments.of(name, lines), "value": value or ""}
        arguments.append(({key: text for key, text in item.items() if text}, lines))
    found["args"] = _listed(arguments)
    for kind, key in (("secret", "secrets"), ("ssh", "ssh")):
        found[key] = _listed(_mounts(plan, kind))
    return {key: value for key, value in found.items() if value} | {"sources": [_source(text)]}


def _arguments(
    dockerfile: types.Dockerfile, plan: Plan, build_args: Mapping[str, str], values: Mapping[str, str]
) -> Iterator[tuple[str, str | None, types.Lines]]:
    """The arguments of the stages, and those that FROM takes, each with its value and where it is said."""
    above = {each.name: arg.lines for arg in dockerfile.arguments for each in arg.definitions}
    bases = " ".join(f"{planned.stage.base} {planned.stage.platform}" for planned in plan.stages.values())
    for name, lines in above.items():
        if re.search(rf"\$\{{?{re.escape(name)}\b", bases):
            yield name, values.get(name), lines
    known: dict[int | None, dict[str, str]] = {}
    for planned in plan.stages.values():
        seen = known[planned.index] = dict(known.get(planned.base_stage, {}))
        for instruction in planned.stage.instructions:
            if not isinstance(instruction, types.Arg):
                continue
            defined = stage_arguments(instruction, build_args, values, seen, dockerfile.escape)
            seen |= {name: value for name, value in defined.items() if value is not None}
            for definition in instruction.definitions:
                name = definition.name
                taken_over = definition.default is None and name in above
                yield name, defined[name], above[name] if taken_over else instruction.lines


def _mounts(plan: Plan, kind: str) -> Iterator[tuple[dict[str, Any], types.Lines]]:
    for planned in plan.stages.values():
        for instruction in planned.stage.instructions:
            for mount in instruction.mounts if isinstance(instruction, types.Run) else ():
                options = dict(part.partition("=")[::2] for part in mount.flag.split(","))
                if options.get("type") != kind:
                    continue
                default = "default" if kind == "ssh" else (options.get("target") or "").rpartition("/")[2]
                item: dict[str, Any] = {"name": options.get("id") or default}
                if "required" in options and options["required"] in ("", "true", "1"):
                    item["required"] = True
                yield item, instruction.lines


def _listed(items: Any) -> list[dict[str, Any]]:
    """Each name once, in the order of the lines."""
    found: dict[str, dict[str, Any]] = {}
    for item, lines in sorted(items, key=lambda pair: pair[1].start):
        found.setdefault(item["name"], item | _location(lines))
    return list(found.values())


class _Comments:
    """The comments of a Dockerfile that describe what is below them."""

    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()

    def of(self, name: str, lines: types.Lines) -> str:
        """What a comment right above says of a name."""
        at = lines.start - 1
        while name and at > 0 and self._lines[at - 1].lstrip().startswith("#"):
            at -= 1
            comment = self._lines[at].lstrip().removeprefix("#").strip()
            if comment.lower().startswith(f"{name.lower()} "):
                return comment[len(name) :].strip()
        return ""


def _location(lines: types.Lines) -> dict[str, Any]:
    each = ({"line": number} for number in range(lines.start, lines.end + 1))
    return {"location": {"ranges": [{"start": line, "end": line} for line in each]}}


def _source(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
