"""`wherry doctor`: checks on made-up computers, and the repair of docker's configuration."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from host_client.config import load
from host_client.doctor import docker, kernel, network, rootless
from host_client.doctor.finding import BAD, GOOD, NOTE, Finding
from tests.support.cli import REPOSITORY


def put(root: Path, **files: str) -> str:
    """Files by path, "/" written as "__"."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    return finding


@pytest.mark.parametrize(
    ("release", "level"),
    [
        ("5.12.0", GOOD),
        ("6.18.44-cloud-amd64", GOOD),
        ("5.10.0-9-amd64", BAD),
        ("4.19.1", BAD),
        ("odd", NOTE),
    ],
)
def test_kernel_version(tmp_path: Path, release: str, level: str) -> None:
    found = only(kernel.version(put(tmp_path, proc__sys__kernel__osrelease=f"{release}\n")))
    assert found.level == level
    assert release in found.text
    assert (found.hint == "") is (level == GOOD)


V1 = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup /x cgroup rw,memory,pids 0 0\ncgroup /y cgroup rw,cpuset 0 0\n"


@pytest.mark.parametrize(
    ("files", "level", "word"),
    [
        ({"sys__fs__cgroup__cgroup.controllers": "cpuset cpu io memory pids"}, GOOD, "v2"),
        ({"sys__fs__cgroup__cgroup.controllers": "cpuset cpu io pids"}, NOTE, "memory"),
        ({"proc__self__mounts": V1}, GOOD, "v1"),
        ({"proc__self__mounts": V1.replace("pids", "perf_event")}, NOTE, "pids"),
        ({"proc__self__mounts": "proc /proc proc rw 0 0\n"}, BAD, "none"),
    ],
)
def test_control_groups(tmp_path: Path, files: dict[str, str], level: str, word: str) -> None:
    found = only(kernel.cgroups(put(tmp_path, **files)))
    assert (found.level, word in found.text) == (level, True)


def test_overlay_may_be_a_module(tmp_path: Path) -> None:
    root = put(tmp_path, proc__filesystems="nodev\tproc\n\text4\n", proc__sys__kernel__osrelease="6.1.0\n")
    assert only(kernel.overlay(root)).level == BAD
    put(tmp_path, **{"lib__modules__6.1.0__modules.dep": "kernel/fs/overlayfs/overlay.ko.xz:\n"})
    assert "module" in only(kernel.overlay(root)).text
    put(tmp_path, proc__filesystems="nodev\toverlay\n")
    assert only(kernel.overlay(root)).level == GOOD


def test_a_disk_that_is_nearly_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert str(tmp_path / "not" / "there") in only(kernel.space(str(tmp_path / "not" / "there"))).text
    monkeypatch.setattr(kernel, "LITTLE_SPACE", 1 << 62)
    assert only(kernel.space(str(tmp_path))).level == BAD


@pytest.mark.parametrize(
    ("files", "level"),
    [
        ({"proc__sys__user__max_user_namespaces": "100\n"}, GOOD),
        ({"proc__sys__user__max_user_namespaces": "0\n"}, BAD),
        ({}, BAD),
        (
            {
                "proc__sys__user__max_user_namespaces": "9\n",
                "proc__sys__kernel__unprivileged_userns_clone": "0\n",
            },
            BAD,
        ),
        (
            {
                "proc__sys__user__max_user_namespaces": "9\n",
                "proc__sys__kernel__apparmor_restrict_unprivileged_userns": "1\n",
            },
            NOTE,
        ),
    ],
)
def test_user_namespaces(tmp_path: Path, files: dict[str, str], level: str) -> None:
    assert only(rootless.namespaces(put(tmp_path, **files))).level == level


def test_subordinate_ids(tmp_path: Path) -> None:
    root = put(
        tmp_path,
        etc__subuid="ann:1000:65536\nbob:9:9\n",
        etc__subgid="# none\n1000:7:40000\n1000:50000:30000\n",
    )
    by_name = [found.level for found in rootless.subordinate_ids("ann", 1000, root)][:2]
    assert by_name == [GOOD, GOOD]
    few = [found.level for found in rootless.subordinate_ids("bob", 1001, root)][:2]
    assert few == [NOTE, BAD]


def test_closed_devices(tmp_path: Path) -> None:
    assert {found.level for found in rootless.devices(str(tmp_path))} == {NOTE}
    put(tmp_path, dev__fuse="", dev__net__tun="")
    assert {found.level for found in rootless.devices(str(tmp_path))} == {GOOD}


