"""A virtual machine with systemd and cgroup v2, and an ordinary user in it who has installed Wherry."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

from tests.support.bare import Machine
from tests.support.images import image

USER = "runner"
_BOOT_SECONDS = 240
_SSH = (
    "-q",
    "-o",
    "StrictHostKeyChecking=no",
    "-o",
    "UserKnownHostsFile=/dev/null",
    "-o",
    "ConnectTimeout=5",
)
_INSTALL = f"""
useradd --create-home --shell /bin/bash {USER}
mkdir -p /var/lib/systemd/linger && touch /var/lib/systemd/linger/{USER}
mkdir -m 700 /home/{USER}/.ssh && cp /key.pub /home/{USER}/.ssh/authorized_keys
cp -r /mnt /home/{USER}/source && chown -R {USER}: /home/{USER}
systemctl enable systemd-networkd
su {USER} -c 'cd ~/source && HOME=~ ./install.sh'
"""
_NETWORK = "[Match]\nName=e*\n[Network]\nDHCP=ipv4\n"


class SystemdMachine:
    """Made and booted, emulated; `close` ends it. `folder` is an empty one for its files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        root = folder / "root"
        root.mkdir(mode=0o755)
        image("systemd:latest").unpack(root)
        self._key = folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._key], check=True)
        (root / "key.pub").write_text(self._key.with_suffix(".pub").read_text())
        (root / "etc/systemd/network/all.network").write_text(_NETWORK)
        (root / "etc/hostname").write_text("systemd\n")
        installed = Machine(root).run(_INSTALL)
        assert installed.returncode == 0, installed.stderr
        disk = folder / "disk"
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", root, disk, "4G"], check=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port: int = free.getsockname()[1]
        self._console = folder / "console"
        boot = root / "boot"
        command = [
            "qemu-system-x86_64",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-m",
            "1536",
            "-smp",
            "2",
        ]
        command += ["-nodefaults", "-no-reboot", "-display", "none", "-serial", f"file:{self._console}"]
        command += [
            "-kernel",
            str(next(boot.glob("vmlinuz-*"))),
            "-initrd",
            str(next(boot.glob("initrd.img-*"))),
        ]
        command += ["-append", "root=/dev/vda rw console=ttyS0 quiet", "-device", "virtio-rng-pci"]
        command += ["-drive", f"file={disk},if=virtio,format=raw,discard=unmap"]
        command += ["-nic", f"user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:{self._port}-:22"]
        self._process = subprocess.Popen(command)
        limit = time.monotonic() + _BOOT_SECONDS
        while self.run("true").returncode:
            assert time.monotonic() < limit, self._console.read_text(errors="replace")[-2000:]
            time.sleep(1)

    def run(self, script: str, input: bytes | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a shell script as the user, in a session of systemd's, with what `install.sh` put on PATH."""
        command = ["ssh", *_SSH, "-i", str(self._key), "-p", str(self._port), f"{USER}@127.0.0.1"]
        command.append('export PATH="$HOME/.local/bin:$PATH"\n' + script)
        done = subprocess.run(command, input=input or b"", capture_output=True)
        return subprocess.CompletedProcess(
            command, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    def ok(self, script: str, input: bytes | None = None) -> str:
        """The output of a script that must succeed, without the last newline."""
        done = self.run(script, input)
        assert done.returncode == 0, (script, done.stdout, done.stderr)
        return done.stdout.removesuffix("\n")

    def close(self) -> None:
        """Ends it as a power failure does."""
        self._process.kill()
        self._process.wait()
