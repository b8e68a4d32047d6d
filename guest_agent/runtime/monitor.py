"""The monitor: parent of every container, one thread, few imports, outliving the agent.

It forks launch children, owns the streams, logs and exit codes of all processes, and tells agents, of
which one may go and the next come. It is not dumpable, nor is any child before its execve, so that no
container can look into it. Started by `client.Monitor`: descriptor 3 is the first agent's connection, the
one argument is the exec root.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import struct
import sys
from _socket import (
    AF_UNIX,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    SO_PEERCRED,
    SOCK_CLOEXEC,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    socket,
)
from collections import deque
from collections.abc import Callable

from guest_agent.kernel import syscalls as s

from . import cgroups, protocol
from .children import Failure, Host, Process
from .containers import Container
from .idmap import new_network
from .loop import READ, WRITE, Loop
from .stage import StageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

AGENT_FD = 3
_OOM_SCORE_ADJ = -999
_FAVOURED = "/run/wherry.favordynmods"
_FAVOURED_UNTIL_BOOT = (6, 18)
_SUN_PATH_MAX = 107
_LONELY_SECONDS = 5.0


class Connection:
    """One agent. Messages wait here when it is slow to read."""

    def __init__(self, monitor: Monitor, sock: socket) -> None:
        self._monitor = monitor
        self._socket = sock
        self._fd = sock.fileno()
        self._queue: deque[tuple[protocol.Message, list[int]]] = deque()
        monitor.loop.add(self._fd, READ, self._ready)

    def send(self, message: protocol.Message, fds: list[int] | None = None) -> None:
        """Sends a message now, or when the agent reads again. Takes the descriptors over."""
        self._queue.append((message, fds or []))
        if len(self._queue) == 1:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._queue:
                message, fds = self._queue[0]
                protocol.send(self._socket, message, fds, MSG_DONTWAIT | MSG_NOSIGNAL)
                self._queue.popleft()
                for fd in fds:
                    os.close(fd)
        except BlockingIOError:
            self._monitor.loop.modify(self._fd, READ | WRITE)
        except OSError:
            self.close()
        else:
            self._monitor.loop.modify(self._fd, READ)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if self._fd < 0 or not events & ~WRITE:
            return
        try:
            received = protocol.receive(self._socket, MSG_DONTWAIT)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            received = None
        if received is None:
            self.close()
            return
        message, fds = received
        self._monitor.serve(self, message, fds)

    def close(self) -> None:
        """The agent has gone, or is not to be trusted with another byte."""
        if self._fd >= 0:
            self._monitor.loop.remove(self._fd)
            self._fd = -1
            self._socket.close()
            for _, fds in self._queue:
                for fd in fds:
                    os.close(fd)
            self._queue.clear()
            self._monitor.lost(self)


class Monitor:
    """Listens for agents and does what they ask; all containers hang here."""

    def __init__(self, run: str) -> None:
        self.loop = Loop()
        self._run = run
        self._connections: list[Connection] = []
        self._containers: dict[str, Container] = {}
        self.host = Host(self.loop, run, self._announce, lambda: bool(self._connections))
        self.host.busy = lambda: any(container.init.running for container in self._containers.values())
        self._listener = _listen(os.path.join(run, "monitor.sock"))
        self.loop.add(self._listener.fileno(), READ, self._accept)

    def adopt(self, sock: socket) -> None:
        """Serves an agent that is connected already."""
        self._connections.append(Connection(self, sock))

    def _accept(self, events: int) -> None:
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]  # what socket.accept calls
        except OSError:
            return
        connection = socket(fileno=fd)
        os.set_inheritable(fd, False)
        _, uid, _ = struct.unpack("3i", connection.getsockopt(SOL_SOCKET, SO_PEERCRED, 12))
        if uid == os.geteuid():
            self.adopt(connection)
        else:
            connection.close()

    def lost(self, connection: Connection) -> None:
        """An agent has gone; what it had not fetched of ended execs nobody will."""
        self._connections.remove(connection)
        if not self._connections:
            for container in self._containers.values():
                container.forget_ended_execs()
            self.loop.later(_LONELY_SECONDS, self._leave_if_lonely)

    def _announce(self, event: protocol.Message) -> None:
        for connection in list(self._connections):
            connection.send(event)
        if not self._connections:
            self.loop.later(_LONELY_SECONDS, self._leave_if_lonely)

    def _leave_if_lonely(self) -> None:
        """Ends the monitor when no agent has come back and nothing runs; exit codes are in their files."""
        if not self._connections and all(container.init.ended for container in self._containers.values()):
            self._leave()

    def serve(self, connection: Connection, message: protocol.Message, fds: list[int]) -> None:
        """Carries out one request. Descriptors that are not taken out of `fds` are closed."""
        seq = message.get("seq")

        def answer(result: Any = None, failure: Failure | None = None, fd: int = -1) -> None:
            if failure:
                connection.send({"seq": seq, "error": failure.as_dict()})
            else:
                connection.send({"seq": seq, "ok": result}, [fd] if fd >= 0 else None)

        handler = _OPERATIONS.get(str(message.get("op")))
        try:
            if handler is None:
                raise Failure("protocol", f"unknown request {message.get('op')!r}")
            handler(self, message, fds, answer)
        except Failure as e:
            answer(failure=e)
        except Exception as e:  # the agent must hear of it, and all other containers live on
            answer(failure=Failure("internal", f"{type(e).__name__}: {e}"))
        finally:
            for fd in fds:
                os.close(fd)

    def _container(self, message: protocol.Message) -> Container:
        container = self._containers.get(message["id"])
        if container is None:
            raise Failure("notfound", f"no such container: {message['id']}")
        return container

    def _process(self, message: protocol.Message) -> Process:
        container = self._container(message)
        exec_id = message.get("exec_id")
        process = container.execs.get(exec_id) if exec_id else container.init
        if process is None:
            raise Failure("notfound", f"no such exec: {exec_id}")
        return process

    def hello(self, message: protocol.Message, fds: list[int], answer: Answer) -> None:
        """What runs, and what has ended and is not forgotten."""
        containers = [container.as_dict() for container in self._containers.values() if container.known()]
        answer({"version": protocol.VERSION, "pid": os.getpid(), "containers": containers})

    def network(self, message: protocol.Message, fds: list[int], answer: Answer) -> None:
        """A new network namespace, which belongs to a user namespace: answered with its descriptor."""
        try:
            answer(fd=new_network(message["linux"], message["path"]))
        except StageError as e:
            raise Failure("launch", e.text, e.stage, e.errno) from e

    def start(self, message: protocol.Message, fds: list[int], answer: Answer) -> None:
        """A new container; answered when its first process has been executed, or could not be."""
        old = self._containers.get(message["id"])
        if old is not None and not old.init.ended:
            raise Failure("conflict", f"container {message['id']} is already running")
        container = Container(self.host, message)

        def started(failure: Failure | None) -> None:
            if failure:
                if self._containers.get(container.id) is container:
                    del self._containers[container.id]
                answer(failure=failure)
            else:
                answer({"pid": container.init.pid, "started_at": container.init.started_at})

        container.start(message, fds, started)
        self._containers[container.id] = container

    def exec(self, message: protocol.Message, fds: list[int], answer: Answer) -> None:
        """One more process in a running container; answered as `start`."""
        container = self._container(message)
        if container.init.ended or not container.init.running:
            raise Failure("notfound", f"container {message['id']} is not running")
        process: Process

        def started(failure: Failure | None) -> None:
            if failure:
                answer(failure=failure)
            else:
                answer({"pid": process.pid})

        process = container.exec(message, fds, started)

    def attach(self, message: protocol.Message, fds: list[int], answer: Answer) -> None:
        """One more client for a process; its output from now on."""
        process = self._process(message)
        process.streams.attach(message["attachment"], fds.pop(0))
        answer()

    def resize(self, message: protocol.Message, fds: list[int], answer: Answer) -> None:
        """A terminal's size."""
        self._process(message).resize(message["rows"], message["columns"])
        answer()

    def kill(self, message: protocol.Message, fds: list[int], answer: Answer) -> None:
        """A signal for a process."""
        self._process(message).kill(message["signal"])
        answer()

    def forget(self, message: protocol.Message, fds: list[int], answer: Answer) -> None:
        """The agent has noted the end of a container or an exec."""
        process = self._process(message)
        if not process.ended:
            raise Failure("conflict", f"container {message['id']} is running")
        if message.get("exec_id"):
            del self._container(message).execs[message["exec_id"]]
        else:
            del self._containers[message["id"]]
        answer()

    def shutdown(self, message: protocol.Message, fds: list[int], answer: Answer) -> None:
        """Ends the monitor, if nothing runs."""
        running = sum(not container.init.ended for container in self._containers.values())
        if running:
            raise Failure("conflict", f"{running} containers are running")
        self._leave()
        answer()

    def _leave(self) -> None:
        for container in list(self.host.deleting.values()):
            container.delete_group_now()
        self._listener.close()
        for name in ("monitor.sock", "monitor.pid"):
            try:
                os.unlink(os.path.join(self._run, name))
            except FileNotFoundError:
                pass
        self.loop.stop()


