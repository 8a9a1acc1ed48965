"""Finished requests from a file, one JSON object a line: `sagesched history import FILE`.

The fields are those of `POST /ingest`, with what data sets name besides. A line that cannot
be used is counted and said by number, never by content; the rest is read. Lines are read one
at a time and bounded, so that a file of any size does.

    {"messages": [{"role": "user", "content": "…"}], "model": "m", "output_tokens": 212}
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec
from msgspec import Meta, Struct

from gateway.errors import SettingsError
from gateway.predict.view import PromptView

MAX_LINE_BYTES = 8 * 2**20
PROBLEMS = 20  # lines said by number; the rest is counted

Tokens = Annotated[int, Meta(ge=0, le=10_000_000)]


class _Line(Struct):
    output_tokens: Tokens
    prompt: str | None = None
    messages: list[Any] | None = None
    model: str | None = None
    prompt_tokens: Tokens | None = None
    max_tokens: Tokens | None = None
    temperature: float | None = None
    reasoning_effort: str | None = None
    task_type: str | None = None
    success: bool = True
    censored: bool | None = None
    timestamp: float | str | None = None


class Example(Struct, frozen=True):
    """One finished request, ready to be learned from (`Predictor.learn`)."""

    view: PromptView
    output_tokens: int
    prompt_tokens: int | None
    censored: bool
    success: bool
    wall_s: float


class Reading:
    """The examples of a file, in its order.

    Args:
        path: .jsonl or .jsonl.gz.
        tenant: whose history it becomes.
        model: of lines that name none.
        wall_s: time of lines that have none, Unix seconds.
        max_chars: `predict.max_chars`.
    """

    def __init__(
        self, path: Path, *, tenant: str, model: str, wall_s: float, max_chars: int = 2000
    ) -> None:
        self.good = self.bad = 0
        self.problems: list[str] = []
        self._path = path
        self._tenant, self._model, self._wall_s = tenant, model, wall_s
        self._max_chars = max_chars
        self._decoder = msgspec.json.Decoder(_Line)

    def __iter__(self) -> Iterator[Example]:
        """Raises SettingsError where the file cannot be read."""
        try:
            with _opened(self._path) as file:
                for number, line in _lines(file):
                    example = self._example(number, line)
                    if example is not None:
                        self.good += 1
                        yield example
        except (OSError, EOFError, gzip.BadGzipFile) as error:
            raise SettingsError(f"{self._path}: cannot be read: {error}") from None

    def _example(self, number: int, line: bytes | None) -> Example | None:
        if line is not None and not line.strip():
            return None
        try:
            if line is None:
                raise ValueError(f"longer than {MAX_LINE_BYTES} bytes")
            return self._of(self._decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            self.bad += 1
            if len(self.problems) < PROBLEMS:
                self.problems.append(f"line {number}: {error}")
            return None

    def _of(self, line: _Line) -> Example:
        messages = line.messages
        if messages is None:
            if line.prompt is None:
                raise ValueError("neither prompt nor messages")
            messages = [{"role": "user", "content": line.prompt}]
        limit = line.max_tokens or None
        view = PromptView.of_chat(
            messages,
            tenant=self._tenant,
            model=line.model or self._model,
            max_tokens=limit,
            temperature=line.temperature,
            reasoning_effort=line.reasoning_effort,
            task_type=line.task_type,
            max_chars=self._max_chars,
        )
        if view.messages == 0:
            raise ValueError("no message with a role")
        cut = limit is not None and line.output_tokens >= limit
        return Example(
            view=view,
            output_tokens=line.output_tokens,
            prompt_tokens=line.prompt_tokens,
            censored=cut or not line.success if line.censored is None else line.censored,
            success=line.success,
            wall_s=self._time(line.timestamp),
        )

    def _time(self, stamp: float | str | None) -> float:
        if isinstance(stamp, str):
            moment = datetime.fromisoformat(stamp)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        return self._wall_s if stamp is None else float(stamp)


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines; None for one that is too long, which is skipped to its end."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) <= MAX_LINE_BYTES:
            yield number, line
            continue
        yield number, None
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES)
