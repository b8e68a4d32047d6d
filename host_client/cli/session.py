"""What a command needs from its surroundings: the engine it talks to and the user's configuration, both when
asked.
"""

from __future__ import annotations

import os

from host_client.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from host_client.cli.flags import Parsed
    from host_client.config import Config
    from host_client.engine_api.client import Client
    from host_client.engine_api.endpoint import Endpoint, Tls
    from host_client.engine_api.http import Connection


class Session:
    """One invocation of the command line."""

    def __init__(self, settings: Parsed) -> None:
        self.settings = settings
        self._client: Client | None = None
        self._config: Config | None = None

    @property
    def config(self) -> Config:
        """The user's docker configuration file."""
        if self._config is None:
            from host_client.config import load

            self._config = load(self.settings["config"])
        return self._config

    @property
    def client(self) -> Client:
        """The client for the chosen engine; starts the native one where none was chosen and none runs."""
        if self._client is None:
            chosen = self.chosen_host()
            if chosen:
                from host_client.engine_api.endpoint import parse_host

                self._client = self.connect(parse_host(chosen, self.tls()))
            else:
                connection = self._find_or_start()
                self._client = self.connect(connection.endpoint)
                self._client.adopt(connection)
        return self._client

    def _find_or_start(self) -> Connection:
        from host_client import vm

        if vm.chosen_mode(self.settings["mode"]) == "vm":
            return vm.find_or_start(lambda text: output.err(text + "\n"))
        from host_client import native

        return native.find_or_start()

    def connect(self, endpoint: Endpoint) -> Client:
        """A client for an engine, with the headers that the configuration adds."""
        from host_client.engine_api.client import Client

        return Client(endpoint, self.config.http_headers())

    def chosen_host(self) -> str:
        """The engine's address from `--host`, `--context`, DOCKER_HOST or DOCKER_CONTEXT, "" for our own.

        Raises:
            UsageError: `--host` was given twice, or beside `--context`.
            ConnectError: there is no such context.
        """
        hosts: list[str] = self.settings["host"]
        if len(hosts) > 1 or (hosts and self.settings["context"]):
            from host_client.cli.errors import UsageError

            if len(hosts) > 1:
                raise UsageError("specify only one -H")
            raise UsageError("conflicting options: cannot specify both --host and --context")
        context = self._context()
        return context[0] if context else hosts[0] if hosts else os.environ.get("DOCKER_HOST", "")

    def _context(self) -> tuple[str, Tls | None] | None:
        """The engine of the context chosen by name, if one is; `docker context use` is for docker alone."""
        name = self.settings["context"]
        if not name and not self.settings["host"] and not os.environ.get("DOCKER_HOST"):
            name = os.environ.get("DOCKER_CONTEXT", "")
        if not name or name == "default":
            return None
        from host_client import contexts

        return contexts.engine(os.path.dirname(self.config.path), name)

    def tls(self) -> Tls | None:
        """How to speak TLS, from the flags and docker's environment variables; None for not at all."""
        settings = self.settings
        context = self._context()
        if context:
            return context[1]
        verify = settings["tlsverify"] or bool(os.environ.get("DOCKER_TLS_VERIFY"))
        if not (verify or settings["tls"] or bool(os.environ.get("DOCKER_TLS"))):
            return None
        directory = os.environ.get("DOCKER_CERT_PATH") or os.path.dirname(self.config.path)

        def file(flag: str, name: str) -> str:
            given: str = settings[flag]
            path = given or os.path.join(directory, name)
            return path if given or os.path.exists(path) else ""

        from host_client.engine_api.endpoint import Tls

        return Tls(
            file("tlscacert", "ca.pem"), file("tlscert", "cert.pem"), file("tlskey", "key.pem"), verify
        )


def import_attached() -> None:
    """Import what a session at the terminal needs; called while the engine makes it, to cost no time."""
    from host_client.cli import attached, streams, terminal  # noqa: F401

    terminal.for_this_system()
