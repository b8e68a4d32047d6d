"""Shared folders as a guest's processes have them: the real file server, protocol, kernel and events, no machine."""

from __future__ import annotations

import errno
import mmap
import os
import select
import shutil
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from guest_agent.kernel import inotify, syscalls
from tests.support.cli import eventually
from tests.support.share import Share, compile_mount

pytestmark = pytest.mark.root

USER = 1234  # of this computer's: whom the file server runs as
WORDS = {
    0x2: "modify",
    0x4: "attrib",
    0x8: "close_write",
    0x40: "moved_from",
    0x80: "moved_to",
    0x100: "create",
    0x200: "delete",
    0x400: "delete_self",
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_mount(tmp_path_factory.mktemp("program") / "share_mount")


@pytest.fixture
def share(program: Path) -> Iterator[Share]:
    # Not below pytest's folder: another user has to get there.
    scratch = Path(tempfile.mkdtemp(prefix="wherry-share-"))
    scratch.chmod(0o755)
    made = Share(program, scratch, USER)
    yield made
    made.close()
    assert not made.mount.is_mount()
    shutil.rmtree(scratch)


def as_user(uid: int, script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-ec", script],
        user=uid,
        group=uid,
        extra_groups=[],
        cwd=folder,
        capture_output=True,
        text=True,
    )


class Events:
    """What a watcher of some folders hears: words for each event, "name word"."""

    def __init__(self, *paths: Path) -> None:
        self._inotify = inotify.Inotify()
        for path in paths:
            self._inotify.add(str(path), sum(WORDS))

    def heard(self, until: str) -> list[str]:
        """All events up to one, and that one."""
        found: list[str] = []

        def read() -> bool:
            select.select([self._inotify.fd], [], [], 0.1)
            for _, mask, name in self._inotify.read():
                found.extend(f"{name} {word}".strip() for bit, word in WORDS.items() if mask & bit)
            return until in found

        try:
            eventually(read, 10)
        except AssertionError:
            raise AssertionError(f"{until!r} was not heard, but {found[-20:]}")
        return found


@pytest.fixture
def watch() -> Iterator[Callable[..., Events]]:
    made: list[Events] = []

    def begin(*paths: Path) -> Events:
        made.append(Events(*paths))
        return made[-1]

    yield begin
    for events in made:
        events._inotify.close()


def test_files_are_made_changed_and_removed(share: Share) -> None:
    guest, host = share.guest, share.host
    (guest / "a" / "b").mkdir(parents=True)
    (guest / "a" / "file").write_text("one\n")
    with open(guest / "a" / "file", "a") as file:
        file.write("two\n")
    assert (host / "a" / "file").read_text() == "one\ntwo\n"
    os.truncate(guest / "a" / "file", 4)
    os.rename(guest / "a" / "file", guest / "a" / "b" / "moved")
    os.symlink("moved", guest / "a" / "b" / "link")
    os.link(guest / "a" / "b" / "moved", guest / "hard")
    assert (guest / "a" / "b" / "link").read_text() == "one\n"
    os.chmod(guest / "hard", 0o640)
    os.utime(guest / "hard", ns=(10**18, 2 * 10**18))
    st = (host / "a" / "b" / "moved").stat()
    assert (st.st_nlink, st.st_mode & 0o777, st.st_mtime_ns) == (2, 0o640, 2 * 10**18)
    assert (guest / "hard").stat().st_mtime_ns == 2 * 10**18
    assert (host / "a" / "b" / "link").readlink() == Path("moved")
    os.mkfifo(guest / "fifo")
    assert stat.S_ISFIFO((host / "fifo").stat().st_mode)
    with pytest.raises(OSError, match="not empty"):
        (guest / "a").rmdir()
    subprocess.run(["rm", "-r", guest / "a", guest / "hard", guest / "fifo"], check=True)
    assert os.listdir(host) == os.listdir(guest) == []


def test_content_of_any_size(share: Share) -> None:
    data = os.urandom(5_000_003)
    (share.guest / "large").write_bytes(data)
    assert (share.host / "large").read_bytes() == data == (share.guest / "large").read_bytes()
    subprocess.run(["cp", share.guest / "large", share.guest / "copy"], check=True)
    assert (share.host / "copy").read_bytes() == data
    with open(share.guest / "large", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[4_999_999:5_000_003] = b"end."
        mapped.flush()
    assert (share.host / "large").read_bytes()[-5:] == data[-5:-4] + b"end."
    many = [f"file {i}" for i in range(3000)]
    for name in many:
        (share.host / name).touch()
    assert sorted(os.listdir(share.guest)) == sorted([*many, "large", "copy"])


def test_a_file_that_is_open_outlives_its_name(share: Share) -> None:
    with open(share.guest / "temporary", "w+") as file:
        os.unlink(share.guest / "temporary")
        file.write("still there")
        file.flush()
        assert os.fstat(file.fileno()).st_size == 11
        file.seek(0)
        assert file.read() == "still there"
    assert os.listdir(share.host) == []


def test_whoever_writes_owns_and_the_hosts_files_are_the_users(share: Share) -> None:
    made = as_user(
        999,
        "umask 022; mkdir data; echo x > data/f; ln -s f data/l; mv data/f data/g; stat -c %u data/g",
        share.guest,
    )
    assert (made.stdout, made.stderr) == ("999\n", "")
    for path in (share.host / "data", share.host / "data" / "g", share.host / "data" / "l"):
        assert (path.lstat().st_uid, path.lstat().st_gid) == (USER, USER)
    (share.host / "theirs").write_text("by this host's user")
    os.chown(share.host / "theirs", USER, USER)
    (share.host / "theirs").chmod(0o600)
    for uid in (0, 1000, 999):
        result = as_user(uid, "cat theirs; echo more >> theirs; stat -c ' %u' theirs", share.guest)
        assert result.stdout.endswith(f" {uid}\n"), result
    assert (share.host / "theirs").read_text().count("more") == 3
    result = as_user(999, "rm -r data theirs", share.guest)
    assert (result.returncode, os.listdir(share.host)) == (0, [])


def test_an_owner_that_was_given_stays(share: Share) -> None:
    """As the entry points of databases do it: root gives a folder away, and the new owner looks whether it is his."""
    subprocess.run(["install", "-d", "-m", "700", "-o", "70", "-g", "71", share.guest / "data"], check=True)
    made = as_user(70, "echo 14 > data/VERSION; stat -c '%u:%g %a' data", share.guest)
    assert made.stdout == "70:71 700\n"
    os.chown(share.guest / "data" / "VERSION", 70, -1)
    assert (share.guest / "data" / "VERSION").stat().st_uid == 70
    assert (share.host / "data").stat().st_uid == USER
    os.symlink("data", share.guest / "link")
    os.lchown(share.guest / "link", 70, 70)
    assert (share.guest / "link").lstat().st_uid == 70


def test_a_second_user_owns_what_the_first_has_seen(share: Share) -> None:
    (share.host / "sticky").mkdir()
    os.chown(share.host / "sticky", USER, USER)
    (share.host / "sticky").chmod(0o1777)  # as a folder for temporary files
    for name in ("one", "two"):
        (share.host / "sticky" / name).write_text(name)
        os.chown(share.host / "sticky" / name, USER, USER)
    script = "cat one > /dev/null; stat -c %u one two"
    for uid in (0, 1000, 0, 999):
        assert as_user(uid, script, share.guest / "sticky").stdout == f"{uid}\n{uid}\n"
    os.stat(share.guest / "sticky" / "two")
    assert as_user(999, "chmod 700 .; rm one two", share.guest / "sticky").stderr == ""
    assert stat.S_IMODE((share.host / "sticky").stat().st_mode) == 0o1700


def test_space_is_reserved(share: Share) -> None:
    with open(share.guest / "file", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 100_000)
        assert os.fstat(file.fileno()).st_size == 100_000
    assert (share.host / "file").stat().st_blocks * 512 >= 100_000


def test_what_this_hosts_user_may_not_do_nobody_may(share: Share) -> None:
    (share.host / "roots").write_text("secret")
    (share.host / "roots").chmod(0o600)
    with pytest.raises(PermissionError):
        (share.guest / "roots").read_text()
    assert not os.access(share.guest / "roots", os.R_OK)
    for device in (stat.S_IFBLK, stat.S_IFCHR):
        with pytest.raises(PermissionError):
            os.mknod(share.guest / "device", device | 0o666, os.makedev(1, 3))
    (share.guest / "program").write_text("#!/bin/sh\n")
    os.chmod(share.guest / "program", 0o6755)
    assert stat.S_IMODE((share.host / "program").stat().st_mode) == 0o755


def test_the_folder_itself_stays(share: Share) -> None:
    for remove in (os.rmdir, lambda path: os.rename(path, share.mount / "elsewhere")):
        with pytest.raises(PermissionError):
            remove(share.guest)
    with pytest.raises(PermissionError):
        (share.mount / "beside").mkdir()
    subprocess.run(["rm", "-rf", share.guest], stderr=subprocess.DEVNULL, check=False)
    assert share.host.is_dir()
    assert os.listdir(share.mount) == ["share0"]


def test_what_others_write_is_read_at_once(share: Share) -> None:
    file = share.host / "file"
    file.write_text("short")
    assert (share.guest / "file").read_text() == "short"
    for text in ("much longer than before", "brief", "equal", ""):
        file.write_text(text)
        assert (share.guest / "file").read_text() == text
    new = share.host / "new"
    assert not (share.guest / "new").exists()
    new.write_text("replaces the other")
    assert (share.guest / "new").exists()
    new.rename(file)
    assert (share.guest / "file").read_text() == "replaces the other"
    eventually(lambda: not (share.guest / "new").exists(), 5, what="the old name is gone")


def test_a_file_in_the_guests_cache_is_read_again_after_a_change(share: Share) -> None:
    file = share.host / "file"
    for text in ("aaaa", "bbbb", "cccc"):
        file.write_text(text)
        os.utime(file, (10**9, 10**9))  # as archives are unpacked: size and time say nothing
        for _ in range(3):
            assert (share.guest / "file").read_text() == text
    file.chmod(0o666)
    (share.guest / "file").write_text("dddd")
    os.utime(file, (10**9, 10**9))
    for _ in range(3):
        assert (share.guest / "file").read_text() == "dddd" == file.read_text()


def test_a_single_file_that_is_mounted_follows_its_name(share: Share, tmp_path: Path) -> None:
    """As `-v ./settings:/etc/settings` while an editor saves it, which puts a new file in its place."""
    file, mounted = share.host / "settings", tmp_path / "settings"
    file.write_text("first")
    mounted.touch()
    syscalls.mount(str(share.guest / "settings"), str(mounted), flags=syscalls.MS_BIND)
    try:
        assert mounted.read_text() == "first"
        file.write_text("written over, and longer")
        assert mounted.read_text() == "written over, and longer"
        for text in ("in its place", "in its place once more"):
            (share.host / ".swap").write_text(text)
            (share.host / ".swap").replace(file)
            assert mounted.read_text() == text == (share.guest / "settings").read_text()
            assert mounted.stat().st_size == len(text)
    finally:
        syscalls.umount2(str(mounted))


def test_a_folder_in_anothers_place_is_the_new_one(share: Share) -> None:
    for text in ("first", "second", "third"):
        (share.host / "build").mkdir()
        (share.host / "build" / "file").write_text(text)
        file = share.guest / "build" / "file"
        eventually(lambda file=file, text=text: file.exists() and file.read_text() == text, 5)  # type: ignore[misc]
        if text == "first":
            (share.host / "build").rename(share.host / "old")
        else:
            subprocess.run(["rm", "-r", share.host / "build"], check=True)
    assert (share.guest / "old" / "file").read_text() == "first"


def test_a_watcher_hears_what_others_do(share: Share, watch: Callable[..., Events]) -> None:
    (share.host / "src" / "deep").mkdir(parents=True)
    (share.host / "src" / "deep" / "old").write_text("x")
    top, deep = share.host / "src", share.host / "src" / "deep"
    events = watch(share.guest / "src", share.guest / "src" / "deep")
    (deep / "new").write_text("made")
    assert events.heard("new close_write") == ["new create", "new modify", "new close_write"]
    with open(deep / "old", "a") as file:
        file.write("more")
    assert events.heard("old close_write") == ["old modify", "old close_write"]
    (deep / "old").chmod(0o600)
    assert events.heard("old attrib") == ["old attrib"]
    (deep / "old").rename(deep / "renamed")
    assert events.heard("renamed moved_to") == ["old moved_from", "renamed moved_to"]
    (deep / "renamed").rename(top / "higher")
    assert events.heard("higher moved_to") == ["renamed moved_from", "higher moved_to"]
    (top / "higher").unlink()
    assert events.heard("higher delete") == ["higher delete"]
    (top / "folder").mkdir()
    assert events.heard("folder create") == ["folder create"]
    (top / "folder").rmdir()
    assert events.heard("folder delete") == ["folder delete"]
    (top / "link").symlink_to("deep")
    assert events.heard("link create") == ["link create"]
    # As editors save: another file takes the place of the old one.
    (deep / ".new.swap").write_text("edited")
    (deep / ".new.swap").rename(deep / "new")
    assert events.heard("new moved_to")[-2:] == [".new.swap moved_from", "new moved_to"]
    assert (share.guest / "src" / "deep" / "new").read_text() == "edited"


@pytest.fixture
def recursive(program: Path, tmp_path: Path) -> Iterator[Share]:
    made = Share(program, tmp_path, system="darwin")
    yield made
    made.close()


def test_a_watcher_hears_what_is_seen_the_way_of_other_systems(
    recursive: Share, watch: Callable[..., Events]
) -> None:
    """By one watch of the whole folder; here it stands on inotify, on macOS on FSEvents."""
    deep = recursive.host / "src" / "deep"
    deep.mkdir(parents=True)
    (recursive.host / "unknown").mkdir()
    assert recursive.guest.is_dir()  # as the engine looks whether there is something to mount
    top = watch(recursive.guest)
    (recursive.host / "first").touch()
    top.heard("first create")
    events = watch(recursive.guest / "src" / "deep")
    (recursive.host / "unknown" / "file").write_text("nobody knows")
    (deep / "new").write_text("made")
    assert events.heard("new close_write")[:3] == ["new create", "new modify", "new close_write"]
    (deep / "new").rename(deep / "renamed")
    assert events.heard("renamed moved_to")[-2:] == ["new moved_from", "renamed moved_to"]
    (deep / "renamed").rename(recursive.host / "unknown" / "away")
    assert events.heard("renamed delete")[-1] == "renamed delete"
    os.listdir(recursive.guest / "unknown")
    (recursive.host / "unknown" / "away").rename(deep / "back")
    events.heard("back moved_to")
    (recursive.guest / "src" / "deep" / "own").write_text("inside")
    (deep / "back").unlink()
    heard = [event for event in events.heard("back delete") if event.startswith("own")]
    assert heard == ["own create", "own modify", "own close_write"], "once"
    assert (recursive.guest / "src" / "deep" / "own").read_text() == "inside"


def test_a_watcher_of_one_file_hears_it(share: Share, watch: Callable[..., Events]) -> None:
    (share.host / "settings").write_text("a")
    events = watch(share.guest / "settings")
    (share.host / "settings").write_text("b")
    assert "modify" in events.heard("close_write")
    (share.host / "settings").unlink()
    assert events.heard("delete_self") is not None


def test_what_is_only_passed_through_is_not_told(share: Share, watch: Callable[..., Events]) -> None:
    """As where a folder below the one for temporary files is mounted, in which much happens all the time."""
    (share.host / "project").mkdir()
    assert (share.guest / "project").is_dir()
    events = watch(share.guest, share.guest / "project")
    (share.host / "noise").touch()
    (share.host / "project" / "end").touch()
    assert not [event for event in events.heard("end close_write") if event.startswith("noise")]
    assert share.guest.is_dir()  # somebody wants the folder itself
    (share.host / "told").touch()
    assert "told create" in events.heard("told create")


def test_what_is_done_inside_is_heard_once(share: Share, watch: Callable[..., Events]) -> None:
    events = watch(share.guest)
    (share.guest / "own").write_text("x")
    os.rename(share.guest / "own", share.guest / "renamed")
    os.chmod(share.guest / "renamed", 0o600)
    os.unlink(share.guest / "renamed")
    (share.guest / "folder").mkdir()
    time.sleep(0.3)  # for echoes
    (share.host / "end").touch()
    inside = ["own create", "own modify", "own close_write", "own moved_from", "renamed moved_to"]
    inside += ["renamed attrib", "renamed delete", "folder create"]
    heard = events.heard("end create")
    assert [event for event in heard if not event.startswith("end")] == inside


def test_many_changes_at_once(share: Share, watch: Callable[..., Events]) -> None:
    """As when this host's user changes to another branch."""
    for i in range(300):
        (share.host / f"old{i}").touch()
    os.listdir(share.guest)
    events = watch(share.guest)
    for i in range(300):
        (share.host / f"old{i}").unlink()
        (share.host / f"new{i}").write_text("x")
    (share.host / "last").mkdir()
    heard = set(events.heard("last create"))
    assert {f"old{i} delete" for i in range(300)} <= heard
    assert {f"new{i} create" for i in range(300)} <= heard
    assert sorted(os.listdir(share.guest)) == sorted(os.listdir(share.host))


def test_nothing_is_lost_while_both_sides_write(share: Share, watch: Callable[..., Events]) -> None:
    """Replayed changes never change a file: what both sides made is there, and equal, at the end."""
    events = watch(share.guest)

    def outside() -> None:
        for i in range(200):
            (share.host / f"h{i}").write_text(str(i))
            if i % 3 == 0:
                (share.host / f"h{i}").unlink()

    thread = threading.Thread(target=outside)
    thread.start()
    for i in range(200):
        (share.guest / f"g{i}").write_text(str(i))
        os.rename(share.guest / f"g{i}", share.guest / f"r{i}")
    thread.join()
    (share.host / "last").touch()
    events.heard("last create")
    wanted = {f"h{i}": str(i) for i in range(200) if i % 3} | {f"r{i}": str(i) for i in range(200)}
    found = {path.name: path.read_text() for path in share.host.iterdir() if path.name != "last"}
    assert found == wanted


def test_the_server_is_killed(program: Path, tmp_path: Path) -> None:
    share = Share(program, tmp_path)
    (share.host / "file").touch()
    os.kill(share.server, 9)

    def fails() -> bool:
        try:
            os.listdir(share.guest)
        except OSError as error:
            return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        return False

    eventually(fails, 20, what="an error instead of waiting for ever")
    with pytest.raises(AssertionError):
        share.close()
