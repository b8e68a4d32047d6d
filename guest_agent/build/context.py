"""Where the files of a build come from: a tar archive that the client sends, a URL, a git repository.

Each becomes a directory of the engine's own, removed when the build is over. Their content is hostile: it is
extracted as any archive is, and only ever looked at through the kernel's resolution inside it.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from guest_agent.build.dockerfile.ignore import Patterns, read
from guest_agent.errors import EngineError, InvalidParameter, NotFound, Unavailable
from guest_agent.images.content import DiskFull
from guest_agent.images.decompress import Decompressed, Read, kind_of
from guest_agent.images.extract import Extractor
from guest_agent.images.tar import TarReader
from guest_agent.kernel.paths import O_PATH, RootFd
from guest_agent.kernel.syscalls import FsContext
from guest_agent.kernel.trees import remove_tree

_MAX_DOCKERFILE = 8 << 20
BUFFER = 48 << 20  # bytes of an archive up to which it is taken into memory
MEMORY = 256 << 20  # bytes that its files may come to there
_PIECE = 1 << 18
_GIT_URL = re.compile(r"(?:git://|git@|github\.com/|ssh://.*\.git(?:#|$))|(?:https?://[^?#]*\.git(?:#|$))")
_TIMEOUT = 30.0  # seconds without an answer
_GIT_HINT = "Check the address, the branch and that the host can reach it."


class Scratch:
    """The files of one build: in memory as far as they are few, else in a directory below `top`.

    Removing thousands of files from a disk takes longer than building from them, so `retire` takes that
    directory over and removes it at leisure.
    """

    def __init__(self, top: str, retire: Callable[[str], None]) -> None:
        self._top = top
        self._retire = retire
        self._path = ""
        self._memory = -1

    def directory(self) -> str:
        """A new directory on the disk."""
        if not self._path:
            os.makedirs(self._top, mode=0o700, exist_ok=True)
            path = os.path.join(self._top, uuid.uuid4().hex)
            os.mkdir(path, 0o700)
            self._path = path
        path = os.path.join(self._path, uuid.uuid4().hex)
        os.mkdir(path, 0o755)
        return path

    def memory(self) -> str:
        """A directory in memory: a tmpfs of this build, mounted nowhere, that holds `MEMORY` bytes."""
        self.forget_memory()
        with FsContext("tmpfs") as filesystem:
            filesystem.set("size", str(MEMORY))
            filesystem.set("mode", "0755")
            filesystem.create()
            self._memory = filesystem.mount()
        return f"/proc/self/fd/{self._memory}"

    def on_disk(self, path: str) -> bool:
        """Whether a directory can be bind-mounted: one in memory cannot before Linux 6.15."""
        return not path.startswith("/proc/self/fd/")

    def forget_memory(self) -> None:
        """Drops what is in memory."""
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1

    def remove(self) -> None:
        """Gives all of it back."""
        self.forget_memory()
        if self._path:
            self._retire(self._path)
            self._path = ""


@dataclass(frozen=True, slots=True)
class LocalContext:
    """A context that is here already."""

    path: str

    async def directory(self, name: str = "") -> str:
        """The directory; NotFound for another than the main one."""
        if name:
            raise NotFound(f"no build context named {name}")
        return self.path


def receive(read: Read, scratch: Scratch) -> str:
    """Extracts a context's archive where it fits; the directory. Blocks. Raises TarError, DiskFull."""
    pieces: list[bytes] = []
    size = 0
    while size <= BUFFER and (piece := read(_PIECE)):
        pieces.append(piece)
        size += len(piece)
    if size <= BUFFER:
        path = scratch.memory()
        try:
            extract(_joined(pieces, _nothing), path)
            return path
        except DiskFull:
            scratch.forget_memory()  # it was well compressed
            read = _nothing
    path = scratch.directory()
    extract(_joined(pieces, read), path)
    return path


def _nothing(size: int) -> bytes:
    return b""


def _joined(pieces: list[bytes], rest: Read) -> Read:
    iterator = iter(pieces)
    return lambda size: next(iterator, None) or rest(size)


def extract(read: Read, target: str) -> None:
    """Extracts a context's archive (plain, gzip, bzip2, xz or zstd). Blocks. Raises TarError, DiskFull.

    Everything in it belongs to root, as dockerd has it.
    """
    with RootFd.at(target) as root, Extractor(root, fresh=True, owner=(0, 0)) as extractor:
        reader = TarReader(Decompressed(read).read)
        extractor.extract(reader)
        reader.drain()


def read_dockerfile(directory: str, name: str) -> str:
    """The Dockerfile of a context. Raises InvalidParameter in dockerd's words."""
    with RootFd.at(directory) as root:
        try:
            data = root.read(name, _MAX_DOCKERFILE)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise InvalidParameter(f"Cannot locate specified Dockerfile: {name}")
            raise InvalidParameter(
                f"failed to read the Dockerfile ({name}): {(error.strerror or str(error)).lower()}"
            )
    if not data.strip():
        raise InvalidParameter(f"the Dockerfile ({name}) cannot be empty")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidParameter(f"the Dockerfile ({name}) is not UTF-8: {error.reason}")


def read_ignore(directory: str, dockerfile: str) -> str:
    """The `.dockerignore` that holds for a Dockerfile of this name, "" when there is none."""
    with RootFd.at(directory) as root:
        for name in (f"{dockerfile}.dockerignore", ".dockerignore"):
            try:
                return root.read(name, _MAX_DOCKERFILE).decode("utf-8-sig", "replace")
            except OSError:
                continue
    return ""


