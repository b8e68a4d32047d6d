"""RUN: a process on the stage's layers, with what `--mount` gives it; what it writes is the layer."""

from __future__ import annotations

import os
import posixpath
import re
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import msgspec

from guest_agent.build import settings
from guest_agent.build.dockerfile import types
from guest_agent.build.failure import StepFailed
from guest_agent.build.mounting import Mounting
from guest_agent.build.request import StepInfo
from guest_agent.build.state import key_of
from guest_agent.engine.container_config import ContainerConfig, HostConfig
from guest_agent.engine.unlisted import Step
from guest_agent.errors import Forbidden, InvalidParameter
from guest_agent.images import platforms
from guest_agent.images.step_layer import take_layer
from guest_agent.images.store import LayerRow
from guest_agent.threads import to_the_end

if TYPE_CHECKING:
    from guest_agent.build.steps import Outcome, StageRun

_ONLY_HEREDOC = re.compile(r"""<<-?\s*(["']?)(\S+?)\1\s*""")
_SCRIPTS = "/dev/pipes"


async def prepare(stage: StageRun, instruction: types.Run) -> Outcome:
    """What a RUN is to do. Raises Forbidden, InvalidParameter."""
    from guest_agent.build.steps import Outcome

    around = stage.around
    if instruction.security == "insecure" and not around.request.allow_insecure:
        raise Forbidden(
            "granting entitlement security.insecure is not allowed by build daemon configuration",
            "Leave --security=insecure out.",
        )
    if instruction.devices and any(device.required for device in instruction.devices):
        raise InvalidParameter(
            f"device {instruction.devices[0].name} is not available: no CDI devices are registered"
        )
    words, script = command(stage, instruction)
    counted, proxies = stage.run_arguments()
    mounting = Mounting(stage, instruction)
    config = stage.state.config
    network = {"default": around.request.host.network_mode or "default"}.get(
        instruction.network, instruction.network
    )
    key = key_of(
        "run",
        stage.state.chain,
        [config.get("Env"), config.get("User"), config.get("WorkingDir")],
        [words, script, counted, network, instruction.security],
        await mounting.keys(),
        [str(stage.platform), around.epoch],
    )
    shown = " ".join(words)
    if counted:
        shown = f"|{len(counted)} {' '.join(counted)} {shown}"

    async def made(step: StepInfo) -> LayerRow | None:
        return await _execute(stage, instruction, step, words, script, counted + proxies, mounting, network)

    kind = "exec.cachemount" if any(mount.type == "cache" for mount in instruction.mounts) else "regular"
    return Outcome(stage.state, shown, key, instruction.code, kind, made)


def command(stage: StageRun, instruction: types.Run) -> tuple[list[str], str]:
    """The words to execute, and the script that one of them names, "" for none."""
    line = instruction.command
    if not line.files:
        return settings.command_words(stage.state, line), ""
    text = line.arguments[0]
    if len(line.files) == 1 and _ONLY_HEREDOC.fullmatch(text):
        file = line.files[0]
        content = _without_tabs(file.content) if file.strip_tabs else file.content
        if content.startswith("#!"):
            return [f"{_SCRIPTS}/{os.path.basename(file.name) or 'script'}"], content
        return [*stage.state.shell, content], ""
    whole = [text]
    for file in line.files:
        whole.append(file.content + file.name)
    return [*stage.state.shell, "\n".join(whole) + "\n"], ""


def _without_tabs(text: str) -> str:
    return "".join(line.lstrip("\t") for line in text.splitlines(keepends=True))


async def _execute(
    stage: StageRun,
    instruction: types.Run,
    step: StepInfo,
    words: list[str],
    script: str,
    arguments: list[str],
    mounting: Mounting,
    network: str,
) -> LayerRow | None:
    around, state = stage.around, stage.state
    if not platforms.can_run(state.platform):
        raise InvalidParameter(
            f"programs of {state.platform} cannot run here: no emulation of it is registered",
            "Register one in binfmt_misc: install qemu-user-static where the engine runs, or "
            f"'docker run --privileged --rm tonistiigi/binfmt --install {state.platform.architecture}'.",
        )
    config = ContainerConfig(
        user=str(state.config.get("User") or ""),
        env=[*arguments, *(state.config.get("Env") or ())],
        working_dir=posixpath.normpath(str(state.config.get("WorkingDir") or "/")),
        cmd=words,
    )
    host = msgspec.convert(msgspec.to_builtins(around.request.host), HostConfig)
    host.network_mode = "bridge" if network == "default" else network
    host.privileged = instruction.security == "insecure"
    if host.privileged:
        host.userns_mode = "host"  # as with `docker run --privileged`, under userns-remap, too
    async with AsyncExitStack() as stack:
        container = await stack.enter_async_context(Step(around.engine, state.chains, config, host))
        container.container.record.platform = {
            "os": state.platform.os,
            "architecture": state.platform.architecture,
            "variant": state.platform.variant,
        }
        await mounting.enter(stack, container)
        if script:
            mounting.script(container, words[0], script)
        around.listener.running(step, container.id)
        ended = await container.run(lambda stream, data: around.listener.output(step, stream, data))
        if ended.code:
            text = " ".join(words)
            raise StepFailed(
                f"The command '{text}' returned a non-zero code: {ended.code}",
                ended.code,
                "The kernel ended it for want of memory." if ended.oom_killed else "",
            )
        await mounting.leave(container)
        return await to_the_end(
            lambda: take_layer(around.engine.images, around.lease, container.id, state.diffs, around.epoch),
            "build-layer",
        )
