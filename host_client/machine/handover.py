"""What the host hands over to the guest at each boot: the agent's code, how to start it, and its keys.

It is an archive behind the image's own initrd, so it is in the guest's memory before its first instruction,
costs no device, and belongs to exactly the version of Wherry that boots the machine.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import py_compile
import tempfile
from collections.abc import Sequence

from host_client.machine import shares, signatures, surroundings
from host_client.machine.cpio import Cpio
from host_client.machine.errors import MachineError
from host_client.machine.image import Image
from host_client.machine.keys import FILES
from host_client.machine.layout import write_whole

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
# Where the guest keeps what it compiled itself, by version of the code, when the host's Python is another
# than the guest's: caches in the code's own folders are links into it, which every process of the agent's
# follows.
BYTECODE = "/var/lib/wherry/bytecode"


def agent_folder() -> str:
    """The folder of the agent's package, which is never imported on the host. Raises MachineError."""
    spec = importlib.util.find_spec("guest_agent")
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise MachineError(
            "Wherry is not installed completely: the package guest_agent is missing", "Install it again."
        )
    return places[0]


def agent_command(version: str, options: Sequence[str]) -> list[str]:
    """How the guest starts the agent: its init gives it the descriptor 3 to report ready on."""
    command = [PYTHON.format(version=version), "-I", "-S"]
    command += ["-m", "guest_agent", "serve", "--ready-fd", "3", "--host", "unix:///run/wherry/wherry.sock"]
    command += ["--host", f"tcp://{GUEST_ADDRESS}:{API_PORT}", "--tlsverify"]
    command += ["--tlscacert", "/run/host/tls/ca.pem"]
    command += ["--tlscert", "/run/host/tls/server.pem", "--tlskey", "/run/host/tls/server-key.pem"]
    command += ["--host-gateway-ip", HOST_ADDRESS, "--outer-host", PORTS_DEVICE]
    return [*command, *options]


def write_initrd(
    target: str, image: Image, name: str, tls: str, folders: tuple[str, ...] = (), options: Sequence[str] = ()
) -> None:
    """Writes the initrd to boot with:

    the image's, then ours. It holds a private key, so only the user can read it.
    """
    code = _read_package(agent_folder())
    archive = Cpio()
    for folder in ("host", "host/tls", "agent"):
        archive.directory(folder)
    archive.file("host/name", name.encode())
    policy = signatures.policy_file()
    if policy:
        archive.file(f"host/{signatures.FILE}", signatures.policy(policy))
        options = (*options, "--signature-policy", f"/run/host/{signatures.FILE}")
    command = agent_command(image.manifest["python"], options)
    archive.file("host/arguments", "".join(f"{word}\n" for word in command).encode())
    archive.file("host/shares", shares.for_guest(folders))
    environment = [*ENVIRONMENT, *(f"{n}={v}" for n, v in surroundings.proxies(HOST_ADDRESS).items())]
    authorities = surroundings.authorities()
    if authorities:
        archive.file(f"host/{AUTHORITIES}", authorities)
        environment.append(f"SSL_CERT_FILE=/run/host/{AUTHORITIES}")
    archive.file("host/environment", "".join(f"{line}\n" for line in environment).encode())
    for file in FILES:
        if file in ("ca.pem", "server.pem", "server-key.pem"):
            with open(os.path.join(tls, file), "rb") as pem:
                archive.file(f"host/tls/{file}", pem.read(), 0o600)
    if importlib.util.MAGIC_NUMBER[:2] == int(image.manifest["python_magic"]).to_bytes(2, "little"):
        _add_compiled(archive, code, image.manifest["python"])
    else:
        _add_sources(archive, code)
    with open(image.path("initrd"), "rb") as own:
        write_whole(target, own.read() + archive.finish(), 0o600)


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
    """The code, with its caches on the data disk: init makes the folders listed in host/folders."""
    digest = hashlib.sha256(b"".join(path.encode() + b"\0" + data for path, data in code.items())).hexdigest()
    folders = [BYTECODE]
    for package in _packages(code):
        place = f"agent/guest_agent/{package}".rstrip("/")
        cache = f"{BYTECODE}/{digest[:16]}/{package}".rstrip("/")
        folders.append(cache)
        archive.directory(place)
        archive.symlink(f"{place}/__pycache__", cache)
    archive.file("host/folders", "".join(f"{folder}\n" for folder in folders).encode())
    _add_files(archive, code)


def _add_compiled(archive: Cpio, code: dict[str, bytes], python: str) -> None:
    """The code with its bytecode, which the guest's Python takes without looking at the sources."""
    for package in _packages(code):
        place = f"agent/guest_agent/{package}".rstrip("/")
        archive.directory(place)
        archive.directory(f"{place}/__pycache__")
    archive.file("host/folders", b"")
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
