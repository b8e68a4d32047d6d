"""A TCP relay in front of a server: slow, or cutting connections, as real networks are."""

from __future__ import annotations

import socket
import threading
import time


class Relay:
    """Listens on 127.0.0.1 (`address`) and passes bytes to `upstream`.

    `rate`: bytes a second towards the client, 0 for no limit. `cut_after`: each connection is reset after so many
    bytes towards the client, 0 for never; `cuts` says how often that was done, `cut_limit` how often it may be.
    """

    def __init__(self, upstream: str, rate: int = 0, cut_after: int = 0, cut_limit: int = 1_000_000) -> None:
        host, port = upstream.rsplit(":", 1)
        self.upstream = (host, int(port))
        self.rate, self.cut_after, self.cut_limit = rate, cut_after, cut_limit
        self.cuts = 0
        self.passed = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:  # closed
                return
            server = socket.create_connection(self.upstream)
            threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, answer: bool) -> None:
        passed = 0
        try:
            while data := source.recv(16384):
                if (
                    answer
                    and self.cut_after
                    and passed + len(data) > self.cut_after
                    and self.cuts < self.cut_limit
                ):
                    self.cuts += 1
                    break
                target.sendall(data)
                passed += len(data)
                if answer:
                    self.passed += len(data)
                    if self.rate:
                        time.sleep(len(data) / self.rate)
        except OSError:
            pass
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self) -> None:
        self.listener.close()
