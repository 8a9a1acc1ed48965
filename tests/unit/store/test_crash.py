"""Killed at any moment, the store keeps what it acknowledged.

`kill -9` shows that commits are whole and acknowledged only afterwards. It cannot show a loss of
power: for that stands `synchronous = FULL` (test_database).
"""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

from gateway.settings.schema import Store as StoreSettings
from gateway.store.store import Store
from tests.kit.length import short_or_long
from tests.unit.store.rows import WAIT_S, Callback, history

ROUNDS = int(os.environ.get("CRASH_ROUNDS") or short_or_long(3, 6))
ROUNDS_A_FILE = 10
ROOT = Path(__file__).parents[3]


def start(path: Path, first: int, *mode: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.unit.store.crashing", str(path), str(first), *mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)


def acknowledged(process: subprocess.Popen[bytes], lines: int | None = None) -> set[int]:
    """The ids that the process printed: `lines` of them, then a kill; or all until it kills
    itself."""
    assert process.stdout is not None
    read: list[bytes] = []
    while lines is not None and len(read) < lines:
        read.append(process.stdout.readline())
    if lines is not None:
        process.kill()
    read += process.stdout.readlines()
    process.stdout.close()
    process.wait()
    return {int(line) for line in read if line.endswith(b"\n")}


def stored(path: Path) -> set[int]:
    """The ids in the file after an opening like the next gateway's; the file must be sound."""
    store = Store(path, StoreSettings(history_rows=1_000_000))
    store.start()
    assert store.stop(WAIT_S)
    assert not list(path.parent.glob("*.corrupt-*"))
    connection = sqlite3.connect(path)
    ids = {id for (id,) in connection.execute("SELECT prompt_tokens FROM history")}
    connection.close()
    return ids


def test_store_killed_at_any_moment_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    """After kill -9 in the midst of commits the file is sound and has every acknowledged row."""
    chance = random.Random()
    for number in range(ROUNDS):
        path = tmp_path / f"{number // ROUNDS_A_FILE}.db"
        if number % ROUNDS_A_FILE == 0:
            known_ids: set[int] = set()
        first = max(known_ids, default=0) + 1_000_000
        new = acknowledged(start(path, first), lines=chance.randint(1, 3000))
        assert new
        known_ids |= new
        assert known_ids <= stored(path)


def test_process_beside_the_store_killed_at_any_moment_keeps_what_it_acknowledged(
    tmp_path: Path,
) -> None:
    """After kill -9 of the other writer the store goes on without a fault, at once, and the file
    has every row that was acknowledged to either."""
    chance, path = random.Random(), tmp_path / "a.db"
    own = Store(path, StoreSettings(history_rows=1_000_000))
    own.start()
    known_ids: set[int] = set()
    for number in range(1, ROUNDS + 1):
        process = start(path, number * 1_000_000, "beside")
        new = acknowledged(process, lines=chance.randint(1, 300))
        assert new
        done = Callback()
        assert own.append_history(history(number), done)
        assert done.next() is None
        known_ids |= new | {number}
    assert own.snapshot().ok
    assert own.stop(WAIT_S)
    assert known_ids <= stored(path)


def test_store_that_acknowledges_early_is_caught(tmp_path: Path) -> None:
    """The twin: acknowledging before the commit loses acknowledged rows."""
    path = tmp_path / "a.db"
    known_ids = acknowledged(start(path, 1, "early"))
    assert len(known_ids) > 1000
    assert not known_ids <= stored(path)
