"""`docker run`: what the flags do to the process, its files and its surroundings."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.cli import Cli, eventually
from tests.support.engine import Engine

pytestmark = pytest.mark.root


def sh(docker: Cli, image: str, script: str, *flags: str | Path) -> str:
    """The output of a shell script in a throw-away container."""
    return docker.ok("run", "--rm", *flags, image, "sh", "-c", script)


# Output and exit codes


def test_streams_are_apart(docker: Cli, busybox: str) -> None:
    result = docker("run", "--rm", busybox, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (result.code, result.out, result.err) == (7, "out\n", "err\n")


def test_much_output_arrives_whole(docker: Cli, busybox: str) -> None:
    result = docker("run", "--rm", busybox, "sh", "-c", "seq 1 200000")
    assert result.out == "".join(f"{number}\n" for number in range(1, 200001))


def test_programs_can_tell_that_they_run_in_a_container(docker: Cli, busybox: str) -> None:
    docker.ok("run", "--name", "told", busybox, "test", "-f", "/.dockerenv")
    try:
        assert docker.ok("diff", "told") == ""
    finally:
        docker.ok("rm", "told")


def test_detached_prints_the_id(docker: Cli, busybox: str) -> None:
    identity = docker.ok("run", "-d", busybox, "sleep", "60")
    assert len(identity) == 64
    assert docker.ok("inspect", "-f", "{{.Id}} {{.State.Status}}", identity) == f"{identity} running"


def test_command_not_found_is_127(docker: Cli, busybox: str) -> None:
    result = docker("run", "--rm", busybox, "nosuch")
    assert result.code == 127
    assert 'exec: "nosuch": executable file not found in $PATH' in result.err


def test_missing_path_is_127(docker: Cli, busybox: str) -> None:
    result = docker("run", "--rm", busybox, "/no/such/program")
    assert result.code == 127
    assert "no such file or directory" in result.err


def test_not_executable_is_126(docker: Cli, busybox: str) -> None:
    result = docker("run", "--rm", busybox, "/etc/passwd")
    assert result.code == 126
    assert "permission denied" in result.err


def test_directory_is_126(docker: Cli, busybox: str) -> None:
    result = docker("run", "--rm", busybox, "/etc")
    assert result.code == 126


def test_unknown_flag_is_125(docker: Cli, busybox: str) -> None:
    assert docker("run", "--nosuch", busybox).code == 125


def test_unknown_image_is_125(docker: Cli) -> None:
    result = docker("run", "--rm", "--pull", "never", "no-such-image:1")
    assert result.code == 125
    assert "No such image: no-such-image:1" in result.err


def test_killed_is_137(docker: Cli, busybox: str) -> None:
    process = docker.spawn("run", "--rm", "--name", "victim", busybox, "sh", "-c", "echo ready; sleep 60")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    docker.ok("kill", "victim")
    assert process.wait(20) == 137


def test_signals_are_forwarded(docker: Cli, busybox: str) -> None:
    script = "trap 'echo got; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    process = docker.spawn("run", "--rm", busybox, "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.terminate()
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (9, b"got\n")


def test_failed_start_leaves_a_created_container(docker: Cli, busybox: str) -> None:
    assert docker("run", "--name", "stillborn", busybox, "nosuch").code == 127
    state = json.loads(docker.ok("inspect", "-f", "{{json .State}}", "stillborn"))
    assert (state["Status"], state["ExitCode"]) == ("created", 127)
    assert "executable file not found" in state["Error"]


def test_rm_removes(docker: Cli, busybox: str) -> None:
    docker.ok("run", "--rm", "--name", "gone", busybox, "true")
    assert docker("inspect", "gone").code == 1


def test_rm_removes_after_a_failed_start(docker: Cli, busybox: str) -> None:
    docker("run", "--rm", "--name", "gone", busybox, "nosuch")
    assert docker("container", "inspect", "gone").code == 1


# Process settings


def test_environment(docker: Cli, busybox: str, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# comment\nFROM_FILE=a b\nBOTH=file\n")
    flags = ("-e", "ONE=1", "-e", "BOTH=flag", "-e", "EMPTY=", "--env-file", str(tmp_path / "env"))
    environment = sh(docker, busybox, "env", *flags, "--hostname", "box").splitlines()
    assert {"ONE=1", "BOTH=flag", "EMPTY=", "FROM_FILE=a b", "HOSTNAME=box", "HOME=/root"} <= set(environment)
    assert "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" in environment


def test_environment_order(docker: Cli, busybox: str) -> None:
    """The image's, then HOSTNAME, then the user's; HOME last."""
    names = [
        line.split("=")[0] for line in docker.ok("run", "--rm", "-e", "A=1", busybox, "env").splitlines()
    ]
    assert names == ["PATH", "HOSTNAME", "A", "HOME"]


def test_environment_removed_by_name(docker: Cli, busybox: str) -> None:
    """`-e NAME` without a value takes the client's, and unsets it where the client has none."""
    assert "PATH=" not in docker.ok("run", "--rm", "-e", "NOSUCH", "-e", "LANG", busybox, "/bin/env").replace(
        "PATH=/usr", ""
    )


