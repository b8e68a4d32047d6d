"""Logins kept by a real credential helper, docker-credential-pass, shared by docker's CLI and ours."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import registry
from tests.support.cli import Cli, cache_directory, docker_binary, wherry_command
from tests.support.engine import Engine

pytestmark = [pytest.mark.root, pytest.mark.ours]


@pytest.fixture
def key_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """`pass` with a key of its own; the environment that finds it."""
    with tempfile.TemporaryDirectory(prefix="pass-") as home:  # gpg's sockets need a short path
        store = {
            "PATH": f"{cache_directory() / 'helpers' / 'usr' / 'bin'}:{os.environ['PATH']}",
            "GNUPGHOME": f"{home}/gpg",
            "PASSWORD_STORE_DIR": f"{home}/store",
        }
        os.mkdir(store["GNUPGHOME"], 0o700)
        env = os.environ | store

        def run(*command: str) -> None:
            subprocess.run(command, env=env, check=True, capture_output=True, stdin=subprocess.DEVNULL)

        run(
            "gpg",
            "--batch",
            "--passphrase",
            "",
            "--quick-generate-key",
            "skipper@wherry.test",
            "default",
            "default",
            "never",
        )
        run("pass", "init", "skipper@wherry.test")
        try:
            yield store
        finally:
            run("gpgconf", "--kill", "gpg-agent")


@pytest.mark.parametrize("configured", [True, False])
@pytest.mark.parametrize("first", ["docker", "wherry"])
def test_both_find_what_one_has_kept(
    engine: Engine,
    busybox: str,
    basic_registry: registry.BasicRegistry,
    key_store: dict[str, str],
    tmp_path: Path,
    first: str,
    configured: bool,
) -> None:
    if configured:
        (tmp_path / "config.json").write_text(json.dumps({"credsStore": "pass"}))
    both = {
        "docker": Cli([docker_binary()], engine.host, tmp_path),
        "wherry": Cli(wherry_command(), engine.host, tmp_path),
    }
    for cli in both.values():
        cli.env |= key_store
    one = both.pop(first)
    (other,) = both.values()
    login = ("login", "-u", registry.USER, "--password-stdin", basic_registry.address)
    done = one(*login, input=registry.PASSWORD)
    assert (done.code, done.out, done.err) == (0, "Login Succeeded\n", "")
    kept = json.loads((tmp_path / "config.json").read_text())
    assert kept == {"auths": {basic_registry.address: {}}, "credsStore": "pass"}
    name = f"{basic_registry.address}/kept:1"
    other.ok("tag", busybox, name)
    try:
        other.ok("push", name)
        again = other("login", basic_registry.address)
        assert (again.code, again.out) == (0, "Login Succeeded\n")
        assert f"Authenticating with existing credentials... [Username: {registry.USER}]\n" in again.err
        assert (
            other.ok("logout", basic_registry.address)
            == f"Removing login credentials for {basic_registry.address}"
        )
        assert "no basic auth credentials" in one("push", name).err
    finally:
        engine.docker.ok("rmi", "-f", name)
