"""Requests whose true answer length is known to the provider and not to the forecast.

The truth travels in the body's `user` member, which the gateway sends on and no forecast reads
(a test holds that). Rows of a file are the test side of the split, so that the shipped models
never saw them; without a file they come from the demo's grammar and are easier.
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
OPTIONS = ("max_tokens", "temperature", "reasoning_effort", "enable_thinking", "thinking_budget")


class Prompt(Struct, frozen=True):
    """One request and the true length of its answer."""

    body: bytes
    model: str
    output_tokens: int
    censored: bool  # cut at its limit, so left out of comparisons

    def view(self, tenant: str, max_chars: int) -> PromptView:
        """The request as the predictor reads it."""
        seen = view_of(tenant, decode(self.body, ChatRequest), max_chars)
        return structs.replace(seen, text=cut(seen.text, max_chars))


def of_file(path: Path, limit: int) -> list[Prompt]:
    """Requests of the first `limit` rows of the file's test side. Raises SettingsError."""
    rows = [(row, structs.replace(line, seq=place)) for place, (row, line) in enumerate(read(path))]
    wanted = {case.seq: case for case in choose(rows, fit_keys(shipped("models"))).cases}
    found: list[Prompt] = []
    for place, (row, line) in enumerate(rows):
        case = wanted.get(place)
        if case is not None and len(found) < limit:
            options = {name: row[name] for name in (*OPTIONS, "tools") if row.get(name) is not None}
            options["messages"] = row["messages"]
            found.append(prompt(line.model, options, line.output_tokens, censored=case.censored))
    return found


def generated(count: int) -> list[Prompt]:
    """Generated requests, the same each time."""
    found = []
    for row in seed_rows(count, seed=7):
        tokens, limit = row["output_tokens"], row["max_tokens"]
        options: dict[str, object] = {"messages": [{"role": "user", "content": row["prompt"]}]}
        options |= {"max_tokens": limit} if limit else {}
        found.append(prompt(row["model"], options, tokens, censored=0 < limit <= tokens))
    return found


def prompt(model: str, options: dict[str, object], tokens: int, *, censored: bool) -> Prompt:
    """A request with its truth put in."""
    tree = {"model": model, **options, "user": f"truth-{tokens}-{int(censored)}"}
    return Prompt(msgspec.json.encode(tree), model, tokens, censored)


def truth(body: bytes) -> tuple[int, bool]:
    """Output tokens of a request's answer, and True where that is its limit.

    A client's text cannot be mistaken for it: quotes inside are escaped.
    """
    found = TRUTH.search(body)
    assert found is not None, "a request without its truth"
    return int(found[1]), found[2] == b"1"


def models(prompts: Sequence[Prompt]) -> list[str]:
    """Names of the requests' models, each once."""
    return list(dict.fromkeys(one.model for one in prompts))
