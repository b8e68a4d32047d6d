"""When a machine's saved state is used, and what is in it and what is not."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from guest_agent import held
from host_client.machine import handover, keys, machines, template
from host_client.machine.command import Channel, Files, Machine, Platform, command_line, flags
from host_client.machine.image import PARTS, Image
from host_client.machine.layout import Layout
from host_client.machine.qemu import Qemu

VERSION = (9, 2, 0)
OLD = (7, 2, 22)

WHERE = {
    ("linux", "amd64", "kvm", VERSION): "",
    ("linux", "arm64", "kvm", VERSION): "",
    ("linux", "amd64", "tcg", OLD): "",
    ("darwin", "arm64", "tcg", OLD): "",
    ("win32", "amd64", "tcg", VERSION): "",
    ("win32", "amd64", "tcg", OLD): "QEMU before 8.2 cannot write a machine's state to a file on Windows",
    ("darwin", "arm64", "hvf", (11, 1, 0)): "",
    (
        "darwin",
        "arm64",
        "hvf",
        (11, 0, 9),
    ): "QEMU before 11.1 is not known to save all of a machine under HVF",
    ("darwin", "amd64", "hvf", (11, 1, 0)): "QEMU's saved states are not known to work under HVF on Macs "
    "with Intel processors",
    ("win32", "amd64", "whpx", VERSION): "QEMU refuses to save the state of a machine under WHPX: it cannot "
    "read all of the processor's",
}


@pytest.mark.parametrize("host", WHERE, ids=lambda host: "-".join(map(str, host)))
def test_where_a_state_can_be_saved(host: tuple[str, str, str, tuple[int, int, int]]) -> None:
    assert template.unsupported(Platform(*host)) == WHERE[host]


PLATFORM = Platform("linux", "amd64", "tcg", VERSION)
PICTURE = Image(
    "/i", {"python": "3.13", "python_magic": 0, "files": {part: {"sha256": "a" * 64} for part in PARTS}}
)


def machine(descriptor: int = 5) -> Machine:
    channels = {n: Channel(n, descriptor=descriptor) for n in ("qmp", "control", "console", "ports")}
    files = Files("/i/kernel", "/m/initrd", "/i/root.erofs", "/m/data.qcow2")
    return Machine("dev", 2, 1 << 30, files, channels, 2376)


@pytest.fixture
def program(tmp_path: Path) -> Qemu:
    path = tmp_path / "qemu"
    path.write_bytes(b"1")
    return Qemu(str(path), VERSION)


SHARING = {name: Channel(name, descriptor=9) for name in ("files", "changes")}


def test_the_key_changes_with_what_must_agree(program: Qemu) -> None:
    def key(
        platform: Platform = PLATFORM,
        vm: Machine | None = None,
        picture: Image = PICTURE,
        archive: bytes = b"code",
    ) -> str:
        return template.key(platform, vm or machine(), program, picture, archive)

    base = key()
    assert key(vm=machine(descriptor=77)) == base, "descriptors are another at each start"
    other = Image("/i", PICTURE.manifest | {"files": {part: {"sha256": "b" * 64} for part in PARTS}})
    found = {
        base,
        key(replace(PLATFORM, accelerator="kvm")),
        key(vm=replace(machine(), cpus=3, memory=2 << 30)),
        key(vm=replace(machine(), memory=3 << 30)),
        key(vm=replace(machine(), channels=machine().channels | SHARING)),
        key(picture=other),
        key(archive=b"newer code"),
    }
    Path(program.program).write_bytes(b"another build")
    found.add(key())
    assert len(found) == 8


def test_only_a_resumed_machine_waits_for_a_state() -> None:
    text = [
        " ".join(command_line("q", flags(PLATFORM, replace(machine(), resumes=r)))) for r in (True, False)
    ]
    assert text[0].removesuffix(" -incoming defer") == text[1]
    assert "-incoming" not in text[1]


@pytest.fixture
def layout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Layout:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    place = Layout("dev")
    os.makedirs(place.folder)
    return place


def keep(saved: template.Template) -> None:
    with saved.opened(saved.layout.template + ".new", os.O_WRONLY | os.O_CREAT | os.O_EXCL) as state:
        assert state.descriptor is None
        Path(state.path).write_bytes(b"state")
    saved.keep(1234)


def test_a_saved_state_is_found_by_its_key(layout: Layout) -> None:
    assert template.Template(layout, VERSION, "one").find() is None
    keep(template.Template(layout, VERSION, "one"))
    assert stat.S_IMODE(os.stat(layout.template).st_mode) == 0o600
    assert template.Template(layout, VERSION, "one").find() == 1234
    assert template.Template(layout, VERSION, "two").find() is None
    assert os.listdir(layout.folder) == [], "what is of no use is removed"


def test_states_that_fail_twice_are_given_up_until_the_key_changes(layout: Layout) -> None:
    for failures in range(template.FAILURES_MAX):
        saved = template.Template(layout, VERSION, "one")
        assert (saved.find(), saved.given_up) == (None, False), failures
        keep(saved)
        resumed = template.Template(layout, VERSION, "one")
        assert resumed.find() == 1234
        resumed.failed()
        assert not os.path.exists(layout.template)
    last = template.Template(layout, VERSION, "one")
    assert (last.find(), last.given_up) == (None, True)
    other = template.Template(layout, VERSION, "two")
    assert (other.find(), other.given_up) == (None, False)


@pytest.mark.parametrize("damage", ["short", "about", "missing", "unfinished"])
def test_a_damaged_state_is_removed(layout: Layout, damage: str) -> None:
    keep(template.Template(layout, VERSION, "one"))
    if damage == "short":
        os.truncate(layout.template, 3)
    elif damage == "about":
        Path(layout.template_about).write_text('{"key": "one", "size": 5}')
    elif damage == "missing":
        os.unlink(layout.template)
    else:  # the supervisor was killed while it saved
        os.rename(layout.template, layout.template + ".new")
    assert template.Template(layout, VERSION, "one").find() is None
    assert os.listdir(layout.folder) == []


def test_an_older_qemu_is_given_a_descriptor(layout: Layout) -> None:
    saved = template.Template(layout, OLD, "one")
    with saved.opened(layout.template, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as state:
        assert state.descriptor is not None
        os.write(state.descriptor, b"state")
    assert Path(layout.template).read_bytes() == b"state"


def test_what_belongs_to_one_boot_is_not_in_the_boot_archive(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys.make_keys(str(tmp_path), "dev")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    files = {file.name: file for file in handover.boot_files("wherry", str(tmp_path))}
    archives = [handover.boot_archive(PICTURE, template) for template in (True, False)]
    secret = files["tls/server-key.pem"]
    assert secret.mode == 0o600
    assert b"PRIVATE KEY" in secret.content
    assert b"proxy.example" in files["agent.json"].content
    again = handover.boot_files("wherry", str(tmp_path))
    assert files["entropy"] not in again
    for archive in archives:
        assert b"PRIVATE KEY-----\n" not in archive
        assert b"proxy.example" not in archive
    assert archives[0].replace(b"boot/template", b"") != archives[0]
    assert b"boot/template" not in archives[1]
    assert handover.boot_archive(PICTURE, True) == archives[0], "the same at each boot"


def test_a_resumed_process_goes_on_with_other_random_numbers() -> None:
    random.seed(1)
    expected = random.getstate()
    held.become_unique()
    assert random.getstate() != expected


def test_a_machine_that_is_changed_or_reset_has_no_state(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("DATA_HOME", "RUNTIME_DIR"):
        monkeypatch.setenv(f"XDG_{name}", str(tmp_path))
    vm = machines.Machine("dev")
    vm.init(Image("/i", {"arch": "amd64"}), cpus=1, memory=1 << 30, disk=4 << 30, folders=[])
    state = Path(vm.layout.template)

    def kept(change: Callable[[], object]) -> bool:
        keep(template.Template(vm.layout, VERSION, "one"))
        change()
        return state.exists()

    assert kept(lambda: vm.set(disk=5 << 30)), "it has seen no disk"
    assert kept(lambda: vm.set(idle_stop=5))
    assert not kept(lambda: vm.set(memory=2 << 30))
    assert not kept(lambda: vm.set(folders=[str(tmp_path)]))
    assert not kept(lambda: vm.set(warm_start=False))
    assert not kept(vm.reset)
    assert os.listdir(vm.layout.folder).count("template.json") == 0