Answer = Callable[..., None]
_OPERATIONS: dict[str, Callable[[Monitor, protocol.Message, list[int], Answer], None]] = {
    "hello": Monitor.hello,
    "network": Monitor.network,
    "start": Monitor.start,
    "exec": Monitor.exec,
    "attach": Monitor.attach,
    "resize": Monitor.resize,
    "kill": Monitor.kill,
    "forget": Monitor.forget,
    "shutdown": Monitor.shutdown,
}


def _listen(path: str) -> socket:
    """The socket for later agents: only root may connect, and the path may be longer than sockaddr_un has
    it.
    """
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if len(os.fsencode(path)) > _SUN_PATH_MAX:
        path = f"/proc/self/fd/{directory}/{os.path.basename(path)}"
    old = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(old)
        os.close(directory)
    listener.listen(16)
    return listener


def _favour_dynamic_groups() -> None:
    """Keeps moves between v1 control groups from waiting for an RCU grace period, 5 to 20 ms each.

    That is the mount option `favordynmods` (Linux 6.0), which holds for the whole system: an empty
    hierarchy of our own, mounted nowhere, carries it. With v2 children are born in their group and nothing
    ever moves.
    """
    if cgroups.version() != 1 or _favoured_since_boot():
        return
    try:
        with s.FsContext("cgroup") as context:
            context.flag("none")
            context.set("name", "wherry")
            context.flag("favordynmods")
            context.create()
            tree = context.mount()  # before 6.18 it holds as long as this is open
    except OSError:
        return  # an older kernel: slower, not wrong
    if s.LINUX >= _FAVOURED_UNTIL_BOOT:
        os.close(tree)
        try:
            with open(_FAVOURED, "w", encoding="ascii") as file:
                file.write(_boot_id())
        except OSError:
            pass  # the next monitor does it again, which does no harm


