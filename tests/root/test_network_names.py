"""Containers find each other by name on networks of one's own, and the world through their resolver."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from guest_agent.network import resolvconf
from guest_agent.network.types import EndpointConfig, IpamConfig, Network, NetworkSpec, Sandbox, SandboxState
from tests.support.network import TCP_ECHO, NetworkEngine, end_proxy

pytestmark = pytest.mark.root

A, PTR, MX, AAAA = 1, 12, 15, 28

# Asks 127.0.0.11 by UDP or TCP; prints the code, the flags and the answers' data.
CLIENT = """
import socket, struct, sys
name, kind, tcp = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "tcp"
query = struct.pack(">HHHHHH", 0x1234, 0x0100, 1, 0, 0, 0)
query += b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\\0"
query += struct.pack(">HH", kind, 1)
client = socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
client.settimeout(10)
client.connect(("127.0.0.11", 53))
if tcp:
    client.sendall(len(query).to_bytes(2, "big") + query)
    stream = client.makefile("rb")
    answer = stream.read(int.from_bytes(stream.read(2), "big"))
else:
    client.send(query)
    answer = client.recv(65535)
identity, flags, _, count, _, _ = struct.unpack_from(">HHHHHH", answer)
assert identity == 0x1234
offset = len(query)
found = []
for _ in range(count):
    length = int.from_bytes(answer[offset + 10:offset + 12], "big")
    found.append(answer[offset + 12:offset + 12 + length].hex())
    offset += 12 + length
print(flags & 15, *found)
"""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[NetworkEngine]:
    with NetworkEngine(tmp_path) as engine:
        yield engine


def create(engine: NetworkEngine, name: str, subnet: str, **spec: bool) -> Network:
    return engine.run(engine.manager.create(NetworkSpec(name, ipam=(IpamConfig(subnet),), **spec)))  # type: ignore[arg-type]


def ask(engine: NetworkEngine, sandbox: Sandbox, name: str, kind: int = A, how: str = "udp") -> list[str]:
    """The answer's code and its data: addresses as text, names as bytes in text."""
    words = engine.inside(sandbox, sys.executable, "-c", CLIENT, name, str(kind), how).split()
    code, data = words[0], [bytes.fromhex(word) for word in words[1:]]
    return [code, *(str(ip_address(item)) if kind in (A, AAAA) else item.decode() for item in data)]


@contextmanager
def upstream(address: str, answer: bytes, code: int = 0) -> Iterator[list[str]]:
    """A DNS server that answers every question with this address; yields who asked."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((address, 53))
    seen: list[str] = []

    def serve() -> None:
        while True:
            query, peer = server.recvfrom(4096)
            if not query:
                return
            seen.append(peer[0])
            head = query[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, 1 if not code else 0, 0, 0)
            record = b"\xc0\x0c" + struct.pack(">HHIH", A, 1, 60, 4) + answer
            server.sendto(head + query[12:] + (record if not code else b""), peer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield seen
    finally:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", (address, 53))
        thread.join()
        server.close()


def test_names_aliases_links_and_reverse(engine: NetworkEngine) -> None:
    create(engine, "net", "10.124.0.0/24")
    web = engine.attach("web", network_mode="net", endpoints={"net": EndpointConfig(aliases=("www", "Shop"))})
    linked = EndpointConfig(links=("web:store",))
    client = engine.attach("client", network_mode="net", endpoints={"net": linked})
    address = web.endpoints["net"].ipv4_address
    for name in ("web", "WEB", "www", "shop", "host-web", web.container_id[:12], "web.net", "store"):
        assert ask(engine, client, name) == ["0", address], name
        assert ask(engine, client, name, how="tcp") == ["0", address], name
    assert ask(engine, web, "client") == ["0", client.endpoints["net"].ipv4_address]
    # There is such a name, but without IPv6 address, or mail exchanger: no error, and nobody else is asked.
    assert ask(engine, client, "web", AAAA) == ["0"]
    assert ask(engine, client, "web", MX) == ["0"]
    reverse = ".".join(reversed(address.split("."))) + ".in-addr.arpa"
    assert ask(engine, client, reverse, PTR) == ["0", "\x03web\x03net\x00"]
    text = (engine.base / "client" / "resolv.conf").read_text()
    assert "\nnameserver 127.0.0.11\noptions ndots:0\n" in text
    engine.release(web)
    assert ask(engine, client, "web")[0] != "0"


def test_other_networks_have_other_names(engine: NetworkEngine) -> None:
    red, blue = create(engine, "red", "10.124.1.0/24"), create(engine, "blue", "10.124.2.0/24", internal=True)
    web = engine.attach("web", network_mode="red")
    client = engine.attach("client", network_mode="blue")
    assert ask(engine, client, "web")[0] == "2"
    engine.run(engine.manager.connect(blue, web.container_id, EndpointConfig(aliases=("shop",))))
    assert ask(engine, client, "shop") == ["0", web.endpoints["blue"].ipv4_address]
    assert ask(engine, client, "web.red")[0] == "2"
    engine.run(engine.manager.disconnect(blue, web.container_id))
    assert ask(engine, client, "shop")[0] == "2"
    assert ask(engine, web, "web") == ["0", web.endpoints["red"].ipv4_address]
    assert red.name == "red"


def test_unknown_names_are_asked_from_the_host(
    engine: NetworkEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's servers may be at its loopback; internal networks must not get out by them (CVE-2024-29018)."""
    create(engine, "net", "10.124.3.0/24")
    create(engine, "inner", "10.124.4.0/24", internal=True)
    text = "nameserver 127.0.0.153\nnameserver 127.0.0.154\n"
    monkeypatch.setattr(resolvconf, "load", lambda: resolvconf.parse(text, "/etc/resolv.conf"))
    with (
        upstream("127.0.0.153", b"", code=2),
        upstream("127.0.0.154", bytes([192, 0, 2, 99])) as seen,
    ):
        box = engine.attach("box", network_mode="net")
        assert ask(engine, box, "example.com") == ["0", "192.0.2.99"]
        assert seen == ["127.0.0.1"]
        inner = engine.attach("inner", network_mode="inner")
        assert ask(engine, inner, "example.com") == ["2"]
        assert len(seen) == 1


