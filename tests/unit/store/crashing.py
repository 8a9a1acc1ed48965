"""The process that dies: appends rows and prints the id of each that was acknowledged.

    python -m tests.unit.store.crashing PATH FIRST [early | beside]

`early` breaks the rule on purpose: it acknowledges before the commit, then kills itself. `beside`
writes as the predictor's process does, to a store that another process has open.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from gateway.settings.schema import Store as StoreSettings
from gateway.store.history_writer import HistoryWriter
from gateway.store.store import Store
from tests.unit.store.rows import history

EARLY_ROWS = 5000


def acknowledge(number: int) -> None:
    os.write(1, b"%d\n" % number)


def write_beside(path: Path, number: int) -> None:
    """Write batches of a few rows, until killed."""
    writer = HistoryWriter(path)
    while True:
        batch = [history(n) for n in range(number, number + 1 + number % 5)]
        writer.put(batch).result()
        for row in batch:
            acknowledge(row.prompt_tokens)
        number += len(batch)


def main(path: str, first: str, mode: str = "") -> None:
    number = int(first)
    if mode == "beside":
        write_beside(Path(path), number)
    store = Store(Path(path), StoreSettings(history_rows=1_000_000))
    store.start()
    if mode == "early":
        for row in (history(n) for n in range(number, number + EARLY_ROWS)):
            store.append_history(row)
            acknowledge(row.prompt_tokens)
        os.kill(os.getpid(), signal.SIGKILL)
    while True:

        def done(error: Exception | None, number: int = number) -> None:
            if error is None:
                acknowledge(number)

        if store.append_history(history(number), done):
            number += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
