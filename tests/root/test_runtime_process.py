"""What a process of a container is given: identity, environment, directory, limits, capabilities, filters."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path
from typing import Any

import pytest

from guest_agent.runtime import capabilities, seccomp
from guest_agent.runtime.types import LaunchError
from tests.support.oci import Driver, make_rootfs

pytestmark = pytest.mark.root


def refused(driver: Driver, *args: str, **more: Any) -> LaunchError:
    """The error of a container that must not start, and that leaves nothing."""
    with pytest.raises(LaunchError) as caught:
        driver.start(*args, **more)
    assert os.listdir(driver.runtime.roots.run_path("containers")) == []
    return caught.value


def test_exit_code_and_output(driver: Driver) -> None:
    result = driver.run("sh", "-c", "echo out; echo err >&2; exit 7")
    assert (result.code, result.out, result.err) == (7, "out\n", "err\n")
    assert not result.exit.oom_killed


def test_killed_by_a_signal(driver: Driver) -> None:
    assert driver.run("sh", "-c", "(sleep 0.05; kill -9 $$) & sleep 5; :").code in (0, 137)
    container = driver.start("sleep", "60")
    assert driver.kill(container).code == 137


@pytest.mark.parametrize(
    ("program", "text", "errno"),
    [
        ("nosuch", 'exec: "nosuch": executable file not found in $PATH', 2),
        ("/nosuch", 'exec: "/nosuch": stat /nosuch: no such file or directory', 2),
        ("/etc", 'exec: "/etc": permission denied', 13),
        ("etc", 'exec: "etc": executable file not found in $PATH', 2),
        ("/etc/passwd", 'exec: "/etc/passwd": permission denied', 13),
    ],
)
def test_program_that_cannot_be_executed(driver: Driver, program: str, text: str, errno: int) -> None:
    # The texts are those of runc under dockerd 20.10; the docker CLI makes 126 and 127 of them.
    error = refused(driver, program)
    assert (error.text, error.errno, error.stage) == (text, errno, "exec")


def test_program_relative_to_the_working_directory(driver: Driver) -> None:
    assert driver.run("./busybox", "echo", "hi", process={"cwd": "/bin"}).out == "hi\n"
    error = refused(driver, "busybox", process={"cwd": "/bin", "env": ["PATH=.:/nowhere"]})
    assert "cannot run executable found relative to current directory" in error.text
    assert "not found in $PATH" in refused(driver, "busybox", process={"env": ["PATH="]}).text


def test_program_of_no_known_format(driver: Driver, tmp_path: Path) -> None:
    rootfs = make_rootfs(tmp_path / "rootfs")
    (rootfs / "bin/odd").write_bytes(b"\x7fELF" + b"\0" * 60)
    (rootfs / "bin/odd").chmod(0o755)
    error = refused(driver, "odd", rootfs=str(rootfs))
    assert error.text == "exec /bin/odd: exec format error"


def test_no_program(driver: Driver) -> None:
    assert "args must not be empty" in refused(driver).text


def test_environment(driver: Driver) -> None:
    result = driver.run("env", process={"env": ["PATH=/bin", "A=1", "A=2", "B=x=y", "EMPTY=", "NOVALUE"]})
    lines = set(result.out.splitlines())
    assert {"A=2", "B=x=y", "EMPTY=", "HOME=/root", "PATH=/bin"} <= lines
    assert not any(line.startswith(("NOVALUE", "LC_ALL", "PYTHON", "LD_")) for line in lines)
    assert "HOME=/elsewhere" in driver.run("env", process={"env": ["PATH=/bin", "HOME=/elsewhere"]}).out


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", "uid=0(root) gid=0(root) groups=0(root),10(wheel),44(video)"),
        ("alice", "uid=1000(alice) gid=1001(alice) groups=29(audio),44(video),1001(alice)"),
        ("1000", "uid=1000(alice) gid=1001(alice) groups=29(audio),44(video),1001(alice)"),
        ("alice:video", "uid=1000(alice) gid=44(video) groups=44(video)"),
        ("0:1001", "uid=0(root) gid=1001(alice) groups=1001(alice)"),
        ("4711", "uid=4711 gid=0(root) groups=0(root)"),
        ("4711:4712", "uid=4711 gid=4712 groups=4712"),
    ],
)
def test_user(driver: Driver, user: str, expected: str) -> None:
    result = driver.run("id", process={"user": {"name": user}})
    assert result.out.strip() == expected
    container = driver.start("sleep", "60")
    assert driver.exec(container, "id", user={"name": user}).out.strip() == expected
    driver.kill(container)


@pytest.mark.parametrize(
    ("user", "groups", "text"),
    [
        ("nosuch", [], "unable to find user nosuch: no matching entries in passwd file"),
        ("broken", [], "unable to find user broken: no matching entries in passwd file"),
        ("0:nosuch", [], "unable to find group nosuch: no matching entries in group file"),
        ("0", ["nosuch"], "unable to find group nosuch: no matching entries in group file"),
        ("4294967296", [], "uids and gids must be in range 0-2147483647"),
        ("-1", [], "uids and gids must be in range 0-2147483647"),
        ("0:2147483648", [], "uids and gids must be in range 0-2147483647"),
        ("0", ["-5"], "uids and gids must be in range 0-2147483647"),
        ("1_000", [], "unable to find user 1_000: no matching entries in passwd file"),
    ],
)
def test_user_that_is_not_there(driver: Driver, user: str, groups: list[str], text: str) -> None:
    assert refused(driver, "id", process={"user": {"name": user, "groups": groups}}).text == text


def test_additional_groups(driver: Driver) -> None:
    result = driver.run("id", process={"user": {"name": "alice", "groups": ["wheel", "77"]}})
    assert result.out.strip().endswith("groups=10(wheel),29(audio),44(video),77,1001(alice)")


def test_user_by_oci_numbers(driver: Driver) -> None:
    user = {"uid": 1000, "gid": 5, "additionalGids": [6], "umask": 0o77}
    result = driver.run("sh", "-c", "id; umask; echo $HOME", process={"user": user})
    assert result.out == "uid=1000(alice) gid=5 groups=6\n0077\n/home/alice\n"


def test_hostile_passwd_file_is_no_file(driver: Driver, tmp_path: Path) -> None:
    rootfs = make_rootfs(tmp_path / "rootfs")
    (rootfs / "etc/passwd").unlink()
    os.mkfifo(rootfs / "etc/passwd")  # reading it would hang for ever
    assert (
        "unable to find user alice"
        in refused(driver, "id", process={"user": {"name": "alice"}}, rootfs=str(rootfs)).text
    )
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").symlink_to("/etc/nosuch/../../../../../../etc/shadow")
    assert (
        "unable to find"
        in refused(driver, "id", process={"user": {"name": "daemon"}}, rootfs=str(rootfs)).text
    )


@pytest.mark.parametrize(
    ("user", "uid"),
    [
        ("-0", 0),
        ("+5", 5),
        ("00000000000000000000000000007", 7),
        ("2147483647", 2147483647),
        ("2147483648", None),  # CVE-2024-40635: as a 32-bit number some of these are 0
        ("4294967295", None),
        ("4294967296", None),
        ("18446744073709551616", None),
        ("9" * 5000, None),
        ("-1", None),
        ("0:4294967296", None),
        ("0:-1", None),
        ("1_0", None),
        ("0x0", None),
        (" 0", None),
        ("٠", None),  # a digit zero, but not one of ours
        ("0\n", None),
    ],
)
def test_numbers_of_users(driver: Driver, user: str, uid: int | None) -> None:
    spec = {"user": {"name": user}}
    if uid is not None:
        assert driver.run("id", "-u", process=spec).out == f"{uid}\n"
    else:
        assert re.match("unable to find|uids and gids must be in", refused(driver, "id", process=spec).text)


@pytest.mark.parametrize("separator", ["\v", "\f", "\x1c", "\x85", "\u2028", "\r"])
def test_only_a_line_feed_ends_an_entry(driver: Driver, tmp_path: Path, separator: str) -> None:
    # Else the name that one user gives himself would be another user: bob, who is root.
    rootfs = make_rootfs(tmp_path / "rootfs")
    entry = f"eve:x:1001:1001:Eve{separator}bob:x:0:0:Bob:/root:/bin/sh\n"
    (rootfs / "etc/passwd").write_text(entry, encoding="utf-8")
    (rootfs / "etc/group").write_text(f"eve:x:1001:a{separator}wheel:x:0:eve\n", encoding="utf-8")
    spec: dict[str, Any] = {"user": {"name": "bob"}}
    assert "unable to find user bob" in refused(driver, "id", process=spec, rootfs=str(rootfs)).text
    spec = {"user": {"name": "eve"}}
    script = "grep ^Groups /proc/self/status"
    assert driver.run("sh", "-c", script, process=spec, rootfs=str(rootfs)).out.split() == ["Groups:", "1001"]


@pytest.mark.parametrize("content", ["\n" * (16 << 20), ":" * (16 << 20), "x" * (20 << 20)])
def test_huge_files_of_users_take_little_memory(driver: Driver, tmp_path: Path, content: str) -> None:
    rootfs = make_rootfs(tmp_path / "rootfs")
    for name in ("passwd", "group"):
        (rootfs / "etc" / name).write_text(content)
    limit = {"resources": {"memory": {"limit": 128 << 20}}}
    spec = {"user": {"name": "bob"}}
    assert (
        "unable to find user bob" in refused(driver, "id", process=spec, rootfs=str(rootfs), linux=limit).text
    )
    assert driver.run("true", rootfs=str(rootfs), linux=limit).code == 0


def test_malformed_entries_of_users(driver: Driver, tmp_path: Path) -> None:
    rootfs = make_rootfs(tmp_path / "rootfs")
    lines = [
        f"long:x:{'9' * 5000}:0::/:/bin/sh",
        "half::0",
        ":::::",
        "bob:x:4294967296:0::/:",
        "ok:x:5:6::/ok:",
    ]
    (rootfs / "etc/passwd").write_text("\n".join(lines))
    (rootfs / "etc/group").write_text(f"many:x:{'9' * 5000}:ok\nnone:x\n")
    for name in ("long", "bob", "half", ""):
        if name:
            refused(driver, "id", process={"user": {"name": name}}, rootfs=str(rootfs))
    (rootfs / "etc/group").unlink()
    spec = {"user": {"name": "ok"}}
    assert driver.run("id", "-u", process=spec, rootfs=str(rootfs)).out == "5\n"


def test_working_directory(driver: Driver) -> None:
    assert driver.run("pwd", process={"cwd": "/tmp"}).out == "/tmp\n"
    error = refused(driver, "pwd", process={"cwd": "/nowhere"})
    expected = 'chdir to cwd ("/nowhere") set in config.json failed: no such file or directory'
    assert error.text == f"error during container init: {expected}"
    assert "not a directory" in refused(driver, "pwd", process={"cwd": "/etc/passwd"}).text


def test_missing_working_directory_is_made(driver: Driver) -> None:
    script = "pwd; stat -c '%u %g %a' ."
    result = driver.run(
        "sh", "-c", script, process={"cwd": "/new/dir", "createCwd": True, "user": {"name": "alice"}}
    )
    assert result.out == "/new/dir\n0 0 755\n"


def test_working_directory_closed_to_the_user(driver: Driver, tmp_path: Path) -> None:
    rootfs = make_rootfs(tmp_path / "rootfs")
    (rootfs / "secret").mkdir(mode=0o700)
    # As in Docker: entered as root, before the user changes.
    result = driver.run(
        "sh", "-c", "pwd; ls", process={"cwd": "/secret", "user": {"name": "alice"}}, rootfs=str(rootfs)
    )
    assert "/secret" in result.out
    assert "Permission denied" in result.err


def test_limits(driver: Driver) -> None:
    limits = [
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_NPROC", "soft": 50, "hard": 60},
    ]
    result = driver.run("cat", "/proc/self/limits", process={"rlimits": limits})
    table = {line[:26].strip(): line[26:].split()[:2] for line in result.out.splitlines()}
    assert table["Max open files"] == ["100", "200"]
    assert table["Max core file size"] == ["0", "0"]
    assert table["Max processes"] == ["50", "60"]


def test_limit_that_cannot_be_set(driver: Driver) -> None:
    error = refused(
        driver, "true", process={"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1 << 30, "hard": 1 << 30}]}
    )
    expected = "error setting rlimits for ready process: error setting rlimit type 7: operation not permitted"
    assert error.text == f"error during container init: {expected}"
    assert (
        "RLIMIT_WRONG"
        in refused(driver, "true", process={"rlimits": [{"type": "RLIMIT_WRONG", "soft": 1, "hard": 1}]}).text
    )


def test_unlimited_is_the_largest_number(driver: Driver) -> None:
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    assert hard == resource.RLIM_INFINITY
    limits = [{"type": "RLIMIT_CPU", "soft": (1 << 64) - 1, "hard": (1 << 64) - 1}]
    assert "unlimited" in driver.run("grep", "cpu time", "/proc/self/limits", process={"rlimits": limits}).out


def status(driver: Driver, **process: Any) -> dict[str, str]:
    result = driver.run("cat", "/proc/self/status", process=process)
    return {key: value.strip() for key, _, value in (line.partition(":") for line in result.out.splitlines())}


def test_default_capabilities(driver: Driver) -> None:
    found = status(driver)
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(found[name], 16) == 0xA80425FB
    # CVE-2022-24769 and its kin: nothing inheritable, nothing ambient.
    assert int(found["CapInh"], 16) == int(found["CapAmb"], 16) == 0


def test_capabilities_of_a_user(driver: Driver) -> None:
    found = status(driver, user={"name": "alice"})
    assert int(found["CapEff"], 16) == int(found["CapPrm"], 16) == 0
    assert int(found["CapBnd"], 16) == 0xA80425FB


def test_capabilities_chosen(driver: Driver) -> None:
    names = ["CAP_NET_ADMIN", "CAP_CHOWN"]
    found = status(driver, capabilities={"bounding": names, "effective": names, "permitted": names})
    assert int(found["CapEff"], 16) == 1 << 12 | 1
    assert int(found["CapBnd"], 16) == 1 << 12 | 1
    found = status(driver, capabilities={})
    assert int(found["CapBnd"], 16) == 0
    every = list(capabilities.ALL)
    found = status(driver, capabilities={"bounding": every, "effective": every, "permitted": every})
    assert int(found["CapEff"], 16) == capabilities.mask(every)


def test_capabilities_that_make_no_sense(driver: Driver) -> None:
    error = refused(driver, "true", process={"capabilities": {"effective": ["CAP_CHOWN"]}})
    assert error.text == "error during container init: unable to apply caps: operation not permitted"


def test_ambient_capabilities(driver: Driver) -> None:
    names = ["CAP_NET_RAW"]
    sets = dict.fromkeys(("bounding", "effective", "permitted", "inheritable", "ambient"), names)
    found = status(driver, capabilities=sets, user={"name": "alice"})
    assert int(found["CapEff"], 16) == int(found["CapAmb"], 16) == 1 << 13


def test_seccomp_filters(driver: Driver) -> None:
    found = status(driver)
    assert found["Seccomp"] == "2"
    assert driver.run("unshare", "-m", "true").code != 0
    assert driver.run("mount", "-t", "tmpfs", "none", "/tmp").code != 0
    result = driver.run("grep", "Seccomp:", "/proc/self/status", linux={"seccomp": None})
    assert result.out.split() == ["Seccomp:", "0"]


def test_seccomp_profile_of_ones_own(driver: Driver) -> None:
    profile = seccomp.resolve(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}],
        },
        set(capabilities.DEFAULT),
    )
    result = driver.run("mkdir", "/x", linux={"seccomp": profile})
    assert (result.code, result.err) == (1, "mkdir: can't create directory '/x': No space left on device\n")


def test_seccomp_needs_little_after_it_is_loaded(driver: Driver) -> None:
    # What busybox's `true` needs, and execve. Nothing of Python's.
    names = [
        "execve",
        "arch_prctl",
        "brk",
        "exit_group",
        "exit",
        "set_tid_address",
        "set_robust_list",
        "rseq",
    ]
    names += [
        "prlimit64",
        "getrandom",
        "mprotect",
        "readlinkat",
        "readlink",
        "prctl",
        "getuid",
        "capset",
        "write",
    ]
    names += ["mmap", "munmap", "uname", "newfstatat", "fstat"]
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64" if os.uname().machine == "x86_64" else "SCMP_ARCH_AARCH64"],
        "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}],
    }
    assert driver.run("true", linux={"seccomp": profile}).code == 0
    assert driver.run("true", linux={"seccomp": profile}, process={"noNewPrivileges": True}).code == 0


def test_no_new_privileges(driver: Driver) -> None:
    assert status(driver)["NoNewPrivs"] == "0"
    found = status(driver, noNewPrivileges=True)
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")


def test_oom_score(driver: Driver) -> None:
    assert driver.run("cat", "/proc/self/oom_score_adj", process={"oomScoreAdj": 500}).out == "500\n"
    assert driver.run("cat", "/proc/self/oom_score_adj").out == "0\n"


def test_signals_are_as_new(driver: Driver) -> None:
    found = status(driver)
    assert int(found["SigBlk"], 16) == 0
    # 32 and 33 are the C library's own; whoever started the tests may have ignored them.
    assert int(found["SigIgn"], 16) & ~0x180000000 == 0
    assert int(found["SigCgt"], 16) == 0


def test_session_and_parent(driver: Driver) -> None:
    fields = driver.run("cat", "/proc/self/stat").out.rpartition(")")[2].split()
    parent, group, session = fields[1:4]
    assert (parent, group, session) == ("0", "1", "1")


def test_umask(driver: Driver) -> None:
    assert driver.run("sh", "-c", "umask").out == "0022\n"


def test_hostname_and_domain_name(driver: Driver) -> None:
    script = "hostname; cat /proc/sys/kernel/domainname"
    result = driver.run("sh", "-c", script, hostname="box", domainname="example.org")
    assert result.out == "box\nexample.org\n"
    assert os.uname().nodename != "box"


def test_sysctls(driver: Driver) -> None:
    sysctls = {
        "kernel.shmmax": "12345",
        "net.ipv4.ip_unprivileged_port_start": "80",
        "fs.mqueue.msg_max": "11",
    }
    files = " ".join(f"/proc/sys/{name.replace('.', '/')}" for name in sysctls)
    before = [Path(f"/proc/sys/{name.replace('.', '/')}").read_text() for name in sysctls]
    assert driver.run("sh", "-c", f"cat {files}", linux={"sysctl": sysctls}).out == "12345\n80\n11\n"
    assert [Path(f"/proc/sys/{name.replace('.', '/')}").read_text() for name in sysctls] == before


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("kernel.panic", None),
        ("vm.overcommit_memory", None),
        ("kernel.shmmax", "ipc"),
        ("net.ipv4.ip_forward", "network"),
        ("kernel.domainname", "uts"),
        ("net/../kernel.panic", None),
    ],
)
def test_sysctl_of_the_host_is_refused(driver: Driver, name: str, without: str | None) -> None:
    namespaces = [{"type": kind} for kind in ("mount", "uts", "ipc", "pid", "network") if kind != without]
    error = refused(driver, "true", hostname="", linux={"sysctl": {name: "1"}, "namespaces": namespaces})
    assert error.text == f'error during container init: sysctl "{name}" is not in a separate kernel namespace'


def test_sysctl_of_the_hosts_network_by_path_is_refused(driver: Driver) -> None:
    namespaces = [{"type": kind} for kind in ("mount", "uts", "ipc", "pid")]
    namespaces.append({"type": "network", "path": f"/proc/{os.getpid()}/ns/net"})
    error = refused(driver, "true", linux={"sysctl": {"net.ipv4.ip_forward": "1"}, "namespaces": namespaces})
    assert "is not in a separate kernel namespace" in error.text


def test_sysctl_that_is_not_there(driver: Driver) -> None:
    error = refused(driver, "true", linux={"sysctl": {"net.ipv4.nosuch": "1"}})
    expected = "error during container init: open /proc/sys/net/ipv4/nosuch: no such file or directory"
    assert error.text == expected
    error = refused(driver, "true", linux={"sysctl": {"net.ipv4.ip_forward": "many"}})
    assert error.text == "error during container init: write /proc/sys/net/ipv4/ip_forward: invalid argument"


def test_standard_streams_belong_to_the_user(driver: Driver) -> None:
    result = driver.run(
        "sh", "-c", "echo a > /dev/stdout; echo b > /dev/stderr", process={"user": {"name": "alice"}}
    )
    assert (result.code, result.out, result.err) == (0, "a\n", "b\n")


def test_init_reaps_and_forwards(driver: Driver) -> None:
    result = driver.run("sh", "-c", "ps; sh -c 'sleep 0.1 & ' ; sleep 0.3; ps", process={"init": True})
    assert result.code == 0
    assert "/sbin/docker-init -- sh -c" in result.out
    container = driver.start("sleep", "60", process={"init": True})
    assert driver.exec(container, "cat", "/proc/1/comm").out == "docker-init\n"
    assert driver.exec(container, "sh", "-c", "echo x > /sbin/docker-init").code != 0
    driver.call(driver.runtime.monitor.kill(container, 15))
    assert driver.call(driver.runtime.wait(container)).code == 143
