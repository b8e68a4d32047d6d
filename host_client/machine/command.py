"""QEMU's command line for a machine: pure functions of host, guest architecture and accelerator.

Every flag stands with its reason, which golden tests and `wherry machine inspect` show.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from host_client.machine.config import MIB

# An option of QEMU's: why it is there, then the words.
Flag = tuple[str, ...]

# Places on the PCI bus. The control channel is first, which makes it /dev/vport0p1 in the guest; disks keep
# their order.
SLOT_CONTROL, SLOT_ROOT, SLOT_DATA, SLOT_NET, SLOT_RNG, SLOT_BALLOON = 1, 2, 3, 4, 5, 6
SLOT_SHARES = 7  # the sixth after the control channel's, which makes /dev/vport6p1


@dataclass(frozen=True)
class Platform:
    """What the flags depend on."""

    system: str  # linux, darwin or win32
    arch: str  # of the guest: amd64 or arm64
    accelerator: str  # kvm, hvf, whpx or tcg
    version: tuple[int, int, int]  # QEMU's


@dataclass(frozen=True)
class Channel:
    """A character device between QEMU and the supervisor:

    an inherited descriptor, or a port of ours on loopback.
    """

    name: str
    descriptor: int | None = None
    port: int | None = None

    def option(self) -> str:
        if self.descriptor is not None:
            return f"socket,id={self.name},fd={self.descriptor}"
        return f"socket,id={self.name},host=127.0.0.1,port={self.port},server=off"


@dataclass(frozen=True)
class Files:
    """What QEMU opens."""

    kernel: str
    initrd: str
    root: str
    data: str


@dataclass(frozen=True)
class Machine:
    """The machine's size and connections."""

    name: str
    cpus: int
    memory: int
    files: Files
    channels: dict[str, Channel]  # qmp, control, console, ports; files and changes where folders are shared
    guest_port: int  # of the engine API
    kernel_words: tuple[str, ...] = field(default=())
    resumes: bool = False  # goes on from a saved state


def machine_flags(platform: Platform) -> list[Flag]:
    """Machine type, processor and accelerator."""
    return [*(_arm(platform) if platform.arch == "arm64" else _x86(platform)), _accelerator(platform)]


def _x86(platform: Platform) -> list[Flag]:
    board = "q35,usb=off,sata=off,smbus=off,vmport=off"
    reason = "PCI Express and ACPI without the devices of a PC that the guest would look for and not use"
    if platform.accelerator in ("kvm", "hvf", "whpx"):
        board += ",hpet=off"
        reason += "; no HPET, whose ticks cost the host time (under TCG the TSC is measured against it)"
    if platform.accelerator == "whpx":
        board += ",kernel-irqchip=off"
        reason += "; WHPX fails to inject message-signalled interrupts through Hyper-V's controller"
    processor = {
        "kvm": ("host", "all that the processor has; the machine never moves to another"),
        "hvf": (
            "host,-pdpe1gb",
            "all that the processor has but 1 GiB pages, which Macs with Intel processors lack",
        ),
        "whpx": (
            "max,-vmx,-svm",
            "all that Hyper-V passes on; nested virtualisation makes it refuse the processor",
        ),
        "tcg": ("max", "all that TCG emulates; without AVX2 and SHA common images' binaries fail or crawl"),
    }[platform.accelerator]
    return [(reason, "-machine", board), (processor[1], "-cpu", processor[0])]


def _arm(platform: Platform) -> list[Flag]:
    if platform.accelerator == "tcg":
        processor = (
            "without pointer authentication, which makes TCG boot three times slower",
            "-cpu",
            "cortex-a72",
        )
    else:
        processor = ("all that the processor has; the machine never moves to another", "-cpu", "host")
    return [
        (
            "the board made for virtual machines: virtio on PCI Express, a clock, power-off",
            "-machine",
            "virt",
        ),
        processor,
    ]


def _processors(platform: Platform, wanted: int) -> Flag:
    if platform.accelerator == "tcg":
        # Seen with QEMU 7.2 on a busy host, about once in fifty boots: an int3 of code that another processor
        # was patching, and timer interrupts that never come. Others report the like with 9.2.
        return ("one: guests crash on emulated processors that run in threads of their own", "-smp", "1")
    return ("processors", "-smp", str(wanted))


def _accelerator(platform: Platform) -> Flag:
    if platform.accelerator == "tcg":
        return ("emulation, in one thread of the host", "-accel", "tcg,thread=single")
    return ("as the probe found", "-accel", platform.accelerator)


def kernel_command_line(platform: Platform, words: tuple[str, ...] = ()) -> str:
    """For the guest's kernel."""
    parts = ["console=" + ("ttyS0" if platform.arch == "amd64" else "ttyAMA0")]
    parts += ["quiet"]  # a serial console is slow, and what goes wrong is still said
    parts += ["panic=-1"]  # a panic ends QEMU at once, by -no-reboot
    parts += ["lsm=landlock,yama"]  # the image has no policy for the others, which take time to start
    if platform.arch == "amd64":
        parts += ["reboot=t", "8250.nr_uarts=1"]  # the shortest way down; no search for 31 more serial ports
        # On a busy host the test of the timer's interrupt takes a late one for a broken one.
        parts += ["no_timer_check"]
    if platform.accelerator == "tcg":
        # Speculation cannot leak what an emulator does not speculate about, and page table isolation empties
        # TCG's translation cache at each system call.
        parts += ["mitigations=off"]
    return " ".join([*parts, *words])


