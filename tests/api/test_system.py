"""The engine as a whole over its API: ping, version, info, disk usage, events, log-in."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import registry
from tests.support.api import Api
from tests.support.cli import Cli
from tests.support.engine import Engine

pytestmark = pytest.mark.root


@pytest.fixture
def api(engine: Engine) -> Api:
    return Api(engine.socket)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_ping(api: Api, method: str) -> None:
    answer = api(method, "/_ping")
    assert (answer.status, answer.body) == (200, b"OK" if method == "GET" else b"")
    assert answer.headers["content-length"] == "2"
    assert answer.headers["cache-control"] == "no-cache, no-store, must-revalidate"
    assert answer.headers["api-version"] == "1.51"
    assert answer.headers["swarm"] == "inactive"


def test_version(api: Api, docker: Cli) -> None:
    version = api.get("/version")
    assert (version["ApiVersion"], version["MinAPIVersion"], version["Os"]) == ("1.51", "1.40", "linux")
    assert version["KernelVersion"] == os.uname().release
    (engine,) = (each for each in version["Components"] if each["Name"] == "Engine")
    assert engine["Details"]["ApiVersion"] == "1.51"
    assert (
        docker.ok("version", "-f", "{{.Server.Version}} {{.Server.APIVersion}}")
        == f"{version['Version']} 1.51"
    )
    assert "(minimum version 1.40)" in docker.ok("version")


def test_info_is_complete_and_true(api: Api, docker: Cli, busybox: str) -> None:
    docker.ok("run", "-d", "--name", "runs", busybox, "sleep", "600")
    docker.ok("run", "-d", "--name", "waits", busybox, "sleep", "600")
    docker.ok("pause", "waits")
    docker.ok("create", busybox)
    info = api.get("/info")
    counts = [info["Containers" + state] for state in ("", "Running", "Paused", "Stopped")]
    assert counts == [3, 1, 1, 1]
    assert info["Images"] == len(docker.ok("images", "-q").split())
    assert info["NCPU"] == len(os.sched_getaffinity(0))
    assert info["CgroupVersion"] in ("1", "2")
    assert info["MemoryLimit"] is True
    assert info["Swarm"]["LocalNodeState"] == "inactive"
    assert "127.0.0.0/8" in info["RegistryConfig"]["InsecureRegistryCIDRs"]
    assert any(option.startswith("name=seccomp") for option in info["SecurityOptions"])
    assert info["ID"] == api.get("/info")["ID"]
    assert info["FirewallBackend"]["Driver"] == "nftables"
    older = Api(api.path, "1.40").get("/info")
    assert "FirewallBackend" not in older
    assert older["RuncCommit"] == {"ID": "", "Expected": ""}
    docker.ok("unpause", "waits")


def test_info_is_quick(api: Api) -> None:
    api.get("/info")
    times = []
    for _ in range(10):
        started = time.perf_counter()
        api.get("/info")
        times.append(time.perf_counter() - started)
    assert min(times) < 0.02


def test_disk_usage_of_all_types_and_of_one(api: Api, docker: Cli, busybox: str) -> None:
    docker.ok(
        "run", "--name", "wrote", "-v", "kept:/kept", busybox, "sh", "-c", "echo 12345 >/f; echo 12 >/kept/f"
    )
    usage = api.get("/system/df")
    assert usage.keys() == {"LayersSize", "Images", "Containers", "Volumes", "BuildCache"}
    (container,) = usage["Containers"]
    assert container["Names"] == ["/wrote"]
    assert 6 <= container["SizeRw"] < 5000
    (volume,) = usage["Volumes"]
    assert volume["UsageData"] == {"Size": 3, "RefCount": 1}
    image = next(each for each in usage["Images"] if "busybox:latest" in each["RepoTags"])
    assert image["Containers"] == 1
    assert usage["LayersSize"] >= image["Size"] > 1_000_000
    assert api.get("/system/df?type=volume&type=image").keys() == {"LayersSize", "Images", "Volumes"}
    assert api("GET", "/system/df?type=nonsense").status == 400
    assert Api(api.path, "1.41").get("/system/df")["BuilderSize"] == 0
    assert "Local Volumes" in docker.ok("system", "df")
    assert "wrote" in docker.ok("system", "df", "-v")


# -- events ----------------------------------------------------------------------------------------


def test_the_events_of_a_run(api: Api, docker: Cli, busybox: str) -> None:
    since = time.time()
    docker.ok("run", "--rm", "--name", "short", "--label", "a=b", busybox, "true")
    events = [
        json.loads(line)
        for line in api(
            "GET", f'/events?since={since}&until={time.time()}&filters={{"container":["short"]}}'
        ).body.splitlines()
    ]
    actions = [event["Action"] for event in events]
    assert actions == ["create", "attach", "start", "die", "destroy"]
    die = events[3]
    assert die["Actor"]["Attributes"]["exitCode"] == "0"
    assert die["Actor"]["Attributes"]["a"] == "b"
    assert (die["status"], die["from"], die["scope"]) == ("die", busybox, "local")
    assert die["time"] == die["timeNano"] // 10**9


def test_events_are_streamed_as_they_happen_and_the_head_comes_first(
    api: Api, docker: Cli, busybox: str
) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(api.path)
        connection.sendall(b'GET /events?filters={"type":{"volume":true}} HTTP/1.1\r\nHost: x\r\n\r\n')
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
        docker.ok("volume", "create", "seen")
        assert b'"Action":"create"' in connection.recv(65536)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("since=zz", "since"),
        ("since=20&until=10", "`since` time (20) cannot be after `until` time (10)"),
        ("filters=x", "invalid filter"),
    ],
)
def test_bad_event_queries(api: Api, query: str, text: str) -> None:
    answer = api("GET", f"/events?{query}")
    assert answer.status == 400
    assert text in answer.message


def test_docker_events_ends_at_until(docker: Cli) -> None:
    docker.ok("volume", "create", "told")
    assert "volume create told" in docker.ok("events", "--since", "1m", "--until", "-1s")


# -- log-in ----------------------------------------------------------------------------------------


def login(
    api: Api, address: str, password: str = registry.PASSWORD, user: str = registry.USER
) -> tuple[int, str]:
    answer = api("POST", "/auth", {"username": user, "password": password, "serveraddress": address})
    return answer.status, answer.json.get("Status") or answer.message


def test_login_asks_the_registry(
    api: Api,
    basic_registry: registry.BasicRegistry,
    token_registry: registry.TokenRegistry,
    plain_registry: registry.Registry,
) -> None:
    for address in (basic_registry.address, token_registry.address, plain_registry.address):
        assert login(api, address) == (200, "Login Succeeded")
    for address in (basic_registry.address, token_registry.address):
        status, message = login(api, address, "wrong")
        assert status == 401
        assert f"http://{address}/v2/" in message


def test_login_says_what_is_wrong(api: Api, tls_registry: registry.TlsRegistry) -> None:
    status, message = login(api, "127.0.0.1:1")
    assert status == 503
    assert "127.0.0.1:1" in message
    assert "refused" in message
    status, message = login(api, "registry.invalid")
    assert status == 503
    assert "registry.invalid" in message


def test_docker_login_and_logout(docker: Cli, basic_registry: registry.BasicRegistry) -> None:
    flags = ("-u", registry.USER, "--password-stdin", basic_registry.address)
    assert "Login Succeeded" in docker.ok("login", *flags, input=registry.PASSWORD)
    result = docker("login", *flags, input="wrong")
    assert result.code == 1
    assert "unauthorized" in result.err.lower()
    docker.ok("logout", basic_registry.address)


# -- many clients ----------------------------------------------------------------------------------


def test_a_hundred_clients_at_once(api: Api) -> None:
    results: list[Any] = []

    def ask(ask: Callable[[], Any]) -> None:
        results.append(ask())

    threads = [threading.Thread(target=ask, args=(lambda: api.get("/info")["ID"],)) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 100
    assert len(set(results)) == 1
