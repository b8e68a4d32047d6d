"""Everything `wherry` prints is what the docker CLI prints, byte for byte, on the same engine at the same moment."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator

import pytest

from host_client.cli import table
from host_client.cli.flags import shown_kind
from tests.support.cli import Result, docker_binary
from tests.support.engine import Engine

pytestmark = pytest.mark.root

READ = r"""
ps
ps -a
ps -q
ps -aq --no-trunc
ps -a --no-trunc
ps -s
ps -l
ps -n 2
ps -a --filter status=exited
ps -a --filter name=web --filter label=a=b
ps --format json
ps --format '{{.ID}} {{.Names}} {{.Image}} {{.Command}} {{.State}} {{.Status}} {{.Ports}} {{.Labels}} {{.LocalVolumes}}'
ps --format 'table {{.ID}}\t{{.Label "a"}}\t{{.Label "x.y-z"}}\t{{.Names | upper}}\t{{.Networks}}'
ps --format '{{json .}}'
ps --format '{{.CreatedAt}}|{{.Size}}'
ps --format raw
ps --format table
ps -q --format '{{.Names}}'
ps --filter nosuch=x
images
images -a
images -q
images -q --no-trunc
images --no-trunc
images --digests
images --format json
images --format '{{.Repository}}:{{.Tag}} {{.ID}} {{.Size}} {{.CreatedAt}} {{.Digest}} {{.Containers}} {{.SharedSize}}'
images --format 'table {{.Repository}}\t{{.Tag}}'
images busybox
images nosuch
images -f dangling=true
images -f nosuch=x
inspect web
inspect busybox
inspect web nosuch
inspect nosuch
inspect --type container web
inspect --type image web
inspect --type nosuch web
inspect -s web
inspect -f '{{.State.Status}} {{.Config.Image}} {{.HostConfig.NetworkMode}}' web
inspect -f '{{range .Mounts}}{{.Type}} {{.Destination}}{{println}}{{end}}' web
inspect -f '{{json .NetworkSettings.Ports}} {{index .Config.Labels "a"}} {{len .Config.Env}}' web
inspect -f '{{range $p, $c := .NetworkSettings.Ports}}{{$p}} -> {{(index $c 0).HostPort}}{{end}}' web
inspect -f '{{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}} {{.HostConfig.CapAdd}}' web
inspect -f '{{json .HostConfig.CapAdd}} {{.Config.Healthcheck}} {{.HostConfig.Binds}}' web
inspect -f '{{.Nosuch}}' web
inspect -f '{{.State' web
inspect --format json web busybox
container inspect web
container inspect nosuch
image inspect busybox
image inspect nosuch
image inspect -f '{{.Architecture}} {{.Os}} {{json .RootFS.Layers}} {{.Config.Cmd}}' busybox
history busybox
history -q busybox
history --no-trunc busybox
history -H=false busybox
history --format json busybox
history nosuch
network ls
network ls -q
network ls --no-trunc
network ls --format json
network ls --format '{{.Name}} {{.Driver}} {{.Scope}} {{.IPv6}} {{.Internal}} {{.CreatedAt}}'
network ls -f name=back
network inspect back
network inspect nosuch
network inspect -f '{{(index .IPAM.Config 0).Subnet}} {{.Options}} {{range .Containers}}{{.Name}}{{end}}' back
volume ls
volume ls -q
volume ls --format json
volume ls --format '{{.Name}} {{.Driver}} {{.Mountpoint}} {{.Label "k"}}'
volume ls -f name=data
volume inspect data
volume inspect nosuch
volume inspect -f '{{.Name}} {{.Driver}} {{json .Labels}}' data
port web
port web 80
port web 80/udp
port web 81
port nosuch
top web
top web -o pid,comm
top done
top nosuch
diff web
diff nosuch
logs done
logs -t done
logs --tail 1 done
logs --tail x done
logs --since 1h done
logs --until 2000-01-01 done
logs nosuch
wait done
system df
system df -v
system df --format json
system df --format '{{.Type}} {{.TotalCount}}'
info -f '{{.Driver}} {{.OSType}} {{.NCPU}} {{json .SecurityOptions}}'
version -f '{{.Server.Version}} {{.Server.APIVersion}} {{.Server.Os}}'
events --since 10m --until 0s --filter type=container --filter event=create --format '{{.Action}} {{.ID}} {{.Type}}'
events --since 10m --until 0s --filter type=network --filter event=create
events --since x
stats --no-stream --format '{{.Name}} {{.ID}} {{.PIDs}}' web
stats --no-stream nosuch
exec web echo hello
exec web sh -c 'echo e >&2; exit 3'
exec web nosuch
exec done true
exec nosuch true
cp web:/nosuch -
cp web:/etc/hostname /no/such/place
cp a b
cp web:/a done:/b
save nosuch
load -i /no/such
import /no/such
attach done
start nosuch
stop nosuch
restart nosuch
kill nosuch
kill done
kill -s NOSUCH web
pause done
unpause web
rm web
rm nosuch
rm -f nosuch
rmi nosuch
rename nosuch x
rename web done
update nosuch --cpus 1
update web
commit nosuch
tag nosuch x
tag busybox X
tag busybox x@sha256:0000000000000000000000000000000000000000000000000000000000000000
network rm nosuch
network rm -f nosuch
network rm back
network connect nosuch web
network disconnect back nosuch
network create back
volume rm nosuch
volume rm -f nosuch
volume rm data
volume create --driver nosuch x
create --name web busybox
create nosuch:1 --pull never
run --rm nosuch:1 --pull never
run --rm busybox sh -c 'exit 9'
run --rm busybox nosuch
run --rm busybox /etc
run --rm --network nosuch busybox true
run --rm --pull never nosuch:1
run --rm -w relative busybox true
run --rm -m 1k busybox true
run --rm -u nosuch busybox true
pull --platform x/y/z/w nosuch
login --password-stdin
container prune
image prune
network prune
nosuch
container nosuch
ps nosuch
rm
tag x
"""


@pytest.fixture(scope="module")
def furnished(_session_engine: Engine) -> Iterator[Engine]:
    """The session's engine with things to look at; only commands that leave them as they are run here."""
    docker = _session_engine.docker
    docker.ok("network", "create", "--label", "k=v", "back")
    docker.ok("volume", "create", "--label", "k=v", "data")
    labels = ("--label", "a=b", "--label", "x.y-z=1")
    script = "echo made > /file; rm /etc/passwd; sleep 600"
    docker.ok(
        *("run", "-d", "--name", "web", *labels, "-e", "A=1", "-v", "data:/data", "-p", "127.0.0.1::80", "-p", "9090"),
        *("--network", "back", "busybox", "sh", "-c", script),
    )  # fmt: skip
    docker.ok("run", "--name", "done", "busybox", "sh", "-c", "echo one; echo two >&2")
    yield _session_engine
    _session_engine.forget()
    docker.ok("network", "rm", "back")


