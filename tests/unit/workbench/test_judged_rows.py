"""The choice of the rows to judge: none the models saw, in order, each known as new or repeated."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from gateway.errors import SettingsError
from gateway.settings.schema import Store as StoreSettings
from gateway.shipped import shipped
from gateway.store.store import Store
from gateway.types import HistoryRow
from gateway.workbench.evaluate.judged_rows import choose, fit_keys, read, read_history
from gateway.workbench.split import is_fit, pack, row_keys, unpack, was_fitted
from tests.unit.workbench.evaluate_cases import row, write

NOTHING: frozenset[bytes] = frozenset()


def test_read_sorts_by_seq_and_takes_gzip(tmp_path: Path) -> None:
    """Rows come in the order of `seq`, from a plain file and a packed one."""
    rows = [row(3), row(1), row(2)]
    baseline = write(tmp_path / "a.jsonl", rows)
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(baseline.read_bytes()))
    for path in (baseline, packed):
        assert [line.seq for _, line in read(path)] == [1, 2, 3]


@pytest.mark.parametrize(
    "text", ["{", '{"conversation_id": "c"}', json.dumps(row(1) | {"output_tokens": "many"})]
)
def test_read_names_the_line_that_is_wrong(tmp_path: Path, text: str) -> None:
    """A line of another format is an error with its number."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row(0)) + "\n" + text + "\n")
    with pytest.raises(SettingsError, match="line 2"):
        read(path)


def test_read_says_when_there_is_no_file(tmp_path: Path) -> None:
    """A missing or cut file is an error of the command."""
    with pytest.raises(SettingsError, match="cannot be read"):
        read(tmp_path / "none.jsonl")
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(json.dumps(row(1)).encode())[:-9])
    with pytest.raises(SettingsError, match="cannot be read"):
        read(cut)


def test_chosen_rows_were_never_fitted(tmp_path: Path) -> None:
    """Rows that share a conversation or prompt with a fitted one are dropped and counted."""
    rows = [row(i) for i in range(40)]
    rows.append(row(40, prompt=rows[0]["messages"][0]["content"].upper()))
    fitted = unpack(pack(rows[:5]))
    chosen = choose(read(write(tmp_path / "a.jsonl", rows)), fitted)
    assert chosen.side == "unfitted"
    assert chosen.fitted_rows == 6
    judged = {each.seq for each in chosen.cases}
    assert len(judged) == 35
    assert not any(was_fitted(row_keys(r), fitted) for r in rows if r["seq"] in judged)


def test_fitted_rows_would_be_judged_without_the_list(tmp_path: Path) -> None:
    """The twin: without the list of fit keys the intersection is there, and seen."""
    rows = [row(i) for i in range(40)]
    fitted = unpack(pack(rows[:5]))
    chosen = choose(read(write(tmp_path / "a.jsonl", rows)), NOTHING)
    judged = {each.seq for each in chosen.cases}
    assert any(was_fitted(row_keys(r), fitted) for r in rows if r["seq"] in judged)


