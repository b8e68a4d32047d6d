"""The log sender: a process that sends containers' logs on, outliving the agent.

The monitor writes each log to a file on this host, which is also what `logs` shows, and never waits for a
receiver. The sender follows those files with one thread a container, so that a receiver that is slow or gone
holds up nobody else. What has been sent is noted in a file: after a crash the next sender goes on there.

Requests are JSON lines with a `seq`, which the answer repeats: `add` (a container starts; answered when its
receiver has been reached, or why it was not), `end` (it has ended: the rest is sent, then it is forgotten),
`keep` (all others have ended), `quit` (nothing more is coming). Imports are kept few.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from guest_agent.delivery.entries import Reader
from guest_agent.delivery.spool import Spool
from guest_agent.delivery.target import Target, make
from guest_agent.kernel.inotify import IN_CREATE, IN_MODIFY, IN_MOVED_TO, IN_ONLYDIR, Inotify

_IDLE_SECONDS = 3.0  # without logs and agents
_END_SECONDS = 10.0  # for which the rest of an ended container's log is tried to be sent
_LOOK_SECONDS = 5.0  # in case a notification was lost
_SPARE_SECONDS = 0.01  # lets more entries come, so that they go out together

Answer = Callable[[dict[str, Any]], None]


class Log(threading.Thread):
    """One container's log on its way."""

    def __init__(self, spec: dict[str, Any], place: str, answer: Answer, done: Callable[[Log], None]) -> None:
        super().__init__(daemon=True, name=f"log {spec['id'][:12]}")
        self.id: str = spec["id"]
        self.directory = os.path.dirname(spec["path"])
        self._place = place
        self._adopted = bool(spec.get("adopted"))
        self._target: Target = make(spec)
        self._spool = Spool(spec["path"], place, spec["keep"], spec["most"])
        self._reader = Reader()
        self._answer: Answer | None = answer
        self._done = done
        self._changed = threading.Event()
        self._lock = threading.Lock()
        self._over = False
        self._ending = 0.0  # when giving up is allowed
        self._open = False

    def changed(self, made: bool) -> None:
        """There may be more to send; `made`: or another file. Called in the main thread."""
        if made:
            self._spool.look()
        self._changed.set()

    def go_on(self) -> bool:
        """The container has started again; whether the rest of its log was being sent yet."""
        with self._lock:
            if not self._over:
                self._ending = 0.0
            return not self._over

    def end(self) -> None:
        """No more entries will come."""
        if not self._ending:
            self._ending = time.monotonic() + _END_SECONDS
            self._changed.set()

    def run(self) -> None:
        """Send until the log has ended and all is sent."""
        try:
            if self._begin():
                self._follow()
        except Exception as error:  # one log's trouble is not the others'
            complain(f"log of {self.id} is sent no more: {type(error).__name__}: {error}")
            self._reply({"error": str(error)})
        finally:
            self._target.close()
            self._spool.close()
            self._done(self)

    def _begin(self) -> bool:
        if self._adopted or self._target.lazy:
            self._reply({"ok": True})
            return True
        try:
            self._target.open()
        except OSError as error:
            os.unlink(self._place)
            self._reply({"error": error.strerror or str(error)})
            return False
        self._open = True
        self._reply({"ok": True})
        return True

    def _reply(self, value: dict[str, Any]) -> None:
        if self._answer is not None:
            self._answer(value)
            self._answer = None

    def _follow(self) -> None:
        while True:
            self._changed.clear()
            ending = bool(self._ending)
            lines = self._spool.read()
            if lines and self._deliver(lines):
                self._spool.commit()
            elif lines or ending:
                with self._lock:
                    self._over = bool(self._ending)
                if self._over:
                    os.unlink(self._place)
                    return
            elif self._changed.wait(_LOOK_SECONDS) and not self._ending:
                time.sleep(_SPARE_SECONDS)

    def _deliver(self, lines: list[bytes]) -> bool:
        """Send entries; give up those that cannot be sent when the retries are used up.

        False: the container has ended, and its time to be sent is over.
        """
        entries = self._reader.entries(lines)
        retries = self._target.retries
        failures, wait = 0, retries.wait
        while entries:
            try:
                if not self._open:
                    self._target.open()
                    self._open = True
                sent = self._target.send(entries)
                if sent:
                    entries = entries[sent:]
                    failures, wait = 0, retries.wait
                    continue
            except (OSError, ValueError) as error:
                self._target.close()
                self._open = False
                failures += 1
                if failures == 1:
                    complain(f"log of {self.id} cannot be sent: {error}")
                if self._ending and time.monotonic() > self._ending:
                    complain(f"log of {self.id}: its end is given up")
                    return False
                if retries.times is not None and failures > retries.times:
                    complain(f"log of {self.id}: {len(entries)} entries are given up")
                    return True
                self._pause(wait)
                wait = min(wait * retries.factor, retries.longest)
        return True

    def _pause(self, seconds: float) -> None:
        """Wait, but for an ending no longer than it lasts."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._ending and time.monotonic() > self._ending:
                return
            time.sleep(min(left, 0.2))


class Control:
    """A connection from an agent."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.buffer = b""
        self._lock = threading.Lock()

    def answer(self, seq: object) -> Answer:
        """What answers that request; from any thread."""

        def send(value: dict[str, Any]) -> None:
            with self._lock:
                try:
                    self.socket.sendall(json.dumps({"seq": seq, **value}).encode() + b"\n")
                except OSError:
                    pass  # it is gone; its request is done all the same

        return send


