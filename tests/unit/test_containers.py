"""The registry of containers, what it keeps, and the small state machines of a container."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from guest_agent.engine.container import Container, Record
from guest_agent.engine.container_config import ContainerConfig, HostConfig, RestartPolicy
from guest_agent.engine.containers import Containers
from guest_agent.engine.ids import new_id
from guest_agent.engine.links import link_environment, parse_link
from guest_agent.engine.restart import Backoff, starts_with_agent
from guest_agent.engine.signals import parse_signal
from guest_agent.engine.state import Health, State, human_duration, rfc3339
from guest_agent.engine.store import Store
from guest_agent.engine.wait import NEXT_EXIT, REMOVED, Outcome, Waiters
from guest_agent.errors import Conflict, InternalError, InvalidParameter, NotFound

SECOND = 1_000_000_000


def container(containers: Containers, name: str = "", id: str = "") -> Container:
    id = id or new_id()
    return Container(
        Record(id, containers.reserve_name(name, id), 1, "sha256:0", ContainerConfig(), HostConfig())
    )


def open_registry(tmp_path: Path) -> tuple[Containers, Store]:
    store = Store(str(tmp_path / "engine.db"))
    return Containers(store), store


def test_names_ids_and_prefixes_find_a_container(tmp_path: Path) -> None:
    async def check() -> None:
        containers, store = open_registry(tmp_path)
        one = container(containers, "one", "a1" * 32)
        two = container(containers, "two", "a2" * 32)
        await containers.add(one)
        await containers.add(two)
        for name in ("one", "/one", "a1" * 32, "a1"):
            assert containers.get(name) is one
        with pytest.raises(InvalidParameter, match="multiple IDs found with provided prefix: a"):
            containers.get("a")
        with pytest.raises(NotFound, match="No such container: b"):
            containers.get("b")
        with pytest.raises(InvalidParameter):
            containers.get("")
        store.close()

    asyncio.run(check())


def test_a_name_that_is_an_id_prefix_of_another_is_the_name(tmp_path: Path) -> None:
    async def check() -> None:
        containers, store = open_registry(tmp_path)
        other = container(containers, "other", "ab" * 32)
        named = container(containers, "abab", "cd" * 32)
        await containers.add(other)
        await containers.add(named)
        assert containers.get("abab") is named
        store.close()

    asyncio.run(check())


def test_a_taken_name_is_a_conflict_in_dockerds_words(tmp_path: Path) -> None:
    containers, store = open_registry(tmp_path)
    containers.reserve_name("one", "ab" * 32)
    with pytest.raises(Conflict) as caught:
        containers.reserve_name("/one", "cd" * 32)
    assert caught.value.message == (
        f'Conflict. The container name "/one" is already in use by container "{"ab" * 32}". '
        "You have to remove (or rename) that container to be able to reuse that name."
    )
    containers.release_name("one")
    assert containers.reserve_name("one", "cd" * 32) == "one"
    store.close()


@pytest.mark.parametrize("name", ["a", "_a", "a b", "a/b", "ä1", "-x"])
def test_bad_names(tmp_path: Path, name: str) -> None:
    containers, store = open_registry(tmp_path)
    with pytest.raises(InvalidParameter) as caught:
        containers.reserve_name(name, new_id())
    assert caught.value.message == (
        f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
    )
    store.close()


def test_names_are_made_up_for_the_nameless(tmp_path: Path) -> None:
    containers, store = open_registry(tmp_path)
    names = {containers.reserve_name("", new_id()) for _ in range(100)}
    assert len(names) == 100
    assert all("_" in name for name in names)
    store.close()


def test_what_was_added_is_there_for_the_next_agent_and_what_was_discarded_is_not(tmp_path: Path) -> None:
    async def check() -> None:
        containers, store = open_registry(tmp_path)
        kept, gone = container(containers, "kept"), container(containers, "gone")
        await containers.add(kept)
        await containers.add(gone)
        kept.state.set_running(7, 5)
        containers.post(kept)
        containers.discard(gone)
        await store.flush()
        store.close()

        again, store = open_registry(tmp_path)
        again.load()
        assert [each.name for each in again] == ["kept"]
        assert again.get("kept").state == kept.state
        with pytest.raises(Conflict):
            again.reserve_name("kept", new_id())
        assert again.reserve_name("gone", new_id()) == "gone"
        store.close()

    asyncio.run(check())


def test_a_damaged_row_costs_nobody_else(tmp_path: Path) -> None:
    async def check() -> None:
        containers, store = open_registry(tmp_path)
        await containers.add(container(containers, "whole"))
        await store.save("containers", "ff" * 32, b'{"id": 7}', durable=True)
        store.close()
        again, store = open_registry(tmp_path)
        again.load()
        assert [each.name for each in again] == ["whole"]
        assert again.unreadable == {"ff" * 32}
        store.close()

    asyncio.run(check())


def test_a_saved_document_is_in_the_file_at_once(tmp_path: Path) -> None:
    async def check() -> None:
        store = Store(str(tmp_path / "engine.db"))
        await store.save("containers", "k", b"1", durable=True)
        other = sqlite3.connect(tmp_path / "engine.db")  # as another process would see it
        assert other.execute("SELECT document FROM containers").fetchall() == [(b"1",)]
        store.post("containers", "k", b"2")
        await store.save("containers", "l", b"3", durable=False)
        assert other.execute("SELECT document FROM containers ORDER BY key").fetchall() == [(b"2",), (b"3",)]
        other.close()
        store.close()

    asyncio.run(check())


def test_a_database_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "engine.db"
    Store(str(path)).close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version=99")
    database.close()
    with pytest.raises(sqlite3.DatabaseError, match="newer"):
        Store(str(path))


def test_a_full_disk_is_an_error_and_what_was_to_be_saved_is_saved_later(tmp_path: Path) -> None:
    async def check() -> None:
        store = Store(str(tmp_path / "engine.db"))
        limit = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count={limit}")
        with pytest.raises(InternalError, match="full"):
            await store.save("containers", "big", b"x" * 100_000, durable=True)
        store._db.execute("PRAGMA max_page_count=1000000")
        await store.save("containers", "small", b"y", durable=True)
        assert [key for key, _ in store.load("containers")] == ["big", "small"]
        store.close()

    asyncio.run(check())


def test_restart_waits_double_to_a_minute_and_start_over_after_a_long_run() -> None:
    backoff, always = Backoff(), RestartPolicy("always")
    waits = [backoff.after(always, 1, False, 0.1) for _ in range(12)]
    assert waits[:4] == [0.1, 0.2, 0.4, 0.8]
    assert waits[-1] == 60.0
    assert backoff.after(always, 1, False, 10.0) == 0.1


@pytest.mark.parametrize(
    ("policy", "code", "stopped", "restarts"),
    [
        ("no", 1, False, False),
        ("", 1, False, False),
        ("always", 0, False, True),
        ("unless-stopped", 0, False, True),
        ("unless-stopped", 0, True, False),
        ("on-failure", 1, False, True),
        ("on-failure", 0, False, False),
    ],
)
def test_policies(policy: str, code: int, stopped: bool, restarts: bool) -> None:
    assert (Backoff().after(RestartPolicy(policy), code, stopped, 0) is not None) is restarts


def test_on_failure_gives_up_after_its_count() -> None:
    backoff, policy = Backoff(), RestartPolicy("on-failure", 2)
    assert [backoff.after(policy, 1, False, 0) is not None for _ in range(3)] == [True, True, False]


def test_no_policy_restarts_what_a_user_ended() -> None:
    backoff = Backoff()
    backoff.cancelled = True
    assert backoff.after(RestartPolicy("always"), 1, True, 0) is None
    backoff.reset()
    assert backoff.after(RestartPolicy("always"), 1, False, 0) is not None


def test_what_starts_with_the_agent() -> None:
    assert starts_with_agent(RestartPolicy("always"), manually_stopped=True)
    assert starts_with_agent(RestartPolicy("unless-stopped"), manually_stopped=False)
    assert not starts_with_agent(RestartPolicy("unless-stopped"), manually_stopped=True)
    assert not starts_with_agent(RestartPolicy("on-failure"), manually_stopped=False)


def test_status_and_its_words() -> None:
    state = State()
    now = 1_000 * SECOND
    assert (state.status, state.describe(now)) == ("created", "Created")
    state.set_running(7, now - 125 * SECOND)
    assert (state.status, state.describe(now)) == ("running", "Up 2 minutes")
    state.health = Health()
    assert state.describe(now) == "Up 2 minutes (health: starting)"
    state.paused = True
    assert (state.status, state.describe(now)) == ("paused", "Up 2 minutes (Paused)")
    state.set_stopped(3, now - 2 * SECOND, restarting=True)
    assert (state.status, state.describe(now)) == ("restarting", "Restarting (3) 2 seconds ago")
    state.set_stopped(3, now - 5 * SECOND)
    assert (state.status, state.describe(now)) == ("exited", "Exited (3) 5 seconds ago")
    assert state.describe(now, removing=True) == "Removal In Progress"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (179, "2 minutes"),
        (3600, "About an hour"),
        (3 * 3600, "3 hours"),
        (2 * 86400, "2 days"),
        (14 * 86400, "2 weeks"),
        (60 * 86400, "2 months"),
        (800 * 86400, "2 years"),
    ],
)
def test_durations(seconds: int, text: str) -> None:
    assert human_duration(seconds * SECOND) == text


def test_times() -> None:
    assert rfc3339(0) == "0001-01-01T00:00:00Z"
    assert rfc3339(1_700_000_000 * SECOND) == "2023-11-14T22:13:20Z"
    assert rfc3339(1_700_000_000 * SECOND + 120_000_000) == "2023-11-14T22:13:20.12Z"
    assert rfc3339(1_700_000_000 * SECOND + 1) == "2023-11-14T22:13:20.000000001Z"


def test_waiters() -> None:
    async def check() -> None:
        waiters = Waiters()
        exit, removal = waiters.add(NEXT_EXIT), waiters.add(REMOVED)
        waiters.stopped(Outcome(3))
        assert exit.result() == Outcome(3)
        assert not removal.done()
        never_run = waiters.add(NEXT_EXIT)
        waiters.removed(Outcome(3))
        assert removal.result() == never_run.result() == Outcome(3)

    asyncio.run(check())


@pytest.mark.parametrize(
    ("text", "number"),
    [("KILL", 9), ("sigterm", 15), ("SIGHUP", 1), ("9", 9), ("RTMIN+3", 37), ("SIGRTMAX-1", 63)],
)
def test_signals(text: str, number: int) -> None:
    assert parse_signal(text) == number


@pytest.mark.parametrize("text", ["", "0", "-1", "65", "NOSUCH", "SIG"])
def test_signals_that_are_none(text: str) -> None:
    with pytest.raises(InvalidParameter, match=f"invalid signal: {text}"):
        parse_signal(text)


def test_links() -> None:
    assert parse_link("db") == ("db", "db")
    assert parse_link("db:alias") == ("db", "alias")
    assert parse_link("/db:/web/alias") == ("/db", "alias")
    for text in ("", "a:b:c"):
        with pytest.raises(InvalidParameter):
            parse_link(text)


def test_variables_of_links() -> None:
    ports = ["81/tcp", "53/udp", "80/tcp"]
    values = link_environment("/web/my-db", "10.0.0.2", ports, ["PATH=/bin", "A=b", "bare"])
    assert values[0] == "MY_DB_PORT=tcp://10.0.0.2:80"
    assert "MY_DB_PORT_53_UDP=udp://10.0.0.2:53" in values
    assert "MY_DB_PORT_80_TCP_END=tcp://10.0.0.2:81" in values
    assert "MY_DB_PORT_80_TCP_PORT_START=80" in values
    assert values[-2:] == ["MY_DB_NAME=/web/my-db", "MY_DB_ENV_A=b"]
