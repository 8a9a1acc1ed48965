"""`sagesched load`: open-loop load on any OpenAI-compatible endpoint, and what came of it.

What it sends are chat requests of real conversations (`--data`) or the demo's own, at a rate
with Poisson gaps or in the rhythm of a trace. Open loop: a slow endpoint does not slow the
arrivals, as its users would not be. Sizes in the table are what the answers' usage says, so
short and heavy are by truth where the endpoint counts tokens.
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
from gateway.workbench.arguments import add_data
from gateway.workbench.figures import Floats, percentile
from gateway.workbench.load_client import Hit, Shot, Volley, chat_body, fire
from gateway.workbench.progress import Progress
from gateway.workbench.request_texts import texts
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
    shots = _shots(args)
    bar = Progress("requests", len(shots))
    key = os.environ.get(KEY_ENV, "anything")
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    url = args.url.rstrip("/") + "/chat/completions"
    volley = asyncio.run(fire(url, shots, headers, bar.step, args.timeout))
    report = tree(volley)
    if args.out is not None:
        args.out.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))
    print(table(report))
    return 0 if all(hit.whole for hit in volley.hits) else 1


def _shots(args: argparse.Namespace) -> list[Shot]:
    if args.mix not in MIXES:
        raise SettingsError(f"load: no mix {args.mix!r}; there are {', '.join(MIXES)}")
    known = texts(args.data)
    chance = np.random.default_rng(args.seed)
    tokens = [text.output_tokens for text in known]
    places = draw_sizes(tokens, args.requests, args.mix, chance).tolist()
    streams = (chance.random(args.requests) < args.stream_share).tolist()
    return [
        Shot(
            at_s,
            chat_body(
                args.model or known[place].model,
                known[place].messages,
                stream=stream,
                max_tokens=known[place].max_tokens,
            ),
        )
        for at_s, place, stream in zip(_times(args, chance), places, streams, strict=True)
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


def tree(volley: Volley) -> dict[str, Any]:
    """All figures; seconds."""
    hits = volley.hits
    whole = [hit for hit in hits if hit.whole]
    span_s = max(hit.shot.at_s for hit in hits)
    sizes = {
        "all": whole,
        "short": [h for h in whole if h.output_tokens and h.output_tokens <= SHORT_TOKENS],
        "heavy": [h for h in whole if h.output_tokens and h.output_tokens > MEDIUM_TOKENS],
    }
    return {
        "requests": len(hits),
        "completed": len(whole),
        "rate_per_s": len(hits) / span_s if span_s else 0.0,
        "statuses": {str(k): v for k, v in sorted(Counter(h.status for h in hits).items())},
        "errors": [hit.error for hit in hits if hit.error][:5],
        "output_tokens": sum(h.output_tokens or 0 for h in whole),
        "makespan_s": max(hit.ended_s for hit in hits),
        "left_late_p99_s": percentile(np.array([h.late_s for h in hits]), 99),
        "cpu_share": volley.cpu_share,
        "by_size": {name: _figures(own) for name, own in sizes.items() if own},
    }


def _figures(hits: Sequence[Hit]) -> dict[str, Any]:
    return {
        "requests": len(hits),
        "first_s": _quantiles(np.array([h.first_s - h.shot.at_s for h in hits])),
        "total_s": _quantiles(np.array([h.latency_s for h in hits])),
    }


def _quantiles(values: Floats) -> dict[str, float]:
    found = {f"p{level}": percentile(values, level) for level in (50, 90, 95, 99)}
    return {"mean": float(values.mean()), **found}


def table(report: dict[str, Any]) -> str:
    """For a terminal."""
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
