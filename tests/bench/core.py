"""Cost of one event for the scheduler and its accounts, and its growth with the queue.

    python -m tests.bench.core [--queued 100,1000,10000,100000] [--tenants 1,20,500]
                               [--models 1,20] [--window off] [--turns 15]

No loop, no socket. Each row is one kind of event at one length of the queue: µs of CPU time of
this process per event, `handle` and `next_wake` together as the engine calls them. Events come
in turns of some dozen of one kind, the queue is filled up again between turns; `best` is the
cheapest turn, `mean` is over all turns, so that sweeps and window fits, which come now and then,
are in it. Keys are of the present order, but those of `… renewing keys`, which are all of another
scale. The collector is set as in the gateway. With `--window off` (the default) no window is
fitted: an account's windows fit their curve after every 8 to 64 answers, at a cost that does not
depend on the queue, and `--window auto` shows it.

The rows at 0 queued are the free path: a request that starts at once, is answered and ends, while
`RUNNING` others run and nothing waits. `scheduler` is its three events, `engine` the same through
permits, the fail-safe and the listeners (which are none).

Beside each size stands a yardstick taken between the turns: one push and pop of a heap of as
many items, and one Dispatch made. `ratio` is best / yardstick: it travels between machines, the
µs do not.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import product
from random import Random
from time import process_time

from msgspec.structs import replace

from gateway.balance.accounts import Accounts
from gateway.engine.engine import Engine
from gateway.schedule.events import (
    Action,
    Answered,
    Dispatch,
    Event,
    Finished,
    Reforecast,
    Submitted,
    Withdrawn,
    Woke,
)
from gateway.schedule.live_job import Stage
from gateway.schedule.ordering import Order
from gateway.schedule.scheduler import Scheduler
from gateway.types import Job, Outcome, RateLimits, Rung, Usage, Verdict
from tests.unit.schedule.build import job, settings, workload

ACCOUNTS = ("a0", "a1")
SLOTS = 64  # of each account
TURN = 50  # events timed at once
RUNNING = 16  # requests under way on the free path
SERVICE_S = 2.0
LIMITS = RateLimits(limit_requests=10_000, remaining_requests=9_000, reset_requests_s=6.0)


class Bench:
    """One scheduler with `queued` jobs that wait, and more events than it can start."""

    def __init__(self, queued: int, tenants: int, models: int, window: str) -> None:
        self.random = Random(0)
        self.now = 0.0
        self.count = 0
        self.tenants = [f"t{n}" for n in range(tenants)]
        self.models = [f"m{n}" for n in range(models)]
        account = {"initial_concurrency": SLOTS, "max_concurrency": SLOTS, "models": self.models}
        given = settings(
            dict.fromkeys(ACCOUNTS, account),
            {name: {} for name in self.tenants},
            schedule={"max_queue_items": 1_000_000, "shed": False, "max_wait_s": 86_400.0},
            balance={"window": window},
        )
        self.scheduler = Scheduler(given, Accounts(given.accounts, given.balance))
        self.running: list[str] = []
        self.fill(queued)

    def fill(self, queued: int) -> None:
        while len(self.scheduler.jobs) < queued + len(self.running):
            self.handle(self.submitted())

    def job(self) -> Job:
        self.count += 1
        return job(
            str(self.count),
            self.random.lognormvariate(4.8, 1.2),
            at=self.now,
            model=self.random.choice(self.models),
            accounts=ACCOUNTS,
            tenant=self.random.choice(self.tenants),
        )

    def settle(self) -> None:
        """All keys of the present order, as they would be had the queue grown slowly."""
        for pool in self.scheduler.pools.values():
            pool.rekey(len(pool.stale))

    def handle(self, event: Event) -> list[Action]:
        """As in a run: time passes, what starts is kept."""
        self.now += SERVICE_S / (2 * SLOTS)
        actions = self.scheduler.handle(event, self.now)
        self.scheduler.next_wake(self.now)
        self.running += [a.job_id for a in actions if isinstance(a, Dispatch)]
        return actions

    def time(self, events: Sequence[Event]) -> float:
        """µs each."""
        handle, next_wake = self.scheduler.handle, self.scheduler.next_wake
        now, step = self.now, SERVICE_S / (2 * SLOTS)
        done: list[list[Action]] = []
        began_s = process_time()
        for event in events:
            now += step
            done.append(handle(event, now))
            next_wake(now)
        spent_s = process_time() - began_s
        self.now = now
        self.running += [a.job_id for acts in done for a in acts if isinstance(a, Dispatch)]
        return 1e6 * spent_s / len(events)

    # ---- kinds of events

    def submitted(self) -> Submitted:
        fresh = self.job()
        return Submitted(fresh, 1000)

    def submits(self) -> Sequence[Event]:
        return [self.submitted() for _ in range(TURN)]

    def finishes(self) -> Sequence[Event]:
        """The oldest starts first, more or less."""
        few = min(TURN, len(self.running))
        ended = [self.running.pop(self.random.randrange(few - n)) for n in range(few)]
        return [Finished(i, Outcome.OK, Verdict.SUCCESS, self._output(i), 10.0) for i in ended]

    def finishes_renewing(self) -> Sequence[Event]:
        """The same after a change of scale: a few keys are made anew at each event."""
        for pool in self.scheduler.pools.values():
            old = pool.order
            scale = (1.5 * old.backlog_tokens, old.typical_tokens, old.token_s, old.streams)
            pool.reorder(Order(old.kind, *scale, old.trust, old.typical_ln_short))
        return self.finishes()

    def _output(self, job_id: str) -> float:
        return round(self.scheduler.jobs[job_id].workload.p50 * self.random.lognormvariate(0, 0.5))

    def answers(self) -> Sequence[Event]:
        few = min(TURN, len(self.running))
        return [Answered(job_id, LIMITS) for job_id in self.random.sample(self.running, few)]

    def reforecasts(self) -> Sequence[Event]:
        """Re-forecasts of jobs that wait and have not moved yet."""
        events = []
        for job_id in self._waiting(Rung.GLOBAL_NEIGHBORS):
            tokens = self.random.lognormvariate(4.8, 1.2)
            forecast = replace(workload(tokens), rung=Rung.GLOBAL_NEIGHBORS)
            events.append(Reforecast(job_id, forecast))
        return events

    def withdrawals(self) -> Sequence[Event]:
        return [Withdrawn(job_id) for job_id in self._waiting()]

    def _waiting(self, rung: Rung | None = None) -> list[str]:
        """The newest: in a long queue they are spread over all keys."""
        found: list[str] = []
        for job_id, live in reversed(self.scheduler.jobs.items()):
            if live.stage in (Stage.WAITING, Stage.RETRYING) and rung not in live.rungs:
                found.append(job_id)
                if len(found) == TURN:
                    break
        return found

    def wakes(self) -> Sequence[Event]:
        return [Woke()] * TURN


def yardsticks(size: int) -> Callable[[], tuple[float, float]]:
    """µs of one push and pop of a heap of `size`, and of one struct made."""
    random = Random(1)
    heap: list[tuple[float, int, int, object]] = []
    for n in range(size):
        heappush(heap, (random.random(), n, n, heap))

    def take() -> tuple[float, float]:
        fresh = [(random.random(), n, n, heap) for n in range(1000)]
        began_s = process_time()
        for item in fresh:
            heappush(heap, item)
            heappop(heap)
        middle_s = process_time()
        for _ in fresh:
            Dispatch("job", "account", 1, 100)
        return 1e3 * (middle_s - began_s), 1e3 * (process_time() - middle_s)

    return take


def free_path(bench: Bench) -> float:
    """µs of Submitted, Answered and Finished of a job that need not wait."""
    jobs = [bench.job() for _ in range(TURN)]
    handle, next_wake = bench.scheduler.handle, bench.scheduler.next_wake
    now, step, running = bench.now, SERVICE_S / RUNNING, bench.running
    began_s = process_time()
    for fresh in jobs:
        now += step
        handle(Submitted(fresh, 1000), now)
        next_wake(now)
        handle(Answered(fresh.id, LIMITS), now)
        next_wake(now)
        running.append(fresh.id)
        handle(Finished(running.pop(0), Outcome.OK, Verdict.SUCCESS, 100.0, 10.0), now)
        next_wake(now)
    spent_s = process_time() - began_s
    bench.now = now
    return 1e6 * spent_s / TURN


async def engine_path(bench: Bench, turns: int) -> list[float]:
    """µs of the same through the engine, as the relay calls it; one value a turn."""
    clock: Iterator[float] = (bench.now + 0.02 * n for n in range(1, 1 << 40))
    engine = Engine(bench.scheduler, lambda given, old: bench.scheduler, clock=clock.__next__)
    usage = Usage(prompt_tokens=10, output_tokens=100)
    permits = [engine.submit(bench.job(), 1000) for _ in range(RUNNING)]
    spent = []
    for _ in range(turns):
        jobs = [bench.job() for _ in range(TURN)]
        began_s = process_time()
        for fresh in jobs:
            permit = engine.submit(fresh, 1000)
            await permit.granted()
            permit.answered(LIMITS)
            permits.append(permit)
            permits.pop(0).end(Outcome.OK, Verdict.SUCCESS, usage)
        spent.append(1e6 * (process_time() - began_s) / TURN)
    return spent


def measure_free_path(tenants: int, models: int, window: str, turns: int) -> None:
    bench = Bench(0, tenants, models, window)
    for _ in range(RUNNING):
        bench.handle(bench.submitted())
    for _ in range(8):
        free_path(bench)
    rows = {"scheduler": [free_path(bench) for _ in range(4 * turns)]}
    bench.scheduler.check(bench.now)
    rows["engine"] = asyncio.run(engine_path(Bench(0, tenants, models, window), 4 * turns))
    for name, us in rows.items():
        print(
            f"{0:7} {tenants:7} {models:6}  {name:18} {min(us):7.1f} {sum(us) / len(us):7.1f}",
            flush=True,
        )


KINDS: dict[str, Callable[[Bench], Sequence[Event]]] = {
    "submit, waits": Bench.submits,
    "finish → dispatch": Bench.finishes,
    "… renewing keys": Bench.finishes_renewing,
    "reforecast": Bench.reforecasts,
    "withdrawn": Bench.withdrawals,
    "answered": Bench.answers,
    "woke": Bench.wakes,
}


def measure(queued: int, tenants: int, models: int, window: str, turns: int) -> None:
    bench, take = Bench(queued, tenants, models, window), yardsticks(queued)
    for name in ("submit, waits", "finish → dispatch"):  # until speed and sizes are known
        for _ in range(8):
            bench.time(KINDS[name](bench))
            bench.fill(queued)
    gc.collect()
    gc.freeze()
    spent: dict[str, list[float]] = {name: [] for name in KINDS}
    sticks: list[tuple[float, float]] = []
    for _ in range(turns):
        sticks.append(take())
        for name, events_of in KINDS.items():
            bench.settle()
            spent[name].append(bench.time(events_of(bench)))
            bench.fill(queued)
    gc.unfreeze()
    bench.scheduler.check(bench.now)
    heap, made = (min(column) for column in zip(*sticks, strict=True))
    for name, us in spent.items():
        print(
            f"{queued:7} {tenants:7} {models:6}  {name:18} {min(us):7.1f} {sum(us) / turns:7.1f}"
            f" {min(us) / (heap + made):6.1f}",
            flush=True,
        )
    print(f"{'':24}{'push + pop, struct':18} {heap:7.2f} {made:7.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queued", default="100,1000,10000,100000")
    parser.add_argument("--tenants", default="1,20,500")
    parser.add_argument("--models", default="1,20")
    parser.add_argument("--window", default="off", choices=["auto", "off"])
    parser.add_argument("--turns", type=int, default=15)
    args = parser.parse_args()
    gc.set_threshold(20_000, 20, 50)  # as the gateway has it
    sizes = [[int(n) for n in text.split(",")] for text in (args.models, args.tenants, args.queued)]
    print(f"{'queued':>7} {'tenants':>7} {'models':>6}  {'event':18} {'best':>7} {'mean':>7} ratio")
    for models, tenants in product(*sizes[:2]):
        measure_free_path(tenants, models, args.window, args.turns)
    for models, tenants, queued in product(*sizes):
        measure(queued, tenants, models, args.window, args.turns)


if __name__ == "__main__":
    main()
