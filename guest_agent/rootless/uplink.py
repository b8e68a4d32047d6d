"""The way out of the engine's network namespace: pasta, else slirp4netns, run by the user outside of it.

Addresses are the ones slirp has always had: the namespace is 10.0.2.100, its gateway 10.0.2.2, and 10.0.2.3
answers DNS questions by way of the host's name server. The host's own loopback is out of reach.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile

from guest_agent.kernel import syscalls

PROGRAMS = ("pasta", "slirp4netns")
NAME_SERVER = "10.0.2.3"
INTERFACE = "tap0"
_ADDRESS, _GATEWAY, _BITS, _MTU = "10.0.2.100", "10.0.2.2", 24, 65520


class Uplink:
    """A running program; it ends with the process that started it."""

    def __init__(self, program: str, arguments: list[str]) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the program
        self._process = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
            preexec_fn=_die_with_us,
        )

    def check(self) -> None:
        """Raises OSError with what it said when it has ended."""
        if self._process.poll() is None:
            return
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        told = [line for line in lines if "syslog" not in line]
        raise OSError(0, told[-1] if told else f"it ended with {self._process.returncode}")

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait()
        self._said.close()


def start(name: str, userns: str, netns: str) -> Uplink:
    """Starts one of PROGRAMS for two namespaces by their paths, in /proc of a process inside the first:
    pasta enters that before it looks for the other.

    It is ready when INTERFACE has a default route. Raises OSError.
    """
    program = shutil.which(name)
    if program is None:
        raise OSError(0, "not installed")
    return Uplink(program, _pasta(userns, netns) if name == "pasta" else _slirp(userns, netns))


def _pasta(userns: str, netns: str) -> list[str]:
    return [
        *("--foreground", "--quiet", "--config-net", "--no-map-gw", "--ipv4-only", "--no-dhcp", "--no-ra"),
        "--no-netns-quit",
        *("--ns-ifname", INTERFACE, "--mtu", str(_MTU), "--dns-forward", NAME_SERVER),
        *("--address", _ADDRESS, "--netmask", str(_BITS), "--gateway", _GATEWAY),
        *("--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none"),
        *("--userns", userns, "--netns", netns),
    ]


def _slirp(userns: str, netns: str) -> list[str]:
    return [
        *("--configure", "--mtu", str(_MTU), "--disable-host-loopback"),
        *("--netns-type=path", f"--userns-path={userns}", netns, INTERFACE),
    ]


def _die_with_us() -> None:
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGTERM)
