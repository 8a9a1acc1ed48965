"""Texts of requests for the load tools: conversations no model was fitted on, or generated ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import Struct

from gateway.demo import history_rows
from gateway.errors import SettingsError
from gateway.shipped import shipped
from gateway.workbench.evaluate.judged_rows import choose, fit_keys, read

GENERATED = 3000
LONGEST = 8192  # tokens; one longer answer would take most of a run of 200


class RequestText(Struct, frozen=True, gc=False):
    """A request's text and the true length of its answer, in tokens."""

    messages: list[dict[str, Any]]
    model: str
    max_tokens: int | None
    prompt_tokens: int
    output_tokens: int


def request_texts(data: Path | None) -> list[RequestText]:
    """Rows of a file of conversations that no shipped model was fitted on.

    Without a file they are the demo's own, with lengths by its grammar.

    Raises:
        SettingsError: the file is unusable.
    """
    if data is None:
        return [
            RequestText(
                [{"role": "user", "content": row["prompt"]}],
                row["model"],
                row["max_tokens"] or None,
                row["prompt_tokens"],
                row["output_tokens"],
            )
            for row in history_rows.rows(GENERATED, 1)
            if row["success"] and row["output_tokens"] > 0
        ]
    rows = read(data)
    if any(line.seq is None for _, line in rows):
        raise SettingsError(f"{data}: the bench needs a `seq` in every row")
    chosen = {case.seq for case in choose(rows, fit_keys(shipped("models"))).cases}
    return [
        RequestText(
            line.messages,
            line.model,
            line.max_tokens,
            int(row.get("prompt_tokens") or 1),
            line.output_tokens,
        )
        for row, line in rows
        if line.seq in chosen and line.output_tokens <= LONGEST
    ]
