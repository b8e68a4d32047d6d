"""What the image is made of. Data only: the builder beside it does not know what it builds."""

from __future__ import annotations

from dataclasses import dataclass

SUITE = "trixie"
ARCHIVES = {  # by the label of an archive in apt's configuration: the suites and components to take from it
    "Debian": ("trixie main", "trixie-updates main"),
    "Debian-Security": ("trixie-security main",),
}
PYTHON = "3.13"


@dataclass(frozen=True)
class Arch:
    """An architecture by Debian's name, and what the parts of a build call it."""

    name: str
    kernel_package: str
    triplet: str
    loader: str
    wheel: str
    other: str  # the architecture it emulates, as QEMU calls it


ARCHES = {
    "amd64": Arch(
        name="amd64",
        # Not the "cloud" flavour: it boots no faster and lacks modules that containers ask for.
        kernel_package="linux-image-amd64",
        triplet="x86_64-linux-gnu",
        loader="/usr/lib64/ld-linux-x86-64.so.2",
        wheel="manylinux2014_x86_64",
        other="aarch64",
    ),
    "arm64": Arch(
        name="arm64",
        kernel_package="linux-image-arm64",
        triplet="aarch64-linux-gnu",
        loader="/usr/lib/ld-linux-aarch64.so.1",
        wheel="manylinux2014_aarch64",
        other="x86_64",
    ),
}

PACKAGES = (
    f"python{PYTHON}-minimal",
    f"libpython{PYTHON}-stdlib",
    "python3-requests",
    "python3-certifi",
    "ca-certificates",
    "python3-msgspec",
    "python3-isal",
    "python3-cryptography",
    "python3-grpclib",
    "libstdc++6",  # for protobuf
    "e2fsprogs",
    "busybox-static",
    "qemu-user",
)

# What Debian has no package of, or one from before the API we use; hashes of both architectures' wheels.
WHEELS = """\
backports.zstd==1.8.0 \\
    --hash=sha256:44a9004f9e809ea56910d326d21946650369db59eb86edc0c76840f21530704c \\
    --hash=sha256:1a808ba1371231c00a2b71f03840a727088e287d0ee1dfb3230958950f21f421
protobuf==6.33.6 \\
    --hash=sha256:e9db7e292e0ab79dd108d7f1a94fe31601ce1ee3f7b79e0692043423020b0593 \\
    --hash=sha256:e2afbae9b8e1825e3529f88d514754e094278bb95eadc0e199751cdd9a2e82a2
"""

# Programs; what they need comes along. Busybox is for `wherry machine ssh` alone.
PROGRAMS = (f"/usr/bin/python{PYTHON}", "/usr/sbin/mke2fs", "/usr/sbin/e2fsck", "/usr/bin/busybox")
CONFIGURATION = ("/etc/mke2fs.conf",)
# The static emulator of the other architecture (its name tells it that the kernel starts it), and Debian's
# rule for it in the form of binfmt.d(5), which the guest's init registers.
EMULATOR = "/usr/libexec/qemu-binfmt/{}-binfmt-P"
EMULATOR_RULE = "/usr/share/qemu/binfmt.d/qemu-{}.conf"
# Added to the rule's, as in tonistiigi/binfmt: set-user-id programs (sudo, su) get their owner's rights.
EMULATOR_FLAGS = "C"
# Debian's certifi and OpenSSL both read the bundle that ca-certificates would make when it is configured.
CA_BUNDLE, CA_FOLDER = "/etc/ssl/certs/ca-certificates.crt", "usr/share/ca-certificates/mozilla"

# Python packages and extension modules the agent imports, with what these import, from the wheels and
# Debian's dist-packages into the one folder on sys.path.
PYTHON_PACKAGES = (
    "requests",
    "urllib3",
    "idna",
    "certifi",
    "charset_normalizer",
    "msgspec",
    "isal",
    "backports",
    # Signatures of images.
    "cryptography",
    "_cffi_backend",
    # BuildKit's protocol.
    "grpclib",
    "h2",
    "hpack",
    "hyperframe",
    "multidict",
    "google",
)

