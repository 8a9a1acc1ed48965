"""History, submitted jobs, saved state: what was acknowledged is there after a restart."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.errors import NotFound, SettingsError, Unavailable
from gateway.settings.schema import Store as StoreSettings
from gateway.store.newest_rows import PAGE_ROWS
from gateway.store.retention import SLICE_ROWS
from gateway.store.rows import JobRow
from gateway.store.store import TOMBSTONE_S, Store, read_history
from tests.unit.store.rows import WAIT_S, Callback, history, job, load_history

TTL_S = 100.0


def opened(path: Path, **settings: float) -> Store:
    store = Store(path / "a.db", StoreSettings(job_ttl_s=TTL_S, **settings))  # type: ignore[arg-type]
    store.start()
    return store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = opened(tmp_path)
    yield store
    assert store.stop(WAIT_S)


def get(store: Store, id: str) -> JobRow | None:
    callback = Callback()
    assert store.get_job(id, callback)
    row = callback.next()
    assert row is None or isinstance(row, JobRow)
    return row


def test_history_comes_back_newest_and_in_order(store: Store) -> None:
    """The newest `limit` rows come oldest first, of one encoder or of all."""
    for i in range(10):
        assert store.append_history(history(i, encoder="old" if i < 4 else "new"))
    assert load_history(store, 3) == [history(i, "new") for i in (7, 8, 9)]
    assert [row.prompt_tokens for row in load_history(store, 3, "old")] == [1, 2, 3]
    assert [row.prompt_tokens for row in load_history(store, 100, None)] == list(range(10))
    assert load_history(store, 5, "never") == []


def test_history_is_read_in_pages_and_others_commit_between(store: Store) -> None:
    """A commit does not wait until the whole history is read."""
    for i in range(3 * PAGE_ROWS + 1):
        assert store.append_history(history(i))
    pages = store.history_pages(10_000)
    taken, callback = next(pages), Callback()
    assert store.append_history(history(9999), callback)
    assert callback.next() is None
    taken_sizes = [len(taken)]
    for page in pages:
        taken_sizes.append(len(page))
        taken = taken + page
    assert taken_sizes == [PAGE_ROWS] * 3 + [1]
    assert [row.prompt_tokens for row in taken] == list(range(3 * PAGE_ROWS + 1))


def test_history_pages_pass_over_what_was_removed_meanwhile(store: Store) -> None:
    """A page whose rows are gone is empty, and the other pages still come."""
    for i in range(4 * PAGE_ROWS):
        assert store.append_history(history(i))
    pages = store.history_pages(10_000)
    first, cleared = next(pages), Callback()
    assert store.clear_history(cleared)
    assert cleared.next() is None
    assert len(first) == PAGE_ROWS
    assert [len(page) for page in pages] == [PAGE_ROWS, 0, 0]


def test_history_survives_a_restart(tmp_path: Path) -> None:
    """Rows are loaded and counted by the next process."""
    first = opened(tmp_path)
    for i in range(20):
        assert first.append_history(history(i))
    assert first.stop(WAIT_S)
    second = opened(tmp_path)
    assert second.snapshot().rows == 20
    assert [row.prompt_tokens for row in load_history(second, 100)] == list(range(20))
    assert second.stop(WAIT_S)


def test_history_keeps_the_newest_rows_alone(tmp_path: Path) -> None:
    """Above `history_rows` the oldest rows are removed in slices until the bound holds."""
    store = opened(tmp_path)
    for i in range(3 * SLICE_ROWS):
        assert store.append_history(history(i))
    assert store.stop(WAIT_S)
    bounded = opened(tmp_path, history_rows=100)
    while bounded.snapshot().rows > 100:
        load_history(bounded, 1)  # each answer is a commit, and each commit trims a slice
    kept = [row.prompt_tokens for row in load_history(bounded, 10_000)]
    assert kept == list(range(3 * SLICE_ROWS - 100, 3 * SLICE_ROWS))
    assert bounded.stop(WAIT_S)


def test_history_bound_can_be_changed_while_running(store: Store) -> None:
    """A new bound from `apply` holds with the next commit."""
    for i in range(50):
        assert store.append_history(history(i))
    store.apply(StoreSettings(history_rows=10))
    load_history(store, 1)
    assert [row.prompt_tokens for row in load_history(store, 100)] == list(range(40, 50))


def test_history_of_the_small_tenant_outlasts_a_flood(tmp_path: Path) -> None:
    """A flood removes only its own tenant's rows, on the disk and in what is loaded."""
    store = opened(tmp_path, history_rows=40)
    for i in range(10):
        assert store.append_history(history(i))
    for i in range(200):
        assert store.append_history(replace(history(1000 + i), tenant="loud"))
    load_history(store, 1)
    while store.snapshot().rows > 40:
        load_history(store, 1)
    kept = [row.prompt_tokens for row in load_history(store, 100)]
    assert kept == [*range(10), *range(1170, 1200)]
    few = [row.prompt_tokens for row in load_history(store, 8)]
    assert few == [6, 7, 8, 9, 1196, 1197, 1198, 1199]
    assert store.stop(WAIT_S)