# What docker adds to an error: how to get help, and lines that say again that it failed.
NOISE = r"hint: |Usage: |Run '|See '|\s|For more|exit status 1|Error: failed to rename container"


def normal(result: Result) -> tuple[int, str, str]:
    """A result without what is different by design: prefixes and hints, docker's usage lines."""
    kept = [
        line
        for line in result.err.replace("wherry ", "docker ").split("\n")
        if line and not re.match(NOISE, line)
    ]
    err = "\n".join(
        re.sub(r"^(docker: |error: |Error response from daemon: |Error: )+", "", line) for line in kept
    )
    return result.code, result.out, err.lower()


@pytest.mark.parametrize("line", READ.strip().split("\n"))
def test_output(furnished: Engine, line: str) -> None:
    words = shlex.split(line)
    docker, wherry = furnished.docker, furnished.wherry
    for _ in range(4):  # until a second does not end between the two
        ours, theirs = normal(wherry(*words)), normal(docker(*words))
        if ours == theirs:
            return
    assert ours == theirs


# Flags of docker's that `wherry` has not, each for a reason.
LEFT_OUT = {
    "disable-content-trust": "docker's own content trust, deprecated",
    "kernel-memory": "gone from kernels, deprecated",
    "use-api-socket": "experimental",
    "tree": "experimental",
    "cluster": "swarm",
    "availability": "swarm",
    "group": "swarm",
    "limit-bytes": "swarm",
    "required-bytes": "swarm",
    "scope": "swarm, for volumes",
    "secret": "swarm",
    "sharing": "swarm",
    "topology-preferred": "swarm",
    "topology-required": "swarm",
    "type": "swarm, for volumes",
    "help": "every command has it",
}


