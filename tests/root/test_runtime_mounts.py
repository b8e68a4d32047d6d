"""The container's file system: root, mounts, devices, masks, and what the host sees of it (nothing)."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guest_agent.kernel import syscalls
from guest_agent.kernel.overlay import open_overlay
from guest_agent.runtime import capabilities, cgroups
from guest_agent.runtime.types import LaunchError, Overlay
from tests.support.oci import Driver, config, make_rootfs, mounts, new_id

pytestmark = pytest.mark.root


@pytest.fixture
def host_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A private tmpfs of the host's, with a mount inside it."""
    top = tmp_path / "host"
    top.mkdir()
    syscalls.mount("tmpfs", str(top), "tmpfs")
    syscalls.mount("", str(top), flags=syscalls.MS_PRIVATE)
    (top / "inner").mkdir()
    (top / "file").write_text("on the host\n")
    syscalls.mount("tmpfs", str(top / "inner"), "tmpfs")
    yield top
    syscalls.umount2(str(top), syscalls.MNT_DETACH)


def bind(source: Path | str, target: str, *options: str, **more: str) -> list[dict[str, Any]]:
    return [
        *mounts(),
        {"destination": target, "type": "bind", "source": str(source), "options": ["rbind", *options]} | more,
    ]


def mount_options(output: str, target: str) -> set[str]:
    for line in output.splitlines():
        fields = line.split()
        if fields[4] == target:
            return {*fields[5].split(","), *fields[6 : fields.index("-")]}
    raise AssertionError(f"{target} is not mounted:\n{output}")


def refused(driver: Driver, *args: str, **more: Any) -> str:
    with pytest.raises(LaunchError) as caught:
        driver.start(*args, **more)
    return caught.value.text


def test_writes_go_to_the_upper_layer(driver: Driver) -> None:
    container = new_id()
    overlay = driver.runtime.overlay(container)
    assert driver.run("sh", "-c", "echo new > /file; rm /etc/group", id=container, rootfs=overlay).code == 0
    assert Path(overlay.upper, "file").read_text() == "new\n"
    assert (driver.runtime.rootfs / "etc/group").exists()
    assert not (driver.runtime.rootfs / "file").exists()
    assert driver.run("cat", "/file", rootfs=overlay).out == "new\n"


@pytest.mark.parametrize("layer_by_layer", [True, False] if syscalls.LINUX >= (6, 8) else [False])
@pytest.mark.parametrize("count", [2, 127])
def test_many_layers(tmp_path: Path, count: int, layer_by_layer: bool) -> None:
    # Paths so long that they would never fit a page of mount options.
    base = tmp_path / ("x" * 100)
    lower = []
    for number in range(count):
        layer = base / f"{number:03}-{'y' * 64}"
        layer.mkdir(parents=True)
        (layer / "same").write_text(str(number))
        (layer / f"only-{number}").touch()
        lower.append(str(layer))
    upper, work, staging = (tmp_path / name for name in ("upper", "work", "staging"))
    for directory in (upper, work, staging):
        directory.mkdir()
    tree = open_overlay(lower, str(upper), str(work), str(staging), layer_by_layer)
    try:
        assert Path(f"/proc/self/fd/{tree}/same").read_text() == "0"  # the topmost first
        assert len(os.listdir(f"/proc/self/fd/{tree}")) == count + 1
        Path(f"/proc/self/fd/{tree}/written").touch()
        assert (upper / "written").exists()
    finally:
        os.close(tree)
    assert str(staging) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize("count", [1, 3])
def test_view_without_upper_layer_is_read_only(driver: Driver, tmp_path: Path, count: int) -> None:
    layers = []
    for number in range(count - 1):
        (tmp_path / str(number)).mkdir()
        layers.append(str(tmp_path / str(number)))
    overlay = Overlay((*layers, str(driver.runtime.rootfs)))
    assert driver.run("touch", "/x", rootfs=overlay).err == "touch: /x: Read-only file system\n"


def test_layer_that_is_missing(driver: Driver) -> None:
    overlay = driver.runtime.overlay(new_id(), ["/nowhere/layer"])
    text = refused(driver, "true", rootfs=overlay)
    assert text.startswith("error during container init: error preparing rootfs: ")
    assert text.endswith("no such file or directory")


