"""Stage 0 on an event loop of its own: alone, and while the predictor's process has its hands full.

    python -m tests.bench.stage0 --rates 50,200,500 --seconds 10 [--data FILE]

Alone twice: one call after the other, and at the same times as under load, when each call finds
caches that others have used. One loop, one predictor with its child process, one core for both
(whoever starts this pins it). At each rate requests come at Poisson times; each is forecast,
handed on to be refined, and learned from a little later, as in the gateway; the relay's work
is not here. Wall time of the
call, and the thread's CPU time, in µs. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import time
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from msgspec import structs

from gateway.predict.lesson import Lesson
from gateway.predict.process.child_client import start_child
from gateway.predict.process.predictor import Predictor
from gateway.predict.prompt_view import PromptView
from gateway.settings.schema import Predict
from gateway.shipped import own_command, own_environ, shipped
from gateway.workbench.tables import table as table_of
from tests.bench.full_window import READY_S, artefacts, rows
from tests.bench.prompts import Prompt, generated, of_file

MOST_PROMPTS = 4000
ANSWER_S = 0.5  # from a request to its answer
Pairs = Sequence[tuple[Prompt, PromptView]]


class Times:
    """Times of one call after another."""

    def __init__(self) -> None:
        self._wall_s: list[float] = []
        self._cpu_s: list[float] = []

    def __len__(self) -> int:
        return len(self._wall_s)

    def forecast(self, predictor: Predictor, view: PromptView) -> None:
        cpu_s, began_s = time.thread_time(), time.perf_counter()
        predictor.forecast(view)
        self._wall_s.append(time.perf_counter() - began_s)
        self._cpu_s.append(time.thread_time() - cpu_s)

    def report(self) -> dict[str, float]:
        wall, cpu = np.array(self._wall_s) * 1e6, np.array(self._cpu_s) * 1e6
        return {
            "calls": len(wall),
            "p50": float(np.percentile(wall, 50)),
            "p99": float(np.percentile(wall, 99)),
            "max": float(wall.max()),
            "cpu_p50": float(np.percentile(cpu, 50)),
            "cpu_p99": float(np.percentile(cpu, 99)),
        }


def alone(predictor: Predictor, pairs: Pairs) -> dict[str, float]:
    """One after the other, nothing else."""
    times = Times()
    for _, view in pairs:
        times.forecast(predictor, view)
    return times.report()


async def under_load(
    predictor: Predictor,
    pairs: Pairs,
    rate: float,
    seconds: float,
    seed: int,
    *,
    idle: bool = False,
) -> dict[str, float]:
    """With everything the child does for such a rate; with nothing of it when `idle`."""
    chance, times = random.Random(seed), Times()
    began, before_s = time.perf_counter(), predictor.snapshot().seconds
    due = began
    while due - began < seconds:
        due += chance.expovariate(rate)
        pause = due - time.perf_counter()
        if pause > 0:
            await asyncio.sleep(pause)
        prompt, view = chance.choice(pairs)
        # Not the same prompt twice: a repeat would come from the cache.
        view = structs.replace(view, text=f"{view.text[:-8]} {len(times)}-{seed}")
        times.forecast(predictor, view)
        if not idle:
            _hand_on(predictor, prompt, view)
    at_work = (predictor.snapshot().seconds - before_s) / (time.perf_counter() - began)
    return {**times.report(), "child_at_work": at_work}


def _hand_on(predictor: Predictor, prompt: Prompt, view: PromptView) -> None:
    def learn() -> None:
        predictor.learn(
            Lesson(
                view=view,
                output_tokens=prompt.output_tokens,
                prompt_tokens=None,
                censored=prompt.censored,
                success=True,
                wall_s=time.time(),
            )
        )

    predictor.refine(view, lambda _: None, lambda: True)
    asyncio.get_running_loop().call_later(ANSWER_S, learn)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Every part of the bench on one loop of its own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(options))


async def _run(options: argparse.Namespace) -> dict[str, Any]:
    settings = Predict()
    prompts = generated(MOST_PROMPTS) if not options.data else of_file(options.data, MOST_PROMPTS)
    pairs = [(one, one.view("bench", settings.max_chars)) for one in prompts]
    history = rows(settings.history_window_size, artefacts())
    predictor = Predictor(
        settings,
        shipped("models"),
        history=lambda _: [history],
        connect=partial(start_child, own_command("predictor"), own_environ()),
    )
    predictor.start()
    try:
        await wait_ready(predictor)
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)  # as the gateway has it
        alone(predictor, pairs[:200])  # the first calls load what is loaded late
        figures = {"alone, one after the other": alone(predictor, pairs)}
        rates = [float(rate) for rate in options.rates.split(",")]
        # First those with nothing beside: the others leave the child work for a while.
        for number, (idle, rate) in enumerate(product((True, False), rates)):
            figures[f"at {rate:g}/s{', alone' if idle else ''}"] = await under_load(
                predictor, pairs, rate, options.seconds, number, idle=idle
            )
        return figures
    finally:
        await predictor.stop(1.0)


async def wait_ready(predictor: Predictor) -> None:
    """Wait until the predictor's child is open."""
    async with asyncio.timeout(READY_S):
        while not predictor.snapshot().ready:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.1)
    assert predictor.snapshot().state == "ready", predictor.snapshot()


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    columns = ("calls", "p50", "p99", "max", "cpu_p50", "cpu_p99")
    return table_of(
        ["", "calls", "p50 µs", "p99 µs", "largest", "CPU p50", "CPU p99", "child at work"],
        (
            [
                name,
                *(f"{one[key]:.0f}" for key in columns),
                f"{one['child_at_work']:.0%}" if "child_at_work" in one else "",
            ]
            for name, one in found.items()
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rates", default="50,200,500")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--data", type=Path)
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()
