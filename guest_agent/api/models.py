"""Bodies of requests about containers, execs and volumes, as Docker's API has them."""

from __future__ import annotations

from typing import TypeVar

from msgspec import Struct, field

from guest_agent.engine.container_config import (
    ContainerConfig,
    EndpointSettings,
    HostConfig,
    Resources,
    RestartPolicy,
    docker_name,
)

T = TypeVar("T", bound=Struct)


class NetworkingConfig(Struct, rename=docker_name):
    """The networks a new container is to join, by name or id."""

    endpoints_config: dict[str, EndpointSettings | None] = field(default_factory=dict)


class CreateHostConfig(HostConfig, rename=docker_name):
    """HostConfig with what only a request may say."""

    capabilities: list[str] | None = None  # API 1.40 alone


class CreateContainer(ContainerConfig, rename=docker_name):
    """`POST /containers/create`: the container's configuration, with the host's and the networks'."""

    entrypoint: list[str] | str | None = None  # type: ignore[assignment]
    cmd: list[str] | str | None = None  # type: ignore[assignment]
    shell: list[str] | str | None = None  # type: ignore[assignment]
    host_config: CreateHostConfig = field(default_factory=CreateHostConfig)
    networking_config: NetworkingConfig = field(default_factory=NetworkingConfig)


class UpdateContainer(Resources, rename=docker_name):
    """`POST /containers/{id}/update`."""

    restart_policy: RestartPolicy = field(default_factory=RestartPolicy)


class CreateExec(Struct, rename=docker_name):
    """`POST /containers/{id}/exec`."""

    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    detach_keys: str = ""
    tty: bool = False
    env: list[str] | None = None
    cmd: list[str] | str | None = None
    privileged: bool = False
    user: str = ""
    working_dir: str = ""
    console_size: tuple[int, int] | None = None


class StartExec(Struct, rename=docker_name):
    """`POST /exec/{id}/start`."""

    detach: bool = False
    tty: bool = False
    console_size: tuple[int, int] | None = None


class CreateVolume(Struct, rename=docker_name):
    """`POST /volumes/create`."""

    name: str = ""
    driver: str = ""
    driver_opts: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    cluster_volume_spec: dict[str, object] | None = None


def words(value: list[str] | str | None) -> list[str] | None:
    """A command as a list; Docker also takes a single string."""
    return [value] if isinstance(value, str) else value


def plain(value: Struct, type: type[T]) -> T:
    """The part of a request that belongs to a base class of its type."""
    return type(*(getattr(value, name) for name in type.__struct_fields__))
