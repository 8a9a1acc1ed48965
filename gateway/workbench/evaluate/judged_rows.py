"""Which rows are judged: read from a file of conversations, or from a gateway's own history.

A figure is worth nothing when the models saw the row. `models/fit_keys.bin` lists what they
saw, by conversation and by prompt, and a row that meets it is dropped and counted:

1. a file of which a good part was fitted (the file the models were trained from): the test
   side of `split` is judged, so that prompts linked to fitted ones stay out as well;
2. any other file of the format: every row that was not fitted;
3. history: vectors and keyed hashes, no text, so it cannot be known; the report says so.
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
from gateway.predict.manifest import ArtefactError, Folder
from gateway.predict.prompt_view import PromptView
from gateway.store import store
from gateway.workbench.split import groups, is_fit, last_user_text, normalise, row_keys
from gateway.workbench.split import unpack as unpack_keys

ALL_ROWS = 2**31  # no limit

Side = Literal["auto", "held", "unfitted"]
OWN_FILE_SHARE = 0.25  # of rows fitted, from which on FILE is taken for the training file
STRAY_SHARE = 0.05  # of a source's rows that may meet a fitted prompt by chance
TENANT = "evaluated"


class Case(Struct, frozen=True, gc=False):
    """One request to be forecast, and the truth."""

    seq: int
    source: str  # of history: the tenant
    lang: str
    view: PromptView  # tenant and task type are put in by the variant
    task_type: str
    output_tokens: int
    censored: bool
    first_seen: bool  # no earlier row has the same last user text
    has_tools: bool  # by parameter, tool message or a list of functions in the system text
    thinking: bool


class Chosen(Struct, frozen=True):
    """The rows to judge, and what became of the others."""

    cases: tuple[Case, ...]
    rows_read: int
    fitted_rows: int | None  # None: cannot be known
    side: str
    never_fitted: dict[str, tuple[Case, ...]]  # by source that is no part of what was fitted
    vectors: dict[str, Vector] = {}  # of history: by the text that stands for the prompt


class _Line(Struct):
    """What must be right in a line; more fields are welcome."""

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


def read(path: Path) -> list[tuple[Row, _Line]]:
    """Rows of a .jsonl or .jsonl.gz, in the order of `seq` (of lines where it is missing).

    Raises:
        SettingsError: it cannot be read, or a line is not of the format; names the line.
    """
    found: list[tuple[int, Row, _Line]] = []
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for number, text in enumerate(lines, 1):
                if not text.strip():
                    continue
                row = msgspec.json.decode(text)
                line = msgspec.convert(row, _Line)
                found.append((number if line.seq is None else line.seq, row, line))
    except (OSError, EOFError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: line {number}: {error}") from None
    found.sort(key=lambda item: item[0])
    return [(row, line) for _, row, line in found if line.output_tokens > 0]


def fit_keys(models: Path) -> frozenset[bytes]:
    """What the shipped models saw. Raises SettingsError where that is not known."""
    try:
        return unpack_keys(Folder(models).path("fit_keys").read_bytes())
    except (ArtefactError, ValueError, OSError) as error:
        raise SettingsError(f"{models}: what the models were fitted on: {error}") from None


def choose(
    rows: Sequence[tuple[Row, _Line]],
    fitted: frozenset[bytes],
    side: Side = "auto",
    limit: int | None = None,
    per_source: int = 1000,
) -> Chosen:
    """The rows to judge, in order; of each source never fitted at most `per_source` apart.

    A source counts as never fitted when no more than a few of its rows meet a fitted prompt
    (people ask the same things everywhere); those rows are left out of it.
    """
    keys = [row_keys(row) for row, _ in rows]
    seen = [any(key in fitted for key in own) for own in keys]
    if side == "auto":
        side = "held" if sum(seen) > OWN_FILE_SHARE * len(rows) else "unfitted"
    kept = [not yes for yes in seen]
    if side == "held":
        kept = [yes and not is_fit(g) for yes, g in zip(kept, groups(keys), strict=True)]
    apart: dict[str, list[tuple[Row, _Line]]] = {}
    strays: Counter[str] = Counter()
    for pair, yes in zip(rows, seen, strict=True):
        strays[pair[1].source] += yes
        if not yes:
            apart.setdefault(pair[1].source, []).append(pair)
    return Chosen(
        cases=_cases([pair for pair, yes in zip(rows, kept, strict=True) if yes][:limit]),
        rows_read=len(rows),
        fitted_rows=sum(seen),
        side=side,
        never_fitted={
            name: _cases(own[:per_source])
            for name, own in sorted(apart.items())
            if strays[name] <= STRAY_SHARE * (strays[name] + len(own))
        },
    )


def _cases(rows: Sequence[tuple[Row, _Line]]) -> tuple[Case, ...]:
    asked: set[str] = set()
    cases = []
    for place, (row, line) in enumerate(rows):
        prompt = normalise(last_user_text(row))
        cases.append(_case(place, row, line, prompt not in asked))
        asked.add(prompt)
    return tuple(cases)


def _case(place: int, row: Row, line: _Line, first_seen: bool) -> Case:
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


def read_history(path: Path, encoder: str, width: int, limit: int | None = None) -> Chosen:
    """The newest rows of a gateway's store, oldest first; a running gateway is not disturbed.

    A row's vector is known and its text is not: a made-up text stands for the prompt, and
    `vectors` knows the vector of it. Rows of another encoder and failed ones are left out.

    Raises:
        SettingsError: it is no store of this program, or of another schema.
    """
    found = store.read_history(path, limit or ALL_ROWS)
    asked: set[bytes] = set()
    cases: list[Case] = []
    vectors: dict[str, Vector] = {}
    for place, row in enumerate(found):
        vector = unpack_vector(row.vector, width)
        answered = row.output_tokens > 0 and (row.success or row.censored)
        if row.encoder != encoder or vector is None or not answered:
            continue
        text = f"row {place}"
        vectors[text] = vector.astype(np.float32)
        cases.append(
            Case(
                seq=place,
                source=row.tenant,
                lang="",
                view=PromptView(
                    tenant=row.tenant,
                    model=row.model,
                    text=text,
                    max_tokens=row.max_tokens or None,
                ),
                task_type=row.task_type,
                output_tokens=row.output_tokens,
                censored=row.censored,
                first_seen=row.prompt_key not in asked,
                has_tools=False,
                thinking=False,
            )
        )
        asked.add(row.prompt_key)
    return Chosen(tuple(cases), len(found), None, "history", {}, vectors)


def counts(cases: Sequence[Case]) -> dict[str, int]:
    """Rows by source, most first."""
    return dict(Counter(case.source for case in cases).most_common())
