"""`wherry` sends what the docker CLI sends: the same command line, the same requests, the same refusals."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Cli, docker_binary, wherry_command
from tests.support.recorder import Recorded, Recorder, recorder


@pytest.fixture(scope="module")
def server() -> Iterator[Recorder]:
    with tempfile.TemporaryDirectory(prefix="wr-") as directory, recorder(Path(directory)) as running:
        yield running


@pytest.fixture(scope="module")
def clients(server: Recorder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Cli, Cli]:
    config = tmp_path_factory.mktemp("config")
    return Cli([docker_binary()], server.host, config), Cli(wherry_command(), server.host, config)


def plain(request: Recorded) -> tuple[str, str, Any, Any]:
    """A request without what may differ: order where a Go map has none, empty parameters, filters' two forms."""
    body = request.json
    if isinstance(body, dict):
        host = body.get("HostConfig") or {}
        for key in (
            "CapAdd",
            "CapDrop",
        ):  # some versions of docker normalise them, some leave that to the engine
            host[key] = sorted("CAP_" + name.upper().removeprefix("CAP_") for name in host.get(key) or ())
        for mount in host.get("Mounts") or ():
            if (mount.get("VolumeOptions") or {}).get("DriverConfig") == {}:
                del mount["VolumeOptions"]["DriverConfig"]
        for owner, key in ((body, "Env"), (host, "Binds")):
            if isinstance(owner.get(key), list):
                owner[key] = sorted(set(owner[key]))
        if pools := (body.get("IPAM") or {}).get("Config"):
            pools.sort(key=lambda pool: str(pool.get("Subnet")))
    query = {name: values for name, values in request.query.items() if values not in ([""], ["0"], ["null"])}
    if request.path.endswith("/update"):  # only what is changed counts; docker sends the rest as zeros
        body = {name: value for name, value in body.items() if value}
    if "filters" in query:
        filters = json.loads(query["filters"][0])
        query["filters"] = [{name: sorted(values) for name, values in filters.items()}]  # type: ignore[list-item]
    for key in ("platform", "platforms"):
        if query.get(key, [""])[0].startswith("{"):
            query[key] = [json.loads(value) for value in query[key]]
    return request.method, request.path, query, body


def both(server: Recorder, clients: tuple[Cli, Cli], line: str, cwd: Path) -> tuple[Any, Any, Any, Any]:
    """What docker and wherry send for a command line, and their results."""
    words = shlex.split(line)
    docker, wherry = clients
    theirs = docker(*words, cwd=cwd)
    sent = [plain(request) for request in server.take()]
    ours = wherry(*words, cwd=cwd, env={"PYTHONPATH": str(Path(__file__).parents[2])})
    return sent, [plain(request) for request in server.take()], theirs, ours


