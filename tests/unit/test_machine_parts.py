"""The small parts of a machine: disks, keys, names, sizes, locks, channels, the console's log."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from host_client.machine import config, keys, layout, qcow2, qemu, system
from host_client.machine.accelerator import candidates
from host_client.machine.console import LOG_BYTES, ConsoleLog
from host_client.machine.errors import MachineError
from host_client.machine.layout import Layout


def qemu_img(*arguments: str) -> str:
    return subprocess.run(["qemu-img", *arguments], capture_output=True, text=True, check=True).stdout


def test_a_new_disk_is_sound_and_empty(tmp_path: Path) -> None:
    path = str(tmp_path / "disk")
    qcow2.create(path, 100 << 30)
    info = json.loads(qemu_img("info", "--output=json", path))
    assert (info["format"], info["virtual-size"]) == ("qcow2", 100 << 30)
    assert qcow2.virtual_size(path) == 100 << 30
    assert json.loads(qemu_img("check", "--output=json", path))["check-errors"] == 0
    assert os.path.getsize(path) < 1 << 20


def test_a_disk_grows_and_keeps_its_content(tmp_path: Path) -> None:
    path = str(tmp_path / "disk")
    qcow2.create(path, 2 << 30)
    subprocess.run(["qemu-io", "-c", "write -P 7 1G 64k", path], check=True, capture_output=True)
    qcow2.grow(path, 16 << 40)
    output = subprocess.run(
        ["qemu-io", "-c", "read -P 7 1G 64k", "-c", "write -P 8 9T 64k", path],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "Pattern verification failed" not in output
    qemu_img("check", path)
    with pytest.raises(ValueError, match="cannot be made smaller"):
        qcow2.grow(path, 1 << 30)


def test_a_file_that_is_no_disk_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a disk at all, whatever its name is")
    with pytest.raises(ValueError, match="not a qcow2 image"):
        qcow2.virtual_size(str(tmp_path / "text"))


def test_keys_authenticate_both_sides_and_only_the_user_reads_them(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    keys.make_keys(str(folder), "dev")
    assert sorted(os.listdir(folder)) == sorted(keys.FILES)
    for name in ("key.pem", "server-key.pem"):
        assert (folder / name).stat().st_mode & 0o077 == 0
    for certificate, purpose in (("server.pem", "sslserver"), ("cert.pem", "sslclient")):
        verify = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile"]
        subprocess.run(
            [*verify, str(folder / "ca.pem"), str(folder / certificate)], check=True, capture_output=True
        )
        other = {"sslserver": "sslclient", "sslclient": "sslserver"}[purpose]
        files = [str(folder / "ca.pem"), str(folder / certificate)]
        wrong = ["openssl", "verify", "-purpose", other, "-CAfile", *files]
        assert subprocess.run(wrong, capture_output=True).returncode


@pytest.mark.parametrize("name", ["", "-a", "A", "a/b", "..", "a" * 41, "a b", "ü"])
def test_names_that_cannot_be_machines(name: str) -> None:
    with pytest.raises(MachineError, match="cannot be a machine's name"):
        Layout(name)


def test_socket_paths_fit_however_long_the_users_name_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("x" * 150)))
    (tmp_path / ("x" * 150)).mkdir(mode=0o700)
    first, second = Layout("a"), Layout("b")
    assert len(first.api_socket) <= layout.SOCKET_PATH_MAX
    assert first.sockets != second.sockets


def test_sizes_come_from_the_host_and_are_checked() -> None:
    assert config.default_memory(64 << 30) == 8 << 30
    assert config.default_memory(2 << 30) == 1 << 30
    assert config.default_memory(17_179_869_000) == 4095 << 20
    assert config.default_cpus(64) == 8
    good = config.Config("amd64", "/i", 1, 1 << 30, 10 << 30, 0.0)
    assert good.check() is good
    for cpus, memory, disk in ((0, 1 << 30, 10 << 30), (1, 1 << 20, 10 << 30), (1, 1 << 30, 1 << 20)):
        with pytest.raises(MachineError):
            config.Config("amd64", "/i", cpus, memory, disk, 0.0).check()


def test_a_damaged_configuration_names_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    place = Layout("dev")
    with pytest.raises(MachineError, match="there is no machine dev"):
        config.load(place)
    config.save(place, config.Config("amd64", "/i", 1, 1 << 30, 10 << 30, 0.0))
    assert config.load(place).cpus == 1
    assert layout.machine_names() == ["dev"]
    Path(place.config).write_text('{"cpus": 1}')
    with pytest.raises(MachineError, match=r"machine\.json is damaged"):
        config.load(place)


def test_one_process_holds_a_lock_until_it_ends(tmp_path: Path) -> None:
    path = str(tmp_path / "folder" / "lock")
    code = (
        "import sys; from host_client.machine.system import Lock; lock = Lock(sys.argv[1]);"
        "assert lock.take(); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdin=-1, stdout=-1) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        lock = system.Lock(path)
        assert not lock.take()
        assert not lock.wait(0.05)
        other.kill()
        assert lock.wait(5)
        lock.release()


def test_the_console_log_is_bounded_and_remembers_its_end(tmp_path: Path) -> None:
    path = str(tmp_path / "console.log")
    log = ConsoleLog(path)
    for number in range(40):
        log.write(b"line %d " % number + b"x" * 60_000 + b"\n")
    log.write(b"\nlast\r\npart")
    log.close()
    assert log.last()[-2:] == ["last", "part"]
    assert os.path.getsize(path) <= LOG_BYTES + 60_100
    assert sorted(os.listdir(tmp_path)) == ["console.log", "console.log.1"]


@pytest.mark.parametrize(
    ("host", "guest", "expected"),
    [
        (("linux", "amd64"), "amd64", ("kvm", "tcg")),
        (("darwin", "arm64"), "arm64", ("hvf", "tcg")),
        (("win32", "amd64"), "amd64", ("whpx", "tcg")),
        (("darwin", "arm64"), "amd64", ("tcg",)),
        (("freebsd14", "amd64"), "amd64", ("tcg",)),
    ],
)
def test_accelerators_that_could_work(host: tuple[str, str], guest: str, expected: tuple[str, ...]) -> None:
    assert candidates(host[0], host[1], guest) == expected


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}\n")  # dash knows descriptors of one digit only
    path.chmod(0o755)


def test_a_qemu_is_believed_when_it_says_its_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(qemu, "FOLDERS", {})
    monkeypatch.setattr(
        qemu, "candidates", lambda arch: iter([str(tmp_path / n) for n in ("broken", "old", "good")])
    )
    program(tmp_path, "broken", "echo 'libc.so.6: version GLIBC_2.38 not found' >&2; exit 1")
    program(tmp_path, "old", "echo 'QEMU emulator version 5.0.0'")
    program(tmp_path, "good", "echo 'QEMU emulator version 7.2.22 (Debian 1:7.2)'")
    found = qemu.find("amd64")
    assert (found.program, found.version) == (str(tmp_path / "good"), (7, 2, 22))
    (tmp_path / "good").unlink()
    with pytest.raises(MachineError) as caught:
        qemu.find("amd64")
    assert "GLIBC_2.38 not found" in caught.value.message
    assert "5.0.0, 6.2 is the oldest" in caught.value.message
    assert "Install QEMU" in caught.value.hint


def test_a_channel_is_closed_when_qemus_end_is(tmp_path: Path) -> None:
    from host_client.machine.channels import Channels

    channels = Channels(("qmp",))
    (descriptor,) = channels.inherited()
    assert channels.for_qemu()["qmp"].option() == f"socket,id=qmp,fd={descriptor}"
    theirs = socket.socket(fileno=os.dup(descriptor))
    channels.started()
    with channels.blocking("qmp", 1) as ours, theirs:
        theirs.sendall(b"x")
        assert ours.recv(8) == b"x"
        theirs.close()
        assert ours.recv(8) == b""


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("sleep 60", "does not execute its first instructions"),
        ("echo >&9; sleep 60", "hangs while it boots"),
        ("echo 'cannot set MSR' >&2; exit 134", "ended with status 134: cannot set MSR"),
        ("echo >&9; exit 0", ""),
    ],
)
def test_an_accelerator_that_does_not_work_is_found_out_in_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, reason: str
) -> None:
    from host_client.machine import accelerator
    from host_client.machine.image import Image

    monkeypatch.setattr(accelerator, "FIRST_SIGN_SECONDS", 1.0)
    monkeypatch.setattr(accelerator, "PROBE_SECONDS", 1.5)
    console = 'for word; do case $word in *fd=*) eval "exec 9>&${word##*fd=}";; esac; done'
    program(tmp_path, "qemu", f"{console}\n{script}")
    emulator = qemu.Qemu(str(tmp_path / "qemu"), (9, 0, 0))
    found = accelerator.probe("hvf", emulator, Image(str(tmp_path), {"arch": "amd64"}))
    assert reason in found
    assert bool(found) == bool(reason)


def test_shared_folders_are_real_and_not_the_guests_own(tmp_path: Path) -> None:
    from host_client.machine import shares

    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert shares.check([str(inner), str(tmp_path / "link")]) == (str(tmp_path / "a"),)
    for wrong, reason in (
        ("/", "has its own"),
        ("/usr/share", "has its own"),
        (str(tmp_path / "no"), "not a folder"),
    ):
        with pytest.raises(MachineError, match=reason):
            shares.check([wrong])
    lines = shares.for_guest(("/home/a b", "/tmp")).decode().splitlines()
    assert lines == ["share0 /home/a b", "share1 /tmp"]
