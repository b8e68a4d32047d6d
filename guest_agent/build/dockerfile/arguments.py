"""The scopes of ARG: before the first FROM, and in each stage.

Values come, in this order, from `--build-arg`, from the default in the instruction, from the global scope;
Dockerfile reference, "ARG". Predefined proxy variables need no ARG and are seen by RUN only.
"""

from __future__ import annotations

from collections.abc import Mapping

from guest_agent.build.dockerfile.errors import DockerfileError
from guest_agent.build.dockerfile.shell import expand_word
from guest_agent.build.dockerfile.types import Arg, Dockerfile, Stage

# Taken from --build-arg without an ARG, for RUN's environment only; neither in the history nor in the cache
# key.
PROXY_VARIABLES = frozenset(
    name
    for upper in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
    for name in (upper, upper.lower())
)


def platform_arguments(target: str, build: str, stage: str) -> dict[str, str]:
    """TARGETPLATFORM and its kin. `target`, `build`: `os/arch[/variant]`; `stage`: the name of the stage to
    build."""
    values = {"TARGETSTAGE": stage or "default"}
    for prefix, platform in (("BUILD", build), ("TARGET", target)):
        system, _, rest = platform.partition("/")
        architecture, _, variant = rest.partition("/")
        values |= {
            f"{prefix}PLATFORM": platform,
            f"{prefix}OS": system,
            f"{prefix}ARCH": architecture,
            f"{prefix}VARIANT": variant,
        }
    return values


def global_arguments(
    dockerfile: Dockerfile, build_args: Mapping[str, str], platform: Mapping[str, str]
) -> dict[str, str]:
    """What FROM may use and what an ARG without a value takes in a stage. `platform`: of
    `platform_arguments`."""
    values = {name: build_args.get(name, value) for name, value in platform.items()}
    for instruction in dockerfile.arguments:
        defined = _values(instruction, build_args, {}, values, dockerfile.escape)
        values |= {name: value for name, value in defined.items() if value is not None}
    return values


def base(stage: Stage, global_values: Mapping[str, str], escape: str) -> tuple[str, str]:
    """The stage's base and its `--platform` ("": not said), with variables replaced."""
    try:
        name = expand_word(stage.base, global_values, escape)
        if not name:
            raise DockerfileError(f"base name ({stage.base}) should not be blank")
        platform = expand_word(stage.platform, global_values, escape)
        if stage.platform and not platform:
            raise DockerfileError(f"empty platform value from expression {stage.platform}")
    except DockerfileError as error:
        error.lines = stage.lines
        raise
    return name, platform


def stage_arguments(
    instruction: Arg,
    build_args: Mapping[str, str],
    global_values: Mapping[str, str],
    variables: Mapping[str, str],
    escape: str = "\\",
) -> dict[str, str | None]:
    """What an ARG instruction defines in a stage, in order; None: declared without a value.

    `variables`: what is defined in the stage so far; names with a value are to be added to it. As in
    BuildKit each name sees those before it in the same instruction.
    """
    return _values(instruction, build_args, global_values, variables, escape)


def _values(
    instruction: Arg,
    build_args: Mapping[str, str],
    inherited: Mapping[str, str],
    variables: Mapping[str, str],
    escape: str,
) -> dict[str, str | None]:
    values: dict[str, str | None] = {}
    seen = dict(variables)
    for definition in instruction.definitions:
        name, value = definition.name, definition.default
        if name in build_args:
            value = build_args[name]
        elif value is None:
            value = inherited.get(name)
        else:
            try:
                value = expand_word(value, seen, escape)
            except DockerfileError as error:
                error.lines = instruction.lines
                raise
        values[name] = value
        if value is not None:
            seen[name] = value
    return values


def unused(build_args: Mapping[str, str], used: set[str]) -> list[str]:
    """The names given by --build-arg that no ARG asked for, sorted."""
    return sorted(name for name in build_args if name not in used and name not in PROXY_VARIABLES)