def test_read_only_root(driver: Driver) -> None:
    result = driver.run(
        "sh", "-c", "touch /x; echo y > /dev/shm/y && cat /dev/shm/y", root={"readonly": True}
    )
    assert result.out == "y\n"
    assert "Read-only file system" in result.err


def test_nothing_of_the_host_is_visible(driver: Driver) -> None:
    result = driver.run("cat", "/proc/self/mountinfo")
    top = [line.split()[4] for line in result.out.splitlines()]
    assert top.count("/") == 1
    assert all(path == "/" or path.startswith(("/proc", "/sys", "/dev")) for path in top)
    # and nothing shared with the host in either direction
    assert "shared:" not in result.out
    assert "master:" not in result.out


def test_default_devices(driver: Driver) -> None:
    script = "for f in null zero full random urandom tty; do stat -c '%n %F %t:%T %a %u' /dev/$f; done; "
    script += "readlink /dev/ptmx; readlink /dev/fd"
    lines = driver.run("sh", "-c", script).out.splitlines()
    assert lines[0] == "/dev/null character special file 1:3 666 0"
    assert lines[5] == "/dev/tty character special file 5:0 666 0"
    assert lines[6:] == ["pts/ptmx", "/proc/self/fd"]
    assert driver.run("sh", "-c", "head -c 4 /dev/zero | wc -c; echo x > /dev/null").out == "4\n"


def test_devices_are_guarded(driver: Driver) -> None:
    # mknod is allowed (CAP_MKNOD), opening what it makes is not.
    result = driver.run(
        "sh",
        "-c",
        "mknod /tmp/kmsg c 1 11 && head -c 1 /tmp/kmsg; mknod /tmp/null c 1 3 && echo ok > /tmp/null",
    )
    assert result.err == "head: /tmp/kmsg: Operation not permitted\n"


def test_device_added(driver: Driver) -> None:
    device = {
        "path": "/dev/sub/mykmsg",
        "type": "c",
        "major": 1,
        "minor": 11,
        "fileMode": 0o640,
        "uid": 7,
        "gid": 8,
    }
    resources = {
        "devices": [
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"},
        ]
    }
    linux = {"devices": [device], "resources": resources}
    script = "stat -c '%F %t:%T %a %u %g' /dev/sub/mykmsg; "
    script += "dd if=/dev/sub/mykmsg of=/dev/null bs=8192 count=1 2>/dev/null && echo read; echo x > /dev/sub/mykmsg"
    names = [*capabilities.DEFAULT, "CAP_SYSLOG"]
    caps = dict.fromkeys(("bounding", "effective", "permitted"), names)
    result = driver.run("sh", "-c", script, linux=linux, process={"capabilities": caps})
    assert result.out == "character special file 1:b 640 7 8\nread\n"
    assert "Operation not permitted" in result.err


def test_device_where_the_image_has_something(driver: Driver, tmp_path: Path) -> None:
    rootfs = make_rootfs(tmp_path / "rootfs")
    (rootfs / "thing").symlink_to("/etc/passwd")
    device = {"path": "/thing", "type": "c", "major": 1, "minor": 3}
    assert 'mknod "/thing": file exists' in refused(
        driver, "true", rootfs=str(rootfs), linux={"devices": [device]}
    )


def test_bind(driver: Driver, host_tmpfs: Path) -> None:
    result = driver.run(
        "sh",
        "-c",
        "cat /in/file; echo more >> /in/file; cat /proc/self/mountinfo",
        mounts=bind(host_tmpfs, "/in"),
    )
    assert result.out.startswith("on the host\n")
    assert "/in/inner" in result.out
    assert (host_tmpfs / "file").read_text() == "on the host\nmore\n"
    assert "rw" in mount_options(result.out.split("\n", 1)[1], "/in")


def test_bind_of_a_file(driver: Driver, host_tmpfs: Path) -> None:
    assert (
        driver.run("cat", "/etc/made/here", mounts=bind(host_tmpfs / "file", "/etc/made/here")).out
        == "on the host\n"
    )


