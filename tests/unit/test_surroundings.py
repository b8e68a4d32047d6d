"""What a machine is told of the host: proxies, authorities; and which mode a host is for."""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from host_client import vm
from host_client.engine_api.errors import ConnectError
from host_client.machine import surroundings
from tests.support.certificates import Authority

GATEWAY = "10.0.2.2"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HTTP_PROXY": "http://proxy.example:3128"}, {"HTTP_PROXY": "http://proxy.example:3128"}),
        ({"https_proxy": "http://127.0.0.1:8080"}, {"HTTPS_PROXY": "http://10.0.2.2:8080"}),
        ({"https_proxy": "http://me:pass@localhost:80/"}, {"HTTPS_PROXY": "http://me:pass@10.0.2.2:80/"}),
        ({"all_proxy": "socks5://[::1]:1080"}, {"ALL_PROXY": "socks5://10.0.2.2:1080"}),
        ({"http_proxy": "localhost:3128"}, {"HTTP_PROXY": "http://10.0.2.2:3128"}),
        ({"no_proxy": "localhost,.example"}, {"NO_PROXY": "localhost,.example"}),
        ({"http_proxy": "http://127.0.0.1:many"}, {"HTTP_PROXY": "http://127.0.0.1:many"}),
        ({"http_proxy": "http://a\nPATH=/x"}, {}),
        ({}, {}),
    ],
)
def test_proxies_as_the_guest_reaches_them(
    environment: Mapping[str, str], expected: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert surroundings.proxies(GATEWAY) == expected


def test_authorities_are_those_that_the_host_trusts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    found = ssl.create_default_context(cadata=surroundings.authorities().decode())
    assert found.get_ca_certs()[0]["subject"] == ((("commonName", "Wherry test authority"),),)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing"))
    assert surroundings.authorities() == b""


@pytest.mark.parametrize(
    ("release", "mode"),
    [("5.15.90.1-microsoft-standard-WSL2", "native"), ("4.4.0-19041-Microsoft", ""), ("6.12.1", "native")],
)
def test_wsl_2_is_native_and_wsl_1_refused(release: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSL_DISTRO_NAME", "Debian")
    monkeypatch.delenv("WHERRY_MODE", raising=False)
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    if mode:
        assert vm.chosen_mode() == mode
    else:
        with pytest.raises(ConnectError, match="WSL 1") as caught:
            vm.chosen_mode()
        assert caught.value.hint == "in Windows: wsl --set-version Debian 2"
    assert vm.chosen_mode("vm") == "vm"


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_need_a_machine(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WHERRY_MODE", raising=False)
    monkeypatch.setattr(sys, "platform", system)
    assert vm.chosen_mode() == "vm"
