"""What the host hands over to the guest.

What is the same at each boot, the agent's code and how to start it, is an archive behind the image's own
initrd: it is in the guest's memory before its first instruction, costs no device, and belongs to exactly the
version of Wherry that boots the machine. What belongs to one boot (keys, proxies, the agent's arguments) goes
over the control channel when the guest waits for it, so that a saved state of the guest has none of it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import py_compile
import tempfile
from collections.abc import Sequence

from host_client.machine import shares, signatures, surroundings
from host_client.machine.cpio import Cpio
from host_client.machine.errors import MachineError
from host_client.machine.guest import HandedFile
from host_client.machine.image import Image
from host_client.machine.keys import FILES

API_PORT = 2376
GUEST_ADDRESS = "10.0.2.15"
HOST_ADDRESS = "10.0.2.2"
# /tmp may be the host's, shared under its own name.
ENVIRONMENT = (
    "PATH=/usr/sbin:/usr/bin",
    "HOME=/run",
    "TMPDIR=/run/tmp",
    "LANG=C.UTF-8",
    "CRYPTOGRAPHY_OPENSSL_NO_LEGACY=1",  # the image is without OpenSSL's provider of old ciphers
)
AUTHORITIES = "ca-certificates.crt"  # of this host; without it the image's are trusted
PORTS_DEVICE = "/dev/vport0p2"
PYTHON = "/usr/bin/python{version}"
# Where the guest has what it compiled itself, by version of the code, when the host's Python is another than
# the guest's: caches in the code's own folders are links into it, which every process of the agent's follows.
# Its init binds a folder of the data disk there.
BYTECODE = "/run/bytecode"
AGENT_CHANNEL = 3  # a descriptor the guest's init gives the agent
AGENT_FILE = "agent.json"
ENTROPY_BYTES = 256


def agent_folder() -> str:
    """The folder of the agent's package, which is never imported on the host. Raises MachineError."""
    spec = importlib.util.find_spec("guest_agent")
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise MachineError(
            "Wherry is not installed completely: the package guest_agent is missing", "Install it again."
        )
    return places[0]


def agent_arguments(options: Sequence[str]) -> list[str]:
    """What the agent serves with."""
    arguments = ["--host", "unix:///run/wherry/wherry.sock"]
    arguments += ["--host", f"tcp://{GUEST_ADDRESS}:{API_PORT}", "--tlsverify"]
    arguments += ["--tlscacert", "/run/host/tls/ca.pem"]
    arguments += ["--tlscert", "/run/host/tls/server.pem", "--tlskey", "/run/host/tls/server-key.pem"]
    arguments += ["--host-gateway-ip", HOST_ADDRESS, "--outer-host", PORTS_DEVICE]
    return [*arguments, *options]


def boot_archive(image: Image, template: bool) -> bytes:
    """What goes behind the image's initrd, the same at each boot of one version of Wherry.

    `template`: the agent's code is loaded before the guest waits for the rest, for a state worth saving.
    """
    code = _read_package(agent_folder())
    archive = Cpio()
    for folder in ("boot", "agent"):
        archive.directory(folder)
    python = PYTHON.format(version=image.manifest["python"])
    command = [python, "-I", "-S", "-m", "guest_agent", "held", str(AGENT_CHANNEL), f"/run/host/{AGENT_FILE}"]
    archive.file("boot/command", _lines(command))
    archive.file("boot/environment", _lines(ENVIRONMENT))
    if template:
        archive.file("boot/template", b"")
    if importlib.util.MAGIC_NUMBER[:2] == int(image.manifest["python_magic"]).to_bytes(2, "little"):
        _add_compiled(archive, code, image.manifest["python"])
    else:
        _add_sources(archive, code)
    return archive.finish()


