"""A container followed from start to end: attach, wait and start as few round trips as their order allows."""

from __future__ import annotations

from host_client.cli import output
from host_client.cli.errors import CliError, Exit
from host_client.cli.streams import Joined
from host_client.engine_api.errors import ApiError, EngineApiError, ProtocolError
from host_client.engine_api.wire import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from host_client.engine_api.client import Client, Query
    from host_client.engine_api.http import Connection, Response


FORCED = 3  # so often Ctrl-C must be pressed to leave a process that does not react


class Waiting:
    """A `wait` request under way; the status arrives when the container ends or is gone."""

    def __init__(self, client: Client, container: str, condition: str) -> None:
        self._client = client
        self._connection: Connection = client.send(
            "POST", f"/containers/{container}/wait", {"condition": condition}
        )
        self._response: Response | None = None
        self.status: int | None = None

    def accepted(self) -> None:
        """Wait until the engine has noted the request, so that no exit after this can be missed."""
        self._response = self._client.answer(self._connection)

    def fileno(self) -> int:
        """Readable when the status is there."""
        return self._connection.fileno()

    def arrived(self) -> bool:
        """Whether the status is there; `fileno` alone does not tell."""
        return self._connection.has_more()

    def receive(self) -> None:
        """Take the status, waiting for it."""
        if self.status is not None:
            return
        assert self._response is not None
        try:
            answer = loads(self._response.read())
        except (ProtocolError, ValueError) as error:
            output.report(f"error waiting for container: {error}")
            self.status = 125
            return
        problem = (answer.get("Error") or {}).get("Message")
        if problem:
            output.report(f"error waiting for container: {problem}")
            self.status = 125
        else:
            self.status = int(answer["StatusCode"])


class Foreground:
    """What is ours while a container has our terminal: raw mode, its size, and the signals we hand on.

    Used as a context manager around the session; everything is put back at its end, whatever happens.

    Args:
        path: `/containers/ID` or `/exec/ID`, whose `resize` and `kill` are meant.
        proxy: hand signals on.
    """

    def __init__(self, client: Client, path: str, tty: bool, stdin: bool, proxy: bool) -> None:
        from host_client.cli.terminal import for_this_system

        self.terminal = for_this_system()
        self.others: dict[int, Callable[[], None]] = {}
        self._client = client
        self._path = path
        self._resizable = tty and output.is_terminal(output.OUT)
        self._raw = tty and stdin and output.is_terminal(0)
        self._proxy = proxy
        self._ends = 0
        self._signals: Any = None
        self._restore: Any = None

    def __enter__(self) -> Foreground:
        if self._proxy or self._resizable or self._raw:
            self._signals = self.terminal.Signals(None if self._proxy else ("WINCH", *self.terminal.ENDING))
            self._signals.__enter__()
            self.others[self._signals.fileno()] = self._handle_signals
        if self._raw:
            self._restore = self.terminal.raw(0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._restore is not None:
            self._restore()
        if self._signals is not None:
            self._signals.__exit__(None, None, None)

    def resize(self) -> None:
        """Give the container's terminal the size of ours, if both are there."""
        if self._resizable:
            rows, columns = self.terminal.size(output.OUT)
            if rows or columns:
                self._quietly("resize", {"h": rows, "w": columns})

    def _handle_signals(self) -> None:
        for name in self._signals.take():
            if name == "WINCH":
                self.resize()
            if self._proxy:
                self._quietly("kill", {"signal": name})
            elif name in self.terminal.ENDING:
                raise Exit(128 + self.terminal.ENDING[name])  # with the terminal as it was
            self._ends += name in ("INT", "TERM")
            if self._ends == FORCED:
                raise CliError(
                    f"got {FORCED} SIGTERM/SIGINTs, forcefully exiting", "the container goes on running"
                )

    def _quietly(self, verb: str, query: Query) -> None:
        try:
            self._client.post(f"{self._path}/{verb}", query)
        except (ApiError, ProtocolError):
            pass  # the container has ended meanwhile; its exit is what counts


class Attachment:
    """A container's streams joined to ours, until it ends or the user detaches."""

    def __init__(
        self,
        client: Client,
        container: str,
        *,
        tty: bool,
        stdin: bool,
        stdout: bool,
        stderr: bool,
        detach_keys: str,
        sig_proxy: bool,
    ) -> None:
        self._client = client
        self._container = container
        self._tty = tty
        self._streams = (stdin, stdout, stderr)
        self._keys = detach_keys
        self._proxy = sig_proxy
        self.detached = False

    def follow(self, condition: str, start: Query | None = None) -> int:
        """Attach, start the container when `start` (the query of the request) is given, and stay with it.

        Args:
            condition: what ends it: "next-exit", "not-running" or "removed".

        Returns:
            The exit status; 0 after the user detached.

        Raises:
            EngineApiError: it could not be attached to or started.
        """
        client, path = self._client, f"/containers/{self._container}"
        stdin, stdout, stderr = self._streams
        query: Query = {
            "stream": True,
            "stdin": stdin,
            "stdout": stdout,
            "stderr": stderr,
            "detachKeys": self._keys,
        }
        with Foreground(client, path, self._tty, stdin, self._proxy) as ours:
            asked = client.start_hijack(f"{path}/attach", query)
            waiting = Waiting(client, self._container, condition)
            hijacked = client.finish_hijack(asked)
            waiting.accepted()
            if start is not None:
                try:
                    client.post(f"{path}/start", start)
                except EngineApiError:
                    if condition == "removed":
                        waiting.receive()
                    raise
            ours.resize()
            joined = Joined(hijacked, ours.terminal, self._tty, stdin, stdout, stderr, self._keys)

            def exited() -> None:
                if waiting.arrived():
                    waiting.receive()
                    ours.others.pop(waiting.fileno(), None)

            ours.others[waiting.fileno()] = exited
            exited()
            joined.run(lambda: waiting.status is not None and not (stdout or stderr), ours.others)
        self.detached = joined.detached
        if joined.detached:
            return 0
        waiting.receive()
        return waiting.status or 0
