"""Streams at a provider that is never slower, through a gateway that knows nothing yet.

64 paced streams at once, then the gateway's own saturation, then the streams again. A provider that
answers as fast with 64 under way as with one gives no reason to hold any back, and the gateway's
own lateness is none either: the streams a second are to be those of the provider asked directly.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tests.bench import turns
from tests.bench.gateways import Revision, measured_gateway
from tests.bench.overhead_figures import Fresh
from tests.bench.plan import Plan
from tests.bench.turns import ON, Cores, Target

SATURATION = ("--concurrency", "64")


def per_s(port: int, how: Sequence[str], seconds: float, seed: int, on: Cores) -> float:
    """Streams a second from the first request on, all awaited."""
    report = turns.load(port, (*how, "--warm-up", "0"), seconds, seed, on[0])
    failed = report["failed"] + report["unsent"]
    return 0.0 if failed else float(report["each_per_s"])


def measure(
    direct: Target,
    of: Revision,
    kind: str,
    how: Sequence[str],
    plan: Plan,
    straight_per_s: float,
    on: Cores,
) -> Fresh:
    """One gateway's first loads.

    Args:
        straight_per_s: streams a second of the provider asked directly.
    """
    ratios = []
    with measured_gateway(direct.port, on[1], predict=kind == ON, of=of) as gateway:
        for number in range(plan.rounds):
            if number:
                turns.load(gateway.port, SATURATION, plan.seconds + 1, 600 + number, on[0])
            reached = per_s(gateway.port, how, plan.seconds, 610 + number, on)
            ratios.append(reached / straight_per_s)
        found = Fresh(of.name, kind, gateway.start_s, tuple(ratios))
    sys.stderr.write(f"fresh, {of.name}, {kind}: {', '.join(f'{one:.3f}' for one in ratios)}\n")
    return found