def test_bind_read_only(driver: Driver, host_tmpfs: Path) -> None:
    result = driver.run("sh", "-c", "touch /in/x; touch /in/inner/x", mounts=bind(host_tmpfs, "/in", "ro"))
    # "ro" is for the mount itself, "rro" for all inside it.
    assert result.err == "touch: /in/x: Read-only file system\n"
    result = driver.run("sh", "-c", "touch /in/x; touch /in/inner/x", mounts=bind(host_tmpfs, "/in", "rro"))
    assert result.err == "touch: /in/x: Read-only file system\ntouch: /in/inner/x: Read-only file system\n"
    assert not (host_tmpfs / "x").exists()


def test_bind_without_what_is_inside(driver: Driver, host_tmpfs: Path) -> None:
    (host_tmpfs / "inner/hidden").touch()
    entry = {"destination": "/in", "type": "bind", "source": str(host_tmpfs), "options": ["bind"]}
    assert driver.run("ls", "/in/inner", mounts=[*mounts(), entry]).out == ""
    assert driver.run("ls", "/in/inner", mounts=bind(host_tmpfs, "/in")).out == "hidden\n"


def test_bind_attributes(driver: Driver, host_tmpfs: Path) -> None:
    options = ("nosuid", "nodev", "noexec", "noatime")
    result = driver.run("cat", "/proc/self/mountinfo", mounts=bind(host_tmpfs, "/in", *options))
    assert set(options) <= mount_options(result.out, "/in")
    assert not set(options) & mount_options(result.out, "/in/inner")


def test_create_target_overrides(driver: Driver, host_tmpfs: Path) -> None:
    text = refused(driver, "true", mounts=bind(host_tmpfs / "file", "/odd", createTarget="dir"))
    assert text.startswith("error during container init: error mounting ")
    assert driver.run("test", "-d", "/dir", mounts=bind(host_tmpfs, "/dir", createTarget="dir")).code == 0


def test_bind_source_that_is_missing(driver: Driver) -> None:
    text = refused(driver, "true", mounts=bind("/nowhere", "/in"))
    expected = 'error mounting "/nowhere" to rootfs at "/in": stat /nowhere: no such file or directory'
    assert text == f"error during container init: {expected}"


def test_propagation(driver: Driver, host_tmpfs: Path) -> None:
    syscalls.mount("", str(host_tmpfs), flags=syscalls.MS_SHARED)
    (host_tmpfs / "late").mkdir()
    (host_tmpfs / "back").mkdir()
    caps = ["CAP_SYS_ADMIN"]
    more = {
        "process": {"capabilities": {"bounding": caps, "effective": caps, "permitted": caps}},
        "linux": {"seccomp": None},
    }
    seen = {}
    for option in ("rprivate", "rslave", "rshared"):
        container = driver.start("sleep", "60", mounts=bind(host_tmpfs, "/in", option), **more)
        syscalls.mount("tmpfs", str(host_tmpfs / "late"), "tmpfs")
        inside = driver.exec(container, "grep", "-c", "/in/late", "/proc/self/mountinfo").out.strip()
        syscalls.umount2(str(host_tmpfs / "late"))
        pid = driver.runtime.monitor.running()[container].pid
        subprocess.run(
            ["nsenter", "-t", str(pid), "-m", "/bin/mount", "-t", "tmpfs", "none", "/in/back"], check=True
        )
        outside = str(Path("/proc/self/mountinfo").read_text().count(f"{host_tmpfs}/back"))
        driver.kill(container)
        if outside != "0":
            syscalls.umount2(str(host_tmpfs / "back"))
        seen[option] = (inside, outside)
    assert seen == {"rprivate": ("0", "0"), "rslave": ("1", "0"), "rshared": ("1", "1")}


def test_propagation_of_the_root(driver: Driver) -> None:
    result = driver.run("cat", "/proc/self/mountinfo", linux={"rootfsPropagation": "shared"})
    assert any(item.startswith("shared:") for item in mount_options(result.out, "/"))


