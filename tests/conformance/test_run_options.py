"""The options of `docker run`, one by one: what is accepted, what it does, and how the wrong is refused.

Beside the other tests of running, which look closer: each line here is dockerd's answer on the same kernel.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet

from tests.support.cli import Cli

# Options with which `true` runs and nothing is said.
ACCEPTED = """\
--annotation a=b
--attach stderr
--cap-add ALL --cap-drop ALL
--cgroup-parent wherry-options
--cgroup-parent wherry-options/../../wherry-options
--cgroupns host
--cgroupns private
--cidfile cid
--detach-keys ctrl-a,b
--device-cgroup-rule 'c 10:* rwm'
--device-cgroup-rule 'a *:* rwm'
--disable-content-trust
--entrypoint ''
--expose 80 --expose 90-92/udp
--health-cmd true --health-interval 1s --health-retries 2 --health-start-interval 1s --health-timeout 1s
--interactive
--ipc host
--ipc private
--ipc shareable
--isolation default
--label a=b --label-file labels
--log-driver local
--log-driver local --log-opt compress=false --log-opt max-file=3 --log-opt max-size=10k
--log-driver none
--log-opt compress=true --log-opt max-size=1m --log-opt max-file=3
--log-opt mode=non-blocking --log-opt max-buffer-size=1m
--memory 32m --memory-swap -1
--memory 32m --memory-swap 64m
--memory-swappiness -1
--mount type=bind,src=DIR,dst=/d,bind-recursive=disabled
--mount type=volume,dst=/v,volume-nocopy
--mount type=volume,src=options,dst=/v,volume-label=a=b
--network host
--no-healthcheck
--pid host
--platform PLATFORM
--publish 0.0.0.0:0:80/udp
--publish 127.0.0.1::80
--publish-all --expose 81
--pull never
--quiet
--restart no
--runtime io.containerd.runc.v2
--runtime runc
--security-opt apparmor=unconfined
--security-opt label=disable
--security-opt seccomp=builtin
--sig-proxy=false
--stop-signal SIGINT --stop-timeout 3
--stop-timeout -1
--userns host
--uts host
--volume /d
--volume DIR:/d:Z,ro
--volume DIR:/d:z
--volume options:/d:nocopy
--volume-driver local --volume options:/d
"""

# Options, a script, and what it prints.
EFFECTS = """\
--add-host a:1.2.3.4 | grep -F 1.2.3.4 /etc/hosts | 1.2.3.4 a
--cap-drop ALL --cap-add net_admin | grep CapEff /proc/self/status | CapEff: 0000000000001000
--device /dev/null:/dev/own:r | ls /dev/own | /dev/own
--dns 1.2.3.4 --dns-option ndots:3 --dns-search x.y | grep -v ^# /etc/resolv.conf | nameserver 1.2.3.4 search x.y options ndots:3
--domainname dom --hostname host | hostname; tail -n 1 /etc/hosts | cut -f2 | host host.dom host
--entrypoint echo | said | -c said
--env X=1 --env-file env | echo $A $X | 1 1
--group-add 5 --user 7:8 | id -G | 8 5
--init | cat /proc/1/comm | docker-init
--ipc none | mount | grep -c shm | 0
--mac-address 02:42:ac:11:00:99 | cat /sys/class/net/eth0/address | 02:42:ac:11:00:99
--mount type=bind,src=DIR,dst=/d,readonly | touch /d/x 2>/dev/null; echo $? | 1
--mount type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=700 | stat -c %a /t; df -k /t | awk 'END {print $2}' | 700 1024
--network name=bridge,driver-opt=com.docker.network.endpoint.ifname=foo0 | ls /sys/class/net | foo0 lo
--network name=bridge,driver-opt=com.docker.network.endpoint.sysctls=net.ipv4.conf.IFNAME.log_martians=1 | cat /proc/sys/net/ipv4/conf/eth0/log_martians | 1
--network name=bridge,mac-address=02:42:ac:11:00:98 | cat /sys/class/net/eth0/address | 02:42:ac:11:00:98
--network none | ls /sys/class/net | lo
--oom-score-adj 500 | cat /proc/self/oom_score_adj | 500
--read-only | touch /x 2>/dev/null; echo $? | 1
--security-opt no-new-privileges | grep NoNewPrivs /proc/self/status | NoNewPrivs: 1
--security-opt no-new-privileges=false | grep NoNewPrivs /proc/self/status | NoNewPrivs: 0
--security-opt seccomp=unconfined | grep Seccomp: /proc/self/status | Seccomp: 0
--security-opt systempaths=unconfined | mount | grep -c ' /proc/' | 0
--hostname 'a b' | hostname; cat /etc/hostname; grep -c 'a b$' /etc/hosts | a b a b 1
--shm-size 1m | df -k /dev/shm | awk 'END {print $2}' | 1024
--shm-size 0 | df -k /dev/shm | awk 'END {print $2}' | 65536
--sysctl fs.mqueue.msg_max=20 | cat /proc/sys/fs/mqueue/msg_max | 20
--sysctl kernel.msgmax=9000 --sysctl kernel.shmmax=100 | cat /proc/sys/kernel/msgmax /proc/sys/kernel/shmmax | 9000 100
--tmpfs /t:exec,uid=5,size=1m | stat -c %u /t; df -k /t | awk 'END {print $2}' | 5 1024
--tty | tty | /dev/pts/0
--ulimit nofile=100:200 --ulimit core=0 | ulimit -n; ulimit -c | 100 0
--user 5:6 | id -u; id -g | 5 6
--workdir /a/b | pwd | /a/b
"""

# Options, and a part of what is said instead of running.
REFUSED = """\
--cap-add nope | invalid CapAdd: unknown capability: "CAP_NOPE"
--cgroupns odd | --cgroupns: invalid CGROUP mode
--cpu-period 5 | CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)
--cpu-quota 5 | CPU cfs quota can not be less than 1ms (i.e. 1000)
--cpuset-cpus x | Invalid value x for cpuset cpus: invalid format: x
--device vendor.com/class=x | CDI device injection failed: unresolvable CDI devices vendor.com/class=x
--device /dev/nosuch | error gathering device information while adding custom device "/dev/nosuch": no such file or directory
--gpus all | could not select device driver "" with capabilities: [[gpu]]
--group-add nosuch | Error response from daemon: unable to find group nosuch: no matching entries in group file
--ip 172.30.1.1 | invalid config for network bridge: invalid endpoint settings:
--ipc odd | invalid IPC mode: odd
--isolation hyperv | invalid isolation (hyperv): linux only supports 'default'
--log-driver local --log-opt tag=x | unknown log opt 'tag' for log driver local
--log-opt max-buffer-size=1m | logger: max-buffer-size option is only supported with 'mode=non-blocking'
--log-opt mode=odd | logger: logging mode not supported: odd
--log-opt odd=1 | unknown log opt 'odd' for json-file log driver
--mount type=bind,src=/nosuchdir,dst=/d | bind source path does not exist: /nosuchdir
--network nosuch | network nosuch not found
--oom-score-adj 5000 | Invalid value 5000, range for oom score adj is [-1000, 1000]
--pid container:nosuch | No such container: nosuch
--pid odd | --pid: invalid PID mode
--runtime nosuch | unknown or invalid runtime name: nosuch
--security-opt odd | Invalid --security-opt: "odd"
--security-opt odd=1 | invalid --security-opt 2: "odd=1"
--shm-size -1 | invalid size: '-1'
--storage-opt odd=1 | Unknown option odd
--sysctl vm.swappiness=1 | sysctl 'vm.swappiness=1' is not allowed
--tmpfs /t:odd | invalid tmpfs option
--user 4294967296 | Error response from daemon: uids and gids must be in range 0-2147483647
--user nosuch | Error response from daemon: unable to find user nosuch: no matching entries in passwd file
--user root:nosuch | Error response from daemon: unable to find group nosuch: no matching entries in group file
--userns odd | --userns: invalid USER mode
--uts odd | invalid UTS mode
--volume DIR:/ | invalid volume specification
--volume DIR:/d:odd | invalid mode: odd
--volumes-from nosuch | No such container: nosuch
--volume DIR:/etc/passwd | not a directory: Are you trying to mount a directory onto a file (or vice-versa)?
--volume DIR/../env:/etc | not a directory: Are you trying to mount a directory onto a file (or vice-versa)?
--workdir /etc/passwd | Error response from daemon: Cannot mkdir: /etc/passwd is not a directory
--workdir rel | the working directory 'rel' is invalid, it needs to be an absolute path
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "env").write_text("A=1\n")
    (tmp_path / "labels").write_text("l1=1\n")
    (tmp_path / "dir").mkdir()
    return tmp_path