class Sender:
    """The process: its control socket and its logs."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._places = os.path.join(os.path.dirname(path), "sent")
        os.makedirs(self._places, mode=0o700, exist_ok=True)
        self._quit = False
        self._logs: dict[str, Log] = {}
        self._lock = threading.Lock()
        self._inotify = Inotify()
        self._watches: dict[int, str] = {}
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        self._listener.bind(path)
        os.chmod(path, 0o600)
        self._listener.listen(16)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._inotify.fd, selectors.EVENT_READ, self._notified)
        self._controls: set[Control] = set()

    def run(self) -> None:
        """Serve until there has been nothing to do for a while."""
        busy = time.monotonic()
        while True:
            for key, _ in self._selector.select(0.5):
                key.data()
            if self._logs or (self._controls and not self._quit):
                busy = time.monotonic()
            elif self._quit or time.monotonic() - busy > _IDLE_SECONDS:
                os.unlink(self._path)
                return

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:
            time.sleep(0.01)  # no descriptors: it stays readable, do not spin
            return
        control = Control(peer)
        self._controls.add(control)
        self._selector.register(peer, selectors.EVENT_READ, lambda: self._ready(control))

    def _ready(self, control: Control) -> None:
        try:
            data = control.socket.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(control.socket)
            self._controls.discard(control)
            control.socket.close()
            return
        *lines, control.buffer = (control.buffer + data).split(b"\n")
        for line in lines:
            request = json.loads(line)
            self._serve(request, control.answer(request.get("seq")))

    def _serve(self, request: dict[str, Any], answer: Answer) -> None:
        match request["op"]:
            case "add":
                try:
                    self._add(request["log"], answer)
                except (OSError, ValueError) as error:
                    answer({"error": getattr(error, "strerror", None) or str(error)})
            case "end":
                if (log := self._logs.get(request["id"])) is not None:
                    log.end()
                answer({"ok": True})
            case "keep":
                for log in list(self._logs.values()):
                    if log.id not in request["ids"]:
                        log.end()
                answer({"ok": list(self._logs)})
            case "quit":
                self._quit = True  # when all is sent
                answer({"ok": True})
            case _:
                answer({"error": f"unknown request {request['op']}"})

    def _add(self, spec: dict[str, Any], answer: Answer) -> None:
        self._quit = False
        before = self._logs.get(spec["id"])
        if before is not None:
            if before.go_on():
                answer({"ok": True})
                return
            before.join()  # it is closing its files
        log = Log(spec, os.path.join(self._places, spec["id"]), answer, self._finished)
        mask = IN_MODIFY | IN_CREATE | IN_MOVED_TO | IN_ONLYDIR
        self._watches[self._inotify.add(log.directory, mask)] = log.id
        with self._lock:
            self._logs[log.id] = log
        log.start()

    def _finished(self, log: Log) -> None:
        with self._lock:
            if self._logs.get(log.id) is log:
                del self._logs[log.id]
                for wd, id in list(self._watches.items()):
                    if id == log.id:
                        del self._watches[wd]
                        self._inotify.remove(wd)

    def _notified(self) -> None:
        for wd, mask, _ in self._inotify.read():
            made = wd < 0 or bool(mask & (IN_CREATE | IN_MOVED_TO))
            found = self._logs.values() if wd < 0 else [self._logs.get(self._watches.get(wd, ""))]
            for log in list(found):
                if log is not None:
                    log.changed(made)


def complain(text: str) -> None:
    """A line in the sender's log."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    os.write(2, f"{stamp} {text}\n".encode("utf-8", "replace"))


def main(path: str, log: str) -> None:
    """Become a daemon and serve. The starter sees success once the control socket accepts connections."""
    sender = Sender(path)
    if os.fork():
        os._exit(0)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), 2)
    os.chdir("/")
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    sender.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