def test_terminal_sets_term(docker: Cli, busybox: str) -> None:
    assert docker("run", "--rm", "-t", busybox, "sh", "-c", "echo $TERM").out == "xterm\r\n"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("1000", "1000 1000 1000 50"),
        ("user", "1000 1000 1000 50"),
        ("user:staff", "1000 50 50"),
        ("1234:4321", "1234 4321 4321"),
        ("4242", "4242 0 0"),
        ("nobody", "65534 65534 65534"),
        ("daemon:1000", "1 1000 1000"),
    ],
)
def test_user(docker: Cli, busybox: str, user: str, expected: str) -> None:
    assert (
        sh(docker, busybox, "echo $(id -u) $(id -g) $(id -G)", "--user", user).split()[:2]
        == expected.split()[:2]
    )
    groups = sh(docker, busybox, "grep Groups /proc/self/status", "--user", user).split()[1:]
    assert sorted(groups, key=int) == sorted(expected.split()[2:], key=int)


def test_unknown_user(docker: Cli, busybox: str) -> None:
    result = docker("run", "--rm", "--user", "nosuch", busybox, "true")
    assert result.code in (125, 126)
    assert "unable to find user nosuch: no matching entries in passwd file" in result.err


def test_unknown_group(docker: Cli, busybox: str) -> None:
    result = docker("run", "--rm", "--user", "user:nosuch", busybox, "true")
    assert result.code in (125, 126)
    assert "unable to find group nosuch: no matching entries in group file" in result.err


def test_group_add(docker: Cli, busybox: str) -> None:
    script = "grep Groups /proc/self/status"
    groups = sh(
        docker, busybox, script, "--user", "1000", "--group-add", "staff", "--group-add", "777"
    ).split()[1:]
    assert {"50", "777"} <= set(groups)


def test_home_of_a_user(docker: Cli, busybox: str) -> None:
    assert sh(docker, busybox, "echo $HOME", "--user", "user") == "/home/user"
    assert sh(docker, busybox, "echo $HOME", "--user", "4242") == "/"
    assert sh(docker, busybox, "echo $HOME", "--user", "user", "-e", "HOME=/elsewhere") == "/elsewhere"


def test_workdir(docker: Cli, busybox: str) -> None:
    assert sh(docker, busybox, "pwd", "-w", "/etc") == "/etc"
    assert (
        sh(docker, busybox, "pwd; stat -c %u:%a .", "-w", "/made/up", "--user", "1000") == "/made/up\n0:755"
    )
    assert sh(docker, busybox, "pwd") == "/"


def test_workdir_must_be_absolute(docker: Cli, busybox: str) -> None:
    result = docker("run", "--rm", "-w", "relative", busybox, "true")
    assert result.code == 125
    assert "the working directory 'relative' is invalid, it needs to be an absolute path" in result.err


def test_entrypoint(docker: Cli, busybox: str) -> None:
    assert docker.ok("run", "--rm", "--entrypoint", "echo", busybox, "a", "b") == "a b"
    assert docker.ok("run", "--rm", "--entrypoint", "/bin/pwd", busybox) == "/"
    result = docker("run", "--rm", "--entrypoint", "", busybox)
    assert result.code == 125
    assert "no command specified" in result.err


