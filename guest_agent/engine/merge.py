"""A container's configuration over its image's, by Docker's rules."""

from __future__ import annotations

from typing import Any

import msgspec

from guest_agent.errors import InvalidParameter

from .container_config import ContainerConfig, HealthConfig


def merge_image_config(config: ContainerConfig, image: dict[str, Any]) -> None:
    """Fills in from the image what the user left open; `image` is the `config` of an OCI image configuration.

    Raises InvalidParameter when there is nothing to run.
    """
    fill_from(config, image)
    if not config.entrypoint and not config.cmd:
        raise InvalidParameter("no command specified")


def fill_from(config: ContainerConfig, image: dict[str, Any]) -> None:
    """Takes over what `config` leaves open. A given entrypoint discards the other command."""
    config.user = config.user or image.get("User") or ""
    config.exposed_ports = {**(image.get("ExposedPorts") or {}), **(config.exposed_ports or {})} or None
    mine = {entry.partition("=")[0] for entry in config.env or ()}
    inherited = [entry for entry in image.get("Env") or () if entry.partition("=")[0] not in mine]
    config.env = [*(config.env or ()), *inherited] or None
    config.labels = {**(image.get("Labels") or {}), **(config.labels or {})}
    if not config.entrypoint:
        if not config.cmd:
            config.cmd = image.get("Cmd") or config.cmd
        if config.entrypoint is None:
            config.entrypoint = image.get("Entrypoint") or None
    if image.get("Healthcheck"):
        _merge_health(config, image["Healthcheck"])
    config.working_dir = config.working_dir or image.get("WorkingDir") or ""
    config.volumes = {**(image.get("Volumes") or {}), **(config.volumes or {})} or None
    config.stop_signal = config.stop_signal or image.get("StopSignal") or ""
    config.shell = config.shell or image.get("Shell")
    config.on_build = image.get("OnBuild") or config.on_build
    if config.entrypoint == [""]:
        config.entrypoint = None


def _merge_health(config: ContainerConfig, image: Any) -> None:
    try:
        base = msgspec.convert(image, HealthConfig)
    except msgspec.ValidationError as error:
        raise InvalidParameter(f"the image's health check cannot be read: {error}")
    own = config.healthcheck
    if own is None:
        config.healthcheck = base
        return
    own.test = own.test or base.test
    for name in ("interval", "timeout", "start_period", "start_interval", "retries"):
        setattr(own, name, getattr(own, name) or getattr(base, name))
