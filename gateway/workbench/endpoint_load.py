"""`sagesched load`: open-loop load on any OpenAI-compatible endpoint.

It sends chat requests of real conversations (`--data`) or the demo's own, at a rate with Poisson
gaps or in the rhythm of a trace. Open loop: a slow endpoint does not slow the arrivals, as it
would not slow its users. Sizes in the table are by the answers' usage, so short and heavy are true
where the endpoint counts tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from gateway.errors import SettingsError
from gateway.types import MEDIUM_TOKENS, SHORT_TOKENS
from gateway.workbench.arguments import add_data, check_names
from gateway.workbench.figures import Floats, percentile
from gateway.workbench.load_client import (
    LoadRun,
    PlannedRequest,
    RequestTiming,
    chat_body,
    send_all,
)
from gateway.workbench.progress import Progress
from gateway.workbench.request_texts import request_texts
from gateway.workbench.simulate import arrival_gaps as arrivals
from gateway.workbench.simulate.request_rows import MIXES, draw_sizes

KEY_ENV = "SAGESCHED_LOAD_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is sent, when and where to."""
    add = parser.add_argument
    add("url", help="the base URL, such as http://127.0.0.1:3000/v1")
    add("--model", default="", help="default: each row's own")
    add("--rate", type=float, default=5.0, help="requests a second, Poisson")
    add("--requests", type=int, default=200)
    add_data(parser, "conversations; default: the demo's own")
    add("--arrivals", type=Path, metavar="CSV", help="a trace's rhythm instead of --rate")
    add("--speed", type=float, default=1.0, help="of the trace")
    add("--mix", default="as-is", help="as-is, balanced, heavy, published")
    add("--stream-share", type=float, default=1.0)
    add("--seed", type=int, default=0)
    add("--timeout", type=float, default=600.0, metavar="SECONDS")
    add("--out", type=Path, metavar="FILE", help="all figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Send, print a table; 0, or 1 where not every request was answered in full.

    The key comes from the environment (SAGESCHED_LOAD_KEY): others can read a command line.

    Raises:
        SettingsError: an option or a file is unusable.
    """
    requests = _planned(args)
    bar = Progress("requests", len(requests))
    key = os.environ.get(KEY_ENV, "anything")
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    url = args.url.rstrip("/") + "/chat/completions"
    load = asyncio.run(send_all(url, requests, headers, bar.step, args.timeout))
    report = tree(load)
    if args.out is not None:
        args.out.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))
    print(terminal_table(report))
    return 0 if all(timing.is_complete for timing in load.timings) else 1


def _planned(args: argparse.Namespace) -> list[PlannedRequest]:
    check_names("load", "mix", [args.mix], tuple(MIXES))
    rows = request_texts(args.data)
    chance = np.random.default_rng(args.seed)
    tokens = [row.output_tokens for row in rows]
    places = draw_sizes(tokens, args.requests, args.mix, chance).tolist()
    texts = [rows[place] for place in places]
    streams = (chance.random(args.requests) < args.stream_share).tolist()
    return [
        PlannedRequest(
            at_s,
            chat_body(
                args.model or text.model,
                text.messages,
                stream=stream,
                max_tokens=text.max_tokens,
            ),
        )
        for at_s, text, stream in zip(_times(args, chance), texts, streams, strict=True)
    ]


def _times(args: argparse.Namespace, chance: np.random.Generator) -> list[float]:
    if args.arrivals is not None:
        gaps = arrivals.traced(arrivals.read(args.arrivals), args.requests, chance)
        gaps = gaps / args.speed
    elif args.rate > 0:
        gaps = arrivals.poisson(args.requests, chance) / args.rate
    else:
        raise SettingsError("load: expected a rate above 0, or a trace")
    times: list[float] = gaps.cumsum().tolist()
    return times


def tree(load: LoadRun) -> dict[str, Any]:
    """All figures; times are seconds."""
    timings = load.timings
    done = [timing for timing in timings if timing.is_complete]
    span_s = max(timing.planned.at_s for timing in timings)
    sizes = {
        "all": done,
        "short": [t for t in done if t.output_tokens and t.output_tokens <= SHORT_TOKENS],
        "heavy": [t for t in done if t.output_tokens and t.output_tokens > MEDIUM_TOKENS],
    }
    return {
        "requests": len(timings),
        "completed": len(done),
        "rate_per_s": len(timings) / span_s if span_s else 0.0,
        "statuses": {str(k): v for k, v in sorted(Counter(t.status for t in timings).items())},
        "errors": [timing.error for timing in timings if timing.error][:5],
        "output_tokens": sum(timing.output_tokens or 0 for timing in done),
        "makespan_s": max(timing.ended_s for timing in timings),
        "left_late_p99_s": percentile(np.array([timing.late_s for timing in timings]), 99),
        "cpu_share": load.cpu_share,
        "by_size": {name: _figures(own) for name, own in sizes.items() if own},
    }


def _figures(timings: Sequence[RequestTiming]) -> dict[str, Any]:
    return {
        "requests": len(timings),
        "first_s": _quantiles(np.array([t.first_s - t.planned.at_s for t in timings])),
        "total_s": _quantiles(np.array([t.latency_s for t in timings])),
    }


def _quantiles(values: Floats) -> dict[str, float]:
    found = {f"p{level}": percentile(values, level) for level in (50, 90, 95, 99)}
    return {"mean": float(values.mean()), **found}


def terminal_table(report: dict[str, Any]) -> str:
    """The figures as text for a terminal."""
    statuses = ", ".join(f"{count} × {status}" for status, count in report["statuses"].items())
    lines = [
        f"{report['completed']} of {report['requests']} answered in full ({statuses}), sent at"
        f" {report['rate_per_s']:.2f}/s, makespan {report['makespan_s']:.1f} s,"
        f" {report['output_tokens']} output tokens",
        f"left late by {1000 * report['left_late_p99_s']:.1f} ms at p99; this process used"
        f" {report['cpu_share']:.0%} of a core",
        "",
        f"{'seconds':16}{'requests':>9}{'mean':>9}{'p50':>9}{'p90':>9}{'p95':>9}{'p99':>9}",
    ]
    for name, own in report["by_size"].items():
        for what in ("first_s", "total_s"):
            label = f"{name}, {'first byte' if what == 'first_s' else 'whole'}"
            cells = "".join(f"{value:9.3f}" for value in own[what].values())
            lines.append(f"{label:16}{own['requests']:>9}{cells}")
    return "\n".join([*lines, *(f"error: {error}" for error in report["errors"])])