def test_training_file_is_judged_on_its_test_side(tmp_path: Path) -> None:
    """Only groups of the split's test side count of a file that was fitted in good part."""
    rows = [row(i) for i in range(400)]
    fit = [r for r in rows if is_fit(min(row_keys(r)))]
    fitted = unpack(pack(fit[: len(fit) // 2]))  # the licence kept the models from the rest
    chosen = choose(read(write(tmp_path / "a.jsonl", rows)), fitted)
    assert chosen.side == "held"
    assert {each.seq for each in chosen.cases} == {r["seq"] for r in rows if r not in fit}


def test_side_can_be_chosen(tmp_path: Path) -> None:
    """`unfitted` judges all rows that were not fitted, of the training file as well."""
    rows = [row(i) for i in range(100)]
    fitted = unpack(pack(rows[:60]))
    chosen = choose(read(write(tmp_path / "a.jsonl", rows)), fitted, "unfitted", limit=30)
    assert [each.seq for each in chosen.cases] == list(range(60, 90))


def test_first_seen_is_blind_to_case_and_space(tmp_path: Path) -> None:
    """A prompt counts as new once: later rows with the same last user text are repeats."""
    rows = [row(1, "Say  hello"), row(2, "say hello "), row(3, "say goodbye"), row(4, "say hello")]
    chosen = choose(read(write(tmp_path / "a.jsonl", rows)), NOTHING)
    assert [each.first_seen for each in chosen.cases] == [True, False, True, False]


def test_answer_as_long_as_its_limit_is_censored(tmp_path: Path) -> None:
    """A length at its limit is a lower bound; without a limit, or below it, it is exact."""
    rows = [
        row(1, output_tokens=50, max_tokens=50),
        row(2, output_tokens=49, max_tokens=50),
        row(3, output_tokens=50),
    ]
    chosen = choose(read(write(tmp_path / "a.jsonl", rows)), NOTHING)
    assert [each.censored for each in chosen.cases] == [True, False, False]


def test_flags_of_the_rule_are_read(tmp_path: Path) -> None:
    """Tools and thinking are found in parameters, tool messages and lists of functions."""
    functions = {"role": "system", "content": '[{"name": "f", "parameters": {}}]'}
    wanted = {"role": "user", "content": "do it"}
    rows = [
        row(1, tools=[{}]),
        row(2, messages=[functions, wanted]),
        row(3, messages=[wanted, {"role": "tool", "content": "4"}]),
        row(4, enable_thinking=True),
        row(5, reasoning_effort="high"),
        row(6, reasoning_effort="none"),
    ]
    cases = choose(read(write(tmp_path / "a.jsonl", rows)), NOTHING).cases
    assert [each.has_tools for each in cases] == [True, True, True, False, False, False]
    assert [each.thinking for each in cases] == [False, False, False, True, True, False]


def test_sources_never_fitted_are_set_apart(tmp_path: Path) -> None:
    """A source counts as never fitted in spite of a stray prompt; the stray row is left out."""
    rows = [row(i) for i in range(200)]
    right = [r for r in rows if r["source"] == "right"]
    left = [r for r in rows if r["source"] == "left"]
    fitted = unpack(pack([*left[:50], right[7]]))
    apart = choose(read(write(tmp_path / "a.jsonl", rows)), fitted, per_source=60).never_fitted
    assert list(apart) == ["right"]
    assert [c.seq for c in apart["right"]] == [r["seq"] for r in right if r is not right[7]][:60]


def test_shipped_fit_keys_are_read(tmp_path: Path) -> None:
    """The shipped list is checked by its hash, and a folder without it is an error."""
    assert len(fit_keys(shipped("models"))) > 10_000
    with pytest.raises(SettingsError):
        fit_keys(tmp_path)


# --- history ----------------------------------------------------------------------------


def stored(path: Path, rows: list[HistoryRow]) -> Path:
    store = Store(path, StoreSettings())
    store.start()
    for each in rows:
        assert store.append_history(each)
    assert store.stop()
    return path


def history_row(number: int, **more: object) -> HistoryRow:
    vector = np.zeros(4, "<f2")
    vector[number % 4] = 1
    given: dict[str, object] = {
        "wall_s": float(number),
        "tenant": "team",
        "model": "m",
        "task_type": "",
        "prompt_key": (number % 6).to_bytes(16, "big"),
        "encoder": "e",
        "vector": vector.tobytes(),
        "prompt_tokens": 5,
        "output_tokens": 10 + number,
        "max_tokens": 0,
        "censored": False,
        "success": True,
    }
    return HistoryRow(**(given | more))  # type: ignore[arg-type]


def test_history_is_read_oldest_first_with_its_vectors(tmp_path: Path) -> None:
    """Each row has its vector under the text that stands for it, and repeats are found by hash."""
    path = stored(tmp_path / "s.db", [history_row(i) for i in range(10)])
    chosen = read_history(path, "e", 4)
    assert [each.output_tokens for each in chosen.cases] == list(range(10, 20))
    assert [each.first_seen for each in chosen.cases] == [True] * 6 + [False] * 4
    assert all(chosen.vectors[c.view.text][i % 4] == 1 for i, c in enumerate(chosen.cases))
    assert chosen.fitted_rows is None


def test_history_leaves_out_what_cannot_be_judged(tmp_path: Path) -> None:
    """Rows of another encoder, failures and broken vectors are no cases; cut answers are."""
    rows = [
        history_row(0, encoder="other"),
        history_row(1, success=False),
        history_row(2, vector=b"\x00"),
        history_row(3, success=False, censored=True),
    ]
    cases = read_history(stored(tmp_path / "s.db", rows), "e", 4).cases
    assert [(each.output_tokens, each.censored) for each in cases] == [(13, True)]


def test_history_must_be_a_store(tmp_path: Path) -> None:
    """A file of another kind is refused, and a missing one is not made."""
    other = tmp_path / "other.db"
    other.write_bytes(b"nothing of the kind" * 100)
    for path in (other, tmp_path / "none.db"):
        with pytest.raises(SettingsError):
            read_history(path, "e", 4)
    assert not (tmp_path / "none.db").exists()
