"""Rows and callbacks for the tests of the store."""

from __future__ import annotations

import queue
from typing import Any

from gateway.store.rows import JobRow
from gateway.store.store import Store
from gateway.types import HistoryRow

WAIT_S = 20.0


def history(number: int, encoder: str = "enc-1") -> HistoryRow:
    """A row that `prompt_tokens` distinguishes from its neighbours."""
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


class Callback:
    """A `done` callback that records its arguments in order and can be waited for."""

    def __init__(self) -> None:
        self._values: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def __call__(self, *values: Any) -> None:
        self._values.put(values[0] if len(values) == 1 else values)

    def next(self) -> Any:
        return self._values.get(timeout=WAIT_S)

    def nothing(self) -> bool:
        return self._values.empty()