def test_host_never_sees_a_containers_mounts(driver: Driver, host_tmpfs: Path) -> None:
    syscalls.mount("", str(host_tmpfs), flags=syscalls.MS_SHARED)
    before = Path("/proc/self/mountinfo").read_text()
    container = driver.start("sleep", "60", mounts=bind(host_tmpfs, "/in", "rshared"))
    assert Path("/proc/self/mountinfo").read_text() == before
    driver.kill(container)
    assert Path("/proc/self/mountinfo").read_text() == before


def test_tmpfs(driver: Driver) -> None:
    def tmpfs(target: str, *options: str) -> list[dict[str, Any]]:
        return [
            *mounts(),
            {"destination": target, "type": "tmpfs", "source": "tmpfs", "options": list(options)},
        ]

    # A mode that is not given is that of the directory below.
    assert driver.run("stat", "-c", "%a", "/tmp", mounts=tmpfs("/tmp", "noexec")).out == "1777\n"
    assert driver.run("stat", "-c", "%a", "/tmp", mounts=tmpfs("/tmp", "mode=700")).out == "700\n"
    result = driver.run(
        "cat", "/proc/self/mountinfo", mounts=tmpfs("/run/x", "nosuid", "size=1m", "uid=1000")
    )
    assert "nosuid" in mount_options(result.out, "/run/x")
    assert "size=1024k" in result.out
    assert (
        driver.run("touch", "/run/x/y", mounts=tmpfs("/run/x", "ro")).err
        == "touch: /run/x/y: Read-only file system\n"
    )
    text = refused(driver, "true", mounts=tmpfs("/run/x", "size=lots"))
    # the kernel's own words, not just "invalid argument"
    assert "size" in text
    assert "invalid argument" in text


