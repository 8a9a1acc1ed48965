"""Speed of the simulator: 10,000 requests under each policy, with forecasts made before.

    python -m tests.bench.simulate_speed [REQUESTS]

Prints seconds of CPU and requests a second. The aim: 10,000 in less than 10 s.
"""

from __future__ import annotations

import sys
import time

from gateway.workbench.simulate.cells import play
from gateway.workbench.simulate.request_rows import generated, noisy
from gateway.workbench.simulate.worlds import Cell, Plan

POLICIES = ("naive", "fifo", "sjf", "quota", "fair", "short_first", "dual_budget", "ours", "true")


def main(requests: int) -> None:
    rows = {"τ 0.55": noisy(generated(4000, 0), 0.55, 1)}
    # No request is refused, since a refused one would be no work.
    roomy = {"schedule": {"max_queue_items": 1_000_000, "max_wait_s": 86_400.0, "shed": False}}
    for rho in (0.9, 2.0):
        for name in POLICIES:
            plan = Plan(rows=rows, policies=[name], overrides=roomy, sampled_seeds=0)
            cell = Cell("steady", "knee", rho, "τ 0.55", requests, 0)
            started = time.process_time()
            found = play(plan, cell)[name]
            took = time.process_time() - started
            print(
                f"ρ {rho:g} {name:12} {took:6.2f} s, {requests / took:7.0f} a second,"
                f" {found.figures['completed']:.1%} completed"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
