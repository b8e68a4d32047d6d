"""QEMU's command line for every kind of host, word for word."""

from __future__ import annotations

import pytest

from host_client.machine.command import (
    Channel,
    Files,
    Machine,
    Platform,
    command_line,
    flags,
    kernel_command_line,
    machine_flags,
    probe_flags,
)

VERSION = (9, 2, 0)
Q35 = "q35,usb=off,sata=off,smbus=off,vmport=off"

MACHINES = {
    ("linux", "amd64", "kvm"): f"-machine {Q35},hpet=off -cpu host -accel kvm",
    ("linux", "arm64", "kvm"): "-machine virt -cpu host -accel kvm",
    ("darwin", "arm64", "hvf"): "-machine virt -cpu host -accel hvf",
    ("darwin", "amd64", "hvf"): f"-machine {Q35},hpet=off -cpu host,-pdpe1gb -accel hvf",
    ("win32", "amd64", "whpx"): f"-machine {Q35},hpet=off,kernel-irqchip=off -cpu max,-vmx,-svm -accel whpx",
    ("linux", "amd64", "tcg"): f"-machine {Q35} -cpu max -accel tcg,thread=single",
    ("linux", "arm64", "tcg"): "-machine virt -cpu cortex-a72 -accel tcg,thread=single",
}

KERNELS = {
    (
        "amd64",
        "kvm",
    ): "console=ttyS0 quiet panic=-1 lsm=landlock,yama reboot=t 8250.nr_uarts=1 no_timer_check",
    (
        "amd64",
        "tcg",
    ): "console=ttyS0 quiet panic=-1 lsm=landlock,yama reboot=t 8250.nr_uarts=1 no_timer_check mitigations=off",
    ("arm64", "hvf"): "console=ttyAMA0 quiet panic=-1 lsm=landlock,yama",
    ("arm64", "tcg"): "console=ttyAMA0 quiet panic=-1 lsm=landlock,yama mitigations=off",
}


def words(options: list[tuple[str, ...]]) -> str:
    return " ".join(command_line("", options)[1:])


@pytest.mark.parametrize("host", MACHINES, ids="-".join)
def test_machine_processor_and_accelerator(host: tuple[str, str, str]) -> None:
    system, arch, accelerator = host
    assert words(machine_flags(Platform(system, arch, accelerator, VERSION))) == MACHINES[host]


@pytest.mark.parametrize("guest", KERNELS, ids="-".join)
def test_kernel_command_line(guest: tuple[str, str]) -> None:
    arch, accelerator = guest
    assert kernel_command_line(Platform("linux", arch, accelerator, VERSION)) == KERNELS[guest]
    assert kernel_command_line(Platform("linux", arch, accelerator, VERSION), ("a", "b")).endswith(" a b")


def machine(**channels: Channel) -> Machine:
    files = Files("/i/kernel", "/m/initrd", "/i/root.erofs", "/m/a,b.qcow2")
    return Machine("dev", 4, 2 << 30, files, channels, 2376)


ALL = ("qmp", "control", "console", "ports", "files", "changes")
ON_A_MAC = """\
-name wherry-dev
-nodefaults -no-user-config
-display none
-no-reboot
-machine virt
-cpu host
-accel hvf
-smp 4
-m 2048
-rtc base=utc,clock=host
-kernel /i/kernel
-initrd /m/initrd
-append console=ttyAMA0 quiet panic=-1 lsm=landlock,yama
-chardev socket,id=qmp,fd=5 -mon chardev=qmp,mode=control
-chardev socket,id=console,fd=7 -serial chardev:console
-chardev socket,id=control,fd=6 -device virtio-serial-pci,addr=1,max_ports=3 -device virtserialport,nr=1,chardev=control,name=wherry.control
-chardev socket,id=ports,fd=8 -device virtserialport,nr=2,chardev=ports,name=wherry.ports
-drive if=none,id=root,format=raw,readonly=on,file=/i/root.erofs -device virtio-blk-pci,drive=root,addr=2
-drive if=none,id=data,format=qcow2,discard=unmap,detect-zeroes=unmap,file=/m/a,,b.qcow2 -device virtio-blk-pci,drive=data,addr=3
-netdev user,id=net,ipv6=off,hostfwd=tcp:127.0.0.1:0-:2376 -device virtio-net-pci,netdev=net,addr=4,romfile=
-object rng-builtin,id=rng -device virtio-rng-pci,rng=rng,addr=5
-device virtio-balloon-pci,addr=6,free-page-reporting=on,deflate-on-oom=on
-chardev socket,id=files,fd=9 -chardev socket,id=changes,fd=10 -device virtio-serial-pci,id=shares,addr=7,max_ports=3 -device virtserialport,bus=shares.0,nr=1,chardev=files,name=wherry.files -device virtserialport,bus=shares.0,nr=2,chardev=changes,name=wherry.changes
"""


def test_the_whole_command_line_on_a_mac() -> None:
    channels = {name: Channel(name, descriptor=fd) for name, fd in zip(ALL, range(5, 11), strict=True)}
    options = flags(Platform("darwin", "arm64", "hvf", VERSION), machine(**channels))
    assert "".join(" ".join(option[1:]) + "\n" for option in options) == ON_A_MAC


def test_windows_connects_its_channels_by_ports_of_the_supervisor() -> None:
    channels = {
        name: Channel(name, port=port)
        for name, port in (("qmp", 5), ("control", 6), ("console", 7), ("ports", 8))
    }
    text = words(flags(Platform("win32", "amd64", "whpx", VERSION), machine(**channels)))
    assert "-chardev socket,id=qmp,host=127.0.0.1,port=5,server=off -mon chardev=qmp,mode=control" in text
    assert "fd=" not in text


def test_an_emulated_machine_has_one_processor() -> None:
    channels = {name: Channel(name, descriptor=9) for name in ("qmp", "control", "console", "ports")}
    assert "-smp 1 " in words(flags(Platform("linux", "amd64", "tcg", VERSION), machine(**channels)))
    assert "-smp 4 " in words(flags(Platform("linux", "amd64", "kvm", VERSION), machine(**channels)))


def test_every_flag_has_a_reason() -> None:
    for system, arch, accelerator in MACHINES:
        channels = {name: Channel(name, descriptor=9) for name in ALL}
        for reason, *rest in flags(Platform(system, arch, accelerator, VERSION), machine(**channels)):
            assert rest[0].startswith("-"), rest
            assert reason[0] != "-", rest


def test_the_probe_boots_the_same_machine_to_a_power_off() -> None:
    platform = Platform("linux", "amd64", "kvm", VERSION)
    text = words(probe_flags(platform, "/k", "/i", Channel("console", descriptor=3)))
    assert words(machine_flags(platform)) in text
    assert (
        "-append console=ttyS0 loglevel=6 panic=-1 lsm=landlock,yama reboot=t 8250.nr_uarts=1 no_timer_check -- probe"
        in text
    )
