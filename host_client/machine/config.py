"""What a user chooses of a machine, and the defaults taken from the host."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

from host_client.machine.errors import MachineError
from host_client.machine.layout import Layout, write_whole

MIB = 1 << 20
GIB = 1 << 30
MEMORY_MIN = 512 * MIB
DISK_MIN, DISK_MAX, DISK_DEFAULT = 2 * GIB, 16 << 40, 100 * GIB


@dataclass(frozen=True)
class Config:
    """A machine as it is to be at its next start."""

    arch: str  # amd64 or arm64
    image: str  # folder of the image, see `image`
    cpus: int
    memory: int  # bytes
    disk: int  # bytes the data disk may grow to
    created: float  # seconds since the epoch
    shares: tuple[str, ...] = ()  # folders of the host
    idle_stop: int = 0  # minutes without containers and clients after which the machine sleeps; 0: never
    warm_start: bool = True  # go on from a saved state where that works

    def check(self) -> Config:
        """Itself. Raises MachineError for a size that cannot work."""
        if self.cpus < 1:
            raise MachineError(f"a machine cannot have {self.cpus} CPUs", "Give it at least one.")
        if self.memory < MEMORY_MIN:
            raise MachineError(
                f"{self.memory // MIB} MiB of memory are too few",
                f"Give it at least {MEMORY_MIN // MIB} MiB.",
            )
        if self.idle_stop < 0:
            raise MachineError(
                f"a machine cannot be stopped after {self.idle_stop} minutes", "Use 0 for never."
            )
        if not DISK_MIN <= self.disk <= DISK_MAX:
            raise MachineError(
                f"a data disk cannot have {self.disk / GIB:g} GiB",
                f"Choose from {DISK_MIN // GIB} to {DISK_MAX // GIB} GiB; it takes what is used, not more.",
            )
        return self


def default_memory(host_memory: int) -> int:
    """A quarter of the host's memory, between 1 and 8 GiB, whole MiB: unused memory is given back anyway."""
    return max(GIB, min(8 * GIB, host_memory // 4)) // MIB * MIB


def default_cpus(host_cpus: int) -> int:
    """All of them, at most 8: the host's scheduler shares them."""
    return max(1, min(8, host_cpus))


def load(layout: Layout) -> Config:
    """The machine's configuration.

    Raises MachineError when there is no such machine or the file is damaged.
    """
    try:
        with open(layout.config) as file:
            values = json.load(file)
            return Config(**values | {"shares": tuple(values.get("shares", ()))})
    except FileNotFoundError:
        raise MachineError(
            f"there is no machine {layout.name}", f"Make it with: wherry machine init {layout.name}"
        )
    except (ValueError, TypeError) as error:
        raise MachineError(f"the machine's file {layout.config} is damaged: {error}", "Remove the machine.")


def save(layout: Layout, config: Config) -> None:
    os.makedirs(layout.folder, mode=0o700, exist_ok=True)
    write_whole(layout.config, (json.dumps(asdict(config), indent=1) + "\n").encode())
