"""Shared folders of a machine: files and megabytes a second in a container, against the guest's own and this computer's.

    python -m tests.bench.shares [--files N] [--megabytes N] [--rounds N]

The same program runs on a shared folder in a container, in a container's own file system in memory (what the guest
itself can do under this accelerator), and natively.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from host_client.machine import image as images
from host_client.machine.machines import Machine
from tests.bench.peers import docker_cli
from tests.support.images import image as container_image
from tests.vm.conftest import built_image

SOURCE = Path(__file__).with_name("files.c")
Figures = dict[str, float]


def best(rounds: int, command: Sequence[str]) -> Figures:
    """The best figure of each line over some runs."""
    found: Figures = {}
    for _ in range(rounds):
        output = subprocess.run(command, capture_output=True, check=True, text=True).stdout
        for line in output.splitlines():
            name, figure = line.split()
            found[name] = max(found.get(name, 0.0), float(figure))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures shared folders.")
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sizes = [str(options.files), str(options.megabytes)]
    with tempfile.TemporaryDirectory() as home:
        for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
            os.mkdir(os.path.join(home, name), 0o700)
            os.environ[name] = os.path.join(home, name)
        folder = Path(home, "folder")
        folder.mkdir()
        program = folder / "files"
        subprocess.run(["gcc", "-O2", "-static", "-o", program, SOURCE], check=True)
        machine = Machine("bench")
        machine.init(images.install(str(built_image("amd64"))), memory=2 << 30, folders=[str(folder)])
        status = machine.start()
        try:
            docker = [docker_cli(), "-H", f"unix://{status['socket']}"]
            archive = str(container_image("busybox:latest").archive())
            subprocess.run([*docker, "load", "-q", "-i", archive], check=True, capture_output=True)
            inside = [*docker, "run", "--rm", "--tmpfs", "/own", "-v", f"{folder}:/shared"]
            inside += ["busybox", "/shared/files"]
            shared = best(options.rounds, [*inside, "/shared", *sizes])
            own = best(options.rounds, [*inside, "/own", *sizes])
            native = best(options.rounds, [str(program), str(folder), *sizes])
        finally:
            machine.stop()
            machine.remove()
    print(f"accelerator {status['accelerator']}, best of {options.rounds}; files or MB a second")
    print(f"{'':12} {'shared':>10} {'guest own':>10} {'native':>10}  shared/own  shared/native")
    for name, figure in shared.items():
        ratios = f"{figure / own[name]:10.3f} {figure / native[name]:14.4f}"
        print(f"{name:12} {figure:10.0f} {own[name]:10.0f} {native[name]:10.0f} {ratios}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