def flags(platform: Platform, machine: Machine) -> list[Flag]:
    """All of QEMU's options, each with its reason."""
    return [
        ("shown in the host's process list", "-name", f"wherry-{machine.name}"),
        ("no devices, files or options but these", "-nodefaults", "-no-user-config"),
        ("no window", "-display", "none"),
        ("a reset (after a panic) ends QEMU, so the supervisor knows", "-no-reboot"),
        *machine_flags(platform),
        _processors(platform, machine.cpus),
        ("memory in MiB; what the guest frees goes back to the host", "-m", str(machine.memory // MIB)),
        ("the clock counts in UTC, also while the machine is paused", "-rtc", "base=utc,clock=host"),
        *_boot(platform, machine),
        *_channels(machine),
        *_disks(machine.files),
        *_network(machine),
        *_rest(),
        *_shares(machine.channels),
        *_incoming(machine.resumes),
    ]


def _boot(platform: Platform, machine: Machine) -> list[Flag]:
    return [
        ("direct boot: no firmware menu, no boot loader", "-kernel", machine.files.kernel),
        ("modules of the root disk and what is handed over", "-initrd", machine.files.initrd),
        ("see kernel_command_line", "-append", kernel_command_line(platform, machine.kernel_words)),
    ]


def _channels(machine: Machine) -> list[Flag]:
    channels = machine.channels
    return [
        ("machine protocol, to the supervisor alone: no file or port others could reach",
         "-chardev", channels["qmp"].option(), "-mon", "chardev=qmp,mode=control"),
        ("the kernel's and init's messages, for the log", "-chardev", channels["console"].option(),
         "-serial", "chardev:console"),
        ("control channel of the guest's init",
         "-chardev", channels["control"].option(),
         "-device", f"virtio-serial-pci,addr={SLOT_CONTROL},max_ports=3",
         "-device", "virtserialport,nr=1,chardev=control,name=wherry.control"),
        ("channel by which the engine asks for published ports",
         "-chardev", channels["ports"].option(),
         "-device", "virtserialport,nr=2,chardev=ports,name=wherry.ports"),
    ]  # fmt: skip


def _disks(files: Files) -> list[Flag]:
    return [
        ("the root file system: never written",
         "-drive", f"if=none,id=root,format=raw,readonly=on,file={_escape(files.root)}",
         "-device", f"virtio-blk-pci,drive=root,addr={SLOT_ROOT}"),
        ("images, containers, volumes; freed blocks leave the file",
         "-drive",
         f"if=none,id=data,format=qcow2,discard=unmap,detect-zeroes=unmap,file={_escape(files.data)}",
         "-device", f"virtio-blk-pci,drive=data,addr={SLOT_DATA}"),
    ]  # fmt: skip


def _network(machine: Machine) -> list[Flag]:
    forward = f"hostfwd=tcp:127.0.0.1:0-:{machine.guest_port}"
    return [
        ("user network: needs no rights on the host; the engine API comes in by a free loopback port",
         "-netdev", f"user,id=net,ipv6=off,{forward}",
         "-device", f"virtio-net-pci,netdev=net,addr={SLOT_NET},romfile="),
    ]  # fmt: skip


def _rest() -> list[Flag]:
    return [
        ("entropy from the host", "-object", "rng-builtin,id=rng",
         "-device", f"virtio-rng-pci,rng=rng,addr={SLOT_RNG}"),
        ("the guest reports free pages, which leave QEMU's memory",
         "-device", f"virtio-balloon-pci,addr={SLOT_BALLOON},free-page-reporting=on,deflate-on-oom=on"),
    ]  # fmt: skip


def _incoming(resumes: bool) -> list[Flag]:
    return [("waits for a saved state to go on from", "-incoming", "defer")] if resumes else []


def _shares(channels: dict[str, Channel]) -> list[Flag]:
    if "files" not in channels:
        return []
    return [
        ("folders of the host: requests to the file server, and what others changed in them",
         "-chardev", channels["files"].option(), "-chardev", channels["changes"].option(),
         "-device", f"virtio-serial-pci,id=shares,addr={SLOT_SHARES},max_ports=3",
         "-device", "virtserialport,bus=shares.0,nr=1,chardev=files,name=wherry.files",
         "-device", "virtserialport,bus=shares.0,nr=2,chardev=changes,name=wherry.changes"),
    ]  # fmt: skip


def command_line(program: str, options: list[Flag]) -> list[str]:
    """What to execute."""
    return [program, *(word for flag in options for word in flag[1:])]


def probe_flags(platform: Platform, kernel: str, initrd: str, console: Channel) -> list[Flag]:
    """The least machine that shows whether an accelerator runs the kernel:

    it powers off as soon as init starts.
    """
    return [
        ("no devices, files or options but these", "-nodefaults", "-no-user-config"),
        ("no window", "-display", "none"),
        ("a panic ends it", "-no-reboot"),
        *machine_flags(platform),
        ("enough for the kernel", "-smp", "1", "-m", "256"),
        ("direct boot", "-kernel", kernel, "-initrd", initrd),
        ("init only powers off",
         "-append", kernel_command_line(platform).replace("quiet", "loglevel=6") + " -- probe"),
        ("shows that it lives", "-chardev", console.option(), "-serial", "chardev:console"),
    ]  # fmt: skip


def _escape(path: str) -> str:
    """Commas separate QEMU's options."""
    return path.replace(",", ",,")
