"""The control plane: answers of threads."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from gateway.api.control import from_thread
from gateway.errors import Unavailable


def answer(value: Any, *, accepted: bool = True) -> Any:
    """The result of `from_thread` when the thread answers `value`."""

    def ask(done: Callable[[Any], None]) -> bool:
        if accepted:
            done(value)
        return accepted

    return asyncio.run(from_thread(ask, "Too busy."))


@pytest.mark.parametrize(
    "error",
    [
        sqlite3.OperationalError("database or disk is full"),
        sqlite3.DatabaseError("database disk image is malformed"),
    ],
)
def test_from_thread_makes_a_failing_store_unavailable(error: Exception) -> None:
    """The 503 carries the store's reason and a time to try again: it is not the request's fault."""
    with pytest.raises(Unavailable) as caught:
        answer(error)
    assert (caught.value.status, caught.value.code) == (503, "store_failing")
    assert str(error) in caught.value.message
    assert caught.value.retry_after_s


@pytest.mark.parametrize("error", [sqlite3.IntegrityError("UNIQUE"), ValueError("x")])
def test_from_thread_raises_faults_of_the_gateway_as_they_are(error: Exception) -> None:
    """A faulty statement or value is a bug, and is not reported as a store that fails."""
    with pytest.raises(type(error)) as caught:
        answer(error)
    assert caught.value is error


def test_from_thread_is_busy_where_the_thread_takes_no_work() -> None:
    """A full queue is reported at once; a value is returned as it is."""
    assert answer(5) == 5
    with pytest.raises(Unavailable) as caught:
        answer(5, accepted=False)
    assert (caught.value.code, caught.value.message) == ("busy", "Too busy.")
