"""Rows and listeners for the store's tests."""

from __future__ import annotations

import queue
from typing import Any

from gateway.store.rows import JobRow
from gateway.store.store import Store
from gateway.types import HistoryRow

WAIT_S = 20.0


def history(number: int, encoder: str = "enc-1") -> HistoryRow:
    """A row that can be told from its neighbours by `prompt_tokens`."""
    return HistoryRow(
        wall_s=1_700_000_000.0 + number,
        tenant="demo",
        model="m",
        task_type="chat",
        prompt_key=number.to_bytes(16, "big"),
        encoder=encoder,
        vector=bytes(range(256)) * 3,
        prompt_tokens=number,
        output_tokens=7,
        max_tokens=0,
        censored=number % 2 == 0,
        success=number % 3 != 0,
        template="0123456789abcdef",
        features=bytes(number % 256 for _ in range(8)),
        neighbours=b"\x00\x3c",
        shared=number % 5 != 0 or number == 0,
    )


def load_history(store: Store, limit: int, encoder: str | None = None) -> list[HistoryRow]:
    """All pages of the newest `limit` rows."""
    return [row for page in store.history_pages(limit, encoder) for row in page]


def job(id: str, status: Any = "queued", **more: Any) -> JobRow:
    return JobRow(
        id=id, tenant="demo", status=status, created_wall_s=100.0, request=b'{"a":1}', **more
    )


class Heard:
    """A `done` that remembers what it was told, in order, and can be waited for."""

    def __init__(self) -> None:
        self._told: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def __call__(self, *told: Any) -> None:
        self._told.put(told[0] if len(told) == 1 else told)

    def next(self) -> Any:
        return self._told.get(timeout=WAIT_S)

    def nothing(self) -> bool:
        return self._told.empty()
