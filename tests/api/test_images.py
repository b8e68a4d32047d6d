"""/images as the API has it, beyond what the docker CLI shows."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import docker as docker_py
import pytest
from docker.errors import APIError, ImageNotFound

from tests.support import registry
from tests.support.engine import Engine
from tests.support.faulty_registry import FaultyRegistry
from tests.support.images import ARCHITECTURE

pytestmark = pytest.mark.root


class Unix(http.client.HTTPConnection):
    """HTTP to the engine's socket, without a client library's opinions."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(self.path)


class Api:
    """Requests to one engine."""

    def __init__(self, engine: Engine) -> None:
        self.socket = engine.socket

    def __call__(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        connection = Unix(self.socket)
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response.status, data

    def json(self, method: str, path: str, body: bytes | None = None) -> Any:
        status, data = self(method, path, body)
        assert status in (200, 201), (status, data)
        return json.loads(data)

    def refused(self, method: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
        status, data = self(method, path, None, headers)
        return status, json.loads(data)["message"]


@pytest.fixture
def api(engine: Engine) -> Api:
    return Api(engine)


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    running = FaultyRegistry()
    yield running
    running.close()


def tar_of(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def imported(api: Api) -> Iterator[Any]:
    """Makes images by import, and removes them afterwards."""
    made: list[str] = []

    def make(name: str, *changes: str, **files: bytes) -> str:
        query = "".join(f"&changes={change.replace(' ', '%20')}" for change in changes)
        status, data = api(
            "POST", f"/images/create?fromSrc=-&repo={name}{query}", tar_of(**(files or {"f": b"x"}))
        )
        assert status == 200, data
        id: str = json.loads(data.splitlines()[-1])["status"]
        made.append(id)
        return id

    yield make
    for id in dict.fromkeys(made):
        api("DELETE", f"/images/{id}?force=1")


def test_summaries(api: Api, imported: Any) -> None:
    id = imported("summary:1", "LABEL a=b", size=b"12345")
    [found] = api.json("GET", '/images/json?filters={"reference":["summary"]}')
    created = found.pop("Created")
    assert abs(created - time.time()) < 60
    assert found == {
        "Containers": -1, "Id": id, "Labels": {"a": "b"}, "ParentId": "", "RepoDigests": [], "RepoTags": ["summary:1"],
        "SharedSize": -1, "Size": 5,
    }  # fmt: skip


def test_filters(api: Api, imported: Any) -> None:
    first = imported("one/app:1", "LABEL kind=x", number=b"1")
    time.sleep(0.01)
    second = imported("two/app:1", "LABEL kind=y", number=b"2")

    def ids(**filters: list[str]) -> list[str]:
        text = json.dumps({"label": ["kind"]} | filters).replace(" ", "")
        return [item["Id"] for item in api.json("GET", f"/images/json?filters={text}")]

    assert ids() == [second, first]
    assert ids(label=["kind=x"]) == [first]
    assert ids(reference=["two/*"]) == [second]
    assert ids(reference=["*/app:1", "nothing"]) == [second, first]
    assert ids(before=["two/app:1"]) == [first]
    assert ids(since=[first]) == [second]
    assert ids(until=["1h"]) == []
    assert ids(dangling=["true"]) == []
    assert ids(dangling=["false"]) == [second, first]
    for bad in (
        '{"nosuch":["1"]}',
        '{"dangling":["what"]}',
        '{"reference":["["]}',
        '{"until":["soon"]}',
        "[]",
    ):
        assert api.refused("GET", f"/images/json?filters={bad}")[0] == 400
    assert api.refused("GET", '/images/json?filters={"before":["nosuch"]}') == (
        404,
        "No such image: nosuch:latest",
    )


def test_shared_sizes(api: Api, imported: Any, client: docker_py.DockerClient) -> None:
    base = imported("base:1", size=b"12345")
    container = client.api.create_container("base:1", ["x"])
    client.api.put_archive(container["Id"], "/", tar_of(more=b"123"))
    derived = client.api.commit(container["Id"], "derived")["Id"]
    try:
        sizes = {item["Id"]: item for item in api.json("GET", "/images/json?shared-size=1")}
        assert (sizes[base]["Size"], sizes[base]["SharedSize"]) == (5, 5)
        assert (sizes[derived]["Size"], sizes[derived]["SharedSize"]) == (8, 5)
        assert sizes[derived]["ParentId"] == base
        status, message = api.refused("DELETE", f"/images/{base}?force=1")
        assert status == 409
        assert message == (
            f"conflict: unable to delete {base[7:19]} (cannot be forced) - image has dependent child images"
        )
        steps = api.json("GET", "/images/derived/history")
        assert [step["Id"] for step in steps] == [derived, base]
        assert [step["Size"] for step in steps] == [3, 5]
        assert [step["Tags"] for step in steps] == [["derived:latest"], ["base:1"]]
    finally:
        client.api.remove_container(container["Id"])
        client.api.remove_image(derived)


def test_what_older_clients_see(api: Api, imported: Any) -> None:
    id = imported("old:1")
    api("POST", f"/images/{id}/tag?repo=old&tag=2")
    inspected = api.json("GET", "/v1.40/images/old:1/json")
    assert inspected["VirtualSize"] == inspected["Size"]
    assert inspected["Config"]["AttachStdin"] is False
    assert inspected["ContainerConfig"]["Hostname"] == ""
    newest = api.json("GET", "/v1.51/images/old:1/json")
    assert "VirtualSize" not in newest
    assert "Hostname" not in newest["Config"]
    imported("old:1", other=b"takes both names away")
    api("DELETE", "/images/old:2")
    for version, tags in (("v1.40", ["<none>:<none>"]), ("v1.51", [])):
        [found] = [item for item in api.json("GET", f"/{version}/images/json") if item["Id"] == id] or [
            {"RepoTags": None}
        ]
        assert found["RepoTags"] in (tags, None)


def test_names_that_are_none(api: Api, busybox: str) -> None:
    nothing = "No such image: nosuch:latest"
    assert api.refused("GET", "/images/nosuch/json") == (404, nothing)
    assert api.refused("GET", "/images/nosuch/history") == (404, nothing)
    assert api.refused("DELETE", "/images/nosuch") == (404, nothing)
    assert api.refused("POST", "/images/nosuch/tag?repo=x") == (404, nothing)
    assert api.refused("GET", "/images/nosuch/get") == (404, "No such image: nosuch")
    assert api.refused("GET", f"/images/{'ab' * 32}/json") == (404, f"No such image: sha256:{'ab' * 32}")
    assert api.refused("GET", "/images/UPPER/json")[0] == 400
    assert api.refused("POST", f"/images/{busybox}/tag?repo=Upper")[0] == 400
    assert api.refused("POST", f"/images/{busybox}/tag?repo=x&tag=-") == (400, "invalid tag format")
    assert api.refused("POST", f"/images/{busybox}/tag?repo=sha256") == (
        400, "refusing to create an ambiguous tag using digest algorithm as name",
    )  # fmt: skip
    assert api.refused("POST", f"/images/{busybox}/tag?repo=x@sha256:{'ab' * 32}") == (
        400, "refusing to create a tag with a digest reference",
    )  # fmt: skip


def test_removing_what_is_in_use(
    api: Api, imported: Any, busybox: str, client: docker_py.DockerClient
) -> None:
    container = client.containers.run(busybox, ["sleep", "60"], detach=True)
    id = api.json("GET", f"/images/{busybox}/json")["Id"]
    status, message = api.refused("DELETE", f"/images/{id}?force=1")
    assert (status, message) == (
        409,
        f"conflict: unable to delete {id[7:19]} (cannot be forced) - "
        f"image is being used by running container {container.id[:12]}",
    )
    container.remove(force=True)
    other = imported("used:1")
    stopped = client.api.create_container("used:1", ["x"])["Id"]
    assert api.refused("DELETE", f"/images/{other}") == (
        409,
        f"conflict: unable to delete {other[7:19]} (must be forced) - "
        f"image is being used by stopped container {stopped[:12]}",
    )
    api("POST", "/images/used:1/tag?repo=elsewhere")
    assert api.refused("DELETE", f"/images/{other}") == (
        409,
        f"conflict: unable to delete {other[7:19]} (must be forced) - image is referenced in multiple repositories",
    )
    done = api.json("DELETE", f"/images/{other}?force=1")
    assert done[:3] == [{"Untagged": "elsewhere:latest"}, {"Untagged": "used:1"}, {"Deleted": other}]
    assert len(done) == 3, "the layers are the container's still"
    client.api.remove_container(stopped)


def test_import_takes_instructions(api: Api, imported: Any) -> None:
    imported("made:1", 'CMD ["sh"]', "ENV A=b C=d", "EXPOSE 80", "WORKDIR /w", "USER 7")
    config = api.json("GET", "/images/made:1/json")["Config"]
    assert config == {
        "Cmd": ["sh"], "Env": ["A=b", "C=d"], "ExposedPorts": {"80/tcp": {}}, "WorkingDir": "/w", "User": "7",
    }  # fmt: skip
    status, data = api("POST", "/images/create?fromSrc=-&changes=RUN%20x", tar_of(f=b""))
    assert (status, json.loads(data)["message"]) == (400, "run is not a valid change command")
    assert api("POST", "/images/create?fromSrc=-", b"rubbish")[0] == 400
    status, data = api("POST", "/images/create?fromSrc=-", b"")
    assert status == 200, "an empty stream is an empty archive"
    api("DELETE", f"/images/{json.loads(data)['status']}")


def test_load_says_what_is_wrong(api: Api) -> None:
    for body, message in (
        (tar_of(x=b"y"), "invalid archive: does not contain a manifest.json"),
        (tar_of(**{"manifest.json": b"[]"})[:600], "archive/tar: unexpected EOF"),
        (tar_of(**{"manifest.json": b"{}"}), "invalid archive: manifest.json is malformed"),
        (tar_of(**{"manifest.json": b"[7]"}), "invalid archive: manifest.json is malformed"),
        (tar_of(**{"manifest.json": b'[{"Config":"c.json","Layers":[]}]'}), "invalid archive: no c.json"),
        (
            tar_of(**{"manifest.json": b'[{"Config":"c.json","Layers":["l"]}]', "c.json": b"{}"}),
            "invalid manifest, layers length mismatch: expected 0, got 1",
        ),
        (
            tar_of(
                **{
                    "manifest.json": b'[{"Config":"c.json","RepoTags":["Bad Name"],"Layers":[]}]',
                    "c.json": b"{}",
                }
            ),
            "invalid reference format: repository name (library/Bad Name) must be lowercase",
        ),
        (
            tar_of(
                **{
                    "manifest.json": b'[{"Config":"c.json","Layers":["../../etc/passwd"]}]',
                    "c.json": json.dumps({"rootfs": {"diff_ids": [f"sha256:{'ab' * 32}"]}}).encode(),
                }
            ),
            "invalid archive: no layer ../../etc/passwd",
        ),
    ):
        status, data = api("POST", "/images/load", body)
        assert status == 200, (data, message)
        assert json.loads(data)["error"] == message


def test_platforms_of_an_image_are_checked(api: Api, busybox: str) -> None:
    other = json.dumps(
        {"os": "linux", "architecture": "arm64" if ARCHITECTURE == "amd64" else "amd64"}
    ).replace(" ", "")
    own = json.dumps({"os": "linux", "architecture": ARCHITECTURE}).replace(" ", "")
    for what in ("json", "history", "get"):
        status, message = api.refused("GET", f"/images/{busybox}/{what}?platform={other}")
        assert status == 404
        assert "does not provide the specified platform" in message
        assert api("GET", f"/images/{busybox}/{what}?platform={own}")[0] == 200
    assert api.refused("DELETE", f"/images/{busybox}?platforms={other}")[0] == 404
    assert api.refused("GET", f"/images/{busybox}/json?platform=linux")[0] == 400


def test_events(engine: Engine, api: Api, imported: Any, plain_registry: registry.Registry) -> None:
    told: list[dict[str, Any]] = []
    ready = threading.Event()

    def listen() -> None:
        stream = docker_py.APIClient(base_url=engine.host, version="auto").events(
            decode=True, filters={"type": "image"}
        )
        ready.set()
        for event in stream:
            told.append(event)
            if event["Actor"]["Attributes"].get("name") == "last:1":
                return

    listener = threading.Thread(target=listen)
    listener.start()
    ready.wait()
    time.sleep(0.2)
    id = imported("first:1", "LABEL a=b")
    api("POST", "/images/first:1/tag?repo=second&tag=2")
    api("DELETE", "/images/second:2")
    name = f"{plain_registry.address}/busybox"
    api("POST", f"/images/create?fromImage={name}&tag=latest")
    api("DELETE", f"/images/{name}")
    imported("last:1", last=b"1")
    listener.join(20)
    assert not listener.is_alive()
    found = [(event["Action"], event["Actor"]["Attributes"]["name"]) for event in told]
    assert found[:4] == [("import", id), ("tag", "first:1"), ("tag", "second:2"), ("untag", id)]
    assert ("pull", name) in found
    assert told[0]["Actor"] == {"ID": id, "Attributes": {"a": "b", "name": id}}


def auth(**values: str) -> dict[str, str]:
    return {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")}


def test_credentials_in_the_header(api: Api, basic_registry: registry.BasicRegistry) -> None:
    path = f"/images/create?fromImage={basic_registry.address}/busybox&tag=latest"
    good = auth(username=registry.USER, password=registry.PASSWORD)
    rubbish = {"X-Registry-Auth": base64.b64encode(b"rubbish").decode()}
    for headers in ({}, rubbish):  # statuses are dockerd's
        status, message = api.refused("POST", path, headers)
        assert (status, message[-25:]) == (500, "no basic auth credentials")
    bad = auth(username="x", password="y")
    assert api.refused("POST", path, bad) == (401, "unauthorized: authentication required")
    status, data = api("POST", path, None, good)
    assert status == 200, data
    pair = base64.b64encode(f"{registry.USER}:{registry.PASSWORD}".encode()).decode()
    assert api("POST", path, None, auth(auth=pair))[0] == 200
    assert api("GET", f"/distribution/{basic_registry.address}/busybox/json", None, good)[0] == 200
    api("DELETE", f"/images/{basic_registry.address}/busybox")


def test_login(api: Api, basic_registry: registry.BasicRegistry) -> None:
    def login(password: str) -> tuple[int, Any]:
        body = {"username": registry.USER, "password": password, "serveraddress": basic_registry.address}
        status, data = api("POST", "/auth", json.dumps(body).encode(), {"Content-Type": "application/json"})
        return status, json.loads(data)

    assert login(registry.PASSWORD) == (200, {"Status": "Login Succeeded", "IdentityToken": ""})
    status, answer = login("wrong")
    assert status == 401
    assert answer["message"].endswith("/v2/ failed with status: 401 Unauthorized")


def test_distribution(api: Api, plain_registry: registry.Registry) -> None:
    found = api.json("GET", f"/distribution/{plain_registry.address}/busybox/json")
    assert found["Platforms"] == [{"architecture": ARCHITECTURE, "os": "linux"}]
    assert found["Descriptor"]["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert api.refused("GET", f"/distribution/{plain_registry.address}/nosuch/json")[0] == 404


def test_search_without_docker_hub(api: Api) -> None:
    status, message = api.refused("GET", "/images/search?term=x&limit=200")
    assert (status, message) == (400, "Limit 200 is outside the range of [1, 100]")
    status, message = api.refused("GET", "/images/search?term=127.0.0.1:1/x")
    assert status == 503
    assert message.endswith("connection refused")


def test_a_pull_ends_with_its_client(api: Api, faulty: FaultyRegistry) -> None:
    content = bytes(range(256)) * 8000
    layer = tar_of(big=content)
    faulty.image("slow:latest", [(layer, layer)], "")
    faulty.pause = 0.02
    connection = Unix(api.socket)
    connection.request("POST", f"/images/create?fromImage={faulty.address}/slow&tag=latest")
    response = connection.getresponse()
    assert json.loads(response.readline())["status"] == "Pulling from slow"
    asked = len(faulty.requests)
    connection.close()
    response.close()
    time.sleep(0.5)
    faulty.pause = 0
    status, data = api("POST", f"/images/create?fromImage={faulty.address}/slow&tag=latest")
    assert status == 200
    assert b"Downloaded newer image" in data
    assert len(faulty.requests) > asked, "the first one was given up, so the layer was fetched anew"
    api("DELETE", f"/images/{faulty.address}/slow")


def test_progress_is_told_ten_times_a_second_at_most(api: Api, faulty: FaultyRegistry) -> None:
    layer = tar_of(big=bytes(range(256)) * 4000)
    faulty.image("slow:latest", [(layer, layer)], "")
    faulty.pause = 0.01
    start = time.monotonic()
    _, data = api("POST", f"/images/create?fromImage={faulty.address}/slow&tag=latest")
    seconds = time.monotonic() - start
    messages = [json.loads(line) for line in data.splitlines()]
    downloading = [message for message in messages if message["status"] == "Downloading"]
    assert 2 <= len(downloading) <= seconds * 10 + 2
    for message in downloading:
        assert message["progressDetail"]["total"] == len(layer)
        assert message["progress"].endswith("MB")
    assert [message["status"] for message in messages if message.get("id", "") != "latest"][-3:-1] == [
        "Pull complete", messages[-2]["status"],
    ]  # fmt: skip
    api("DELETE", f"/images/{faulty.address}/slow")


def test_docker_py(client: docker_py.DockerClient, plain_registry: registry.Registry, busybox: str) -> None:
    name = f"{plain_registry.address}/busybox"
    image = client.images.pull(name, "latest")
    assert f"{name}:latest" in image.tags
    assert client.images.get(image.id).id == image.id
    assert client.images.get_registry_data(name).id == image.attrs["RepoDigests"][0].partition("@")[2]
    data = b"".join(image.save(named=True))
    client.images.remove(name)
    with pytest.raises(ImageNotFound):
        client.images.get(name)
    [again] = client.images.load(data)
    assert (again.id, again.tags) == (image.id, image.tags)
    client.images.remove(name)
    with pytest.raises(APIError, match="not found: manifest unknown"):
        client.images.pull(name, "nosuch")
    everything = client.images.pull(name, all_tags=True)
    assert [each.id for each in everything] == [image.id]
    client.images.remove(name)
