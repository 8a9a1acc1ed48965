"""Requests whose true answer length the provider knows and the forecast does not.

The truth travels in the body's `user` member, which the gateway sends on and no forecast reads
(a test holds that). Rows of a file are the test side of the split, so that the shipped models
never saw them; without a file they come from the demo grammar: made-up, and easier.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct, structs

from gateway.api.prompt import view_of
from gateway.api.schemas import ChatRequest, decode
from gateway.demo.history_rows import rows as seed_rows
from gateway.predict.prompt_view import PromptView, cut
from gateway.shipped import shipped
from gateway.workbench.evaluate.judged_rows import choose, fit_keys, read

TRUTH = re.compile(rb'"user":\s?"truth-(\d+)-([01])"')
ASKED = ("max_tokens", "temperature", "reasoning_effort", "enable_thinking", "thinking_budget")


class Prompt(Struct, frozen=True):
    """One request and how long its answer will be."""

    body: bytes
    model: str
    output_tokens: int
    censored: bool  # cut at its limit: no part of what is compared

    def view(self, tenant: str, max_chars: int) -> PromptView:
        """As the predictor reads it."""
        seen = view_of(tenant, decode(self.body, ChatRequest), max_chars)
        return structs.replace(seen, text=cut(seen.text, max_chars))


def of_file(path: Path, limit: int) -> list[Prompt]:
    """The first `limit` rows of its test side. Raises SettingsError."""
    rows = [(row, structs.replace(line, seq=place)) for place, (row, line) in enumerate(read(path))]
    wanted = {case.seq: case for case in choose(rows, fit_keys(shipped("models"))).cases}
    found: list[Prompt] = []
    for place, (row, line) in enumerate(rows):
        case = wanted.get(place)
        if case is not None and len(found) < limit:
            asked = {name: row[name] for name in (*ASKED, "tools") if row.get(name) is not None}
            asked["messages"] = row["messages"]
            found.append(prompt(line.model, asked, line.output_tokens, censored=case.censored))
    return found


def generated(count: int) -> list[Prompt]:
    """The same `count` each time."""
    found = []
    for row in seed_rows(count, seed=7):
        tokens, limit = row["output_tokens"], row["max_tokens"]
        asked: dict[str, object] = {"messages": [{"role": "user", "content": row["prompt"]}]}
        asked |= {"max_tokens": limit} if limit else {}
        found.append(prompt(row["model"], asked, tokens, censored=0 < limit <= tokens))
    return found


def prompt(model: str, asked: dict[str, object], tokens: int, *, censored: bool) -> Prompt:
    """One request, its truth put in."""
    tree = {"model": model, **asked, "user": f"truth-{tokens}-{int(censored)}"}
    return Prompt(msgspec.json.encode(tree), model, tokens, censored)


def truth(body: bytes) -> tuple[int, bool]:
    """Output tokens of a request's answer, and whether that is its limit. A client's text
    cannot be taken for it: quotes inside are escaped."""
    found = TRUTH.search(body)
    assert found is not None, "a request without its truth"
    return int(found[1]), found[2] == b"1"


def models(prompts: Sequence[Prompt]) -> list[str]:
    """Each once."""
    return list(dict.fromkeys(one.model for one in prompts))
