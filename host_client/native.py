"""The engine of this machine: where its socket is, and starting it when a command needs it.

Linux only: containers need a Linux kernel. On other systems the engine is in a virtual machine (`vm`).
"""

from __future__ import annotations

import os
import stat
import sys

from host_client.engine_api.endpoint import Endpoint
from host_client.engine_api.errors import ConnectError
from host_client.engine_api.http import Connection

NAME = "wherry"
SYSTEM_RUN = "/run/wherry"  # the agent's default exec root
LOG_LINES = 6  # how much of the log an error shows


def run_directory() -> str:
    """Where the engine of this user keeps its socket, lock and log."""
    if os.geteuid() == 0:
        return SYSTEM_RUN
    base = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    # Who is logged in without a session's directory (su, cron) has a private one, as `rootless.places` has
    # it.
    return os.path.join(base, NAME) if os.access(base, os.W_OK) else f"/tmp/{NAME}-{os.getuid()}"


def _at(directory: str) -> Endpoint:
    path = os.path.join(directory, f"{NAME}.sock")
    return Endpoint(f"unix://{path}", "unix", path)


def endpoint() -> Endpoint:
    """The engine's address; nothing may listen there. A user without an engine of their own is given the
    system's where they may use it.

    Raises:
        ConnectError: this is not Linux.
    """
    if sys.platform != "linux":
        raise ConnectError(
            "there is no native engine on this system: containers need Linux",
            "use a virtual machine ('wherry machine init'), or name an engine elsewhere with DOCKER_HOST",
        )
    own = _at(run_directory())
    system = _at(SYSTEM_RUN)
    if os.geteuid() != 0 and not os.path.exists(own.address) and os.access(system.address, os.W_OK):
        return system
    return own


def find_or_start() -> Connection:
    """A connection to the engine of this machine, which is started if it does not run.

    Raises:
        ConnectError: there is none and none can be started; says why.
    """
    found = endpoint()
    try:
        return Connection(found)
    except ConnectError as error:
        if not error.absent:
            raise
    directory = run_directory()
    start(directory)
    return Connection(_at(directory))


def agent_command() -> list[str]:
    """The command line of the agent, without its options."""
    packages = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # Isolated from the user's environment and directory, but with the packages that belong to this client.
    code = (
        "import sys; sys.path.append(sys.argv.pop(1)); "
        "from guest_agent.__main__ import main; sys.exit(main())"
    )
    return [sys.executable, "-I", "-c", code, packages, "serve"]


def start(directory: str) -> None:
    """Start the agent with its defaults, for a user who is not root a rootless one, and wait until it
    answers.

    It tells by a byte on a pipe, so that nothing has to be tried again and again; the end of the pipe means
    that it has ended. Two commands that find no engine at the same time take turns, and the second finds the
    first one's.

    Raises:
        ConnectError: it did not come up; with the last lines of its log.
    """
    import fcntl
    import subprocess

    log_path = os.path.join(directory, "agent.log")
    try:
        os.makedirs(directory, mode=0o710 if os.geteuid() == 0 else 0o700, exist_ok=True)
        status = os.lstat(directory)
        if status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode):
            raise ConnectError(
                f"cannot start the engine: {directory} is not this user's",
                "remove it, or set XDG_RUNTIME_DIR to a private directory",
            )
        lock = os.open(os.path.join(directory, "start.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConnectError(f"cannot start the engine: {error.filename}: {error.strerror}")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            Connection(_at(directory)).close()
            return
        except ConnectError as error:
            if not error.absent:
                raise
        if os.path.exists(log_path):
            os.replace(log_path, f"{log_path}.1")
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        told, tell = os.pipe()
        try:
            agent = subprocess.Popen(
                [*agent_command(), "--ready-fd", str(tell)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                pass_fds=[tell],
            )
            os.close(tell)
            if os.read(told, 1):
                agent.returncode = 0  # it goes on without us: no warning that it was not waited for
                return
            agent.wait()
        finally:
            os.close(told)
            os.close(log)
    finally:
        os.close(lock)
    raise ConnectError(
        f"the engine did not start:\n{last_lines(log_path, LOG_LINES)}", f"its whole log is {log_path}"
    )


def last_lines(path: str, count: int) -> str:
    """The end of a text file, indented; a word about it when there is nothing."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().strip().split("\n")[-count:]
    except OSError as error:
        return f"  ({path}: {error.strerror})"
    return "\n".join(f"  {line}" for line in lines)
