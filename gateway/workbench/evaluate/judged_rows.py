"""Rows to be judged, read from a file of conversations or from a gateway's own history.

A figure is worth nothing when the models saw the row. `models/fit_keys.bin` lists the
conversations and prompts that they saw; rows that meet it are dropped and counted:

1. a file of which a good part was fitted (the one the models were trained from): the test side of
   `split` is judged, so that prompts linked to fitted ones stay out as well;
2. any other file of the format: every row that was not fitted;
3. history: it holds vectors and keyed hashes but no text, so what was fitted is unknown.
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import Struct

from gateway.errors import SettingsError
from gateway.predict.encoder import Vector
from gateway.predict.encoder import unpack as unpack_vector
from gateway.predict.manifest import ArtefactError, ArtefactFolder
from gateway.predict.prompt_view import PromptView
from gateway.store import store
from gateway.types import HistoryRow
from gateway.workbench.split import groups, is_fit, last_user_text, normalise, row_keys, was_fitted
from gateway.workbench.split import unpack as unpack_keys

ALL_ROWS = 2**31  # no limit

Side = Literal["auto", "held", "unfitted"]
OWN_FILE_SHARE = 0.25  # of fitted rows, from which on a file counts as the training file
STRAY_SHARE = 0.05  # of a source's rows that may meet a fitted prompt by chance
TENANT = "evaluated"


class Case(Struct, frozen=True, gc=False):
    """One request to be forecast, and the truth about its answer."""

    seq: int
    source: str  # of history: the tenant
    lang: str
    view: PromptView  # variants may change its tenant and task type
    task_type: str
    output_tokens: int
    censored: bool
    first_seen: bool  # no earlier row has the same last user text
    has_tools: bool  # as a parameter, a tool message or functions listed in the system text
    thinking: bool


class JudgedRows(Struct, frozen=True):
    """Rows to judge in order, and counts of the others."""

    cases: tuple[Case, ...]
    rows_read: int
    fitted_rows: int | None  # None: unknown
    side: str
    never_fitted: dict[str, tuple[Case, ...]]  # by source that no model was fitted on
    vectors: dict[str, Vector] = {}  # of history, by the text that stands for the prompt


class _ConversationLine(Struct):
    """Fields of a line that are checked; others may be there."""

    conversation_id: str | int
    messages: list[dict[str, Any]]
    model: str
    output_tokens: int
    seq: int | None = None
    source: str = ""
    lang: str = ""
    task_type: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    reasoning_effort: str | None = None
    enable_thinking: bool | None = None
    thinking_budget: int | None = None
    tools: list[Any] | None = None


Row = dict[str, Any]


def read(path: Path) -> list[tuple[Row, _ConversationLine]]:
    """Rows of a .jsonl or .jsonl.gz, in the order of `seq` (of lines where it is missing).

    Raises:
        SettingsError: the file cannot be read, or a line (named) has another format.
    """
    found: list[tuple[int, Row, _ConversationLine]] = []
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for number, text in enumerate(lines, 1):
                if not text.strip():
                    continue
                row = msgspec.json.decode(text)
                line = msgspec.convert(row, _ConversationLine)
                found.append((number if line.seq is None else line.seq, row, line))
    except (OSError, EOFError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: line {number}: {error}") from None
    found.sort(key=lambda item: item[0])
    return [(row, line) for _, row, line in found if line.output_tokens > 0]


def fit_keys(models: Path) -> frozenset[bytes]:
    """Keys of the rows that the shipped models saw. Raises SettingsError where they are missing."""
    try:
        return unpack_keys(ArtefactFolder(models).path("fit_keys").read_bytes())
    except (ArtefactError, ValueError, OSError) as error:
        raise SettingsError(f"{models}: what the models were fitted on: {error}") from None


def choose(
    rows: Sequence[tuple[Row, _ConversationLine]],
    fitted: frozenset[bytes],
    side: Side = "auto",
    limit: int | None = None,
    per_source: int = 1000,
) -> JudgedRows:
    """Choose the rows to judge, in order, and the sources that no model was fitted on.

    A source counts as never fitted when at most STRAY_SHARE of its rows meet a fitted prompt
    (people ask the same things everywhere); those rows are left out of it.

    Args:
        side: `held` judges the test side of the split, `unfitted` every row not fitted, `auto`
            the first where the file is the one the models were trained from.
        limit: at most so many rows.
        per_source: at most so many rows of each source never fitted.
    """
    keys = [row_keys(row) for row, _ in rows]
    seen = [was_fitted(own, fitted) for own in keys]
    if side == "auto":
        side = "held" if sum(seen) > OWN_FILE_SHARE * len(rows) else "unfitted"
    judged = [not was_seen for was_seen in seen]
    if side == "held":
        judged = [new and not is_fit(g) for new, g in zip(judged, groups(keys), strict=True)]
    return JudgedRows(
        cases=_cases([pair for pair, yes in zip(rows, judged, strict=True) if yes][:limit]),
        rows_read=len(rows),
        fitted_rows=sum(seen),
        side=side,
        never_fitted=_never_fitted(rows, seen, per_source),
    )


def _never_fitted(
    rows: Sequence[tuple[Row, _ConversationLine]], seen: Sequence[bool], per_source: int
) -> dict[str, tuple[Case, ...]]:
    apart: dict[str, list[tuple[Row, _ConversationLine]]] = {}
    strays: Counter[str] = Counter()
    for pair, was_seen in zip(rows, seen, strict=True):
        strays[pair[1].source] += was_seen
        if not was_seen:
            apart.setdefault(pair[1].source, []).append(pair)
    return {
        name: _cases(own[:per_source])
        for name, own in sorted(apart.items())
        if strays[name] <= STRAY_SHARE * (strays[name] + len(own))
    }


def _cases(rows: Sequence[tuple[Row, _ConversationLine]]) -> tuple[Case, ...]:
    prompts: set[str] = set()
    cases = []
    for place, (row, line) in enumerate(rows):
        prompt = normalise(last_user_text(row))
        cases.append(_case(place, row, line, prompt not in prompts))
        prompts.add(prompt)
    return tuple(cases)


def _case(place: int, row: Row, line: _ConversationLine, first_seen: bool) -> Case:
    view = PromptView.of_chat(
        line.messages,
        tenant=TENANT,
        model=line.model,
        max_tokens=line.max_tokens,
        temperature=line.temperature,
        reasoning_effort=line.reasoning_effort,
        tools=len(line.tools or ()),
    )
    lists = any(
        message.get("role") == "system" and '"parameters"' in str(message.get("content"))
        for message in line.messages
    )
    return Case(
        seq=place if line.seq is None else line.seq,
        source=line.source,
        lang=line.lang,
        view=view,
        task_type=line.task_type or "",
        output_tokens=line.output_tokens,
        censored=bool(line.max_tokens) and line.output_tokens >= (line.max_tokens or 0),
        first_seen=first_seen,
        has_tools=bool(line.tools) or view.tool_results > 0 or lists,
        thinking=bool(line.enable_thinking or line.thinking_budget)
        or line.reasoning_effort not in (None, "none", "minimal"),
    )


# --- history ----------------------------------------------------------------------------


def read_history(path: Path, encoder: str, width: int, limit: int | None = None) -> JudgedRows:
    """Read the newest rows of a gateway's store, oldest first; a running gateway is not disturbed.

    A row has a vector but no text: a made-up text stands for its prompt, and `vectors` holds the
    vector of that text. Rows of another encoder and failed ones are left out.

    Raises:
        SettingsError: the file is no store of this program, or has another schema.
    """
    rows = store.read_history(path, limit or ALL_ROWS)
    prompts: set[bytes] = set()
    cases: list[Case] = []
    vectors: dict[str, Vector] = {}
    for place, row in enumerate(rows):
        vector = unpack_vector(row.vector, width)
        answered = row.output_tokens > 0 and (row.success or row.censored)
        if row.encoder != encoder or vector is None or not answered:
            continue
        case = _history_case(place, row, row.prompt_key not in prompts)
        vectors[case.view.text] = vector.astype(np.float32)
        cases.append(case)
        prompts.add(row.prompt_key)
    return JudgedRows(tuple(cases), len(rows), None, "history", {}, vectors)


def _history_case(place: int, row: HistoryRow, first_seen: bool) -> Case:
    limit = row.max_tokens or None
    view = PromptView(tenant=row.tenant, model=row.model, text=f"row {place}", max_tokens=limit)
    return Case(
        seq=place,
        source=row.tenant,
        lang="",
        view=view,
        task_type=row.task_type,
        output_tokens=row.output_tokens,
        censored=row.censored,
        first_seen=first_seen,
        has_tools=False,
        thinking=False,
    )


def counts(cases: Sequence[Case]) -> dict[str, int]:
    """Rows by source, most first."""
    return dict(Counter(case.source for case in cases).most_common())
