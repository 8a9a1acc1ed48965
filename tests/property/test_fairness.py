"""Bounds over whole runs: who may pass whom, how long a wait can be, what a neighbour costs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.schedule.events import Action, Dispatch, Event, Finished, Submitted
from gateway.schedule.ordering import reserve_tokens
from gateway.types import Job, JobClass, Outcome, Verdict
from tests.kit.length import short_or_long
from tests.unit.schedule.build import World, job, settings

QUICK = hypothesis_settings(max_examples=60, deadline=None, database=None)
OVERTAKE_S = 10.0
ENDLESS = short_or_long(150, 500)  # jobs of a stream that outlasts what is measured
ORDERINGS = ["boost", "gittins", "sjf", "fcfs", "slowdown"]
TOKENS = st.sampled_from([1, 20, 64, 100, 300, 1000, 5000])


def serve(
    world: World, jobs: list[Job], service_s: float, *, check: bool = True
) -> dict[str, float]:
    """Runs all jobs to their end, each `service_s` after its start; job → start."""
    starts: dict[str, float] = {}
    ends: list[tuple[float, str]] = []
    arrivals = sorted(jobs, key=lambda j: j.arrived_s)
    tokens = {j.id: j.workload.p50 for j in jobs}

    def feed(event: Event, at: float) -> list[Action]:
        world.now = at
        return world.feed(event) if check else world.scheduler.handle(event, at)

    def note(actions: list[Action]) -> None:
        for action in actions:
            assert isinstance(action, Dispatch)
            starts[action.job_id] = world.now
            ends.append((world.now + service_s, action.job_id))
            ends.sort()

    while arrivals or ends:
        if arrivals and (not ends or arrivals[0].arrived_s <= ends[0][0]):
            new = arrivals.pop(0)
            note(feed(Submitted(new), new.arrived_s))
        else:
            at, job_id = ends.pop(0)
            note(feed(Finished(job_id, Outcome.OK, Verdict.SUCCESS, tokens[job_id]), at))
    return starts


def one_slot(*, judged: bool = True, **schedule: object) -> World:
    return World(
        settings(
            {"a": {"initial_concurrency": 1}},
            schedule={
                "max_overtake_s": OVERTAKE_S,
                "max_wait_s": 86_400.0,
                "shed": False,
                **schedule,
            },
        ),
        judged=judged,
    )


@given(
    st.lists(st.tuples(st.floats(0, 60), TOKENS), min_size=1, max_size=40),
    st.sampled_from(ORDERINGS),
)
@QUICK
def test_scheduler_lets_nobody_pass_who_comes_too_late(
    arrivals: list[tuple[float, int]], ordering: str
) -> None:
    """3: within a class, whoever starts while a job waits arrived less than max_overtake_s
    after it, in every ordering."""
    jobs = [
        job(f"j{n}", tokens, at=at, class_override=JobClass.HEAVY)
        for n, (at, tokens) in enumerate(arrivals)
    ]
    starts = serve(one_slot(ordering=ordering), jobs, service_s=1.0)
    for it in jobs:
        before = [j for j in jobs if j is not it and starts[j.id] < starts[it.id]]
        passed = [j for j in before if starts[j.id] >= it.arrived_s]
        assert all(j.arrived_s < it.arrived_s + OVERTAKE_S for j in passed)
        assert starts[it.id] - it.arrived_s <= len(passed) + 1.0 + 1e-6


@pytest.mark.parametrize("ordering", ["boost", "gittins", "sjf", "slowdown"])
def test_scheduler_long_job_waits_a_bounded_time_under_endless_small_ones(ordering: str) -> None:
    """3: small ones of its own class come faster than they can be served, for ever; the long
    one gets its turn after those of its first max_overtake_s. The twin without a bound waits
    far longer."""
    small = [
        job(f"s{n}", 10, at=0.5 + n * 0.8, class_override=JobClass.HEAVY) for n in range(ENDLESS)
    ]
    long = job("long", 5000, at=0.5)
    first = job("first", 10, at=0.0)
    bound_s = OVERTAKE_S / 0.8 + 2.0
    waited = serve(one_slot(ordering=ordering), [first, long, *small], 1.0)["long"]
    assert waited <= bound_s
    unbounded = one_slot(ordering=ordering, max_overtake_s=3600.0)
    assert serve(unbounded, [first, long, *small], 1.0)["long"] > 3 * bound_s


def test_scheduler_heavy_job_waits_a_bounded_time_under_endless_shorts() -> None:
    """3: across classes: a turn that has started nothing for max_overtake_s is next, though its
    head costs as many tokens as a thousand shorts. The twin without it waits for those."""
    shorts = [job(f"s{n}", 10, at=0.5 + n * 0.8) for n in range(ENDLESS)]
    heavy = job("heavy", 5000, at=0.5)
    first = job("first", 10, at=0.0)
    assert serve(one_slot(), [first, heavy, *shorts], 1.0)["heavy"] <= OVERTAKE_S + 2.0
    unbounded = one_slot(max_overtake_s=3600.0)
    assert serve(unbounded, [first, heavy, *shorts], 1.0)["heavy"] > 100.0


@given(st.lists(st.tuples(st.floats(0, 30), TOKENS), min_size=1, max_size=60), st.booleans())
@QUICK
def test_scheduler_starts_something_of_each_class_in_time(
    arrivals: list[tuple[float, int]], deferring: bool
) -> None:
    """3: whatever comes, also under overload, a class that waits starts a job within
    max_overtake_s and one service time, so its k-th job within k times that."""
    classes = list(JobClass)
    jobs = [
        job(f"j{n}", tokens, at=at, class_override=classes[(n * 7 + tokens) % 3])
        for n, (at, tokens) in enumerate(arrivals)
    ]
    ladder = {"shed": True, "defer_above": 0.001, "reject_above": 100.0} if deferring else {}
    starts = serve(one_slot(**ladder), jobs, service_s=1.0)
    for cls in classes:
        mine = sorted((j for j in jobs if j.job_class is cls), key=lambda j: j.arrived_s)
        for k, it in enumerate(mine):
            rivals = 3 * (k + 1)
            assert starts[it.id] - it.arrived_s <= len(jobs)
            earlier = sum(starts[j.id] <= it.arrived_s + rivals * (OVERTAKE_S + 2) for j in mine)
            assert earlier >= k + 1


@given(
    st.lists(st.tuples(st.floats(0, 60), TOKENS, st.sampled_from(JobClass)), max_size=60),
    st.sampled_from(ORDERINGS),
    st.sampled_from([1, 3]),
)
@QUICK
def test_scheduler_starts_nothing_while_another_class_has_waited_longer_than_the_bound(
    arrivals: list[tuple[float, int, JobClass]], ordering: str, slots: int
) -> None:
    """3: every start is of the class that was left longest without one, if any was for
    max_overtake_s, whoever owns or owes what: long answers run long here, and borrow."""
    world = World(
        settings(
            {"a": {"initial_concurrency": slots}},
            schedule={
                "ordering": ordering,
                "max_overtake_s": OVERTAKE_S,
                "interactive_inflight_tokens": 300,
                "heavy_inflight_tokens": 700,
                "max_wait_s": 86_400.0,
                "shed": False,
            },
        )
    )
    jobs = {
        f"j{n}": job(f"j{n}", tokens, at=at, class_override=cls)
        for n, (at, tokens, cls) in enumerate(sorted(arrivals))
    }
    waiting: dict[JobClass, set[str]] = {cls: set() for cls in JobClass}
    served_s = dict.fromkeys(JobClass, 0.0)
    events: list[tuple[float, str, Event]] = [
        (it.arrived_s, it.id, Submitted(it)) for it in jobs.values()
    ]
    while events:
        now, name, event = events.pop(0)
        mine = jobs[name].job_class
        if isinstance(event, Submitted):
            if not waiting[mine]:
                served_s[mine] = now
            waiting[mine].add(name)
        for action in world.feed(event, at=now):
            it = jobs[action.job_id]
            others = [c for c in JobClass if waiting[c] and c is not it.job_class]
            longest_s = min((served_s[c] for c in others), default=now)
            assert longest_s > now - OVERTAKE_S or served_s[it.job_class] <= longest_s
            waiting[it.job_class].remove(it.id)
            served_s[it.job_class] = now
            tokens = it.workload.p50
            end = Finished(it.id, Outcome.OK, Verdict.SUCCESS, tokens)
            events.append((now + 0.5 + tokens / 50, it.id, end))
            events.sort(key=lambda e: e[0])


def test_scheduler_shares_work_between_classes_by_their_weights() -> None:
    """Two classes that always have work get tokens as 1 : 1 when free and as 2 : 1 under pressure,
    whatever the sizes; the background gets its small part."""
    world = one_slot(
        judged=False,
        max_overtake_s=3600.0,
        interactive_weight=4.0,
        heavy_weight=4.0,
        background_weight=1.0,
        interactive_inflight_tokens=3000,
        max_queue_items=10_000,
    )
    sizes = {JobClass.INTERACTIVE: 40, JobClass.HEAVY: 400, JobClass.BACKGROUND: 100}
    work = dict.fromkeys(sizes, 0)
    jobs = {
        f"{cls}{n}": job(f"{cls}{n}", tokens, class_override=cls)
        for cls, tokens in sizes.items()
        for n in range(4000 // 10 if cls is not JobClass.INTERACTIVE else 4000)
    }
    (running,) = (a.job_id for a in world.scheduler.handle(Submitted(job("first")), 0.0))
    for it in jobs.values():
        world.scheduler.handle(Submitted(it), 0.0)
    for n in range(1500):
        end = Finished(running, Outcome.OK, Verdict.SUCCESS)
        (action,) = world.scheduler.handle(end, float(n))
        running = action.job_id
        work[jobs[running].job_class] += sizes[jobs[running].job_class]
    world.scheduler.check(1500.0)
    heavy = work[JobClass.HEAVY]
    assert work[JobClass.INTERACTIVE] / heavy == pytest.approx(2.0, rel=0.1)
    assert work[JobClass.BACKGROUND] / heavy == pytest.approx(0.25, rel=0.15)


def test_scheduler_flood_of_one_tenant_is_not_felt_by_another() -> None:
    """While one tenant sends a thousand jobs at once, another that sends one a second waits for a
    slot, not for the thousand. In the twin both are one tenant, which does wait."""

    def waits(flooder: str) -> list[float]:
        world = World(
            settings(
                {"a": {"initial_concurrency": 4}},
                {"t": {}, "flood": {}},
                schedule={"shed": False, "max_wait_s": 86_400.0},
            )
        )
        many, few = short_or_long((300, 20), (1000, 50))
        flood = [job(f"f{n}", 400, at=0.0, tenant=flooder) for n in range(many)]
        calm = [job(f"c{n}", 400, at=10.0 + n, tenant="t") for n in range(few)]
        starts = serve(world, [*flood, *calm], service_s=2.0, check=False)
        return [starts[it.id] - it.arrived_s for it in calm]

    assert max(waits("flood")) <= 2.0
    assert max(waits("t")) > 20.0


def test_scheduler_divides_a_class_between_tenants_by_their_weights() -> None:
    """Two flooding tenants of weights 3 and 1 get tokens as 3 : 1, though the lighter one's jobs
    are smaller."""
    world = World(
        settings(
            {"a": {"initial_concurrency": 1}},
            {"t": {"weight": 3.0}, "u": {"weight": 1.0}},
            schedule={"shed": False, "max_wait_s": 86_400.0},
        )
    )
    ends = short_or_long(250, 600)
    jobs = {f"t{n}": job(f"t{n}", 800) for n in range(ends // 2)}
    jobs |= {f"u{n}": job(f"u{n}", 100, tenant="u") for n in range(ends)}
    running: list[str] = []
    for it in jobs.values():
        running += [a.job_id for a in world.scheduler.handle(Submitted(it), 0.0)]
    work = {"t": 0.0, "u": 0.0}
    for n in range(ends):
        end = Finished(running.pop(), Outcome.OK, Verdict.SUCCESS)
        for action in world.scheduler.handle(end, float(n)):
            it = jobs[action.job_id]
            work[it.tenant] += it.workload.p50
            running.append(it.id)
    world.scheduler.check(float(ends))
    assert work["t"] / work["u"] == pytest.approx(3.0, rel=0.1)


def test_scheduler_heavy_class_keeps_its_share_under_endless_shorts() -> None:
    """3: interactive work that never ends borrows, but does not keep heavy jobs out."""
    world = World(
        settings(
            {"a": {"initial_concurrency": 8}},
            schedule={
                "interactive_inflight_tokens": 100,
                "heavy_inflight_tokens": 300,
                "max_overtake_s": OVERTAKE_S,
                "shed": False,
            },
        ),
        judged=False,
    )
    lasts_s = short_or_long(50, 150)
    shorts = [job(f"s{n}", 50, at=n * 0.1) for n in range(10 * lasts_s)]
    heavies = [job(f"h{n}", 300, at=10.0 * n) for n in range(lasts_s // 10 - 1)]
    starts = serve(world, [*shorts, *heavies], service_s=2.0)
    assert max(starts[h.id] - h.arrived_s for h in heavies) <= OVERTAKE_S + 2.0


@given(
    st.lists(st.tuples(st.sampled_from(["submit", "finish"]), TOKENS), max_size=80),
    st.sampled_from([60, 300, 3000]),
    st.sampled_from([100, 700, 7000]),
    st.booleans(),
)
@QUICK
def test_scheduler_starts_only_within_its_budgets(
    steps: list[tuple[str, int]], interactive: int, heavy: int, borrow: bool
) -> None:
    """2: each start, counted here independently, finds its class below its budget, or (borrowing)
    the pool below both; so the tokens in flight exceed that by one job at most."""
    limits = {JobClass.INTERACTIVE: interactive, JobClass.HEAVY: heavy}
    world = World(
        settings(
            schedule={
                "policy": "dual_budget",
                "interactive_inflight_tokens": interactive,
                "heavy_inflight_tokens": heavy,
                "borrow": borrow,
            }
        )
    )
    held = dict.fromkeys(JobClass, 0)
    jobs: dict[str, Job] = {}
    running: list[str] = []
    for n, (step, tokens) in enumerate(steps):
        actions: list[Action] = []
        if step == "submit":
            jobs[f"j{n}"] = job(f"j{n}", tokens)
            actions = world.feed(Submitted(jobs[f"j{n}"]))
        elif running:
            ended = jobs[running.pop(tokens % len(running))]
            held[ended.job_class] -= reserve_tokens(ended, ended.workload, 0.5)
            actions = world.feed(Finished(ended.id, Outcome.OK, Verdict.SUCCESS))
        for action in actions:
            assert isinstance(action, Dispatch)
            new = jobs[action.job_id]
            below = held[new.job_class] < limits[new.job_class]
            assert below or (borrow and sum(held.values()) < sum(limits.values()))
            held[new.job_class] += action.reserve_tokens
            running.append(new.id)


@given(st.lists(st.tuples(st.sampled_from(["submit", "finish", "other"]), TOKENS), max_size=80))
@QUICK
def test_scheduler_full_pool_adds_nothing_to_another(steps: list[tuple[str, int]]) -> None:
    """10: what happens in one pool is the same whether its neighbour is idle or drowning."""
    given_settings = settings(
        {"a": {"initial_concurrency": 2}, "b": {"models": ["k"], "initial_concurrency": 1}},
        schedule={"heavy_inflight_tokens": 500, "max_queue_items": 5},
    )
    quiet, loud = World(given_settings), World(given_settings)
    running: list[str] = []
    for n, (step, tokens) in enumerate(steps):
        if step == "other":
            loud.feed(Submitted(job(f"k{n}", tokens, model="k", accounts=("b",))))
            continue
        if step == "finish" and not running:
            continue
        event = (
            Submitted(job(f"j{n}", tokens))
            if step == "submit"
            else Finished(running.pop(0), Outcome.OK, Verdict.SUCCESS)
        )
        told = quiet.feed(event)
        same = loud.feed(event)
        assert [(type(a), a.job_id) for a in told] == [(type(a), a.job_id) for a in same]
        running += [a.job_id for a in told if isinstance(a, Dispatch)]


def test_models_that_share_an_account_do_wait_for_each_other() -> None:
    """The twin of the test above: two models on one account do delay each other."""
    quiet, loud = (
        World(settings({"a": {"models": ["m", "k"], "initial_concurrency": 1}})) for _ in range(2)
    )
    loud.feed(Submitted(job("k", model="k")))
    assert len(quiet.feed(Submitted(job("j")))) == 1
    assert loud.feed(Submitted(job("j"))) == []