CREATE = """
bb
bb true
-i bb cat
-t bb
-it bb sh
-a stdin -a STDOUT bb
-a stderr -i bb
--add-host a:1.2.3.4 --add-host b=[::1] --add-host c=host-gateway --add-host d:2001:db8::1 bb
--annotation a=b --annotation c bb
--blkio-weight 300 --blkio-weight-device /dev/sda:200 bb
--cap-add NET_ADMIN --cap-add all --cap-drop MKNOD bb
--cgroup-parent /x --cgroupns host bb
--cpu-period 100000 --cpu-quota 50000 --cpu-rt-period 1000000 --cpu-rt-runtime 950000 bb
-c 512 --cpus 1.5 --cpuset-cpus 0-1 --cpuset-mems 0 bb
--cpus 3/4 bb
--cpus .25 bb
--cpus 1e-2 bb
--device /dev/null bb
--device /dev/null:/dev/x --device /dev/zero:r --device /dev/full:/dev/y:rw --device /dev//tty bb
--device vendor.com/class=name --device /dev/null bb
--device-cgroup-rule 'c 1:3 rwm' --device-cgroup-rule 'a *:* m' bb
--device-read-bps /dev/sda:1mb --device-read-iops /dev/sda:100 bb
--device-write-bps /dev/sda:1g --device-write-iops /dev/sdb:7 bb
--dns 1.1.1.1 --dns ::1 --dns-option ndots:2 --dns-opt x --dns-search example.com --dns-search . bb
--domainname d -h host bb
--entrypoint sh bb -c true
--entrypoint= bb
-e A=b -e C= -e HOME bb
-e UNSET_ANYWHERE bb
--expose 80 --expose 90-92/udp bb
--gpus all bb
--gpus 2 bb
--gpus 'device=0,driver=x' bb
--gpus '"device=0,2","capabilities=compute,utility"' bb
--group-add audio --group-add 10 bb
--health-cmd 'curl x' --health-interval 5s --health-retries 3 --health-timeout 1m30s --health-start-period 2h bb
--health-start-interval 500ms bb
--no-healthcheck bb
--init bb
--init=false bb
--ip 10.0.0.5 --network net bb
--ip6 2001:db8::7 --network net bb
--ipc host bb
--ipc container:x bb
--isolation default bb
-l a=b -l c --label d=e=f bb
--link x:y --link z bb
--link x:y --network net bb
--link-local-ip 169.254.1.1 --network net bb
--log-driver json-file --log-opt max-size=1m --log-opt a bb
--mac-address 92:d0:c6:0a:29:33 bb
--mac-address 92-d0-c6-0a-29-33 --network net bb
-m 512m --memory-reservation 1g --memory-swap -1 --memory-swappiness 60 bb
-m 1.5GiB --memory-swap 2GB --shm-size 64M bb
-m 1048576b bb
--mount type=bind,source=/a,target=/b bb
--mount type=bind,src=/a,dst=/b,readonly,bind-propagation=rslave bb
--mount type=bind,src=.,dst=/b,ro=false,bind-recursive=disabled bb
--mount type=bind,src=/a,dst=/b,ro,bind-recursive=writable bb
--mount type=volume,src=v,dst=/b,volume-nocopy,volume-label=a=b,volume-driver=local,volume-opt=o=x bb
--mount src=v,dst=/b,volume-subpath=x bb
--mount dst=/anon bb
--mount type=tmpfs,dst=/t,tmpfs-size=64m,tmpfs-mode=1770 bb
--mount type=image,src=i,dst=/i,image-subpath=x bb
--mount '"type=bind","src=/a,b","dst=/c"' bb
--mount type=bind,src=/a,target=/b,consistency=cached bb
--network none bb
--network host bb
--network bridge bb
--network net bb
--network net --network-alias a --net-alias b bb
--network name=net,alias=a,alias=b,ip=10.0.0.9,mac-address=92:d0:c6:0a:29:33 bb
--network name=net,driver-opt=a=b,gw-priority=5,link-local-ip=169.254.1.1,ip6=2001:db8::1 bb
--network name=net --network two bb
--network net --network name=two,alias=x bb
--net=container:x bb
--oom-kill-disable --oom-score-adj -500 bb
--pid host bb
--pid container:x bb
--pids-limit 100 bb
--pids-limit -1 bb
--privileged bb
-p 80 bb
-p 8080:80 bb
-p 127.0.0.1:8080:80/udp bb
-p 8000-8002:80-82 bb
-p 8000-8010:80 bb
-p [::1]:8080:80 bb
-p 127.0.0.1::80 bb
-p 53:53/UDP -p 53:53 bb
-p published=8080,target=80,protocol=udp bb
-p80 -P bb
--read-only bb
--restart always bb
--restart on-failure:3 bb
--restart unless-stopped bb
--restart= bb
--rm bb
--runtime runc bb
--security-opt no-new-privileges bb
--security-opt seccomp=unconfined --security-opt apparmor=unconfined bb
--security-opt label:disable bb
--security-opt systempaths=unconfined bb
--security-opt seccomp=profile.json bb
--stop-signal SIGINT --stop-timeout 3 bb
--stop-timeout 0 bb
--storage-opt size=10G bb
--sysctl net.ipv4.ip_forward=1 --sysctl kernel.msgmax=1 bb
--tmpfs /run --tmpfs /tmp:size=1m,mode=1777 bb
--ulimit nofile=1024:2048 --ulimit core=0 --ulimit nproc=-1:-1 bb
-u 1000:1000 bb
--userns host bb
--uts host bb
-v /a:/b bb
-v /a:/b:ro,z -v named:/c:nocopy -v /anon bb
-v ./x:/y -v .:/z -v ../up:/up bb
-v named:/c -v named:/c bb
-v a bb
--volume-driver x --volumes-from c1 --volumes-from c2:ro bb
-w /work bb
--name x --platform linux/arm64 bb
--env-file vars.env -e A=over bb
--label-file labels --label x=y bb
--quiet bb
-ith host bb
-- bb -x
"""

