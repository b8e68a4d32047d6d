"""A machine in one file: its configuration and data disk, in a zstd-compressed tar archive."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import tarfile
import time

from host_client.machine import config, image, keys, qcow2, zstd
from host_client.machine.errors import MachineError
from host_client.machine.machines import Machine

CONFIG, DISK = "machine.json", "data.qcow2"
CONFIG_MAX = 64 * 1024


def export(machine: Machine, path: str) -> int:
    """Writes a stopped machine to a file; the file's size. Raises MachineError."""
    machine.must_be_stopped()
    settings = json.dumps(dataclasses.asdict(config.load(machine.layout))).encode()
    partial = f"{path}.{os.getpid()}.tmp"
    try:
        with zstd.opened(partial, "wb") as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
            entry = tarfile.TarInfo(CONFIG)
            entry.size = len(settings)
            archive.addfile(entry, io.BytesIO(settings))
            with open(machine.layout.disk, "rb") as disk:
                entry = tarfile.TarInfo(DISK)
                entry.size = os.fstat(disk.fileno()).st_size
                archive.addfile(entry, disk)
        os.replace(partial, path)
    except OSError as error:
        raise MachineError(f"cannot write machine {machine.name} to {path}: {error.strerror}")
    finally:
        if os.path.exists(partial):
            os.unlink(partial)
    return os.path.getsize(path)


def load(machine: Machine, path: str, picture: image.Image) -> None:
    """Makes a machine from an exported file, with an image of this host. Raises MachineError."""
    if machine.exists():
        raise MachineError(
            f"machine {machine.name} exists already", "Choose another name, or remove it first."
        )
    try:
        with zstd.opened(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            settings = _settings(archive, path)
            entry = archive.next()
            disk = archive.extractfile(entry) if entry and entry.name == DISK and entry.isfile() else None
            if disk is None:
                raise MachineError(
                    f"{path} has no data disk where one was expected", "Export the machine again."
                )
            os.makedirs(machine.layout.folder, mode=0o700, exist_ok=True)
            with open(machine.layout.disk, "wb") as target:
                shutil.copyfileobj(disk, target, 1 << 20)
        if qcow2.virtual_size(machine.layout.disk) != settings.disk:
            raise MachineError(
                f"the data disk in {path} has not the size the machine had", "Export it again."
            )
        keys.make_keys(machine.layout.tls, machine.name)
        made = dataclasses.replace(settings, arch=picture.arch, image=picture.folder, created=time.time())
        config.save(machine.layout, made)
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        raise MachineError(f"{path} is not an exported machine, or is damaged: {error}")
    finally:
        if not machine.exists():
            shutil.rmtree(machine.layout.folder, ignore_errors=True)


def _settings(archive: tarfile.TarFile, path: str) -> config.Config:
    entry = archive.next()
    file = archive.extractfile(entry) if entry and entry.name == CONFIG and entry.size < CONFIG_MAX else None
    if file is None:
        raise MachineError(
            f"{path} does not begin with a machine's configuration", "Is it an exported machine?"
        )
    try:
        return config.Config(**json.load(file)).check()
    except (ValueError, TypeError) as error:
        raise MachineError(f"the configuration in {path} is damaged: {error}")