def _favoured_since_boot() -> bool:
    """Whether some monitor has done it: while the hierarchy is there, all of /proc/PID/cgroup show it."""
    try:
        with open(_FAVOURED, encoding="ascii") as file:
            return s.LINUX >= _FAVOURED_UNTIL_BOOT and file.read() == _boot_id()
    except OSError:
        return False


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read()


def _be_spared() -> int | None:
    """Tells the kernel to kill others first when memory runs out; returns what was said before, if that
    worked.
    """
    fd = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
    try:
        before = int(os.read(fd, 16))
        os.write(fd, str(_OOM_SCORE_ADJ).encode())
    except OSError:  # needs CAP_SYS_RESOURCE
        return None
    finally:
        os.close(fd)
    return before


def _take_descriptors(usual: int) -> list[dict[str, Any]]:
    """Lets the monitor have as many descriptors as it may, some for each process it watches; returns the
    limit for those, whose usual one programs may take for a measure.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return [{"type": "RLIMIT_NOFILE", "soft": usual, "hard": most}]


def main() -> None:
    """The monitor's process: serves until it is told to end."""
    run = sys.argv[1]
    s.prctl(s.PR_SET_DUMPABLE, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    with open(os.path.join(run, "monitor.pid"), "w", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")
    _favour_dynamic_groups()
    monitor = Monitor(run)
    monitor.host.oom_score_adj = _be_spared()
    monitor.host.limits = _take_descriptors(int(sys.argv[2]))
    os.set_inheritable(AGENT_FD, False)
    monitor.adopt(socket(fileno=AGENT_FD))
    gc.collect()
    gc.freeze()  # children share these pages as long as the collector does not write to them
    monitor.loop.run()
