"""Credentials in docker's configuration file and in helpers; the file itself."""

from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path

import pytest

from host_client import config, credentials
from host_client.credentials import HUB_KEY, CredentialError, Credentials

HELPER = """#!/bin/sh
# A docker-credential-helper that keeps each server's secret in a file.
store=$WHERRY_TEST_STORE
name() { printf %s "$1" | tr '/:' '__'; }
case $1 in
get)
    read -r server
    file=$store/$(name "$server")
    [ -f "$file" ] || { echo "credentials not found in native keychain"; exit 1; }
    cat "$file" ;;
store)
    read -r json || true
    server=$(printf %s "$json" | sed 's/.*"ServerURL":"\\([^"]*\\)".*/\\1/')
    printf %s "$json" > "$store/$(name "$server")" ;;
erase) read -r server || true; rm -f "$store/$(name "$server")" ;;
*) echo "broken" >&2; exit 3 ;;
esac
"""


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A helper called `files` on PATH; the directory that it keeps its secrets in."""
    programs, store = tmp_path / "bin", tmp_path / "store"
    programs.mkdir()
    store.mkdir()
    program = programs / "docker-credential-files"
    program.write_text(HELPER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("WHERRY_TEST_STORE", str(store))
    return store


def written(tmp_path: Path, content: object) -> config.Config:
    (tmp_path / "config.json").write_text(json.dumps(content))
    return config.load(str(tmp_path))


def basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def test_file(tmp_path: Path) -> None:
    loaded = written(
        tmp_path,
        {
            "auths": {
                "reg.example": {"auth": basic("me", "a:b")},
                "https://old.example/v1/": {"auth": basic("you", "c")},
                HUB_KEY: {"identitytoken": "t", "auth": basic("hub", "")},
            }
        },
    )
    found = credentials.find(loaded, "reg.example")
    assert (found.username, found.password, found.server) == ("me", "a:b", "reg.example")
    assert credentials.find(loaded, "old.example").username == "you"
    assert credentials.find(loaded, "docker.io").identity_token == "t"
    assert not credentials.find(loaded, "other.example")


def test_header_is_url_safe_json() -> None:
    made = Credentials("ü", "p?>~", "reg.example").header()
    assert json.loads(base64.urlsafe_b64decode(made)) == {
        "username": "ü", "password": "p?>~", "serveraddress": "reg.example",
    }  # fmt: skip
    assert Credentials().header() == "e30="


def test_damaged_entry(tmp_path: Path) -> None:
    loaded = written(tmp_path, {"auths": {"reg.example": {"auth": "a"}}})
    with pytest.raises(CredentialError, match=r"for reg\.example .* not valid base64"):
        credentials.find(loaded, "reg.example")


def test_store_in_the_file_keeps_the_rest(tmp_path: Path) -> None:
    loaded = written(tmp_path, {"psFormat": "x", "auths": {"a": {"auth": "eDp5"}}, "unknown": {"k": [1]}})
    assert credentials.store(loaded, Credentials("me", "secret", "reg.example"))
    path = tmp_path / "config.json"
    assert json.loads(path.read_text()) == {
        "psFormat": "x",
        "auths": {"a": {"auth": "eDp5"}, "reg.example": {"auth": basic("me", "secret")}},
        "unknown": {"k": [1]},
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]
    assert credentials.find(config.load(str(tmp_path)), "reg.example").password == "secret"
    assert credentials.erase(loaded, "reg.example")
    assert not credentials.erase(loaded, "reg.example")
    assert "reg.example" not in json.loads(path.read_text())["auths"]


def test_store_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("{}")
    (tmp_path / "config.json").symlink_to("real")
    credentials.store(config.load(str(tmp_path)), Credentials("me", "x", "reg.example"))
    assert (tmp_path / "config.json").is_symlink()
    assert "reg.example" in (tmp_path / "real").read_text()


@pytest.mark.parametrize("content", [{"credsStore": "files"}, {"credHelpers": {"reg.example": "files"}}])
def test_helper(tmp_path: Path, helper: Path, content: dict[str, object]) -> None:
    loaded = written(tmp_path, content)
    assert not credentials.find(loaded, "reg.example")
    assert not credentials.store(loaded, Credentials("me", "secret", "reg.example"))
    assert "secret" not in (tmp_path / "config.json").read_text()
    found = credentials.find(loaded, "reg.example")
    assert (found.username, found.password) == ("me", "secret")
    assert credentials.erase(loaded, "reg.example")
    assert not credentials.find(loaded, "reg.example")
    assert list(helper.iterdir()) == []


def test_identity_token_in_a_helper(tmp_path: Path, helper: Path) -> None:
    loaded = written(tmp_path, {"credsStore": "files"})
    credentials.store(loaded, Credentials("me", "", "reg.example", identity_token="tok"))
    assert json.loads((helper / "reg.example").read_text())["Username"] == "<token>"
    assert credentials.find(loaded, "reg.example").identity_token == "tok"


def test_helper_that_is_missing(tmp_path: Path) -> None:
    loaded = written(tmp_path, {"credsStore": "nowhere-to-be-found"})
    with pytest.raises(CredentialError, match="cannot run docker-credential-nowhere-to-be-found"):
        credentials.find(loaded, "reg.example")


def test_configuration_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(config.ConfigError, match="is not valid JSON"):
        config.load(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(config.ConfigError, match="is not a JSON object"):
        config.load(str(tmp_path))
    (tmp_path / "config.json").write_text("")
    assert config.load(str(tmp_path)).values == {}
    assert config.load(str(tmp_path / "nowhere")).values == {}


def test_proxies(tmp_path: Path) -> None:
    loaded = written(
        tmp_path, {"proxies": {"default": {"httpProxy": "http://p"}, "tcp://h:1": {"noProxy": "x"}}}
    )
    assert loaded.proxies("unix:///x") == {"HTTP_PROXY": "http://p", "http_proxy": "http://p"}
    assert loaded.proxies("tcp://h:1") == {"NO_PROXY": "x", "no_proxy": "x"}


@pytest.mark.parametrize("with_pass", [False, True])
def test_the_systems_key_store_is_used_where_nothing_else_is_said(
    tmp_path: Path, helper: Path, monkeypatch: pytest.MonkeyPatch, with_pass: bool
) -> None:
    programs = tmp_path / "bin"
    name = "pass" if with_pass else "secretservice"
    (programs / "docker-credential-files").rename(programs / f"docker-credential-{name}")
    if with_pass:
        (programs / "pass").write_text("#!/bin/sh\n")
        (programs / "pass").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    loaded = written(tmp_path, {})
    assert credentials.store(loaded, Credentials("me", "secret", "reg.example")) is False
    kept = json.loads((tmp_path / "config.json").read_text())
    assert kept == {"credsStore": name, "auths": {"reg.example": {}}}
    assert (helper / "reg.example").exists()


def test_credentials_in_the_file_stay_there(
    tmp_path: Path, helper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    (programs / "docker-credential-files").rename(programs / "docker-credential-secretservice")
    loaded = written(tmp_path, {"auths": {"old.example": {"auth": basic("me", "old")}}})
    assert credentials.store(loaded, Credentials("me", "secret", "reg.example")) is True
    assert "credsStore" not in json.loads((tmp_path / "config.json").read_text())
