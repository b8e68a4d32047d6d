"""Docker's contexts: the store's form is the docker CLI's own, tried with the real one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from host_client import contexts
from host_client.engine_api.errors import ConnectError
from tests.support.certificates import Authority
from tests.support.cli import Cli, docker_binary, wherry_command
from tests.support.recorder import recorder


@pytest.fixture
def docker(tmp_path: Path) -> Cli:
    cli = Cli([docker_binary()], "", tmp_path)
    cli.env.pop("DOCKER_HOST")
    return cli


def test_the_docker_cli_reads_what_is_put(docker: Cli, tmp_path: Path) -> None:
    for host in ("unix:///old.sock", "unix:///new.sock"):
        contexts.put(str(tmp_path), "wherry", host, "a machine", "me")
    docker.ok("context", "use", "wherry")
    shown = json.loads(docker.ok("context", "inspect", "wherry"))[0]
    assert shown["Endpoints"]["docker"]["Host"] == "unix:///new.sock"
    assert shown["Metadata"]["Description"] == "a machine"
    contexts.remove(str(tmp_path), "wherry", "somebody else")
    assert "wherry" in docker.ok("context", "ls", "--quiet")
    contexts.remove(str(tmp_path), "wherry", "me")
    assert docker.ok("context", "ls", "--quiet") == "default"
    assert docker.ok("context", "show") == "default"


def test_a_users_own_context_is_left_alone(docker: Cli, tmp_path: Path) -> None:
    docker.ok("context", "create", "wherry", "--docker", "host=tcp://mine:2375")
    with pytest.raises(ConnectError, match='there is a docker context "wherry" of somebody else\'s'):
        contexts.put(str(tmp_path), "wherry", "unix:///x", "a machine", "me")
    contexts.remove(str(tmp_path), "wherry", "me")
    assert contexts.engine(str(tmp_path), "wherry") == ("tcp://mine:2375", None)


def test_tls_files_of_a_context(docker: Cli, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    made = (authority.path, *authority.issue("me", client=True))
    files = ",".join(f"{name}={file}" for name, file in zip(("ca", "cert", "key"), made, strict=True))
    docker.ok("context", "create", "far", "--docker", f"host=tcp://far:2376,skip-tls-verify=true,{files}")
    host, tls = contexts.engine(str(tmp_path), "far")
    assert host == "tcp://far:2376"
    assert tls is not None
    for file, source in zip((tls.ca, tls.certificate, tls.key), made, strict=True):
        assert Path(file).read_text() == source.read_text()
    assert not tls.verify


def test_our_client_takes_a_context_by_name(docker: Cli, tmp_path: Path) -> None:
    with recorder(tmp_path) as server:
        docker.ok("context", "create", "recorded", "--docker", f"host={server.host}")
        wherry = Cli(wherry_command(), "", tmp_path)
        wherry.env.pop("DOCKER_HOST")
        for words, variables in (
            (("--context", "recorded"), {}),
            (("-c", "recorded"), {"DOCKER_HOST": "unix:///x"}),
            ((), {"DOCKER_CONTEXT": "recorded"}),
        ):
            assert "recorded" in wherry(*words, "ps", env=variables).err
        assert [request.path for request in server.take()] == ["/containers/json"] * 3
    both = wherry("--context", "recorded", "--host", "unix:///x", "ps")
    assert "conflicting options: cannot specify both --host and --context" in both.err
    missing = wherry("ps", env={"DOCKER_CONTEXT": "nope"})
    assert missing.code == 1
    assert 'unable to resolve docker endpoint: context "nope": context not found' in missing.err
