"""An ordinary user of the machine, made for the tests, and engines that run in this user's name."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

from guest_agent.kernel import syscalls
from tests.support.cli import REPOSITORY, eventually
from tests.support.engine import OurEngine

# Ones that no image knows: keep-id gives its own name to a user whom the image knows.
_NUMBERS = ("-K", "UID_MIN=20000", "-K", "UID_MAX=29999", "-K", "GID_MIN=20000", "-K", "GID_MAX=29999")
_IN_USE = 8  # userdel(8)
DEVICES = ("/dev/net/tun", "/dev/fuse")  # open to everybody on distributions; perhaps not on a build machine

IDS = 10 << 16  # subordinate ones of a user: an image of the suite has files of 654321


class User:
    """A user with a home, subordinate ids and a Python that this user may run; `close` removes all of it."""

    def __init__(self, subordinate: bool = True) -> None:
        """`subordinate`: whether there are ranges in /etc/subuid and /etc/subgid."""
        self.home = Path(tempfile.mkdtemp(prefix="wherry-home-"))
        self.name = self.home.name.replace("-home", "")
        self._mounts: list[Path] = []
        command = [
            "useradd",
            "--no-create-home",
            "--home-dir",
            str(self.home),
            "--shell",
            "/bin/sh",
            *_NUMBERS,
            self.name,
        ]
        subprocess.run(command, check=True, capture_output=True)
        entry = pwd.getpwnam(self.name)
        self.uid, self.gid = entry.pw_uid, entry.pw_gid
        for kind in ("uid", "gid"):
            path = Path(f"/etc/sub{kind}")
            lines = path.read_text().splitlines(keepends=True) if path.exists() else []
            others = [line for line in lines if not line.startswith(f"{self.name}:")]
            taken = [
                int(line.split(":")[1]) + int(line.split(":")[2]) for line in others if line.count(":") == 2
            ]
            mine = [f"{self.name}:{max([1 << 20, *taken])}:{IDS}\n"] if subordinate else []
            path.write_text("".join([*others, *mine]))
        for device in DEVICES:
            if os.path.exists(device):
                os.chmod(device, 0o666)
        self.runtime = self.home / "run"
        self.runtime.mkdir(mode=0o700)
        for directory in (self.home, self.runtime):
            os.chown(directory, self.uid, self.gid)
        base, packages = Path(sys.base_prefix), Path(sysconfig.get_path("purelib"))
        interpreter = Path(os.path.realpath(sys.executable))
        reachable = self._reachable(base)
        # Where it is not in its place the interpreter does not find its own library.
        self._libraries = {} if reachable == base else {"LD_LIBRARY_PATH": str(reachable / "lib")}
        self.interpreter = reachable / interpreter.relative_to(base)
        self.paths = [self._reachable(REPOSITORY), self._reachable(packages)]
        self.python = self._environment(self.interpreter, *self.paths)

    def _environment(self, interpreter: Path, *paths: Path) -> Path:
        """The interpreter of a virtual environment (pyvenv.cfg) with what is in these directories."""
        top = self.home / "python"
        site = top / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        site.mkdir(parents=True)
        (top / "bin").mkdir()
        (top / "pyvenv.cfg").write_text(f"home = {interpreter.parent}\n")
        (site / "wherry.pth").write_text("".join(f"{path}\n" for path in paths))
        python = top / "bin" / "python"
        python.symlink_to(interpreter)
        return python

    def _reachable(self, directory: Path) -> Path:
        """The directory where the user may go: a bind mount of it when it is in somebody's home."""
        above = [directory, *directory.parents]
        if all(stat.S_IMODE(each.stat().st_mode) & 0o005 == 0o005 for each in above):
            return directory
        point = Path(tempfile.mkdtemp(prefix="wherry-bind-"))
        point.chmod(0o755)
        syscalls.mount(str(directory), str(point), flags=syscalls.MS_BIND | syscalls.MS_REC)
        self._mounts.append(point)
        return point

    def environment(self) -> dict[str, str]:
        """A login's."""
        return {
            "HOME": str(self.home),
            "USER": self.name,
            "LOGNAME": self.name,
            "XDG_RUNTIME_DIR": str(self.runtime),
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            **self._libraries,
        }

    def command(self, *words: str) -> list[str]:
        """argv that runs a program as the user, from root."""
        return ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--init-groups", "--", *words]

    def program(self, module: str) -> list[str]:
        """argv of a module of this checkout, run as the user."""
        return self.command(str(self.python), "-I", "-m", module)

    def run(
        self,
        *words: str | Path,
        input: str | None = None,
        timeout: float = 60,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as the user."""
        return subprocess.run(
            self.command(*map(str, words)),
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self.environment() | (env or {}),
            cwd="/",
        )

    def close(self) -> None:
        def delete() -> bool:
            # Refused while the keeper and pasta of an engine that was closed come to their end.
            done = subprocess.run(["userdel", self.name], capture_output=True, text=True)
            assert done.returncode in (0, _IN_USE), done.stderr
            return done.returncode == 0

        eventually(delete, 10, 0.1, f"processes of {self.name} ended")
        for point in self._mounts:
            syscalls.umount2(str(point), syscalls.MNT_DETACH)
            point.rmdir()
        shutil.rmtree(self.home)


class RootlessEngine(OurEngine):
    """An agent that was started by a user who is not root."""

    def __init__(self, user: User, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.user = user
        super().__init__(*arguments, env=user.environment() | (env or {}), agent=user.program("guest_agent"))
        os.chown(self.root, user.uid, user.gid)


def leftovers(user: User) -> Sequence[str]:
    """Processes of the user's."""
    found = subprocess.run(
        ["ps", "-ww", "-o", "pid,args", "-u", str(user.uid), "--no-headers"], capture_output=True, text=True
    )
    return [line for line in found.stdout.splitlines() if "<defunct>" not in line]