def test_mount_inside_a_read_only_tmpfs(driver: Driver, host_tmpfs: Path) -> None:
    entries = [*mounts(), {"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]}]
    entries.append({"destination": "/t/in", "type": "bind", "source": str(host_tmpfs), "options": ["bind"]})
    assert driver.run("sh", "-c", "cat /t/in/file; touch /t/x", mounts=entries).out == "on the host\n"


def test_order_of_mounts_is_kept(driver: Driver, host_tmpfs: Path) -> None:
    entries = bind(host_tmpfs, "/in")
    entries.append({"destination": "/in/inner", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]})
    result = driver.run("sh", "-c", "touch /in/inner/x; cat /proc/self/mountinfo", mounts=entries)
    assert "size=1024k" in [line for line in result.out.splitlines() if "/in/inner" in line][-1]
    assert not (host_tmpfs / "inner/x").exists()


def test_proc_and_sys(driver: Driver) -> None:
    result = driver.run("cat", "/proc/self/mountinfo")
    assert {"nosuid", "nodev", "noexec"} <= mount_options(result.out, "/proc")
    assert {"ro", "nosuid", "nodev", "noexec"} <= mount_options(result.out, "/sys")
    assert "ro" in mount_options(result.out, "/proc/sys")
    assert driver.run("ls", "/proc/1").code == 0
    pids = [name for name in driver.run("ls", "/proc").out.split() if name.isdigit()]
    assert pids == ["1"]
    assert driver.run("ls", "/sys/class/net").out == "lo\n"


def test_masked_and_read_only_paths(driver: Driver) -> None:
    # CVE-2015-3630, CVE-2017-16539, CVE-2018-10892 are files missing from this list.
    script = """
    for f in /proc/kcore /proc/keys /proc/timer_list /proc/interrupts; do [ -e $f ] && wc -c < $f; done
    for d in /proc/acpi /proc/scsi /sys/firmware /sys/devices/virtual/powercap; do
        [ -d $d ] && ls -A $d && touch $d/x
    done
    for f in /proc/sys/kernel/hostname /proc/sysrq-trigger /proc/irq/x /proc/bus/x /proc/fs/x; do echo x > $f; done
    """
    every = list(capabilities.ALL)
    caps = dict.fromkeys(("bounding", "effective", "permitted"), every)
    result = driver.run("sh", "-c", script, process={"capabilities": caps}, linux={"seccomp": None})
    assert set(result.out.split()) <= {"0"}  # files are empty, and directories too
    assert len(result.err.splitlines()) >= 6
    for line in result.err.splitlines():
        assert "Read-only file system" in line or "nonexistent directory" in line


def test_mask_of_ones_own(driver: Driver, tmp_path: Path) -> None:
    rootfs = make_rootfs(tmp_path / "rootfs")
    (rootfs / "secret").mkdir()
    (rootfs / "secret/file").write_text("s")
    (rootfs / "plain").write_text("s")
    linux = {
        "maskedPaths": ["/secret", "/plain", "/missing", "/etc/passwd/x"],
        "readonlyPaths": ["/home", "/missing"],
    }
    script = "ls /secret; cat /plain; touch /secret/x; echo x > /plain; touch /home/x; [ -e /missing ] || echo none"
    result = driver.run("sh", "-c", script, rootfs=str(rootfs), linux=linux)
    assert result.out == "none\n"
    assert result.err == "touch: /secret/x: Read-only file system\ntouch: /home/x: Read-only file system\n"
    assert (rootfs / "plain").read_text() == "s"


V2 = cgroups.version() == 2
GROUP = "/sys/fs/cgroup" if V2 else "/sys/fs/cgroup/pids"


def test_cgroup_view(driver: Driver) -> None:
    result = driver.run("sh", "-c", f"cat {GROUP}/cgroup.procs; ls /sys/fs/cgroup")
    assert result.out.split()[0] == "1"  # its own group, nothing above it
    expected = {"cgroup.procs", "pids.max", "memory.max"} if V2 else {"cpu", "memory", "pids", "devices"}
    assert expected <= set(result.out.split())
    result = driver.run("sh", "-c", f"echo 5 > {GROUP}/pids.max; mkdir /sys/fs/cgroup/x; mkdir {GROUP}/y")
    assert result.err.count("Read-only file system") == 3


def test_cgroup_view_in_a_namespace_of_its_own(driver: Driver) -> None:
    kinds = ("mount", "uts", "ipc", "pid", "network", "cgroup")
    script = f"cat /proc/self/cgroup {GROUP}/cgroup.procs; touch {GROUP}/cgroup.procs"
    result = driver.run("sh", "-c", script, linux={"namespaces": [{"type": kind} for kind in kinds]})
    paths = {line.rpartition(":")[2] for line in result.out.splitlines() if ":" in line}
    assert paths == {"/"}
    assert "\n1\n" in result.out
    assert "Read-only file system" in result.err


def test_cgroup_writable_when_asked(driver: Driver) -> None:
    entries = mounts()
    entries[4]["options"] = ["nosuid", "noexec", "nodev"]
    assert driver.run("mkdir", f"{GROUP}/mine", mounts=entries).code == 0


def test_shared_memory_and_queues(driver: Driver) -> None:
    result = driver.run("cat", "/proc/self/mountinfo")
    assert "- tmpfs shm rw,size=65536k" in result.out
    assert "- mqueue mqueue rw" in result.out
    assert stat.S_IMODE(0o1777) == int(driver.run("stat", "-c", "%a", "/dev/shm").out, 8)


def test_unknown_mount_option_is_an_error(driver: Driver) -> None:
    entry = {"destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": ["nonsense"]}
    assert "nonsense" in refused(driver, "true", mounts=[*mounts(), entry])
    entry = {"destination": "/x", "type": "nosuchfs", "source": "none", "options": []}
    assert "no such device" in refused(driver, "true", mounts=[*mounts(), entry])


def test_bind_with_an_option_no_bind_has(driver: Driver, host_tmpfs: Path) -> None:
    assert "nonsense" in refused(driver, "true", mounts=bind(host_tmpfs, "/in", "nonsense"))


def test_configuration_of_another_kind_is_refused(driver: Driver) -> None:
    spec = config(new_id(), "true")
    spec["linux"]["namespaces"] = [{"type": "pid"}]
    with pytest.raises(LaunchError, match="mount namespace"):
        driver.call(driver.runtime.monitor.start(driver.runtime.launch(spec)))
    spec["linux"]["namespaces"] = [{"type": "mount"}, {"type": "time"}]
    with pytest.raises(LaunchError, match="'time' is not supported"):
        driver.call(driver.runtime.monitor.start(driver.runtime.launch(spec, str(driver.runtime.rootfs))))
