"""`wherry` prints what `docker` prints and exits as it does, command by command, on the same engine."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest

from tests.support.cli import Cli, Result, eventually
from tests.support.engine import Engine, OurEngine

pytestmark = [pytest.mark.root, pytest.mark.ours]


@pytest.fixture(scope="module")
def scene(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine with containers in several states, volumes, and images with several names."""
    request.getfixturevalue("_needs_root")
    from tests.support import images

    engine = OurEngine().start()
    docker = engine.docker
    try:
        docker.ok("load", "-q", "-i", images.image("busybox:latest").archive())
        docker.ok("load", "-q", "-i", images.image("many-layers:latest").archive())
        docker.ok("tag", "busybox", "example.test/team/tool:1.2")
        docker.ok("volume", "create", "--label", "a=b", "named")
        flags = (
            "-p",
            "127.0.0.1:0:80",
            "-p",
            "127.0.0.1:0:53/udp",
            "-l",
            "tier=web",
            "-v",
            "named:/data",
            "-m",
            "64m",
        )
        docker.ok(
            "run", "-d", "--name", "web", *flags, "busybox", "sh", "-c", "echo up; echo err >&2; sleep 600"
        )
        docker.ok("run", "--name", "done", "busybox", "sh", "-c", "touch /new; rm /etc/group; seq 1 30")
        docker("run", "--name", "failed", "--restart", "no", "busybox", "sh", "-c", "exit 3")
        docker.ok(
            "create",
            "--name",
            "new",
            "--health-cmd",
            "true",
            "busybox",
            "echo",
            "a rather long argument, indeed",
        )
        eventually(lambda: "err" in docker("logs", "web").err)
        yield engine
    finally:
        engine.close()


def settle(text: str, line_order_varies: bool = False) -> str:
    """Without what changes from one moment to the next, and the width of columns that hold it."""
    text = re.sub(r"(Up|Exited \(\d+\)) [\w ]+? (seconds?|minutes?)( ago)?", r"\1 some time", text)
    text = re.sub(r"(\d+|About a|Less than a) (seconds?|minutes?) ago", "some time ago", text)
    text = re.sub(r"(some time(?: ago)?) {2,}", r"\1   ", text)
    text = re.sub(" {2,}", "  ", text)  # columns are as wide as the times in them
    # Go prints maps in any order: names of one image, keys of an object.
    lines = [
        json.dumps(json.loads(line), sort_keys=True) if line.startswith("{") else line
        for line in text.splitlines()
    ]
    return "\n".join(sorted(lines) if line_order_varies else lines)


COMMANDS = """
ps
ps -a
ps -aq
ps -aq --no-trunc
ps -a --no-trunc
ps -n 2
ps -l
ps -as
ps -a --filter name=web
ps -a --filter status=exited --format {{.Names}}
ps -a --format json
ps -a --format table {{.ID}}\t{{.Names}}\t{{.Ports}}
ps -a --format {{.Names}}: {{.Image}} {{.Command}} {{.Labels}} {{.Mounts}} {{.Networks}} {{.Size}} {{.State}}
ps -a --format {{json .}}
ps -a --format {{range .}}
ps --filter nosuch=1
container ls -a
images
images -a
images -q
images --no-trunc
images --digests
images busybox
images --filter reference=example.test/*/*
images --filter dangling=true
images --format {{.Repository}}:{{.Tag}} {{.ID}} {{.Size}}
images --format json
image ls
history many-layers
history -q busybox
history --no-trunc busybox
history --format {{.ID}} {{.CreatedBy}} {{.Size}} many-layers
history -H=false many-layers
history nosuch
inspect web
inspect web done
inspect -f {{.State.Status}} web done
inspect -f {{json .Config.Labels}} web
inspect -f {{range .Mounts}}{{.Name}}:{{.Destination}}{{end}} web
inspect -f {{index .Config.Labels "tier"}} web
inspect -f {{.NetworkSettings.Networks.bridge.IPAddress}} web
inspect -f {{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}} web
inspect -f {{len .Args}} {{printf "%s-%d" .Name 5}} {{upper .Path}} web
inspect -f {{if .State.Running}}yes{{else}}no{{end}} web done
inspect -f {{.Nosuch}} web
inspect -f {{ web
inspect nosuch
inspect web nosuch
inspect -s web
inspect --type image busybox
inspect --type container busybox
container inspect nosuch
image inspect busybox
image inspect nosuch
volume inspect named
volume inspect nosuch
network inspect bridge
network inspect nosuch
port web
port web 80
port web 53/udp
port web 81
port new
top web
top web -o pid,args
top done
logs web
logs done
logs --tail 3 done
logs -n 0 done
logs nosuch
logs -t --tail 2 done
diff done
diff new
diff nosuch
volume ls
volume ls -q
volume ls --filter label=a=b --format {{.Name}} {{.Driver}} {{.Labels}}
volume ls --format json
network ls
network ls -q
network ls --no-trunc
network ls --format {{.Name}} {{.Driver}} {{.Scope}}
network ls --filter driver=bridge
wait done
wait nosuch
start nosuch
stop nosuch
kill done
kill -s NOSUCH web
rm web
rm nosuch
rmi nosuch
rename nosuch x1
rename web done
pause done
unpause web
exec done true
exec web sh -c exit 5
exec web nosuch
exec nosuch true
attach done
cp nosuch:/x -
cp web:/nosuch -
tag nosuch x:1
tag busybox Bad/Name
update nosuch -m 64m
update
version --format {{.Server.Version}}
version --format {{json .Server.APIVersion}}
info --format {{.Name}} {{.OSType}} {{.NCPU}} {{.Containers}}
info --format {{json .SecurityOptions}}
system df
system df --format {{.Type}} {{.TotalCount}} {{.Active}}
events --since 1h --until 0s --filter type=container --format {{.Action}} {{.Actor.Attributes.name}}
events --since 1h --until 0s --format json --filter event=create
stats --no-stream --format {{.Name}} {{.PIDs}} web
run busybox nosuch-program
run --rm busybox sh -c exit 7
run --rm busybox echo hello
run --rm -e A=1 -w /etc -u 1000 --hostname box busybox sh -c echo $A; pwd; id -u; hostname
run --rm --network nosuch busybox true
run --rm --pull never nosuch:1
run --rm -v relative:/x:bad busybox true
run --rm -p 99999:80 busybox true
run --rm -m 1 busybox true
run --rm --cap-add NOSUCH busybox true
run --name web busybox true
run --nosuch busybox
run
create --name web busybox
load -i /nosuch
save nosuch
save
export nosuch
import /nosuch
pull Bad/Name
pull 127.0.0.1:9/x
search
nosuch
container nosuch
"""


