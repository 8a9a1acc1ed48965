"""What the control plane makes of a thread's answer."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from gateway.api.web import from_thread
from gateway.errors import Unavailable


def told(value: Any, *, taken: bool = True) -> Any:
    """What `from_thread` gives or raises when the thread answers `value`."""

    def ask(done: Callable[[Any], None]) -> bool:
        if taken:
            done(value)
        return taken

    return asyncio.run(from_thread(ask, "Too busy."))


@pytest.mark.parametrize(
    "error",
    [
        sqlite3.OperationalError("database or disk is full"),
        sqlite3.DatabaseError("database disk image is malformed"),
    ],
)
def test_thread_whose_store_cannot_write_is_unavailable(error: Exception) -> None:
    """503 with the store's reason and a time to come again: no fault of the request."""
    with pytest.raises(Unavailable) as caught:
        told(error)
    assert (caught.value.status, caught.value.code) == (503, "store_failing")
    assert str(error) in caught.value.message
    assert caught.value.retry_after_s


@pytest.mark.parametrize("error", [sqlite3.IntegrityError("UNIQUE"), ValueError("x")])
def test_thread_that_fails_by_our_fault_raises_it(error: Exception) -> None:
    """A faulty statement or value is a bug, and is not told as a store that is out."""
    with pytest.raises(type(error)) as caught:
        told(error)
    assert caught.value is error


def test_thread_that_takes_nothing_is_busy() -> None:
    """A full queue is said at once; an answer comes as it is."""
    assert told(5) == 5
    with pytest.raises(Unavailable) as caught:
        told(5, taken=False)
    assert (caught.value.code, caught.value.message) == ("busy", "Too busy.")