def leave_out(directory: str, dockerfile: str, remote: bool) -> None:
    """Removes what `.dockerignore` leaves out. Blocks.

    Of what a client has sent that can only be the Dockerfile and `.dockerignore`, which it sends in any case.
    """
    patterns = Patterns(read(read_ignore(directory, dockerfile)))
    if not patterns:
        return
    with RootFd.at(directory) as root:
        if not remote:
            for name in {dockerfile, ".dockerignore", f"{dockerfile}.dockerignore"}:
                if patterns.ignores(os.path.normpath(name)):
                    _remove(root, name)
            return
        waiting = [""]
        while waiting:
            below = waiting.pop()
            for name in root.listdir(below or "."):
                path = f"{below}/{name}" if below else name
                is_dir = stat.S_ISDIR(root.stat(path, follow=False).st_mode)
                if not patterns.ignores(path):
                    if is_dir:
                        waiting.append(path)
                elif is_dir and patterns.may_keep_below(path):
                    waiting.append(path)
                else:
                    _remove(root, path)


def _remove(root: RootFd, path: str) -> None:
    head, _, name = os.path.normpath(path).rpartition("/")
    try:
        parent = root.open(head or ".", os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return
    try:
        if stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
            remove_tree(name, parent)
        else:
            os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    finally:
        os.close(parent)


def is_git(address: str) -> bool:
    """Whether a remote context is a git repository."""
    return _GIT_URL.match(address) is not None


def download(address: str, write: Callable[[bytes], object], told: Callable[[int, int], None]) -> str:
    """Fetches http or https. `told(done, total)`, total 0 when it is not known. Blocks.

    Returns when it was last modified, as the server says. Raises Unavailable, InvalidParameter.
    """
    import requests

    try:
        with requests.get(address, stream=True, timeout=_TIMEOUT) as response:
            if response.status_code >= 400:
                raise InvalidParameter(
                    f"failed to GET {address} with status {response.status_code} {response.reason}",
                    "Check the address.",
                )
            total, done = int(response.headers.get("content-length") or 0), 0
            for piece in response.iter_content(1 << 18):
                write(piece)
                done += len(piece)
                told(done, total)
            return response.headers.get("last-modified") or ""
    except requests.RequestException as error:
        raise Unavailable(f"failed to GET {address}: {error}", "Check the address and this host's network.")


def fetch_url(address: str, target: str) -> str:
    """A remote context at a URL: an archive, or a Dockerfile alone, then "Dockerfile" is returned, else "".

    Blocks.
    """
    path = os.path.join(target, ".download")
    with open(path, "xb") as file:
        download(address, file.write, lambda done, total: None)
    try:
        with open(path, "rb") as file:
            head = file.read(512)
            file.seek(0)
            if kind_of(head[:16]) or head[257:262] == b"ustar":
                extract(file.read, target)
                return ""
        os.replace(path, os.path.join(target, "Dockerfile"))
        return "Dockerfile"
    finally:
        if os.path.lexists(path):
            os.unlink(path)


def fetch_git(address: str, target: str, keep_history: bool = False) -> str:
    """Clones a git repository (`URL#REF:DIR`) and returns the directory that is the context. Blocks.

    Needs git on this host. Raises Unavailable with what git said, InvalidParameter.
    """
    if shutil.which("git") is None:
        raise Unavailable(
            "cannot fetch a git repository: git is not installed",
            "Install it where the engine runs; where that is a machine, clone it here and build the clone.",
        )
    url, _, fragment = address.partition("#")
    reference, _, below = fragment.partition(":")
    if url.startswith("github.com/"):
        url = f"https://{url}"
    if reference.startswith("-"):
        raise InvalidParameter(f"invalid refspec: {reference}")
    if url.startswith("-"):
        raise InvalidParameter(f"invalid git repository: {url}")
    checkout = os.path.join(target, uuid.uuid4().hex)
    os.mkdir(checkout, 0o755)
    _git(checkout, "init", "--quiet")
    _git(checkout, "remote", "add", "--", "origin", url)
    wanted = reference or "HEAD"
    try:
        _git(checkout, "fetch", "--quiet", "--depth", "1", "--", "origin", wanted)
        _git(checkout, "checkout", "--quiet", "FETCH_HEAD")
    except EngineError:
        # Servers give a commit by its id only with its history.
        _git(checkout, "fetch", "--quiet", "--tags", "origin")
        _git(checkout, "checkout", "--quiet", wanted if reference else "FETCH_HEAD")
    _git(checkout, "submodule", "--quiet", "update", "--init", "--recursive", "--depth", "1")
    with RootFd.at(checkout) as root:
        if not keep_history:
            remove_tree(".git", root.fd)
        try:
            fd = root.open(below or ".", O_PATH | os.O_DIRECTORY)
        except OSError as error:
            raise InvalidParameter(
                f"error setting git checkout dir: {below}: {(error.strerror or '').lower()}", _GIT_HINT
            )
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)


def _git(directory: str, *arguments: str) -> None:
    """Runs git without the host's settings, hooks, prompts, and local or external transports."""
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": directory,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "http:https:ssh:git",
        "GIT_LFS_SKIP_SMUDGE": "1",
    }
    command = ["git", "-c", "core.hooksPath=/dev/null", *arguments]
    done = subprocess.run(
        command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise Unavailable(f"failed to load git repository: git {arguments[0]}: {said}", _GIT_HINT)
