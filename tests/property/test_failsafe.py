"""A core that raises at any moment, before or after it changed something: no job is lost."""

from __future__ import annotations

from random import Random

from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.balance.accounts import Accounts
from gateway.engine.failsafe import Failsafe
from gateway.errors import UpstreamFailed
from gateway.schedule.events import (
    Action,
    AttemptFailed,
    Dispatch,
    Event,
    Finished,
    Reforecast,
    Submitted,
    Withdrawn,
    Woke,
)
from gateway.schedule.scheduler import Scheduler
from gateway.settings.schema import Settings
from gateway.types import Outcome, Verdict
from tests.kit.ledger import Live
from tests.kit.length import short_or_long
from tests.unit.schedule.build import job, settings, started, workload

QUICK = hypothesis_settings(max_examples=short_or_long(75, 150), deadline=None, database=None)


class World:
    """A ledger, a failsafe and a core that raises with a given chance."""

    def __init__(self, seed: int, chance: float) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.ledger: dict[str, Live] = {}
        self.ended: dict[str, int] = {}
        self.alarms: list[str] = []
        self.submitted = 0
        self.chance = chance
        given_settings = settings(
            {"a": {"initial_concurrency": 2}, "b": {"initial_concurrency": 2}}, {"t": {}}
        )
        self.safe = Failsafe(
            self._core(given_settings, None), self._core, self.ledger, self.alarms.append
        )

    def _core(self, given: Settings, old: Scheduler | None) -> Scheduler:
        world = self

        class Raising(Scheduler):
            def handle(self, event: Event, now: float) -> list[Action]:
                early = world.random.random() < world.chance / 2
                if early:
                    raise RuntimeError("before")
                actions = super().handle(event, now)
                if world.random.random() < world.chance / 2:
                    raise RuntimeError("after")
                return actions

        return Raising(given, Accounts(given.accounts, given.balance))

    def feed(self, event: Event) -> None:
        for action in self.safe.handle(event, self.now):
            live = self.ledger.get(action.job_id)
            assert live is not None, "an action about a job that has ended"
            if isinstance(action, Dispatch):
                assert live.account is None, "started twice"
                live.account = action.account
                live.attempts += 1
            else:
                self.end(action.job_id)

    def end(self, job_id: str) -> None:
        del self.ledger[job_id]
        self.ended[job_id] = self.ended.get(job_id, 0) + 1

    def step(self) -> None:
        self.now += self.random.choice([0.0, 0.1, 1.0, 20.0])
        running = [j for j, live in self.ledger.items() if live.account]
        waiting = [j for j, live in self.ledger.items() if not live.account]
        match self.random.randrange(6):
            case 0 | 1:
                self.submitted += 1
                new = job(f"j{self.submitted}", 100, at=self.now, accounts=("a", "b"))
                self.ledger[new.id] = Live(new, new.workload)
                self.feed(Submitted(new))
            case 2 if running:
                self.finish(self.random.choice(running))
            case 3 if running:
                name = self.random.choice(running)
                self.ledger[name].account = None
                error = UpstreamFailed("broken")
                self.feed(AttemptFailed(name, Verdict.SERVER_ERROR, error))
            case 4 if waiting:
                name = self.random.choice(waiting)
                self.end(name)
                self.feed(Withdrawn(name))
            case 5 if waiting:
                name = self.random.choice(waiting)
                self.ledger[name].workload = workload(30)
                self.feed(Reforecast(name, workload(30)))
            case _:
                self.feed(Woke())

    def finish(self, name: str) -> None:
        self.end(name)
        self.feed(Finished(name, Outcome.OK, Verdict.SUCCESS, 100))


@given(st.integers(0, 2**32), st.sampled_from([0.02, 0.1, 0.5, 1.0]))
@example(205703, 0.02)  # healing dispatched a job that its event ended
@QUICK
def test_failsafe_ends_every_job_once(seed: int, chance: float) -> None:
    """However often the core raises, each job is started at most once at a time and ends once;
    with the faults over, the jobs that still wait are served."""
    world = World(seed, chance)
    for _ in range(60):
        world.step()
    world.chance = 0.0
    for _ in range(20 * world.submitted + 100):
        if not world.ledger:
            break
        world.now += 5.0
        running = [j for j, live in world.ledger.items() if live.account]
        if running:
            world.finish(running[0])
        else:
            world.feed(Woke())
    assert world.ledger == {}, "jobs were left waiting for ever"
    assert set(world.ended.values()) <= {1}
    assert len(world.ended) == world.submitted
    assert bool(world.alarms) == bool(world.safe.rebuilds)


def test_failsafe_goes_back_to_the_configured_ordering() -> None:
    """The configured ordering returns five minutes after the last fault; until then jobs go first
    come, first served."""
    world = World(0, 2.0)
    world.feed(Woke())
    world.chance = 0.0
    assert world.safe.degraded
    assert world.safe.next_wake(world.now) is not None
    for _ in range(3):  # out, then plain, then as configured
        world.now = max(world.now + 1, world.safe.next_wake(world.now) or world.now)
        world.feed(Woke())
    assert not world.safe.degraded
    assert world.safe.core.settings.schedule.ordering == "boost"


def test_failsafe_counters_never_fall() -> None:
    """A rebuild keeps every count."""
    world = World(1, 0.0)
    for _ in range(200):
        world.step()
    before = world.safe.snapshot(world.now)
    world.chance = 2.0
    world.feed(Woke())
    world.chance = 0.0
    after = world.safe.snapshot(world.now)
    assert after.submitted >= before.submitted - len(world.ledger)
    assert sum(after.ended.values()) >= sum(before.ended.values())
    assert after.rebuilds > before.rebuilds


def test_failsafe_counts_what_runs_before_it_starts_what_waits() -> None:
    """A job that came first and waits does not take the slot of one that runs."""
    given = settings({"a": {"initial_concurrency": 1}})
    broken = [True]

    class Once(Scheduler):
        def handle(self, event: Event, now: float) -> list[Action]:
            if broken and isinstance(event, Woke):
                broken.clear()
                raise RuntimeError("once")
            return super().handle(event, now)

    def core(given: Settings, old: Scheduler | None) -> Scheduler:
        return Once(given, Accounts(given.accounts, given.balance))

    first, second = job("waits"), job("runs")
    ledger = {"waits": Live(first, first.workload), "runs": Live(second, second.workload, "a", 1)}
    safe = Failsafe(core(given, None), core, ledger, lambda text: None)
    assert started(safe.handle(Woke(), 0.0)) == []
    assert safe.snapshot(0.0).accounts[0].inflight == 1
