"""The writer thread: its groups, the reach of an error, and an end that loses nothing."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import SettingsError
from gateway.store.writer import Writer
from tests.unit.store.rows import WAIT_S, Callback

MANY = 10_000


def nothing(connection: sqlite3.Connection) -> Any:
    return False


def put(name: str) -> Any:
    return lambda connection: connection.execute("INSERT INTO state VALUES (?, x'00')", (name,))


def names(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM state")}


class Held:
    """A call that keeps the thread busy, so that what follows gathers into one group."""

    def __init__(self, writer: Writer) -> None:
        self._free = threading.Event()
        inside = threading.Event()

        def hold(connection: sqlite3.Connection) -> None:
            inside.set()
            self._free.wait(WAIT_S)

        assert writer.offer(hold, None, MANY)
        assert inside.wait(WAIT_S)

    def release(self) -> None:
        self._free.set()


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = Writer(tmp_path / "a.db", opened=nothing, chore=nothing)
    writer.start()
    yield writer
    assert writer.stop(WAIT_S)


def ask(writer: Writer, call: Any) -> Any:
    callback = Callback()
    assert writer.offer(call, callback, MANY)
    value, error = callback.next()
    assert error is None
    return value


def test_writer_commits_what_queued_up_as_one_group(writer: Writer) -> None:
    """All queued work goes into one transaction, in order."""
    order: list[int] = []
    held, callback = Held(writer), Callback()
    for i in range(50):

        def note(connection: sqlite3.Connection, i: int = i) -> bool:
            order.append(i)
            return connection.in_transaction and connection.total_changes == 0

        assert writer.offer(note, callback, MANY)
    held.release()
    assert [callback.next() for _ in range(50)] == [(True, None)] * 50
    assert order == list(range(50))


def test_writer_calls_back_after_the_commit(writer: Writer, tmp_path: Path) -> None:
    """Another connection already sees the row at the call of `done`."""
    seen: list[Any] = []
    callback = Callback()

    def look(value: Any, error: Exception | None) -> None:
        other = sqlite3.connect(tmp_path / "a.db")
        seen.append(other.execute("SELECT name FROM state").fetchall())
        other.close()
        callback(True)

    assert writer.offer(put("a"), look, MANY)
    assert callback.next()
    assert seen == [[("a",)]]


def test_writer_keeps_one_works_fault_to_it(writer: Writer) -> None:
    """A duplicate and a value that does not bind fail alone; the rest of the group is committed."""
    held, callback = Held(writer), Callback()
    unbound = lambda c: c.execute("INSERT INTO state VALUES (?, ?)", ("x", object()))  # noqa: E731
    for call in (put("a"), put("a"), unbound, put("b")):
        assert writer.offer(call, callback, MANY)
    held.release()
    errors = [callback.next()[1] for _ in range(4)]
    assert [type(error) for error in errors] == [
        type(None),
        sqlite3.IntegrityError,
        sqlite3.ProgrammingError,
        type(None),
    ]
    assert ask(writer, names) == {"a", "b"}
    assert writer.errors == 0


def test_writer_fails_the_whole_group_on_a_full_disk_and_goes_on(writer: Writer) -> None:
    """SQLITE_FULL fails the whole group and is kept as the reason; the next group succeeds."""
    full = lambda c: c.execute("PRAGMA max_page_count = 1").fetchone()  # noqa: E731
    free = lambda c: c.execute("PRAGMA max_page_count = 100000").fetchone()  # noqa: E731
    big = lambda c: c.execute("INSERT INTO state VALUES ('big', zeroblob(1000000))")  # noqa: E731
    ask(writer, full)
    held, callback = Held(writer), Callback()
    for call in (put("a"), big, put("b")):
        assert writer.offer(call, callback, MANY)
    held.release()
    errors = [callback.next()[1] for _ in range(3)]
    assert len({id(error) for error in errors}) == 1
    assert isinstance(errors[0], sqlite3.OperationalError)
    assert "full" in str(errors[0])
    assert (writer.errors, "full" in writer.reason) == (1, True)
    ask(writer, free)
    ask(writer, put("c"))
    assert writer.reason == ""
    assert ask(writer, names) == {"c"}


def test_writer_outlives_a_listener_that_fails(writer: Writer) -> None:
    """An exception in `done` (a closed loop) costs neither the thread nor the group."""
    held, callback = Held(writer), Callback()

    def broken(value: Any, error: Exception | None) -> None:
        raise RuntimeError("the loop is closed")

    assert writer.offer(put("a"), broken, MANY)
    assert writer.offer(put("b"), callback, MANY)
    held.release()
    assert callback.next()[1] is None
    assert ask(writer, names) == {"a", "b"}


def test_writer_refuses_above_the_bound(writer: Writer) -> None:
    """With `bound` items queued an offer is refused and counted, and `done` is not called."""
    held, callback, refused = Held(writer), Callback(), Callback()
    assert [writer.offer(put(str(i)), callback, 2) for i in range(2)] == [True, True]
    assert writer.offer(put("lost"), refused, 2) is False
    assert writer.lost == 1
    held.release()
    assert [callback.next()[1] for _ in range(2)] == [None, None]
    assert ask(writer, names) == {"0", "1"}
    assert refused.nothing()


def test_writer_stop_does_all_that_was_taken(tmp_path: Path) -> None:
    """`stop` does all queued work and takes nothing afterwards."""
    writer = Writer(tmp_path / "a.db", opened=nothing, chore=nothing)
    writer.start()
    held = Held(writer)
    for i in range(3000):
        assert writer.offer(put(str(i)), None, MANY)
    held.release()
    assert writer.stop(WAIT_S)
    assert writer.offer(put("late"), None, MANY) is False
    other = sqlite3.connect(tmp_path / "a.db")
    assert len(names(other)) == 3000
    other.close()
    assert not (tmp_path / "a.db-wal").exists()


def test_writer_stop_returns_false_when_time_is_short(tmp_path: Path) -> None:
    """A stop that runs out of time returns False; the next may succeed."""
    writer = Writer(tmp_path / "a.db", opened=nothing, chore=nothing)
    writer.start()
    held = Held(writer)
    assert writer.stop(0.01) is False
    held.release()
    assert writer.stop(WAIT_S) is True


def test_writer_start_raises_what_opening_raised(tmp_path: Path) -> None:
    """`start` raises the error of opening, and no work is taken."""
    writer = Writer(tmp_path, opened=nothing, chore=nothing)
    with pytest.raises(SettingsError):
        writer.start()
    assert writer.offer(put("a"), None, MANY) is False
    assert "cannot be used" in writer.reason
    assert writer.stop(WAIT_S) is True


def test_writer_repeats_its_chore_until_it_is_done(tmp_path: Path) -> None:
    """A chore that returns True runs again without any work; then the thread rests."""
    left = [3]
    finished = threading.Event()

    def chore(connection: sqlite3.Connection) -> bool:
        left[0] -= 1
        if left[0] == 0:
            finished.set()
        return left[0] > 0

    writer = Writer(tmp_path / "a.db", opened=nothing, chore=chore)
    writer.start()
    assert finished.wait(WAIT_S)
    assert writer.stop(WAIT_S)
