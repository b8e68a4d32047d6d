"""Real registries: Debian's docker-registry, set up in the ways that registries are met."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import bcrypt

from tests.support.certificates import Authority
from tests.support.images import Image
from tests.support.tokens import ISSUER, SERVICE, TokenServer

USER, PASSWORD = "skipper", "flat-bottomed"


class Registry:
    """One docker-registry process on 127.0.0.1 with a free port; its files below `directory`.

    `address` is `host:port` as it stands in a reference; `push` puts an image of the suite there.
    """

    push_options: tuple[str, ...] = ("--dest-tls-verify=false",)

    def __init__(
        self, directory: Path, host: str = "127.0.0.1", namespace: str = "", **settings: Any
    ) -> None:
        """`settings` are merged into the registry's configuration (distribution's config.yml, as JSON).

        `namespace`: path of a network namespace to serve in instead of the machine's.
        """
        program = shutil.which("docker-registry")
        if program is None:
            raise RuntimeError("docker-registry is not installed: ./run-tests --setup-only installs it")
        self.directory = directory
        configuration = {
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": False}},
            "storage": {
                "filesystem": {"rootdirectory": str(directory / "storage")},
                "delete": {"enabled": True},
            },
            "http": {"addr": "127.0.0.1:0"} | settings.pop("http", {}),
        } | settings
        path = directory / "config.yml"
        path.write_text(json.dumps(configuration))  # JSON is YAML
        self.log: list[str] = []
        self.process = subprocess.Popen(
            [*(["nsenter", f"--net={namespace}"] if namespace else []), program, "serve", path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.address = f"{host}:{self._port()}"
        threading.Thread(target=self._read_log, daemon=True).start()

    def _port(self) -> int:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line)
            if found := re.search(r"listening on [\d.]+:(\d+)", line):
                return int(found[1])
        raise RuntimeError("docker-registry did not start:\n" + "".join(self.log))

    def _read_log(self) -> None:
        assert self.process.stdout is not None
        self.log.extend(self.process.stdout)

    def push(self, image: Image, name: str = "") -> str:
        """Put an image there and return the reference to pull it by."""
        return image.push(self.address, *self.push_options, name=name)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def plain(directory: Path) -> Registry:
    """HTTP on loopback, no authentication."""
    return Registry(directory)


class TlsRegistry(Registry):
    """HTTPS under a certificate of its own authority (`authority.path`).

    It has an address outside 127.0.0.0/8 on the loopback interface, since Docker trusts anybody on 127.0.0.1.
    """

    def __init__(self, directory: Path, **settings: Any) -> None:
        # TEST-NET-1 (RFC 5737) is nobody's; suites that run side by side take different addresses of it.
        self.host = f"192.0.2.{os.getpid() % 254 + 1}"
        subprocess.run(["ip", "address", "replace", f"{self.host}/32", "dev", "lo"], check=True)
        self.authority = Authority(directory)
        # 10.0.2.2 is this host as a machine sees it, for relays on 127.0.0.1.
        certificate, key = self.authority.issue("registry.test", self.host, "10.0.2.2")
        tls = {"certificate": str(certificate), "key": str(key)}
        super().__init__(directory, self.host, http={"addr": f"{self.host}:0", "tls": tls}, **settings)

    def close(self) -> None:
        super().close()
        subprocess.run(["ip", "address", "delete", f"{self.host}/32", "dev", "lo"], check=True)


class BasicRegistry(Registry):
    """HTTP with basic authentication: USER and PASSWORD."""

    push_options = ("--dest-tls-verify=false", f"--dest-creds={USER}:{PASSWORD}")

    def __init__(self, directory: Path) -> None:
        secrets = directory / "htpasswd"
        secrets.write_text(f"{USER}:{bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()}\n")
        super().__init__(directory, auth={"htpasswd": {"realm": "test", "path": str(secrets)}})


class TokenRegistry(Registry):
    """HTTP with bearer tokens from a server of ours: `public/…` for all, the rest for USER and PASSWORD."""

    push_options = ("--dest-tls-verify=false", f"--dest-creds={USER}:{PASSWORD}")

    def __init__(self, directory: Path) -> None:
        self.tokens = TokenServer(directory, USER, PASSWORD)
        token = {
            "realm": self.tokens.realm,
            "service": SERVICE,
            "issuer": ISSUER,
            "rootcertbundle": str(self.tokens.bundle),
        }
        super().__init__(directory, auth={"token": token})

    def close(self) -> None:
        super().close()
        self.tokens.close()


def mirror(directory: Path, upstream: Registry) -> Registry:
    """A pull-through cache of another registry."""
    return Registry(directory, proxy={"remoteurl": f"http://{upstream.address}"})