REFUSED = """
-itdh host bb
--foo bb
-e
--name
-c x bb
--cpu-shares 99999999999999999999 bb
--blkio-weight 70000 bb
--cpus x bb
--cpus 0.0000000001 bb
-m x bb
-m 5z bb
-m -5 bb
--health-interval 5 bb
--health-interval 5x bb
--health-interval x bb
--health-interval=-5s bb
--health-retries x bb
--no-healthcheck --health-cmd x bb
-a foo bb
--add-host x bb
--add-host x:y bb
-e =x bb
-l =x bb
-l 'a b=c' bb
--dns x bb
--dns-search '' bb
--device-cgroup-rule x bb
--device /dev/x:/y:q bb
--device a:b:c:d bb
--device /dev/x:rel bb
--device-read-bps x bb
--device-read-bps /x:1 bb
--device-read-bps /dev/x:y bb
--device-read-iops /dev/x:1m bb
--blkio-weight-device /dev/x:5 bb
--link a:b:c bb
--gpus foo=bar bb
--gpus x bb
--gpus all,all bb
--ulimit x bb
--ulimit foo=1 bb
--ulimit nofile=2:1 bb
--ulimit nofile=1:2:3 bb
--ulimit nofile=x bb
--ulimit nofile=-1:5 bb
--sysctl x bb
--sysctl kernel.foo=1 bb
--mount x bb
--mount type=bind,foo=bar bb
--mount type=bind,src=/a,dst=/b,volume-nocopy bb
--mount type=volume,dst=/b,bind-propagation=shared bb
--mount type=tmpfs,dst=/t,tmpfs-size=x bb
--mount type=tmpfs,dst=/t,tmpfs-mode=9 bb
--mount type=bind,src=/a,dst=/b,bind-recursive=x bb
--mount type=bind,src=/a,dst=/b,bind-recursive=readonly bb
--mount type=bind,src=/a,dst=/b,ro,bind-recursive=readonly bb
-v :/x bb
-v /a::ro bb
-v /a:/b:ro:x bb
-p abc bb
-p 80:abc bb
-p 70000 bb
-p 80-81:90-92 bb
-p 80/foo bb
-p 1.2.3:80:80 bb
-p '' bb
-p published bb
--expose x bb
--expose 90-80 bb
--network name=net,foo=bar bb
--network alias=x bb
--network name=net,gw-priority=x bb
--network name=net,driver-opt=x bb
--network host --network net bb
--network net --network net bb
--network host --network-alias a bb
--network name=net,alias=x --network-alias y bb
--network name=net,ip=1.2.3.4 --ip 1.2.3.5 bb
--mac-address x bb
--pid x bb
--uts x bb
--userns x bb
--cgroupns x bb
--restart :3 bb
--restart on-failure:x bb
--rm --restart always bb
--log-driver none --log-opt a=b bb
--security-opt x bb
--security-opt seccomp=/nonexistent bb
--storage-opt x bb
--memory-swappiness 101 bb
--pull sometimes bb
--env-file /nonexistent bb
--env-file broken.env bb
--env-file spaces.env bb
--label-file /nonexistent bb
--cidfile taken bb
--init=maybe bb
Foo
foo:bar:baz
-bb
---x bb
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "profile.json").write_text('{\n  "defaultAction": "SCMP_ACT_ALLOW",\n  "syscalls": []\n}\n')
    (tmp_path / "vars.env").write_text("# comment\n\nA=b\n  C=with = sign \nHOME\nUNSET_ANYWHERE\nD=\n")
    (tmp_path / "broken.env").write_text("=x\n")
    (tmp_path / "spaces.env").write_text("a b=c\n")
    (tmp_path / "labels").write_text("com.example=1\nbare\n")
    (tmp_path / "taken").write_text("")
    return tmp_path


@pytest.mark.parametrize("arguments", CREATE.strip().split("\n"))
def test_create_body(server: Recorder, clients: tuple[Cli, Cli], directory: Path, arguments: str) -> None:
    theirs, ours, docker, wherry = both(server, clients, f"create {arguments}", directory)
    assert docker.code == 0, docker
    assert (wherry.code, wherry.out) == (docker.code, docker.out), wherry
    assert ours == theirs


def reason(text: str) -> str:
    """The first sentence of an error, without the words around it that each CLI has."""
    lines = [
        line
        for line in text.split("\n")
        if line and not line.startswith(("Usage:", "Run '", "See '", "hint:"))
    ]
    found = lines[0] if lines else ""
    for prefix in ("docker: ", "Error response from daemon: ", "error: "):
        found = found.removeprefix(prefix)
    return found.replace("docker create", "wherry create").lower()  # capitals come and go between versions


@pytest.mark.parametrize("arguments", REFUSED.strip().split("\n"))
def test_refused(server: Recorder, clients: tuple[Cli, Cli], directory: Path, arguments: str) -> None:
    theirs, ours, docker, wherry = both(server, clients, f"create {arguments}", directory)
    assert docker.code != 0, docker
    assert (reason(wherry.err), wherry.code) == (reason(docker.err), docker.code)
    assert wherry.err.startswith("error: ")
    assert (theirs, ours) == ([], [])


REQUESTS = """
volume create
volume create -d x -o a=b --label c=d name
volume rm -f v
volume inspect v
volume prune -af
volume prune -f --filter label=x
volume ls -f dangling=true -f name=x
network create n
network create -d bridge --subnet 10.1.0.0/16 --gateway 10.1.0.1 --ip-range 10.1.2.0/24 --aux-address h=10.1.0.5 n
network create --ipv6 --subnet 2001:db8::/64 --subnet 10.2.0.0/16 --gateway 2001:db8::1 n
network create --internal --attachable -o a=b --label c=d --ipam-opt e=f --ipv4=false n
network create --config-only --scope local n
network create --config-from c n
network connect n c
network connect --ip 10.1.0.9 --alias a --alias b --link c:d --link-local-ip 169.254.1.1 --driver-opt x=y n c
network connect --ip6 2001:db8::5 --gw-priority 4 n c
network disconnect -f n c
network inspect -v n
network prune -f --filter until=24h
commit -p=false -c 'CMD x' -c 'ENV a=b' -a me -m msg c registry.example/x:1
commit c
commit c name
kill c
kill -s HUP c
stop c
stop -t 3 -s INT c
restart -t -1 c
pause c
unpause c
rm c
rm -fvl c
rename c d
wait c
start c
update -m 1g --memory-swap -1 --cpus .5 --restart on-failure:2 c
update --pids-limit 5 c
update --blkio-weight 20 -c 3 --cpu-period 1 --cpu-quota 2 --cpuset-cpus 0 c
top c
top c -o pid,comm
diff c
port c
logs c
stats --no-stream c
container inspect -s c
container prune -f --filter until=1h --filter label!=x
image inspect --platform linux/arm64/v8 i
image inspect localhost:5000/a/b:c
history --platform linux/amd64 i
history i
images -a
images -f dangling=true -f label=a=b
images name
rmi i
rmi -f --no-prune i
rmi --platform linux/amd64 i
tag i registry.example:5000/x/y:1
tag i name
save a b:c
save --platform linux/amd64 a
export c
image prune -af
image prune -f
pull name
pull -q name:tag
pull -a name
pull --platform linux/arm64 registry.example/n@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
search --limit 3 -f is-official=true x
system df
version
events --until 1 --since 1700000000 -f type=container -f event=die
login -u a -p b
login -u a -p b https://registry.example/v1/
inspect --type container x
inspect --type network x
cp c:/a -
"""


@pytest.mark.parametrize("line", REQUESTS.strip().split("\n"))
def test_requests(server: Recorder, clients: tuple[Cli, Cli], directory: Path, line: str) -> None:
    """The server refuses all of them, so this is about a command's first request."""
    theirs, ours, docker, wherry = both(server, clients, line, directory)
    assert ours[:1] == theirs[:1]
    assert bool(wherry.code) == bool(docker.code), (docker, wherry)
    if docker.err:
        assert reason(wherry.err) == reason(docker.err)