# The standard library without what needs a person, a screen or a compiler.
STDLIB_WITHOUT = frozenset(
    [
        "__phello__",
        "_pyrepl",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "pydoc_data",
        "test",
        "tkinter",
        "turtledemo",
        "turtle.py",
        "venv",
        "pdb.py",
        "pydoc.py",
        "doctest.py",
        "unittest",
        "curses",
        "dbm",
        "wsgiref",
        "xmlrpc",
        "antigravity.py",
        "this.py",
        "cProfile.py",
        "profile.py",
        "pstats.py",
        "_sysconfigdata__linux_x86_64-linux-gnu.py",
        "_sysconfigdata__linux_aarch64-linux-gnu.py",
        "sysconfig",
        "zoneinfo",
        "sitecustomize.py",
        "LICENSE.txt",
        "EXTERNALLY-MANAGED",
    ]
)
EXTENSIONS_WITHOUT = (
    "_curses",
    "_dbm",
    "_gdbm",
    "_tkinter",
    "_test",
    "_xx",
    "xxlimited",
    "audioop",
    "nis",
    "readline",
)

# In the initrd: what the root disk needs.
INITRD_MODULES = ("virtio_blk", "erofs")
# In the root, loaded before the agent starts: the data disk with its quotas and the network interface.
BOOT_MODULES = ("ext4", "quota_v2", "virtio_net")
# Loaded beside the starting agent: what its first container needs, emulation, and what gives memory back to
# the host.
LATER_MODULES = (
    "binfmt_misc",
    "overlay",
    "bridge",
    "veth",
    "nf_tables",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_ct",
    "nft_compat",
    "virtio_balloon",
    "virtio_rng",
)
# Loaded when the kernel asks for them: file systems of shares and volumes, the rest of networking, swap.
MODULES = (
    "fuse",
    "nfs",
    "nfsv4",
    "cifs",
    "squashfs",
    "isofs",
    "vfat",
    "loop",
    "zram",
    "dummy",
    "ipvlan",
    "macvlan",
    "macvtap",
    "tun",
    "vxlan",
    "wireguard",
    "br_netfilter",
    "8021q",
)
# Every module in these folders of the kernel package: rules a container or an engine inside one may load.
MODULE_FOLDERS = (
    "net/netfilter",
    "net/ipv4/netfilter",
    "net/ipv6/netfilter",
    "net/bridge/netfilter",
    "net/sched",
    "crypto",
    "lib",
    "arch/x86/crypto",
    "arch/arm64/crypto",
)

MODULES_WITHOUT = (
    "test_",
    "tcrypt",
    "kunit",
    "atomic64_test",
    "cpumask_",
    "objpool",
    "percpu_test",
    "crc_test",
)

FILES = {
    "/etc/passwd": "root:x:0:0:root:/root:/usr/sbin/nologin\nnobody:x:65534:65534::/:/usr/sbin/nologin\n",
    "/etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    # QEMU's user network answers there and asks the host's resolver, so that DNS follows the host.
    "/etc/resolv.conf": "nameserver 10.0.2.3\n",
    "/etc/os-release": f'NAME=Wherry\nID=wherry\nID_LIKE=debian\nPRETTY_NAME="Wherry VM (Debian {SUITE})"\n',
}
# Mount points and links of the image; the guest's init makes those of "/", which is a tmpfs.
DIRECTORIES = ("usr/lib/wherry", "etc")
LINKS = {
    "usr/bin/sh": "busybox",
    # The agent's code is handed over by the host at boot and bound to /usr/lib/wherry.
    f"usr/lib/python{PYTHON}/guest_agent": "/usr/lib/wherry/guest_agent",
}
