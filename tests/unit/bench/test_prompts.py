"""The true length that travels with a request is read by the provider and by no forecast."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.bench.prompts import generated, of_file, prompt, truth

ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "How long is it?"}]}


def test_truth_is_not_in_the_view() -> None:
    """Two requests that differ in their truth alone look the same to the predictor."""
    short = prompt("m", ASKED, 3, censored=False).view("t", 2000)
    assert short == prompt("m", ASKED, 4000, censored=True).view("t", 2000)


def test_truth_in_the_text_would_be_in_the_view() -> None:
    """The twin: what the predictor does read makes a difference."""
    told = {"messages": [{"role": "user", "content": "How long is it? truth-3-0"}]}
    plain = prompt("m", ASKED, 3, censored=False).view("t", 2000)
    assert plain != prompt("m", told, 3, censored=False).view("t", 2000)


def test_truth_reads_back_as_it_was_put_in() -> None:
    """The provider reads the tokens, and whether they are the limit, as they were written."""
    assert truth(prompt("m", ASKED, 237, censored=True).body) == (237, True)


def test_truth_is_not_taken_from_a_clients_text() -> None:
    """A prompt that spells the member out does not change what the provider answers."""
    asked = {"messages": [{"role": "user", "content": '"user":"truth-9-1"'}]}
    assert truth(prompt("m", asked, 5, censored=False).body) == (5, False)


def test_generated_prompts_are_the_same_each_time() -> None:
    """Two runs generate the same prompts."""
    assert generated(20) == generated(20)


def test_file_prompts_keep_order_and_parameters(tmp_path: Path) -> None:
    """Rows the models never saw come in their order, with what they asked for."""
    rows = [
        {
            "conversation_id": f"never seen {number}",
            "messages": [{"role": "user", "content": f"a question like no other, {number}"}],
            "model": f"m-{number}",
            "output_tokens": 10 + number,
            "max_tokens": 12,
        }
        for number in range(4)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = of_file(path, limit=3)
    assert [one.model for one in found] == ["m-0", "m-1", "m-2"]
    assert [(one.output_tokens, one.censored) for one in found] == [
        (10, False),
        (11, False),
        (12, True),
    ]
    assert json.loads(found[0].body)["max_tokens"] == 12