def test_hostname_and_domain(docker: Cli, busybox: str) -> None:
    flags = ("--hostname", "box", "--domainname", "example.test")
    assert sh(docker, busybox, "hostname; cat /etc/hostname; cat /proc/sys/kernel/domainname", *flags) == (
        "box\nbox\nexample.test"
    )
    identity = docker.ok("run", "-d", busybox, "sleep", "60")
    assert docker.ok("exec", identity, "hostname") == identity[:12]


def test_add_host(docker: Cli, busybox: str) -> None:
    hosts = sh(docker, busybox, "cat /etc/hosts", "--add-host", "db:10.1.2.3", "--add-host", "six=[fd00::1]")
    assert "10.1.2.3\tdb" in hosts
    assert "fd00::1\tsix" in hosts
    assert "127.0.0.1\tlocalhost" in hosts


@pytest.mark.native
@pytest.mark.rootful("containers are not in a network of the host")
def test_add_host_gateway(docker: Cli, busybox: str) -> None:
    gateway = docker.ok("network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "bridge")
    hosts = sh(docker, busybox, "cat /etc/hosts", "--add-host", "outside:host-gateway")
    assert f"{gateway}\toutside" in hosts


def test_dns_options(docker: Cli, busybox: str) -> None:
    flags = (
        "--dns",
        "192.0.2.1",
        "--dns",
        "192.0.2.2",
        "--dns-search",
        "example.test",
        "--dns-opt",
        "ndots:3",
    )
    lines = sh(docker, busybox, "cat /etc/resolv.conf", *flags).splitlines()
    assert "nameserver 192.0.2.1" in lines
    assert "nameserver 192.0.2.2" in lines
    assert "search example.test" in lines
    assert "options ndots:3" in lines


def test_init(docker: Cli, busybox: str) -> None:
    listing = sh(docker, busybox, "cat /proc/1/comm; readlink /proc/1/exe", "--init")
    assert listing == "docker-init\n/sbin/docker-init"
    script = "(sleep 0.1 &) ; sleep 0.5; ls -d /proc/[0-9]* | wc -l"
    assert int(sh(docker, busybox, script, "--init")) <= 5, "the orphan was not reaped"


def test_stop_signal_and_timeout(docker: Cli, busybox: str) -> None:
    script = "trap 'exit 5' USR1; echo ready; while :; do sleep 0.05; done"
    docker.ok(
        "run",
        "-d",
        "--name",
        "stopper",
        "--stop-signal",
        "USR1",
        "--stop-timeout",
        "20",
        busybox,
        "sh",
        "-c",
        script,
    )
    eventually(lambda: "ready" in docker.ok("logs", "stopper"))
    docker.ok("stop", "stopper")
    assert docker.ok("inspect", "-f", "{{.State.ExitCode}} {{.Config.StopTimeout}}", "stopper") == "5 20"


def test_labels(docker: Cli, busybox: str, tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("from=file\n")
    docker.ok(
        "create",
        "--name",
        "labelled",
        "-l",
        "a=b",
        "-l",
        "plain",
        "--label-file",
        str(tmp_path / "labels"),
        busybox,
    )
    assert json.loads(docker.ok("inspect", "-f", "{{json .Config.Labels}}", "labelled")) == {
        "a": "b",
        "from": "file",
        "plain": "",
    }


def test_ulimits(docker: Cli, busybox: str) -> None:
    limits = sh(
        docker,
        busybox,
        "ulimit -n; ulimit -Hn; ulimit -Su",
        "--ulimit",
        "nofile=123:456",
        "--ulimit",
        "nproc=99",
    )
    assert limits == "123\n456\n99"


def test_oom_score(docker: Cli, busybox: str) -> None:
    assert sh(docker, busybox, "cat /proc/self/oom_score_adj", "--oom-score-adj", "500") == "500"


def test_sysctls(docker: Cli, busybox: str) -> None:
    flags = ("--sysctl", "net.ipv4.ip_forward=0", "--sysctl", "kernel.shmmax=123456")
    assert (
        sh(docker, busybox, "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmax", *flags)
        == "0\n123456"
    )


def test_sysctl_of_the_host_is_refused(docker: Cli, busybox: str) -> None:
    result = docker("run", "--rm", "--sysctl", "vm.overcommit_memory=1", busybox, "true")
    assert result.code == 125
    flags = ("--network", "host", "--sysctl", "net.ipv4.ip_forward=0")
    result = docker("run", "--rm", *flags, busybox, "true")
    assert result.code == 125
    assert 'sysctl "net.ipv4.ip_forward" not allowed in host network namespace' in result.err


# Files and devices


def test_read_only(docker: Cli, busybox: str) -> None:
    script = "touch /file 2>&1; touch /dev/shm/ok /tmp/ok && echo fine"
    assert (
        sh(docker, busybox, script, "--read-only", "--tmpfs", "/tmp")
        == "touch: /file: Read-only file system\nfine"
    )


def test_tmpfs(docker: Cli, busybox: str) -> None:
    script = "grep ' /scratch ' /proc/mounts; stat -c %a /scratch"
    mount, mode = sh(docker, busybox, script, "--tmpfs", "/scratch:size=1m,mode=700").splitlines()
    assert mount.startswith("tmpfs /scratch tmpfs rw,nosuid,nodev,noexec,relatime,size=1024k,mode=700")
    assert mode == "700"


def test_shm_size(docker: Cli, busybox: str) -> None:
    assert "size=65536k" in sh(docker, busybox, "grep ' /dev/shm ' /proc/mounts")
    assert "size=2048k" in sh(docker, busybox, "grep ' /dev/shm ' /proc/mounts", "--shm-size", "2m")


def test_bind_mounts(docker: Cli, busybox: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host\n")
    assert (
        sh(docker, busybox, "cat /there/file; echo x > /there/new", "-v", f"{tmp_path}:/there")
        == "from the host"
    )
    assert (tmp_path / "new").read_text() == "x\n"
    script = "touch /there/no 2>&1"
    result = docker("run", "--rm", "-v", f"{tmp_path}:/there:ro", busybox, "sh", "-c", script)
    assert (result.code, result.out) == (1, "touch: /there/no: Read-only file system\n")
    assert sh(docker, busybox, "cat /etc/motd", "-v", f"{tmp_path}/file:/etc/motd:ro") == "from the host"


def test_bind_makes_a_missing_source_with_v_only(docker: Cli, busybox: str, tmp_path: Path) -> None:
    assert sh(docker, busybox, "ls -d /there", "-v", f"{tmp_path}/made:/there") == "/there"
    assert (tmp_path / "made").is_dir()
    result = docker("run", "--rm", "--mount", f"type=bind,src={tmp_path}/none,dst=/there", busybox, "true")
    assert result.code == 125
    assert (
        f'invalid mount config for type "bind": bind source path does not exist: {tmp_path}/none'
        in result.err
    )


def test_recursively_read_only_bind(docker: Cli, busybox: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    os.system(f"mount -t tmpfs tmpfs {tmp_path}/sub")
    try:
        script = "touch /there/sub/file 2>&1"
        result = docker("run", "--rm", "-v", f"{tmp_path}:/there:ro", busybox, "sh", "-c", script)
        assert (result.code, result.out) == (1, "touch: /there/sub/file: Read-only file system\n")
    finally:
        os.system(f"umount {tmp_path}/sub")


@pytest.mark.native
@pytest.mark.rootful("mounts are a copy of what the user sees")
def test_bind_propagation(docker: Cli, busybox: str, tmp_path: Path) -> None:
    os.system(f"mount --bind {tmp_path} {tmp_path} && mount --make-shared {tmp_path}")
    try:
        (tmp_path / "sub").mkdir()
        docker.ok(
            "run", "-d", "--name", "propagate", "-v", f"{tmp_path}:/there:rslave", busybox, "sleep", "60"
        )
        os.system(f"mount -t tmpfs -o size=1m tmpfs {tmp_path}/sub && touch {tmp_path}/sub/seen")
        assert docker.ok("exec", "propagate", "ls", "/there/sub") == "seen"
        assert docker.ok("inspect", "-f", "{{(index .Mounts 0).Propagation}}", "propagate") == "rslave"
    finally:
        os.system(f"umount {tmp_path}/sub; umount {tmp_path}")


def test_named_and_anonymous_volumes(docker: Cli, busybox: str) -> None:
    sh(docker, busybox, "echo kept > /data/file", "-v", "vol:/data")
    assert sh(docker, busybox, "cat /data/file", "-v", "vol:/data") == "kept"
    docker.ok("run", "--name", "anonymous", "-v", "/data", busybox, "touch", "/data/x")
    [mount] = json.loads(docker.ok("inspect", "-f", "{{json .Mounts}}", "anonymous"))
    assert (mount["Type"], mount["Destination"], len(mount["Name"]), mount["RW"]) == (
        "volume",
        "/data",
        64,
        True,
    )
    docker.ok("rm", "-v", "anonymous")
    assert docker.ok("volume", "ls", "-q") == "vol"


def test_new_volume_takes_the_images_content(docker: Cli, busybox: str) -> None:
    assert "user" in sh(docker, busybox, "ls /home; stat -c %u:%g /home/user", "-v", "home:/home")
    assert sh(docker, busybox, "ls /home", "-v", "empty:/home:nocopy") == ""


def test_volumes_from(docker: Cli, busybox: str) -> None:
    docker.ok("create", "--name", "donor", "-v", "vol:/data", busybox)
    sh(docker, busybox, "echo given > /data/file", "--volumes-from", "donor")
    script = "cat /data/file; touch /data/no 2>&1 || true"
    assert sh(docker, busybox, script, "--volumes-from", "donor:ro") == (
        "given\ntouch: /data/no: Read-only file system"
    )


def test_mount_flag(docker: Cli, busybox: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("bound\n")
    flags = (
        *("--mount", f"type=bind,source={tmp_path},target=/bound,readonly"),
        *("--mount", "type=volume,source=vol,target=/vol"),
        *("--mount", "type=tmpfs,target=/scratch,tmpfs-size=1m,tmpfs-mode=1770"),
    )
    assert sh(
        docker,
        busybox,
        "cat /bound/file; stat -c %a /scratch; df -k /scratch | tail -1 | awk '{print $2}'",
        *flags,
    ) == ("bound\n1770\n1024")


def test_volume_subpath(docker: Cli, busybox: str) -> None:
    sh(docker, busybox, "mkdir -p /v/a/b; echo deep > /v/a/b/file", "-v", "vol:/v")
    mount = "type=volume,source=vol,target=/s,volume-subpath=a/b"
    assert sh(docker, busybox, "cat /s/file", "--mount", mount) == "deep"


def test_duplicate_mount_point(docker: Cli, busybox: str) -> None:
    result = docker("run", "--rm", "-v", "first:/x", "-v", "second:/x", busybox, "true")
    assert result.code == 125
    assert "Duplicate mount point: /x" in result.err


@pytest.mark.rootful("the host's permissions count first")
def test_device(docker: Cli, busybox: str) -> None:
    assert (
        sh(
            docker,
            busybox,
            "ls -l /dev/other | cut -c1-1; head -c4 /dev/other | wc -c",
            "--device",
            "/dev/zero:/dev/other:r",
        )
        == "c\n4"
    )
    result = docker(
        "run", "--rm", "--device", "/dev/kmsg:/dev/kmsg:r", busybox, "sh", "-c", "echo > /dev/kmsg"
    )
    assert (result.code, result.err) == (1, "sh: can't create /dev/kmsg: Operation not permitted\n")
    result = docker("run", "--rm", "--device", "/dev/nosuch", busybox, "true")
    assert result.code == 127
    assert (
        'error gathering device information while adding custom device "/dev/nosuch": no such file'
        in result.err
    )


def test_default_devices(docker: Cli, busybox: str) -> None:
    listing = set(sh(docker, busybox, "ls /dev").split())
    assert listing - {"core"} == {"fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm"} | {
        "stderr", "stdin", "stdout", "tty", "urandom", "zero",
    }  # fmt: skip


# Rights


def capabilities(status: str) -> int:
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff")), 16)


def test_default_capabilities(docker: Cli, busybox: str) -> None:
    lines = sh(docker, busybox, "grep Cap /proc/self/status").splitlines()
    assert [line.split()[1] for line in lines] == [
        "0000000000000000",
        "00000000a80425fb",
        "00000000a80425fb",
        "00000000a80425fb",
        "0000000000000000",
    ]


def test_capabilities(docker: Cli, busybox: str) -> None:
    status = "cat /proc/self/status"
    assert capabilities(sh(docker, busybox, status, "--cap-drop", "ALL")) == 0
    assert (
        capabilities(sh(docker, busybox, status, "--cap-drop", "all", "--cap-add", "net_bind_service"))
        == 1 << 10
    )
    assert capabilities(sh(docker, busybox, status, "--cap-add", "SYS_ADMIN")) == 0xA80425FB | 1 << 21
    assert capabilities(sh(docker, busybox, status, "--cap-add", "CAP_SYS_TIME")) == 0xA80425FB | 1 << 25
    assert capabilities(sh(docker, busybox, status, "--user", "1000")) == 0
    result = docker("run", "--rm", "--cap-add", "NOSUCH", busybox, "true")
    assert result.code == 125
    assert 'invalid CapAdd: unknown capability: "CAP_NOSUCH"' in result.err


@pytest.mark.native
@pytest.mark.rootful("capabilities are those of a user namespace")
def test_privileged(docker: Cli, busybox: str) -> None:
    script = "cat /proc/self/status; grep Seccomp: /proc/self/status; ls /dev | wc -l; mount -t tmpfs t /mnt 2>&1; mkdir /m; mount -t tmpfs t /m && echo mounted"
    out = sh(docker, busybox, script, "--privileged")
    assert "mounted" in out
    assert "Seccomp:\t0" in out
    assert capabilities(out) == capabilities(Path("/proc/self/status").read_text()), (
        "all that we have ourselves"
    )


def test_seccomp(docker: Cli, busybox: str, tmp_path: Path) -> None:
    assert "Seccomp:\t2" in sh(docker, busybox, "cat /proc/self/status")
    assert "Seccomp:\t0" in sh(
        docker, busybox, "cat /proc/self/status", "--security-opt", "seccomp=unconfined"
    )
    result = docker("run", "--rm", busybox, "unshare", "-U", "true")
    assert (result.code, result.err) == (1, "unshare: unshare(0x10000000): Operation not permitted\n")
    profile = tmp_path / "profile.json"
    profile.write_text(
        json.dumps(
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
            }
        )
    )
    result = docker("run", "--rm", "--security-opt", f"seccomp={profile}", busybox, "mkdir", "/x")
    assert (result.code, result.err) == (1, "mkdir: can't create directory '/x': Operation not permitted\n")


def test_no_new_privileges(docker: Cli, busybox: str) -> None:
    status = "grep NoNewPrivs /proc/self/status"
    assert sh(docker, busybox, status) == "NoNewPrivs:\t0"
    assert sh(docker, busybox, status, "--security-opt", "no-new-privileges") == "NoNewPrivs:\t1"


@pytest.mark.rootful("control groups")
def test_writable_cgroups(docker: Cli, busybox: str) -> None:
    writable = "grep -E ' cgroup2? rw' /proc/mounts | wc -l"
    option = "--security-opt=writable-cgroups="
    assert sh(docker, busybox, writable) == "0"
    assert sh(docker, busybox, writable, f"{option}true") != "0"
    assert sh(docker, busybox, writable, f"{option}false") == "0"
    assert sh(docker, busybox, writable, "--privileged") != "0"
    assert sh(docker, busybox, writable, "--privileged", f"{option}false") == "0"


def test_masked_and_read_only_paths(docker: Cli, busybox: str) -> None:
    script = "cat /proc/interrupts /proc/timer_list; ls /sys/firmware; echo 1 > /proc/sys/kernel/panic"
    result = docker("run", "--rm", busybox, "sh", "-c", script)
    assert result.out == ""
    assert "can't create /proc/sys/kernel/panic: Read-only file system" in result.err
    free = sh(
        docker, busybox, "grep -c ' /proc/' /proc/mounts || true", "--security-opt", "systempaths=unconfined"
    )
    assert free == "0"


def test_no_descriptor_leaks(docker: Cli, busybox: str) -> None:
    assert sh(docker, busybox, "ls /proc/self/fd").split() == ["0", "1", "2", "3"], (
        "3 is the directory ls reads"
    )


# Namespaces


def test_host_namespaces(docker: Cli, busybox: str) -> None:
    for kind in ("pid", "ipc", "uts"):
        mine = os.readlink(f"/proc/self/ns/{kind}")
        assert sh(docker, busybox, f"readlink /proc/self/ns/{kind}", f"--{kind}", "host") == mine
        assert sh(docker, busybox, f"readlink /proc/self/ns/{kind}") != mine


def test_cgroup_namespace(docker: Cli, busybox: str) -> None:
    mine = os.readlink("/proc/self/ns/cgroup")
    read = "readlink /proc/self/ns/cgroup"
    assert sh(docker, busybox, read, "--cgroupns", "host") == mine
    assert sh(docker, busybox, read, "--cgroupns", "private") != mine


def test_join_namespaces_of_a_container(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "first", "--ipc", "shareable", busybox, "sleep", "60")
    for kind in ("pid", "ipc", "net"):
        flag = "network" if kind == "net" else kind
        inside = docker.ok("exec", "first", "readlink", f"/proc/1/ns/{kind}")
        joined = sh(docker, busybox, f"readlink /proc/self/ns/{kind}", f"--{flag}", "container:first")
        assert joined == inside, kind
    assert "sleep 60" in sh(docker, busybox, "ps", "--pid", "container:first")


def test_join_a_private_ipc_is_refused(docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "first", "--ipc", "private", busybox, "sleep", "60")
    result = docker("run", "--rm", "--ipc", "container:first", busybox, "true")
    assert result.code == 125
    assert "non-shareable IPC" in result.err


def test_join_a_stopped_container_is_refused(docker: Cli, busybox: str) -> None:
    identity = docker.ok("create", "--name", "first", busybox)
    result = docker("run", "--rm", "--pid", "container:first", busybox, "true")
    assert result.code == 125
    assert f"container {identity} is not running" in result.err


@pytest.mark.rootful("all containers are in a user namespace")
def test_userns_host(docker: Cli, busybox: str) -> None:
    mine = os.readlink("/proc/self/ns/user")
    assert sh(docker, busybox, "readlink /proc/self/ns/user", "--userns", "host") == mine


# Names and files about the container


def test_name_conflict(docker: Cli, busybox: str) -> None:
    identity = docker.ok("create", "--name", "taken", busybox)
    result = docker("run", "--name", "taken", busybox, "true")
    assert result.code == 125
    assert (
        f'Conflict. The container name "/taken" is already in use by container "{identity}". '
        "You have to remove (or rename) that container to be able to reuse that name."
    ) in result.err


def test_bad_name(docker: Cli, busybox: str) -> None:
    result = docker("run", "--name", "no/slash", busybox, "true")
    assert result.code == 125
    assert "Invalid container name (no/slash), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed" in result.err


def test_generated_name(docker: Cli, busybox: str) -> None:
    identity = docker.ok("create", busybox)
    name = docker.ok("inspect", "-f", "{{.Name}}", identity)
    assert name.startswith("/")
    assert len(name.split("_")) == 2


def test_cidfile(docker: Cli, busybox: str, tmp_path: Path) -> None:
    identity = docker.ok("run", "-d", "--cidfile", str(tmp_path / "id"), busybox, "true")
    assert (tmp_path / "id").read_text() == identity


def test_pull_never_uses_what_is_there(docker: Cli, busybox: str) -> None:
    assert docker.ok("run", "--rm", "--pull", "never", busybox, "echo", "here") == "here"


def test_platform_mismatch(engine: Engine, busybox: str) -> None:
    result = engine.docker("run", "--rm", "--pull", "never", "--platform", "linux/s390x", busybox, "true")
    assert result.code == 125


def test_log_drivers(docker: Cli, busybox: str) -> None:
    docker.ok("run", "--name", "silent", "--log-driver", "none", busybox, "echo", "x")
    result = docker("logs", "silent")
    assert result.code == 1
    assert "configured logging driver does not support reading" in result.err
    result = docker("run", "--rm", "--log-driver", "nosuch", busybox, "true")
    assert result.code == 125
    assert "nosuch" in result.err