def test_servers_of_ones_own_are_asked_from_the_container(engine: NetworkEngine) -> None:
    create(engine, "net", "10.124.5.0/24")
    box = engine.attach("box", network_mode="net", dns=("10.124.5.1",), dns_options=("ndots:1",))
    with upstream("10.124.5.1", bytes([192, 0, 2, 98])) as seen:
        assert ask(engine, box, "example.com") == ["0", "192.0.2.98"]
        assert seen == [box.endpoints["net"].ipv4_address]
        # ndots was asked for: a bare name is to be completed first.
        assert ask(engine, box, "example") == ["0"]
        assert len(seen) == 1


def test_the_container_keeps_port_53_to_itself(engine: NetworkEngine) -> None:
    create(engine, "net", "10.124.6.0/24")
    box = engine.attach("box", network_mode="net")
    engine.serve(box, TCP_ECHO, port=53)
    assert ask(engine, box, "box") == ["0", box.endpoints["net"].ipv4_address]


def test_names_are_found_without_agent_and_by_the_next(engine: NetworkEngine) -> None:
    create(engine, "net", "10.124.7.0/24")
    box = engine.attach("box", network_mode="net")
    process = engine.serve(box, TCP_ECHO, port=80)
    engine.run(engine.manager.close())
    inside = ("nsenter", f"--net=/proc/{process.pid}/ns/net", sys.executable, "-c", CLIENT, "box", "1", "udp")
    address = box.endpoints["net"].ipv4_address
    assert subprocess.check_output(inside, text=True).split() == ["0", socket.inet_aton(address).hex()]
    engine.manager = engine.new_manager([SandboxState(box.container_id, process.pid)])
    other = engine.attach("other", network_mode="net")
    assert ask(engine, other, "box") == ["0", address]
    assert ask(engine, box, "other") == ["0", other.endpoints["net"].ipv4_address]
    # The proxy dies: the agent starts a new one, with all that the old one held.
    end_proxy(engine.roots)
    deadline = time.monotonic() + 10
    while not os.path.exists(engine.roots.run_path("proxy.sock")) or not _answers(engine, other):
        assert time.monotonic() < deadline
        engine.run(engine.manager._proxy.keys())
    assert ask(engine, other, "box") == ["0", address]


def _answers(engine: NetworkEngine, sandbox: Sandbox) -> bool:
    try:
        return ask(engine, sandbox, "box")[0] == "0"
    except subprocess.CalledProcessError:
        return False


def test_resolver_comes_with_the_first_network_that_has_names(engine: NetworkEngine) -> None:
    network = create(engine, "net", "10.124.8.0/24")
    box, other = engine.attach("box"), engine.attach("other", network_mode="net")
    path = engine.base / "box" / "resolv.conf"
    inode = path.stat().st_ino
    assert "127.0.0.11" not in path.read_text()
    engine.run(engine.manager.connect(network, box.container_id, EndpointConfig()))
    assert "\nnameserver 127.0.0.11\n" in path.read_text()
    assert path.stat().st_ino == inode  # it is mounted in the container
    assert ask(engine, box, "other") == ["0", other.endpoints["net"].ipv4_address]


def test_a_changed_resolv_conf_is_left_alone(engine: NetworkEngine) -> None:
    network = create(engine, "net", "10.124.9.0/24")
    box = engine.attach("box")
    path = engine.base / "box" / "resolv.conf"
    path.write_text("nameserver 192.0.2.1\n")
    engine.run(engine.manager.connect(network, box.container_id, EndpointConfig()))
    assert path.read_text() == "nameserver 192.0.2.1\n"