def flags_of(text: str) -> dict[str, tuple[str, str]]:
    """Shorthand and kind by name, from docker's help."""
    found = {}
    options = text.partition("Options:\n")[2]
    for line in options.split("\n"):
        match = re.match(r"\s+(?:-(\w), |    )?--([\w-]+)(?: ([a-z][\w-]*))?(?:\s{2,}|$)", line)
        if match:
            found[match[2]] = (match[1] or "", match[3] or "bool")
    return found


def docker_help(*words: str) -> str:
    return subprocess.run(
        [docker_binary(), *words, "--help"], capture_output=True, text=True, check=True
    ).stdout


OURS = ("completion", "doctor", "compose")


def commands() -> list[str]:
    ours = [
        f"{group} {verb}"
        for group, (_, verbs) in table.GROUPS.items()
        if group not in ("engine", "machine")
        for verb in verbs
    ]
    return [*ours, *(name for name in table.SINGLE if name not in OURS)]


@pytest.mark.parametrize("name", commands())
def test_flags_are_dockers(name: str) -> None:
    group, _, verb = name.partition(" ")
    entry = table.entry(group, verb) if verb else table.entry(name)
    assert entry is not None
    command = table.load(entry)
    ours = {flag[0]: (flag[1], shown_kind(flag[2])) for flag in command.flags}
    theirs = flags_of(docker_help(*name.split()))
    missing = {flag for flag in theirs if flag not in ours and flag not in LEFT_OUT}
    assert missing == set()
    for flag, (short, kind) in theirs.items():
        if flag in ours:
            assert ours[flag][0] == short, flag
            assert (ours[flag][1] == "bool") == (kind == "bool"), flag
    for other in command.aliases:
        assert other not in ours


def test_commands_are_dockers() -> None:
    """Those of docker's commands that are not here belong to swarm, to plugins, or to what comes later."""
    later = {"build", "push"}
    for group in ("container", "image", "network", "volume", "system"):
        listed = re.findall(r"^  ([a-z]+) ", docker_help(group).partition("Commands:")[2], re.M)
        assert set(listed) - later - {"update"} <= set(table.GROUPS[group][1]) | {"update"}


def test_help_of_every_command(furnished: Engine) -> None:
    wherry = furnished.wherry
    for name in [*commands(), "engine stop", "engine logs", "engine status", "completion"]:
        shown = wherry.ok(*name.split(), "--help")
        assert f"Usage: wherry {name}" in shown
    assert "Common commands" in wherry.ok()
    assert "Manage volumes" in wherry.ok("volume")
    result = wherry("help", "nosuch")
    assert (result.code, result.err.split("\n")[0]) == (1, "error: unknown command: wherry nosuch")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("wherry r", {"run", "rm", "rename", "restart", "rmi"}),
        ("wherry volume r", {"rename", "restore", "rm"}),
        ("wherry run --pul", {"--pull"}),
        ("wherry run --pull ", {"always", "missing", "never"}),
        ("wherry rm w", {"web"}),
        ("wherry exec d", {"done"}),
        ("wherry run busy", {"busybox", "busybox:latest"}),
        ("wherry run --network b", {"back", "bridge"}),
        ("wherry volume rm d", {"data"}),
    ],
)
def test_completion(furnished: Engine, words: str, expected: set[str]) -> None:
    count = len(words.split(" ")) - 1
    settings = {"COMP_WORDS": words, "COMP_CWORD": str(count), "_WHERRY_COMPLETE": "complete_bash"}
    assert set(furnished.wherry(env=settings).out.split()) == expected


def test_completion_scripts(furnished: Engine) -> None:
    wherry = furnished.wherry
    for shell, mark in (
        ("bash", "complete -o default -F"),
        ("zsh", "#compdef wherry"),
        ("fish", "complete --command wherry"),
    ):
        assert mark in wherry.ok("completion", shell)
    assert wherry("completion", "tcsh").code == 1
