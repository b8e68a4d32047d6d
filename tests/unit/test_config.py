"""Settings from daemon.json and from options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guest_agent.engine.config import Config, merge, parse_options, read_file
from guest_agent.errors import InvalidParameter, NotSupported


def from_file(tmp_path: Path, document: Any) -> dict[str, Any]:
    path = tmp_path / "daemon.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return read_file(str(path))


def test_a_file_with_dockers_keys(tmp_path: Path) -> None:
    config = merge(
        from_file(
            tmp_path,
            {
                "hosts": ["unix:///a"],
                "data-root": "/d",
                "live-restore": True,
                "registry-mirrors": ["https://m"],
                "log-opts": {"max-size": "10m"},
                "default-shm-size": "128m",
                "mtu": 1400,
                "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 1, "Hard": 2}},
            },
        ),
        {},
    )
    assert (config.hosts, config.data_root, config.live_restore, config.mtu) == (
        ["unix:///a"],
        "/d",
        True,
        1400,
    )
    assert config.registry_mirrors == {"docker.io": ["https://m"]}
    assert config.default_shm_size == 128 << 20
    assert config.exec_root == "/run/wherry"


def test_mirrors_of_any_registry(tmp_path: Path) -> None:
    mirrors = {"ghcr.io": ["https://a", "https://b"]}
    assert from_file(tmp_path, {"registry-mirrors": mirrors})["registry_mirrors"] == mirrors
    values, _ = parse_options(["--registry-mirror", "https://m", "--registry-mirror=ghcr.io=https://a:1/x"])
    assert values["registry_mirrors"] == {"docker.io": ["https://m"], "ghcr.io": ["https://a:1/x"]}


@pytest.mark.parametrize(
    ("document", "error", "text"),
    [
        ({"nosuch": 1, "bip": ""}, InvalidParameter, "don't match any configuration option: nosuch"),
        ({"oom-score-adjust": 1}, NotSupported, "oom-score-adjust"),
        ({"mtu": "x"}, InvalidParameter, 'mtu: "x" is not a number'),
        ({"mtu": True}, InvalidParameter, "mtu: true is not a number"),
        ({"dns": "1.1.1.1"}, InvalidParameter, "dns: .* is not a list"),
        ({"dns": [1]}, InvalidParameter, "dns: not all of its values are strings"),
        ({"log-opts": {"a": 1}}, InvalidParameter, "log-opts: not all"),
        ({"registry-mirrors": {"a": "b"}}, InvalidParameter, "registry-mirrors: must be a list of URLs"),
        ({"default-shm-size": "many"}, InvalidParameter, "default-shm-size: invalid size: 'many'"),
        ([], InvalidParameter, "not a JSON object"),
        ("{", InvalidParameter, "not valid JSON"),
    ],
)
def test_a_wrong_file_names_the_key(tmp_path: Path, document: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        from_file(tmp_path, document)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match=r"nothing\.json: No such file"):
        read_file(str(tmp_path / "nothing.json"))


def test_options_are_the_keys_or_their_singulars() -> None:
    values, others = parse_options(
        [
            *("-H", "unix:///a", "--host=fd://", "--debug", "--icc=false", "--label", "a=b"),
            *("--log-opt", "max-size=1m", "--default-ulimit", "nofile=1:2", "--ready-fd", "3"),
            *("--default-address-pool", "base=10.0.0.0/8,size=24"),
        ]
    )
    assert values == {
        "hosts": ["unix:///a", "fd://"],
        "debug": True,
        "icc": False,
        "labels": ["a=b"],
        "log_opts": {"max-size": "1m"},
        "default_ulimits": {"nofile": {"Name": "nofile", "Soft": 1, "Hard": 2}},
        "default_address_pools": [{"base": "10.0.0.0/8", "size": 24}],
    }
    assert others == {"--ready-fd": "3"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--mtu", "x"], "invalid value for --mtu"),
        (["--mtu"], "--mtu needs a value"),
        (["stray"], "unexpected argument: stray"),
        (["--icc=maybe"], "invalid value for --icc"),
        (["--log-opt", "x"], "invalid value for --log-opt: 'x' is not KEY=VALUE"),
        (["--default-ulimit", "x"], "invalid value for --default-ulimit"),
    ],
)
def test_a_wrong_option_is_named(arguments: list[str], text: str) -> None:
    with pytest.raises(InvalidParameter, match=text):
        parse_options(arguments)


WRONG = (
    ("bip", "bip", "999.1.1.1/24"),
    ("default-cgroupns-mode", "default-cgroupns-mode", "own"),
    ("default-gateway", "default-gateway", "x"),
    ("default-ipc-mode", "default-ipc-mode", "host"),
    ("dns", "dns", "localhost"),
    ("dns-search", "dns-search", "a..b"),
    ("fixed-cidr", "fixed-cidr", "10.0.0.0/40"),
    ("host-gateway-ip", "host-gateway-ip", "x"),
    ("insecure-registry", "insecure-registries", "http://registry.example"),
    ("insecure-registry", "insecure-registries", "10.0.0.0/x"),
    ("ip", "ip", "x"),
    ("label", "labels", "novalue"),
    ("log-driver", "log-driver", "splunk"),
    ("max-download-attempts", "max-download-attempts", 0),
    ("mtu", "mtu", -5),
    ("registry-mirror", "registry-mirrors", "ftp://mirror.example"),
    ("storage-opt", "storage-opts", "overlay2.size=many"),
    ("storage-opt", "storage-opts", "overlay2.metacopy=on"),
    ("storage-opt", "storage-opts", "overlay2.size"),
    ("seccomp-profile", "seccomp-profile", "/nonexistent/profile.json"),
    ("default-address-pool", "default-address-pools", {"base": "10.0.0.0/8", "size": 4}),
)


@pytest.mark.parametrize(
    ("option", "key", "value"), WRONG, ids=[f"{option} {value}" for option, _, value in WRONG]
)
def test_a_value_that_cannot_be_is_refused_at_the_start(
    tmp_path: Path, option: str, key: str, value: Any
) -> None:
    """And not by a traceback, nor later by every container."""
    text = "base=10.0.0.0/8,size=4" if isinstance(value, dict) else str(value)
    with pytest.raises(InvalidParameter, match=f"^invalid value for --{option}: "):
        parse_options([f"--{option}={text}"])
    kind = Config.__dataclass_fields__[key.replace("-", "_")].type
    listed = str(kind).startswith("list") or key == "registry-mirrors"
    with pytest.raises(InvalidParameter, match=f"{key}: "):
        from_file(tmp_path, {key: [value] if listed else value})


def test_a_setting_in_both_places_is_refused() -> None:
    with pytest.raises(
        InvalidParameter, match="both as an option and in the configuration file: data-root, mtu"
    ):
        merge({"mtu": 1, "data_root": "/a", "bip": "x"}, {"mtu": 2, "data_root": "/b"})
