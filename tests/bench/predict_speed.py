"""Microseconds of the predictor's parts: `python -m tests.bench.predict_speed`.

Stage 0 as the loop calls it, one call after the other (a fresh prompt each time, so the repeat
cache never helps; stage0.py has it beside other work); refining and learning as the predictor's
process does them, on a full window, alone on the core.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from gateway.predict.artefacts import Artefacts
from gateway.predict.encoder import pack
from gateway.predict.features import features
from gateway.predict.lesson import Lesson
from gateway.predict.process.child_client import start_child
from gateway.predict.process.predictor import Predictor
from gateway.predict.prompt_view import PromptView, prompt_key
from gateway.predict.refit.refit import refit
from gateway.predict.teaching import LearningForecaster
from gateway.settings.schema import Predict
from gateway.shipped import own_command, own_environ, shipped
from gateway.types import HistoryRow
from tests.bench.stage0 import wait_ready
from tests.unit.predict.rows import ruled_rows

TEXT = """please explain the budget of a small town in detail and list three ways how to write
code for a parser that reads numbers from tables while the river rises again"""


def text_of(rng: random.Random, chars: int) -> str:
    words = TEXT.split()
    return " ".join(rng.choice(words) for _ in range(chars // 3))[:chars]


def view_of(rng: random.Random, chars: int) -> PromptView:
    messages = [
        {"role": "system", "content": "You are a helpful assistant. Answer briefly."},
        {"role": "user", "content": f"{rng.randrange(10**6)} {text_of(rng, chars)}"},
    ]
    return PromptView.of_chat(messages, tenant="bench", model="gpt-5.4-mini", max_tokens=1024)


def report(name: str, work: Callable[[int], object], times: int) -> None:
    taken = []
    for i in range(times):
        begin = time.perf_counter()
        work(i)
        taken.append((time.perf_counter() - begin) * 1e6)
    p50, p99 = np.percentile(taken, (50, 99))
    print(f"{name:44s} p50 {p50:9.1f} µs   p99 {p99:9.1f} µs   n {times}")


def history(count: int) -> list[HistoryRow]:
    vectors = np.random.default_rng(0).standard_normal((count, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [
        HistoryRow(
            wall_s=float(i),
            tenant=("bench", "other")[i % 2],
            model="gpt-5.4-mini",
            task_type="",
            prompt_key=b"",
            encoder="minilm-l6-length-1",
            vector=pack(vector),
            prompt_tokens=10,
            output_tokens=10 + i % 500,
            max_tokens=0,
            censored=False,
            success=True,
        )
        for i, vector in enumerate(vectors)
    ]


def main() -> None:
    rng = random.Random(0)
    models: Path = shipped("models")
    settings = Predict()
    rows = history(settings.history_window_size)
    asyncio.run(stage0_speed(settings, models, rng, rows))

    forecaster = LearningForecaster(
        settings, Artefacts(models, "minilm-l6-length-1", 64), b"key", {}
    )
    begin = time.perf_counter()
    for row in rows:
        forecaster.remember(row)
    print(f"index of {len(rows)} rows built in {time.perf_counter() - begin:.2f} s")
    for tokens, chars in ((16, 45), (64, 4_000)):
        views = [view_of(rng, chars) for _ in range(150)]
        report(f"refine, ~{tokens} tokens", lambda i, v=views: forecaster.forecast(v[i]), 150)
        report("refine, vector cached", lambda i, v=views: forecaster.forecast(v[i]), 150)
        report("learn, vector cached", lambda i, v=views: learn(forecaster, v[i]), 150)
    refit_speed(settings, models)


async def stage0_speed(
    settings: Predict, models: Path, rng: random.Random, rows: Sequence[HistoryRow]
) -> None:
    """Stage 0 as the loop calls it, its child open and idle."""
    begin = time.perf_counter()
    predictor = Predictor(
        settings,
        models,
        connect=partial(start_child, own_command("predictor"), own_environ()),
        history=lambda _: [rows],
    )
    predictor.start()
    await wait_ready(predictor)
    print(f"start: {time.perf_counter() - begin:.2f} s, {predictor.snapshot().state}")
    for chars in (100, 2_000, 4_000, 1_000_000):
        # The 1 MB text is cut when the view is made; making views is timed apart.
        views = [view_of(rng, chars) for _ in range(20 if chars > 10_000 else 3_000)]
        report(
            f"stage 0 forecast, {chars} characters",
            lambda i, v=views: predictor.forecast(v[i]),
            len(views),
        )
    views = [view_of(rng, 4_000) for _ in range(2000)]
    report("  features", lambda i: features(views[i]), len(views))
    report("  prompt key", lambda i: prompt_key(views[i], b"key"), len(views))
    messages = [{"role": "user", "content": text_of(rng, 4_000)}]
    report("  view", lambda i: PromptView.of_chat(messages, tenant="t", model="m"), 2000)
    await predictor.stop(5)


def learn(forecaster: LearningForecaster, seen: PromptView) -> None:
    forecaster.learn(Lesson(seen, 99, 20, False, True, 0.0))


def refit_speed(settings: Predict, models: Path) -> None:
    """One refit over as many rows as it takes by default, judged and fitted."""
    artefacts = Artefacts(models, settings.embedding_model_name, 64)
    rows = ruled_rows(artefacts, settings.refit_rows)
    with TemporaryDirectory() as out:
        done = refit(rows, artefacts, Path(out))
        size = sum(path.stat().st_size for path in Path(out).rglob("*") if path.is_file())
    print(f"refit of {len(rows)} rows: {done.seconds} s, {size / 1e6:.1f} MB on disk")


if __name__ == "__main__":
    main()