def words(text: str, folder: Path, docker: Cli) -> list[str]:
    platform = (
        docker.ok("version", "--format", "{{.Server.Os}}/{{.Server.Arch}}") if "PLATFORM" in text else ""
    )
    return shlex.split(text.replace("DIR", str(folder / "dir")).replace("PLATFORM", platform))


def limited(line: str) -> ParameterSet:
    """Lines with what is warned about where there are no control groups."""
    warned = any(flag in line for flag in ("--memory-swap", "--cgroup-parent", "--device-cgroup-rule"))
    return pytest.param(line, marks=pytest.mark.rootful("control groups") if warned else ())


@pytest.mark.parametrize("flags", [limited(line) for line in ACCEPTED.splitlines()])
def test_accepted(docker: Cli, busybox: str, folder: Path, flags: str) -> None:
    result = docker("run", "--rm", *words(flags, folder, docker), busybox, "true", cwd=folder)
    assert (result.code, result.out, result.err) == (0, "", "")


@pytest.mark.parametrize("line", EFFECTS.splitlines())
def test_effect(docker: Cli, busybox: str, folder: Path, line: str) -> None:
    flags, _, rest = line.partition(" | ")
    script, _, expected = rest.rpartition(" | ")
    command = ("-c", script) if "--entrypoint" in flags else ("sh", "-c", script)
    result = docker("run", "--rm", *words(flags, folder, docker), busybox, *command, cwd=folder)
    assert (result.err, result.out.split()) == ("", expected.split())


@pytest.mark.parametrize("line", REFUSED.splitlines())
def test_refused(docker: Cli, busybox: str, folder: Path, line: str) -> None:
    flags, _, expected = line.partition(" | ")
    result = docker("run", "--rm", *words(flags, folder, docker), busybox, "true", cwd=folder)
    assert result.code in (125, 126, 127)
    assert expected in result.err


def test_the_local_log_driver_is_read_by_the_engine_only(docker: Cli, busybox: str) -> None:
    docker.ok(
        "run", "--name", "local", "--log-driver", "local", busybox, "sh", "-c", "echo out; echo err >&2"
    )
    logs = docker("logs", "local")
    assert (logs.out, logs.err) == ("out\n", "err\n")
    assert (
        docker.ok("inspect", "--format", "{{.LogPath}}|{{.HostConfig.LogConfig.Type}}", "local") == "|local"
    )
