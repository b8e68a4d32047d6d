"""Which accelerator works here: tried by a short boot of the real kernel, and remembered with QEMU's version.

A device that can be opened proves nothing: nested virtualisation may hang or abort at the guest's first
instructions.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import threading

from host_client.machine import system
from host_client.machine.channels import Channels
from host_client.machine.command import Channel, Platform, command_line, probe_flags
from host_client.machine.image import Image
from host_client.machine.layout import cache_folder, write_whole
from host_client.machine.qemu import Qemu

FIRST_SIGN_SECONDS = (
    3.0  # for the kernel's first line: it takes a tenth of a second where virtualisation works
)
PROBE_SECONDS = 10.0
BY_SYSTEM = {"linux": ("kvm",), "darwin": ("hvf",), "win32": ("whpx",)}


def candidates(host_system: str, host_arch: str, guest_arch: str) -> tuple[str, ...]:
    """What could work, the fastest first; TCG, which always works, is the last."""
    if host_arch != guest_arch:
        return ("tcg",)
    return (*BY_SYSTEM.get(host_system, ()), "tcg")


def choose(qemu: Qemu, image: Image, again: bool = False) -> tuple[str, str]:
    """The accelerator, and why a faster one was left out ("" when none was)."""
    why = ""
    for name in candidates(sys.platform, system.host_arch(), image.arch):
        if name == "tcg":
            break
        reason = _verdict(name, qemu, image, again)
        if not reason:
            return name, ""
        why = reason
    return "tcg", why


def _verdict(name: str, qemu: Qemu, image: Image, again: bool) -> str:
    """ "" when it works, otherwise why not;

    remembered until QEMU, the image or the host's kernel is another.
    """
    path = cache_folder("accelerators.json")
    key = "|".join((name, qemu.program, qemu.version_text, image.identity[:16], platform.release()))
    try:
        with open(path) as file:
            known: dict[str, str] = json.load(file)
    except (OSError, ValueError):
        known = {}
    if again or key not in known:
        known = {
            other: reason
            for other, reason in known.items()
            if not other.startswith(f"{name}|{qemu.program}|")
        }
        known[key] = probe(name, qemu, image)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_whole(path, json.dumps(known, indent=1).encode())
    return known[key]


def probe(name: str, qemu: Qemu, image: Image) -> str:
    """Boots the image's kernel to its init, which powers off at once. "" when it did, otherwise why not."""
    if name == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm is missing or this user may not open it"
    channels = Channels(("console",))
    try:
        channel: Channel = channels.for_qemu()["console"]
        options = probe_flags(
            Platform(sys.platform, image.arch, name, qemu.version),
            image.path("kernel"),
            image.path("initrd"),
            channel,
        )
        process = subprocess.Popen(
            command_line(qemu.program, options),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=() if system.IS_WINDOWS else channels.inherited(),
        )
        channels.started()
        return _watch(name, process, channels)
    except OSError as error:
        return f"{qemu.program} does not start: {error.strerror}"
    finally:
        channels.close()


def _watch(name: str, process: subprocess.Popen[bytes], channels: Channels) -> str:
    console = channels.blocking("console", FIRST_SIGN_SECONDS)
    signs = threading.Event()

    def read() -> None:
        try:
            while console.recv(65536):
                signs.set()
        except OSError:
            pass
        signs.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        if not signs.wait(FIRST_SIGN_SECONDS):
            return f"with {name} a virtual machine does not execute its first instructions"
        try:
            status = process.wait(PROBE_SECONDS)
        except subprocess.TimeoutExpired:
            return f"with {name} a virtual machine hangs while it boots"
        assert process.stderr is not None
        said = process.stderr.read().decode(errors="replace").strip()
        if status:
            first = said.splitlines()[0] if said else "no message"
            return f"QEMU with {name} ended with status {status}: {first}"
        return ""
    finally:
        process.kill()
        process.wait()
        console.shutdown(socket.SHUT_RDWR)  # ends the reader, whoever else has the other end
        reader.join()
        console.close()