@pytest.mark.parametrize("line", [line for line in COMMANDS.splitlines() if line])
def test_same(scene: Engine, line: str) -> None:
    words = split(line)
    theirs = attempt(scene.docker, words)
    ours = attempt(scene.wherry, words)
    assert ours.code == theirs.code, ours
    any_order = words[0] in ("images", "image")
    assert settle(ours.out, any_order) == settle(theirs.out, any_order), ours.err


def split(line: str) -> list[str]:
    """Words by spaces, except that a template and a shell script are one word."""
    if match := re.match(r"(.*?) (--format|-f) (table |)(.*\}\}|\{\{|json)( .*)?$", line):
        before, flag, table, template, rest = match.groups()
        return [*before.split(), flag, table + template.replace("\\t", "\t"), *(rest or "").split()]
    if match := re.match(r"(.* sh -c) (.*)$", line):
        return [*match[1].split(), match[2]]
    return line.split()


def attempt(cli: Cli, words: list[str]) -> Result:
    """Run it, and take away what it left."""
    result = cli(*words)
    if words[0] in ("run", "create") and result.code in (0, 127):
        for name in cli.ok("ps", "-aq", "--filter", "status=created", "--filter", "ancestor=busybox").split():
            if cli.ok("inspect", "-f", "{{.Name}}", name) not in ("/new", "/web"):
                cli("rm", "-f", name)
    return result


def test_output_of_commands_that_change_things(scene: Engine) -> None:
    """The same sequence by each CLI prints the same."""

    def sequence(cli: Cli) -> list[tuple[int, str, str]]:
        lines = [
            *("create --name subject busybox sleep 600", "start subject", "pause subject", "unpause subject"),
            *(
                "rename subject renamed",
                "update -m 50m --memory-swap 50m renamed",
                "exec renamed echo in",
                "kill renamed",
            ),
            *(
                "wait renamed",
                "restart -t 0 renamed",
                "stop -t 0 renamed",
                "rm renamed",
                "volume create made",
            ),
            *(
                "volume rm made",
                "tag busybox other:1",
                "rmi other:1",
                "container prune -f --filter label=none",
            ),
            *("image prune -f", "volume prune -f", "network prune -f"),
        ]
        return [
            (result.code, re.sub("[0-9a-f]{64}", "ID", result.out), result.err)
            for result in (cli(*line.split()) for line in lines)
        ]

    assert sequence(scene.wherry) == sequence(scene.docker)


def test_quickly(scene: Engine) -> None:
    """A listing takes no longer than docker's: no heavy module on the way."""

    def best(cli: Cli) -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            cli("ps")
            times.append(time.perf_counter() - started)
        return min(times)

    assert best(scene.wherry) < best(scene.docker) * 3 + 0.1