def test_history_older_than_its_age_goes(tmp_path: Path) -> None:
    """`history_max_age_s` removes rows whatever their number; 0 keeps any age."""
    store = opened(tmp_path)
    for i in range(5):
        assert store.append_history(history(i))  # of the year 2023
    assert store.append_history(replace(history(9), wall_s=4e9))
    assert len(load_history(store, 100)) == 6
    store.apply(StoreSettings(history_max_age_s=3600.0))
    load_history(store, 1)
    assert [row.prompt_tokens for row in load_history(store, 100)] == [9]
    assert store.snapshot().rows == 1
    assert store.stop(WAIT_S)


def test_history_is_read_beside_the_writer(store: Store, tmp_path: Path) -> None:
    """Another connection sees committed rows, and raises where there is no store."""
    for i in range(3):
        assert store.append_history(history(i))
    assert load_history(store, 10) == read_history(tmp_path / "a.db", 10)
    assert len(read_history(tmp_path / "a.db", 2)) == 2
    with pytest.raises(SettingsError, match="cannot be read"):
        read_history(tmp_path / "none.db", 10)
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE x (y)")
    with pytest.raises(SettingsError, match="no store"):
        read_history(tmp_path / "other.db", 10)


def test_history_cleared_is_gone(store: Store) -> None:
    """`clear_history` removes all rows; later ones are kept."""
    callback = Callback()
    assert store.append_history(history(1))
    assert store.clear_history(callback)
    assert callback.next() is None
    assert store.append_history(history(2))
    assert load_history(store, 10) == [history(2)]
    assert store.snapshot().rows == 1


def test_history_without_room_is_lost_and_counted_but_jobs_are_taken(tmp_path: Path) -> None:
    """A full queue refuses history; submitted jobs have places of their own."""
    store = opened(tmp_path, queue_items=5)
    held, done = Callback(), Callback()
    blocked = Callback()

    def hold(_: object) -> None:
        blocked(True)
        held.next()

    assert store.get_job("none", hold)  # the thread now waits inside this listener
    assert blocked.next()
    taken = [store.append_history(history(i)) for i in range(8)]
    assert taken == [True] * 5 + [False] * 3
    assert store.put_job(job("a"), done)
    assert store.snapshot().lost == 3
    held(None)
    assert done.next() is None
    assert len(load_history(store, 100)) == 5
    assert store.stop(WAIT_S)


def test_job_goes_its_way_and_keeps_what_is_not_given(store: Store) -> None:
    """An update changes the members it names and keeps the others."""
    callback = Callback()
    assert store.put_job(job("a", forecast=b"f"), callback)
    assert store.update_job("a", "running", done=callback, started_wall_s=101.0)
    assert store.update_job("a", "done", b"answer", None, 105.0, callback)
    assert [callback.next() for _ in range(3)] == [None, None, None]
    assert get(store, "a") == job(
        "a", "done", started_wall_s=101.0, ended_wall_s=105.0, result=b"answer", forecast=b"f"
    )


def test_job_ends_once(store: Store) -> None:
    """An ended job is not changed again and an unknown one is not made: `done` gets NotFound."""
    callback = Callback()
    assert store.put_job(job("a"), callback)
    assert store.update_job("a", "failed", None, b"no", 5.0, callback)
    assert store.update_job("a", "done", b"late", None, 6.0, callback)
    assert store.update_job("b", "done", b"who", None, 6.0, callback)
    errors = [callback.next() for _ in range(4)]
    assert errors[:2] == [None, None]
    assert [type(error) for error in errors[2:]] == [NotFound, NotFound]
    row = get(store, "a")
    assert row is not None
    assert (row.status, row.error, row.result) == ("failed", b"no", None)
    assert get(store, "b") is None


def test_job_id_taken_is_refused(store: Store) -> None:
    """A second job under one id is refused and does not replace the first."""
    callback = Callback()
    assert store.put_job(job("a"), callback)
    assert store.put_job(replace(job("a"), tenant="other"), callback)
    assert callback.next() is None
    assert isinstance(callback.next(), sqlite3.IntegrityError)
    row = get(store, "a")
    assert row is not None
    assert row.tenant == "demo"


