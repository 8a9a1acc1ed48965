"""Killed at any moment, the store keeps what it acknowledged.

`kill -9` shows that commits are whole and told only afterwards. It cannot show a loss of
power: for that stands `synchronous = FULL` (test_schema).
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
from tests.unit.store.rows import WAIT_S

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "6"))
ROUNDS_A_FILE = 10
ROOT = Path(__file__).parents[3]


def start(path: Path, first: int, *mode: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.unit.store.crashing", str(path), str(first), *mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)


def acknowledged(process: subprocess.Popen[bytes], lines: int | None = None) -> set[int]:
    """The ids printed: `lines` of them, then a kill; or all until the process dies itself."""
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
    """The ids in the file, after an opening as the next gateway's; it must be sound."""
    store = Store(path, StoreSettings(history_rows=1_000_000))
    store.start()
    assert store.stop(WAIT_S)
    assert not list(path.parent.glob("*.corrupt-*"))
    connection = sqlite3.connect(path)
    ids = {id for (id,) in connection.execute("SELECT prompt_tokens FROM history")}
    connection.close()
    return ids


def test_store_killed_at_any_moment_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    """After kill -9 in the midst of commits: quick_check is ok, acknowledged ⊆ stored."""
    chance = random.Random()
    for number in range(ROUNDS):
        path = tmp_path / f"{number // ROUNDS_A_FILE}.db"
        if number % ROUNDS_A_FILE == 0:
            told: set[int] = set()
        first = max(told, default=0) + 1_000_000
        new = acknowledged(start(path, first), lines=chance.randint(1, 3000))
        assert new
        told |= new
        assert told <= stored(path)


def test_store_that_acknowledges_early_is_caught(tmp_path: Path) -> None:
    """The twin: acknowledging before the commit breaks acknowledged ⊆ stored."""
    path = tmp_path / "a.db"
    told = acknowledged(start(path, 1, "early"))
    assert len(told) > 1000
    assert not told <= stored(path)
