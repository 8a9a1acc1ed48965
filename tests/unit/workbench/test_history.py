"""Finished requests from a file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import SettingsError
from gateway.workbench.history import MAX_LINE_BYTES, HistoryFile

GOOD = {"prompt": "Hello", "output_tokens": 5}


def reading(path: Path, *lines: object) -> HistoryFile:
    data = b"\n".join(
        line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines
    )
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return HistoryFile(path, tenant="t", model="default", wall_s=100.0)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_history_file_gives_lessons_in_order(tmp_path: Path, name: str) -> None:
    """Prompts and messages are read, plain and compressed, with defaults for what a line lacks."""
    chat = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}]
    full: dict[str, Any] = {
        "messages": chat,
        "model": "m",
        "output_tokens": 50,
        "prompt_tokens": 12,
        "max_tokens": 50,
        "task_type": "chat",
        "timestamp": "2026-01-02T00:00:00Z",
        "licence": "not ours to read",
    }
    one, two, three = reading(tmp_path / name, GOOD, b"", full, GOOD | {"timestamp": 7})
    assert (one.view.text, one.view.model, one.view.tenant) == ("Hello", "default", "t")
    assert (one.wall_s, one.censored, one.prompt_tokens) == (100.0, False, None)
    assert (two.view.system, two.view.model, two.view.task_type) == ("Be brief", "m", "chat")
    assert (two.censored, two.prompt_tokens, two.wall_s) == (True, 12, 1767312000.0)
    assert three.wall_s == 7.0


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"\xff\xfe",
        {"prompt": "x"},
        {"output_tokens": 5},
        {"prompt": "x", "output_tokens": -1},
        {"prompt": "x", "output_tokens": "5"},
        {"messages": ["secret"], "output_tokens": 5},
        GOOD | {"timestamp": "soon"},
        b'{"prompt": "' + b"x" * MAX_LINE_BYTES + b'", "output_tokens": 5}',
    ],
)
def test_history_file_counts_bad_lines(tmp_path: Path, line: object) -> None:
    """A bad line is named by number, without its content; the lines around it are read."""
    found = reading(tmp_path / "a.jsonl", GOOD, line, GOOD)
    assert [example.output_tokens for example in found] == [5, 5]
    assert (found.good, found.bad) == (2, 1)
    assert found.problems[0].startswith("line 2: ")
    assert "secret" not in found.problems[0]


def test_history_file_takes_failed_answers_as_bounds(tmp_path: Path) -> None:
    """A failed answer is censored unless its line says otherwise."""
    failed, exact = reading(
        tmp_path / "a.jsonl",
        GOOD | {"success": False},
        GOOD | {"success": False, "censored": False},
    )
    assert (failed.success, failed.censored) == (False, True)
    assert (exact.success, exact.censored) == (False, False)


def test_history_file_that_is_unreadable_is_refused(tmp_path: Path) -> None:
    """A missing file and a compressed one that is cut short are errors with the file's name."""
    with pytest.raises(SettingsError, match="cannot be read"):
        list(HistoryFile(tmp_path / "none.jsonl", tenant="t", model="m", wall_s=0.0))
    found = reading(tmp_path / "a.jsonl.gz", *[GOOD] * 1000)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SettingsError, match="cannot be read"):
        list(found)