def boot_files(
    name: str, tls: str, folders: tuple[str, ...] = (), options: Sequence[str] = ()
) -> list[HandedFile]:
    """What belongs to one boot. `name` is the guest's host name, `tls` the folder of its keys."""
    files = [
        HandedFile("name", name.encode()),
        HandedFile("entropy", os.urandom(ENTROPY_BYTES), 0o600),
        HandedFile("shares", shares.for_guest(folders)),
    ]
    policy = signatures.policy_file()
    if policy:
        files.append(HandedFile(signatures.FILE, signatures.policy(policy)))
        options = (*options, "--signature-policy", f"/run/host/{signatures.FILE}")
    environment = surroundings.proxies(HOST_ADDRESS)
    authorities = surroundings.authorities()
    if authorities:
        files.append(HandedFile(AUTHORITIES, authorities))
        environment["SSL_CERT_FILE"] = f"/run/host/{AUTHORITIES}"
    agent = {"environment": environment, "arguments": agent_arguments(options)}
    files.append(HandedFile(AGENT_FILE, json.dumps(agent).encode()))
    for file in FILES:
        if file in ("ca.pem", "server.pem", "server-key.pem"):
            with open(os.path.join(tls, file), "rb") as pem:
                files.append(HandedFile(f"tls/{file}", pem.read(), 0o600))
    return files


def _lines(words: Sequence[str]) -> bytes:
    return "".join(f"{word}\n" for word in words).encode()


def _read_package(folder: str) -> dict[str, bytes]:
    """The package's files by their path in it, parents before what is in them, without caches."""
    files = {}
    for base, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if f not in ("__pycache__", "src"))
        for name in sorted(names):
            if not name.endswith((".pyc", ".pyo")):
                with open(os.path.join(base, name), "rb") as file:
                    files[os.path.relpath(os.path.join(base, name), folder).replace(os.sep, "/")] = (
                        file.read()
                    )
    return files


def _packages(code: dict[str, bytes]) -> list[str]:
    """Folders with code in them, parents first; "" is the package itself."""
    folders = {""}
    for path in code:
        parts = path.split("/")[:-1]
        folders.update("/".join(parts[: i + 1]) for i in range(len(parts)))
    return sorted(folders)


def _add_sources(archive: Cpio, code: dict[str, bytes]) -> None:
    """The code, with its caches outside: init makes the folders listed in boot/bytecode."""
    digest = hashlib.sha256(b"".join(path.encode() + b"\0" + data for path, data in code.items())).hexdigest()
    folders = []
    for package in _packages(code):
        place = f"agent/guest_agent/{package}".rstrip("/")
        folders.append(f"{digest[:16]}/{package}".rstrip("/"))
        archive.directory(place)
        archive.symlink(f"{place}/__pycache__", f"{BYTECODE}/{folders[-1]}")
    archive.file("boot/bytecode", _lines(folders))
    _add_files(archive, code)


def _add_compiled(archive: Cpio, code: dict[str, bytes], python: str) -> None:
    """The code with its bytecode, which the guest's Python takes without looking at the sources."""
    for package in _packages(code):
        place = f"agent/guest_agent/{package}".rstrip("/")
        archive.directory(place)
        archive.directory(f"{place}/__pycache__")
    archive.file("boot/bytecode", b"")
    _add_files(archive, code)
    tag = f"cpython-{python.replace('.', '')}"
    for path, data in code.items():
        if path.endswith(".py"):
            folder, _, name = f"agent/guest_agent/{path}".rpartition("/")
            compiled = _compile(data, f"/usr/lib/python{python}/guest_agent/{path}")
            archive.file(f"{folder}/__pycache__/{name[:-3]}.{tag}.pyc", compiled)


def _add_files(archive: Cpio, code: dict[str, bytes]) -> None:
    for path, data in code.items():
        program = data[:4] == b"\x7fELF" or data[:2] == b"#!"
        archive.file(f"agent/guest_agent/{path}", data, 0o755 if program else 0o644)


def _compile(source: bytes, shown_as: str) -> bytes:
    """A .pyc that is never compared with its source (PEP 552, unchecked)."""
    with tempfile.TemporaryDirectory() as folder:
        path, cached = os.path.join(folder, "source.py"), os.path.join(folder, "source.pyc")
        with open(path, "wb") as file:
            file.write(source)
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(path, cached, dfile=shown_as, doraise=True, invalidation_mode=mode)
        with open(cached, "rb") as file:
            return file.read()
