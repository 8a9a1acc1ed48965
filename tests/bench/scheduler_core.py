"""What one event costs the scheduler's core with a long queue; no loop, no socket.

    python -m tests.bench.scheduler_core [--queued 10000] [--accounts 2] [--tenants 1]

Prints µs per event: a submit that starts at once, one that joins the queue, a finish that starts
another job, a reforecast and a withdrawal of a waiting job; and a snapshot (a scrape).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from random import Random
from time import perf_counter

from gateway.balance.pool import Accounts
from gateway.schedule.events import (
    Action,
    Dispatch,
    Event,
    Finished,
    Reforecast,
    Submitted,
    Withdrawn,
)
from gateway.schedule.scheduler import Scheduler
from gateway.settings.schema import Settings
from gateway.types import Job, Outcome, Rung, Verdict
from tests.unit.schedule.build import job, settings, workload


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.random = Random(0)
        self.now = 0.0
        self.names = tuple(f"a{n}" for n in range(args.accounts))
        self.tenants = [f"t{n}" for n in range(args.tenants)]
        given: Settings = settings(
            {name: {"initial_concurrency": 64} for name in self.names},
            {name: {} for name in self.tenants},
            schedule={"max_queue_items": 1_000_000, "shed": False},
        )
        self.scheduler = Scheduler(given, Accounts(given.accounts, given.balance))
        self.running: list[str] = []
        self.count = 0

    def job(self) -> Job:
        self.count += 1
        tokens = self.random.lognormvariate(4.8, 1.2)
        return job(
            str(self.count),
            tokens,
            at=self.now,
            accounts=self.names,
            tenant=self.random.choice(self.tenants),
        )

    def handle(self, event: Event) -> list[Action]:
        self.now += 0.001
        actions = self.scheduler.handle(event, self.now)
        self.running += [a.job_id for a in actions if isinstance(a, Dispatch)]
        return actions

    def waiting_ids(self, n: int) -> list[str]:
        ids = [j for j, entry in self.scheduler.jobs.items() if entry.line is not None]
        return self.random.sample(ids, min(n, len(ids)))

    def measure(self, name: str, events: Iterator[Event], then: Callable[[], None]) -> None:
        spent: list[float] = []
        for event in events:
            start = perf_counter()
            self.handle(event)
            spent.append(1e6 * (perf_counter() - start))
            then()
        spent.sort()
        middle, mean = spent[len(spent) // 2], sum(spent) / len(spent)
        print(f"{name:24} {middle:8.1f} µs median {mean:8.1f} µs mean {spent[-1]:10.1f} µs worst")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queued", type=int, default=10_000)
    parser.add_argument("--accounts", type=int, default=2)
    parser.add_argument("--tenants", type=int, default=1)
    parser.add_argument("--events", type=int, default=5_000)
    args = parser.parse_args()
    bench = Bench(args)

    def finish() -> Finished:
        place = bench.random.randrange(len(bench.running))
        bench.running[place], bench.running[-1] = bench.running[-1], bench.running[place]
        return Finished(bench.running.pop(), Outcome.OK, Verdict.SUCCESS, 100.0)

    def nothing() -> None:
        pass

    print(f"{args.queued} queued, {args.accounts} accounts, {args.tenants} tenants")
    fresh = [Submitted(bench.job(), 1000) for _ in range(args.events)]
    bench.measure(
        "submit + dispatch, idle",
        iter(fresh),
        lambda: bench.handle(finish()) and None,
    )
    while bench.scheduler.jobs.__len__() - len(bench.running) < args.queued:
        bench.handle(Submitted(bench.job(), 1000))
    fresh = [Submitted(bench.job(), 1000) for _ in range(args.events)]
    bench.measure("submit, queued", iter(fresh), nothing)
    bench.measure(
        "finish + dispatch",
        (finish() for _ in range(args.events)),
        lambda: bench.handle(Submitted(bench.job(), 1000)) and None,
    )
    tokens = [bench.random.lognormvariate(4.8, 1.2) for _ in range(args.events)]
    bench.measure(
        "reforecast, waiting",
        (
            Reforecast(j, workload(t, rung=Rung.GLOBAL_NEIGHBORS))
            for j, t in zip(bench.waiting_ids(args.events), tokens, strict=False)
        ),
        nothing,
    )
    bench.measure(
        "withdraw, waiting", (Withdrawn(j) for j in bench.waiting_ids(args.events // 2)), nothing
    )
    start = perf_counter()
    bench.scheduler.snapshot(bench.now)
    print(f"{'snapshot':24} {1e6 * (perf_counter() - start):8.1f} µs")
    bench.scheduler.check(bench.now)


if __name__ == "__main__":
    main()
