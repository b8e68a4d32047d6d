"""The machine's boot: power-on to the first container's output, against the bare kernel under the same accelerator.

    python -m tests.bench.vm [--rounds N]

Prints the ratio (the design's budget is 2) and where the time goes, for both ways a machine starts: "boots" from the
kernel on, as a first start does and every one with `--warm-start=false`, and "resumes" from its saved state, as all
others do where QEMU can save one. Power-on is the start of QEMU's process; the bare kernel boots the same file to a
busybox init that writes one line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from host_client.machine import image as images
from host_client.machine import qemu
from host_client.machine.channels import Channels
from host_client.machine.command import Platform, command_line, probe_flags
from host_client.machine.cpio import Cpio
from host_client.machine.machines import Machine
from tests.bench.peers import docker_cli
from tests.support.images import image as container_image
from tests.vm.conftest import built_image

BUSYBOX = "/bin/busybox"
LINE = b"first line of init"
MEMORY = 1 << 30


def bare_initrd(path: str) -> None:
    archive = Cpio()
    for folder in ("dev", "bin"):
        archive.directory(folder)
    archive.device("dev/console", 5, 1)
    archive.file("bin/busybox", Path(BUSYBOX).read_bytes(), 0o755)
    archive.file("init", b"#!/bin/busybox sh\necho " + LINE + b"\n/bin/busybox poweroff -f\n", 0o755)
    Path(path).write_bytes(archive.finish())


def boot_bare(picture: images.Image, accelerator: str, initrd: str) -> float:
    """Seconds from QEMU's start to the line of the bare kernel's init."""
    program = qemu.find(picture.arch)
    channels = Channels(("console",))
    platform = Platform(sys.platform, picture.arch, accelerator, program.version)
    options = probe_flags(platform, picture.path("kernel"), initrd, channels.for_qemu()["console"])
    words = [word.replace("loglevel=6", "quiet") for word in command_line(program.program, options)]
    words[words.index("-m") + 1] = str(MEMORY >> 20)
    started = time.perf_counter()
    with subprocess.Popen(words, pass_fds=channels.inherited()) as process:
        channels.started()
        said = b""
        with channels.blocking("console", 60) as console:
            while LINE not in said:
                said += console.recv(4096)
            seconds = time.perf_counter() - started
            process.kill()
    return seconds


def boot_ours(machine: Machine, docker: list[str], resumes: bool) -> dict[str, float]:
    """Seconds since QEMU's start by stage, the first container's output last."""
    started = 0.0

    def note(message: dict[str, object]) -> None:
        nonlocal started
        if str(message.get("step", "")).startswith(("Booting", "Resuming")):
            started = time.perf_counter()

    status = machine.start(note)
    ready = time.perf_counter()
    command = [*docker, "-H", f"unix://{status['socket']}", "run", "--rm", "busybox", "echo", "first"]
    output = subprocess.run(command, capture_output=True, check=True).stdout
    now = time.perf_counter()
    assert output == b"first\n"
    assert status["resumed"] == resumes
    machine.stop()
    in_guest = {name: value / 1000 for name, value in status["boot_milliseconds"].items()}
    before = (ready - started) - in_guest["ready"]  # QEMU's own start, and its reading of a saved state
    stages = {name: before + value for name, value in in_guest.items()}
    return {"guest's first instruction": before} | stages | {"first container's output": now - started}


def show(way: str, bare: list[float], ours: list[dict[str, float]]) -> None:
    best = min(ours, key=lambda stages: stages["first container's output"])
    print(f"\n{'bare kernel to busybox init':30} {min(bare):6.2f} s")
    print(f"the machine {way}:")
    last = 0.0
    for name, seconds in best.items():
        print(f"  {name:28} {seconds:6.2f} s   +{seconds - last:.2f}")
        last = seconds
    print(f"ratio {last / min(bare):.2f} (budget 2)")
    print(json.dumps({"bare": bare, way: [stages["first container's output"] for stages in ours]}))


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures the machine's boot.")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as home:
        for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
            os.mkdir(os.path.join(home, name), 0o700)
            os.environ[name] = os.path.join(home, name)
        picture = images.install(str(built_image("amd64")))
        machine = Machine("bench")
        machine.init(picture, cpus=2, memory=MEMORY)
        first = machine.start()  # makes the file system and compiles the agent
        load = [
            "-H",
            f"unix://{first['socket']}",
            "load",
            "-q",
            "-i",
            str(container_image("busybox:latest").archive()),
        ]
        subprocess.run([docker_cli(), *load], check=True, capture_output=True)
        machine.stop()
        initrd = os.path.join(home, "bare")
        bare_initrd(initrd)
        print(f"accelerator {first['accelerator']}, best of {rounds}")
        for resumes in (False, True):
            machine.set(warm_start=resumes)
            machine.start()  # compiles what is not, saves the state
            machine.stop()
            bare, ours = [], []
            for _ in range(rounds):
                bare.append(boot_bare(picture, first["accelerator"], initrd))
                ours.append(boot_ours(machine, [docker_cli()], resumes))
            show("resumes" if resumes else "boots", bare, ours)
        print(f"saved state: {os.path.getsize(machine.layout.template) / (1 << 20):.0f} MiB")
        machine.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
