"""Rows, cases and forecasts for the evaluation's tests: small, made here, of no real text."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from gateway.predict.prompt_view import PromptView
from gateway.workbench.evaluate.judged_rows import Case
from gateway.workbench.evaluate.row_replay import ForecastTable

THINGS = ("lamps", "harbours", "kites", "engines", "gardens", "violins", "maps", "bridges")


def row(seq: int, prompt: str | None = None, **more: Any) -> dict[str, Any]:
    """One line of a file, by default with a prompt of its own."""
    chance = random.Random(seq)
    text = prompt or f"Write {seq} lines about {chance.choice(THINGS)} and {seq * 7} others."
    return {
        "seq": seq,
        "conversation_id": f"c{seq}",
        "source": ("left", "right")[seq % 2],
        "model": f"model-{seq % 3}",
        "lang": "en",
        "task_type": "writing",
        "messages": [{"role": "user", "content": text}],
        "output_tokens": chance.randint(5, 900),
        "max_tokens": None,
    } | more


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return path


def case(seq: int, tokens: int = 100, **more: Any) -> Case:
    limit = more.pop("max_tokens", None)
    view = PromptView.of_prompt(
        f"prompt {seq}", tenant="t", model=f"model-{seq % 3}", max_tokens=limit
    )
    given: dict[str, Any] = {
        "seq": seq,
        "source": ("left", "right")[seq % 2],
        "lang": "en",
        "view": view,
        "task_type": "chat",
        "output_tokens": tokens,
        "censored": False,
        "first_seen": True,
        "has_tools": False,
        "thinking": False,
    }
    return Case(**(given | more))


def flat(centres: list[float], spread: float = 2.0) -> ForecastTable:
    """Forecasts with these medians, and quantiles a factor `spread` around them."""
    steps = spread ** np.array([-1.6, -1.3, -0.7, 0.0, 0.7, 1.3, 1.6])
    grid = np.array(centres, float)[:, None] * steps
    count = len(centres)
    return ForecastTable(
        grid=grid,
        p_short=(grid[:, 3] <= 64).astype(float),
        risk=np.full(count, 0.2),
        confidence=np.full(count, 0.5),
        rung=np.full(count, 2, np.int8),
        seconds=np.full(count, 0.001),
    )