def test_jobs_unfinished_are_found_after_a_restart(tmp_path: Path) -> None:
    """Queued and running jobs come back, oldest first; ended ones do not."""
    first = opened(tmp_path)
    for id, status, created in (
        ("late", "queued", 30.0),
        ("early", "running", 10.0),
        ("over", "done", 5.0),
    ):
        assert first.put_job(replace(job(id, status), created_wall_s=created))
    assert first.stop(WAIT_S)
    second = opened(tmp_path)
    assert [row.id for row in second.load_unfinished()] == ["early", "late"]
    assert second.stop(WAIT_S)


def test_job_expired_leaves_a_tombstone_and_then_nothing(store: Store) -> None:
    """After its TTL a job is `gone` and empty; after TOMBSTONE_S it is unknown."""
    assert store.put_job(job("a", "done", ended_wall_s=1000.0, result=b"r", forecast=b"f"))
    assert store.put_job(job("b", "done", ended_wall_s=1001.0, result=b"r"))
    assert store.put_job(job("c", "running"))
    assert store.expire_jobs(1000.5 + TTL_S)
    gone, kept = get(store, "a"), get(store, "b")
    assert gone == JobRow("a", "demo", "gone", 100.0, b"", ended_wall_s=1000.0)
    assert kept is not None
    assert kept.status == "done"
    assert store.expire_jobs(1000.5 + TTL_S + TOMBSTONE_S)
    assert get(store, "a") is None
    still = get(store, "c")
    assert still is not None
    assert still.status == "running"


def test_jobs_expired_are_more_than_a_slice(store: Store) -> None:
    """Expiring goes on slice by slice until no job is left."""
    last = 2 * SLICE_ROWS + 10
    for i in range(last + 1):
        assert store.put_job(job(str(i), "done", ended_wall_s=float(i)))
    assert store.expire_jobs(last + TTL_S + 1)
    for _ in range(10):
        row = get(store, str(last))
        assert row is not None
    assert row.status == "gone"


def test_jobs_prompt_is_overwritten_on_the_disk(tmp_path: Path) -> None:
    """The bytes of an expired request are not left in the file."""
    path = tmp_path / "a.db"
    secret = b"canary-prompt-text" * 50
    store = opened(tmp_path)
    assert store.put_job(replace(job("a", "done", ended_wall_s=1.0), request=secret))
    assert store.stop(WAIT_S)
    assert secret in path.read_bytes()
    store = opened(tmp_path)
    assert store.expire_jobs(2.0 + TTL_S)
    assert store.stop(WAIT_S)
    assert b"canary" not in path.read_bytes()


def test_state_is_saved_under_its_name(tmp_path: Path) -> None:
    """The next process reads the last value saved; an unknown name gives None."""
    first = opened(tmp_path)
    assert first.put_state("limits", b"1")
    assert first.put_state("limits", b"2")
    assert first.stop(WAIT_S)
    second = opened(tmp_path)
    assert second.get_state("limits") == b"2"
    assert second.get_state("other") is None
    assert second.stop(WAIT_S)


def test_prompt_secret_is_made_once_a_store(tmp_path: Path) -> None:
    """The next process hashes prompts with the same key; another store has another."""
    first = opened(tmp_path)
    key = first.prompt_secret()
    assert len(key) == 32
    assert first.stop(WAIT_S)
    second = opened(tmp_path)
    assert second.prompt_secret() == key
    assert second.stop(WAIT_S)
    (tmp_path / "b").mkdir()
    other = opened(tmp_path / "b")
    assert other.prompt_secret() != key
    assert other.stop(WAIT_S)


def test_snapshot_has_the_stores_health(tmp_path: Path) -> None:
    """`ok` is False before the start and after the stop, with the reason."""
    store = Store(tmp_path / "a.db", StoreSettings())
    assert (store.snapshot().ok, store.snapshot().reason) == (False, "not started")
    store.start()
    callback = Callback()
    assert store.append_history(history(1), callback)
    assert callback.next() is None
    load_history(store, 1)
    shot = store.snapshot()
    assert (shot.ok, shot.reason, shot.rows, shot.errors) == (True, "", 1, 0)
    assert shot.committed >= 2
    assert shot.last_commit_s > 0
    assert store.stop(WAIT_S)
    assert (store.snapshot().ok, store.snapshot().reason) == (False, "stopped")
    with pytest.raises(Unavailable):
        load_history(store, 1)
