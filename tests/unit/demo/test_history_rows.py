"""Demo history: plausible, repeatable, and in agreement with the demo provider."""

from __future__ import annotations

import json
import statistics

import httpx
import pytest

from gateway.demo import history_rows, language
from gateway.demo.provider import app
from gateway.settings.schema import Demo

FIELDS = {
    "prompt": str,
    "output_tokens": int,
    "prompt_tokens": int,
    "max_tokens": int,
    "model": str,
    "task_type": str,
    "success": bool,
}


def test_rows_have_the_count_and_form() -> None:
    """Every row has the fields of /ingest with their types."""
    rows = list(history_rows.rows(200))
    assert len(rows) == 200
    for row in rows:
        assert {name: type(value) for name, value in row.items()} == FIELDS
        assert row["prompt"]
        assert "{" not in row["prompt"]


def test_rows_repeat_for_a_seed() -> None:
    """The same seed gives the same rows, another seed others."""
    assert list(history_rows.rows(50, 3)) == list(history_rows.rows(50, 3))
    assert list(history_rows.rows(50, 3)) != list(history_rows.rows(50, 4))


def test_rows_hold_what_real_history_holds() -> None:
    """The rows have all task types, repeats, cut answers, failures, short and long lengths."""
    rows = list(history_rows.rows(2000))
    assert {row["task_type"] for row in rows} == {task for task, _, _ in history_rows.TEMPLATES}
    assert len({row["prompt"] for row in rows}) < 1950
    cut = [r for r in rows if r["max_tokens"] and r["output_tokens"] == r["max_tokens"]]
    assert 50 < len(cut) < 400
    assert all(r["output_tokens"] <= (r["max_tokens"] or 10_000) for r in rows)
    assert 10 < sum(not r["success"] for r in rows) < 100
    lengths = [r["output_tokens"] for r in rows if r["success"]]
    assert 0.2 < statistics.mean(n <= 64 for n in lengths) < 0.6
    assert 0.1 < statistics.mean(n > 256 for n in lengths) < 0.5


def test_rows_fit_the_form_of_their_prompt() -> None:
    """A row's length lies around the median of its prompt's form."""
    ratios = [
        row["output_tokens"] / language.median_tokens(row["prompt"])
        for row in history_rows.rows(500)
        if row["success"] and not row["max_tokens"]
    ]
    assert 0.9 < statistics.median(ratios) < 1.1


@pytest.mark.anyio
async def test_rows_agree_with_the_demo_provider() -> None:
    """The provider gives a row's prompt exactly the row's number of tokens."""
    row = next(
        r for r in history_rows.rows(100, demo_seed=5) if r["success"] and not r["max_tokens"]
    )
    provider = app(Demo(base_latency_s=0.0, token_latency_s=0.0, seed=5))
    body = {"model": row["model"], "messages": [{"role": "user", "content": row["prompt"]}]}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(provider), base_url="http://demo"
    ) as client:
        answer = await client.post("/v1/chat/completions", content=json.dumps(body))
    usage = answer.json()["usage"]
    assert usage["completion_tokens"] == row["output_tokens"]
    assert usage["prompt_tokens"] == row["prompt_tokens"]