@pytest.mark.parametrize(
    ("text", "level"),
    [("nameserver 192.0.2.1\n", GOOD), ("search x\n", NOTE), ("nameserver 127.0.0.53\n", NOTE)],
)
def test_name_servers(tmp_path: Path, text: str, level: str) -> None:
    root = put(tmp_path, **{"etc__resolv.conf": text})
    assert only(network.resolver(root)).level == level
    put(tmp_path, **{"run__systemd__resolve__resolv.conf": "nameserver 192.0.2.9\n"})
    assert only(network.resolver(root)).level == (GOOD if "127" in text else level)


class Registry(BaseHTTPRequestHandler):
    """Answers as a registry does that wants to be asked with a token, an hour later than it is."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(4_000_000_000)

    def log_message(self, *_: object) -> None:
        pass


def test_a_registry_whose_clock_differs() -> None:
    with HTTPServer(("127.0.0.1", 0), Registry) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        answer, clock = network.registry(f"http://127.0.0.1:{server.server_port}/v2/")
        server.shutdown()
    assert (answer.level, clock.level) == (GOOD, BAD)
    assert "behind" in clock.text
    unreachable, guess = network.registry(f"http://127.0.0.1:{server.server_port}/v2/")
    assert (unreachable.level, guess.level) == (NOTE, GOOD)
    assert "refused" in unreachable.text.lower()


def test_clocks() -> None:
    date = "Tue, 24 Nov 2026 12:00:00 GMT"
    assert only(network.clock(date, 1_795_521_600 + 30)).level == GOOD
    assert "90 seconds ahead" in only(network.clock(date, 1_795_521_600 + 90)).text
    assert only(network.clock("", 5000.0)).level == BAD


def write_config(folder: Path, **values: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def add_context(folder: Path, name: str, host: str) -> None:
    place = folder / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest()
    place.mkdir(parents=True)
    (place / "meta.json").write_text(json.dumps({"Name": name, "Endpoints": {"docker": {"Host": host}}}))


def test_what_other_products_left_is_repaired(tmp_path: Path) -> None:
    before = {
        "auths": {"r.example": {}},
        "credsStore": "nosuchdesktop",
        "credHelpers": {"x.example": "gone", "y.example": "gone2"},
        "currentContext": "desktop-linux",
    }
    folder = write_config(tmp_path / "docker", **before)
    bad = [found for found in docker.configuration(str(folder)) if found.level == BAD]
    assert len(bad) == 4
    assert "docker-credential-nosuchdesktop" in bad[0].text
    for found in bad:
        assert found.fix is not None
        assert "config.json" in found.fix()
    assert load(str(folder)).values == {"auths": {"r.example": {}}, "credHelpers": {}}
    assert json.loads((folder / "config.json.before-doctor").read_text()) == before
    assert all(found.level == GOOD for found in docker.configuration(str(folder)))


def test_contexts_of_engines_that_are_gone(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "docker", currentContext="alive")
    alive = tmp_path / "alive.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(alive))
        listener.listen()
        add_context(folder, "alive", f"unix://{alive}")
        add_context(folder, "orbstack", f"unix://{tmp_path}/orb.sock")
        add_context(folder, "far", "tcp://192.0.2.1:2376")
        found = {each.what: each.level for each in docker.contexts(load(str(folder)))}
    assert found == {"Context alive": GOOD, "Context far": GOOD, "Context orbstack": NOTE}


def test_a_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    assert "not valid JSON" in only(docker.configuration(str(tmp_path))).text


def run_doctor(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "host_client", *arguments],
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"], "HOME": env.get("DOCKER_CONFIG", "/nonexistent"), **env},
        capture_output=True,
        text=True,
    )


def test_the_command(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "docker", credsStore="nosuchdesktop")
    first = run_doctor("doctor", DOCKER_CONFIG=str(folder))
    assert first.returncode == 1
    assert "1 of these can be repaired: wherry doctor --fix" in first.stdout
    assert "ok   Kernel: Linux" in first.stdout
    fixed = run_doctor("doctor", "--fix", DOCKER_CONFIG=str(folder))
    assert "fixed: removed credsStore" in fixed.stdout
    assert "nosuchdesktop" not in run_doctor("doctor", DOCKER_CONFIG=str(folder)).stdout
