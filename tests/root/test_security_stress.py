"""Many clients that do everything to the same few containers at once: the engine's state stays consistent."""

from __future__ import annotations

import collections
import os
import random
import threading
import time
from pathlib import Path

import pytest

from tests.support.api import Answer, Api
from tests.support.cli import eventually
from tests.support.engine import OurEngine

pytestmark = [pytest.mark.root, pytest.mark.ours]

SECONDS = 30
CLIENTS = 20
NAMES = [f"c{number}" for number in range(6)]

Settings = dict[str, object]


def settings(chance: random.Random) -> Settings:
    host: Settings = {
        "AutoRemove": chance.random() < 0.3,
        "NetworkMode": chance.choice(["bridge", "none", "host", "shared"]),
    }
    if chance.random() < 0.3:
        host["Binds"] = ["shared:/s"]
    if chance.random() < 0.2:
        host["PortBindings"] = {
            "80/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(42000 + chance.randrange(4))}]
        }
    return {"Image": "busybox", "Cmd": ["sleep", "100"], "Volumes": {"/v": {}}, "HostConfig": host}


def act(api: Api, chance: random.Random) -> Answer:
    """One request, whatever it may do just now."""
    name = chance.choice(NAMES)
    path = f"/containers/{name}"
    match chance.randrange(20):
        case 0 | 1:
            return api("POST", f"/containers/create?name={name}", settings(chance))
        case 2 | 3:
            return api("POST", f"{path}/start")
        case 4:
            return api("POST", f"{path}/kill")
        case 5:
            return api("DELETE", f"{path}?v=1&force={chance.randrange(2)}")
        case 6:
            return api("POST", f"{path}/rename?name={chance.choice(NAMES)}")
        case 7:
            return api("GET", f"{path}/json?size=1")
        case 8 | 9:
            made = api("POST", f"{path}/exec", {"Cmd": ["true"], "AttachStdout": True})
            return (
                api("POST", f"/exec/{made.json['Id']}/start", {"Detach": True})
                if made.status == 201
                else made
            )
        case 10:
            return api("POST", f"{path}/stop?t=0")
        case 11:
            return api("POST", f"{path}/{chance.choice(['pause', 'unpause'])}")
        case 12:
            return api("GET", "/containers/json?all=1")
        case 13:
            return api("POST", f"{path}/restart?t=0")
        case 14:
            return (
                api("POST", "/volumes/create", {"Name": "shared"})
                if chance.random() < 0.5
                else api("DELETE", "/volumes/shared")
            )
        case 15:
            return (
                api("POST", "/networks/create", {"Name": "shared"})
                if chance.random() < 0.5
                else api("DELETE", "/networks/shared")
            )
        case 16:
            return api("GET", f"{path}/{chance.choice(['logs?stdout=1', 'top', 'changes'])}")
        case 17:
            return api("GET", f"{path}/stats?stream=0&one-shot=1")
        case 18:
            return api("POST", f"{path}/update", {"Memory": 64 << 20, "MemorySwap": 64 << 20})
        case _:
            if chance.random() < 0.5:
                return api("GET", f"{path}/archive?path=/etc/passwd")
            return api("PUT", f"{path}/archive?path=/", bytes(1024))


# What may fail when a container ends, or another takes its port, in the middle of a request.
EXCUSES = (
    "port is already allocated",
    "address already in use",
    "is not running",
    "joining the container's namespaces",
    "cannot exec in a stopped container",
    "ended early",
    "unable to clone",
    "no such process",
    "unable to apply cgroup configuration",
    "network shared not found",
    "did not receive an exit event",
)


@pytest.mark.timeout(180)
def test_many_clients_at_the_same_containers(own_engine: OurEngine) -> None:
    faults: list[str] = []
    counts: collections.Counter[int] = collections.Counter()
    end = time.monotonic() + SECONDS

    def client(number: int) -> None:
        api, chance = Api(own_engine.socket), random.Random(number)
        while time.monotonic() < end:
            try:
                answer = act(api, chance)
            except (OSError, ValueError) as error:
                faults.append(repr(error))
                continue
            counts[answer.status] += 1
            if answer.status >= 500:
                text = answer.body.decode()
                if "fault in Wherry" in text or not any(excuse in text for excuse in EXCUSES):
                    faults.append(text)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, "\n".join(faults[:20])
    assert counts[204] > 100
    own_engine.check()
    assert "Traceback" not in own_engine.log(), own_engine.log()

    api = Api(own_engine.socket)
    for container in api.get("/containers/json?all=1"):
        inspected = api.get(f"/containers/{container['Id']}/json")["State"]
        assert os.path.exists(f"/proc/{inspected['Pid']}") == inspected["Running"], inspected
        assert api("DELETE", f"/containers/{container['Id']}?force=1&v=1").status == 204
    api("DELETE", "/volumes/shared")

    def left() -> list[str]:
        places = ["data/containers", "data/images/containers", "data/images/staging", "data/volumes"]
        places += ["run/containers", "run/mounts", "run/exits"]
        found = [
            f"{place}/{name}"
            for place in places
            if (own_engine.root / place).exists()
            for name in os.listdir(own_engine.root / place)
        ]
        groups = Path("/sys/fs/cgroup").glob("*/wherry/*")
        return found + [str(group) for group in groups if group.name in own_engine.ids]

    eventually(lambda: not left(), seconds=15, what="nothing left")
