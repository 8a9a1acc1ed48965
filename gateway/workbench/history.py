"""Work on the stored history: `sagesched history seed` and `sagesched history import FILE`.

Both teach finished requests to a predictor in this process and commit its rows to the store of
the settings. A gateway on the same store has them after its next start.

An imported file has one JSON object a line, with the fields of `POST /ingest` and what data sets
name besides. A line that cannot be used is counted and named by its number, never by its content;
the rest is read. Lines are read one at a time and bounded, so a file may have any size.

    {"messages": [{"role": "user", "content": "…"}], "model": "m", "output_tokens": 212}
"""

from __future__ import annotations

import argparse
import gzip
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec
from msgspec import Meta, Struct, structs

from gateway.demo.history_rows import rows
from gateway.errors import SettingsError
from gateway.predict.artefacts import Artefacts
from gateway.predict.encoder import exported_folder
from gateway.predict.lesson import Lesson
from gateway.predict.prompt_view import PromptView, cut
from gateway.predict.teaching import LearningForecaster
from gateway.settings import load
from gateway.settings.schema import Settings
from gateway.shipped import shipped
from gateway.store.store import Store
from gateway.types import HistoryRow
from gateway.workbench.arguments import add_config

MAX_LINE_BYTES = 8 * 2**20
PROBLEMS = 20  # lines named by number; the rest is only counted

Tokens = Annotated[int, Meta(ge=0, le=10_000_000)]


class _HistoryLine(Struct):
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


class HistoryFile:
    """Lessons of a file, in its order; counts of good and bad lines fill as it is read.

    Args:
        path: .jsonl or .jsonl.gz.
        tenant: the owner of the history.
        model: for lines that name none.
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
        self._decoder = msgspec.json.Decoder(_HistoryLine)

    def __iter__(self) -> Iterator[Lesson]:
        """Yield the lessons. Raises SettingsError where the file cannot be read."""
        try:
            with _opened(self._path) as file:
                for number, line in _lines(file):
                    lesson = self._lesson(number, line)
                    if lesson is not None:
                        self.good += 1
                        yield lesson
        except (OSError, EOFError, gzip.BadGzipFile) as error:
            raise SettingsError(f"{self._path}: cannot be read: {error}") from None

    def _lesson(self, number: int, line: bytes | None) -> Lesson | None:
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

    def _of(self, line: _HistoryLine) -> Lesson:
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
        at_limit = limit is not None and line.output_tokens >= limit
        return Lesson(
            view=view,
            output_tokens=line.output_tokens,
            prompt_tokens=line.prompt_tokens,
            censored=at_limit or not line.success if line.censored is None else line.censored,
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `seed` and `import`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = "fill the history with demo rows"
    seed = commands.add_parser("seed", help=text, description=text)
    seed.add_argument("--count", type=int, default=300)
    seed.add_argument("--seed", type=int, default=0)
    text = "learn finished requests from a file"
    file = commands.add_parser("import", help=text, description=text)
    file.add_argument(
        "file", type=Path, help="JSON lines with the fields of POST /ingest, .gz or not"
    )
    for command, call in ((seed, _seed), (file, _import)):
        command.set_defaults(history=call)
        add_config(command)
        command.add_argument("--tenant", default=None, help="default: the first tenant")


def run(args: argparse.Namespace) -> int:
    """Teach; 0, or 1 where a file had lines but none could be learned. Raises SettingsError."""
    settings = load.load(args.config)
    tenants = [tenant.name for tenant in settings.tenants]
    if args.tenant is not None and args.tenant not in tenants:
        raise SettingsError(f"there is no tenant {args.tenant!r}; there are: {', '.join(tenants)}")
    code: int = args.history(args, settings, args.tenant or tenants[0])
    return code


def _seed(args: argparse.Namespace, settings: Settings, tenant: str) -> int:
    started = time.monotonic()
    count = teach(settings, demo_lessons(args.count, args.seed, tenant))
    print(f"{count} rows in {time.monotonic() - started:.1f} s, in {settings.store.path}")
    return 0


def _import(args: argparse.Namespace, settings: Settings, tenant: str) -> int:
    file = HistoryFile(
        args.file,
        tenant=tenant,
        model=next(iter(settings.accounts[0].model_map)),
        wall_s=time.time(),
        max_chars=settings.predict.max_chars,
    )
    count = teach(settings, file)
    print(f"{count} rows learned into {settings.store.path}, {file.bad} lines left out")
    for problem in file.problems:
        print(f"  {problem}", file=sys.stderr)
    return 0 if count or not file.bad else 1


def demo_lessons(count: int, seed: int, tenant: str) -> Iterator[Lesson]:
    """Yield `count` finished requests of the demo's grammar for the tenant."""
    for row in rows(count, seed):
        limit = row["max_tokens"] or None
        yield Lesson(
            view=PromptView.of_prompt(
                row["prompt"],
                tenant=tenant,
                model=row["model"],
                max_tokens=limit,
                task_type=row["task_type"],
            ),
            output_tokens=row["output_tokens"],
            prompt_tokens=row["prompt_tokens"],
            censored=limit is not None and row["output_tokens"] >= limit,
            success=row["success"],
            wall_s=time.time(),
        )


def teach(settings: Settings, lessons: Iterable[Lesson]) -> int:
    """Learn finished requests into the store of the settings; the number of rows committed.

    A lesson that the predictor cannot learn is left out.

    Raises:
        SettingsError: the store or a file cannot be read.
    """
    store = Store(Path(settings.store.path), settings.store)
    store.start()
    stored = 0

    def committed(error: Exception | None) -> None:
        nonlocal stored
        stored += error is None

    try:
        forecaster = _forecaster(settings, store)
        try:
            for lesson in lessons:
                row = _learned(forecaster, lesson, settings.predict.max_chars)
                if row is None:
                    continue
                while not store.append_history(row, committed):
                    store.get_state("calibration")  # waits for all that was queued before it
        finally:
            store.put_state("calibration", forecaster.calibration.dump())
    finally:
        store.stop(60.0)
    return stored


def _forecaster(settings: Settings, store: Store) -> LearningForecaster:
    """The gateway's own forecaster with its calibration, and an empty index."""
    predict = settings.predict
    artefacts = Artefacts(
        *(shipped("models"), predict.embedding_model_name, predict.max_encoder_tokens),
        exported=exported_folder(predict.models_path),
    )
    forecaster = LearningForecaster(
        predict, artefacts, store.prompt_secret(), {}, settings.private_tenants
    )
    if (calibration := store.get_state("calibration")) is not None:
        forecaster.residuals.restore(calibration)
    return forecaster


def _learned(forecaster: LearningForecaster, lesson: Lesson, max_chars: int) -> HistoryRow | None:
    """The row of a lesson; None where it cannot be learned."""
    view = structs.replace(lesson.view, text=cut(lesson.view.text, max_chars))
    try:
        return forecaster.learn(structs.replace(lesson, view=view))
    except Exception:
        return None
