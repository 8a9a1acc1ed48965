from __future__ import annotations

from random import Random

from gateway.schedule.entry import Entry, Tenant
from gateway.schedule.ordering import Order
from gateway.schedule.overload import Grade
from gateway.schedule.queue import LazyHeap, Line, Tier
from gateway.schedule.shares import SLACK_TOKENS, Shares
from gateway.types import JobClass
from tests.unit.schedule.build import job, settings


def entry(seq: int, key: float, tenant: Tenant, tokens: float = 1000) -> Entry:
    it = Entry(job(f"j{seq}", tokens), 0, seq, tenant)
    it.weigh(settings().schedule, Order("fcfs"))
    it.key = key
    return it


class Counted(Line):
    """A line that keeps its tenants' shares, as a pool does."""

    def __init__(self) -> None:
        super().__init__("p", "m", ("a",), frozenset())
        self.shares = Shares()

    def add(self, entry: Entry) -> None:
        self.add_waiting(entry, self.shares.of(entry.tenant.name, 1.0))


def only_tier(line: Line) -> Tier:
    (tier,) = line.tiers.values()
    return tier


def names(line: Line) -> list[str]:
    """Empties the line's only tier in its order."""
    order = []
    while (lane := only_tier(line).best()) is not None:
        assert lane.first is not None
        order.append(lane.first.job.id)
        line.remove(lane.first)
    return order


def test_line_orders_jobs_of_several_tenants_by_key() -> None:
    """One order over all lanes of a tier."""
    line, random = Counted(), Random(1)
    tenants = [Tenant(f"t{n}") for n in range(5)]
    keys = [float(random.randrange(30)) for _ in range(100)]
    for seq, key in enumerate(keys):
        line.add(entry(seq, key, random.choice(tenants)))
    expected = [f"j{seq}" for _, seq in sorted((key, seq) for seq, key in enumerate(keys))]
    assert names(line) == expected
    assert line.size == line.waiting == 0


def test_line_parks_a_capped_tenant_and_shows_the_next() -> None:
    """A tenant at its cap hides nobody; unparked, it is in its place again."""
    line = Counted()
    capped, free = Tenant("capped"), Tenant("free")
    capped.max_inflight = capped.running = 1
    line.add(entry(1, 1.0, capped))
    line.add(entry(2, 2.0, free))
    line.add(entry(3, 0.5, capped))
    tier = only_tier(line)
    best = tier.best()
    assert best is not None
    assert best.first is not None
    assert best.first.job.id == "j2"
    line.add(entry(4, 0.1, capped))
    assert tier.best() is best
    (lane,) = capped.parked
    capped.running, capped.parked = 0, []
    lane.unpark()
    assert names(line) == ["j4", "j3", "j1", "j2"]


def test_line_keeps_classes_and_sizes_apart() -> None:
    """Each has its own heap, for each may be blocked alone."""
    line, tenant = Counted(), Tenant("t")
    for seq, tokens in enumerate((10, 100, 1000)):
        line.add(entry(seq, 0.0, tenant, tokens))
    assert [(place.cls, place.grade, place.express) for place in line.tiers] == [
        (JobClass.INTERACTIVE, Grade.MEDIUM, True),
        (JobClass.HEAVY, Grade.MEDIUM, False),
        (JobClass.HEAVY, Grade.LONG, False),
    ]


def test_line_puts_the_tenant_first_who_was_given_less() -> None:
    """Counters decide in steps, keys within a step; a step forward moves the waiting jobs."""
    line = Counted()
    busy, idle = Tenant("busy"), Tenant("idle")
    for seq, (key, tenant) in enumerate(((1.0, busy), (2.0, idle), (3.0, busy), (4.0, idle))):
        line.add(entry(seq, key, tenant))
    line.shares.charge(line.shares.of("busy", 1.0), 10.0)
    (tier,) = line.tiers.values()
    best = tier.best()
    assert best is not None
    assert best.tenant is busy, "as good as equal"
    line.shares.charge(line.shares.of("busy", 1.0), SLACK_TOKENS)
    assert names(line) == ["j1", "j3", "j0", "j2"]


def test_lane_gives_a_waiting_job_another_key() -> None:
    """It moves within its lane, and the lane within its tier."""
    line, one, other = Counted(), Tenant("one"), Tenant("other")
    moving = entry(1, 1.0, one)
    for it in (moving, entry(2, 2.0, one), entry(3, 3.0, other)):
        line.add(it)
    assert moving.lane is not None
    moving.lane.rekey(moving, 9.0)
    assert names(line) == ["j2", "j3", "j1"]


def test_lane_knows_its_oldest() -> None:
    """By arrival, whatever the keys; the next one when it has left."""
    line, tenant = Counted(), Tenant("t")
    jobs = [Entry(job(f"j{n}", at=at), 0, n, tenant) for n, at in enumerate((5.0, 3.0, 4.0))]
    for it in jobs:
        it.weigh(settings().schedule, Order("sjf"))
        line.add(it)
    lane = jobs[0].lane
    assert lane is not None
    assert lane.oldest is jobs[1]
    line.remove(jobs[1])
    assert lane.oldest is jobs[2]


def test_line_finds_a_job_again_that_moved_and_came_back() -> None:
    """Moved with another key and back with the old one: once in the order, not twice."""
    line, tenant = Counted(), Tenant("t")
    moving, other = entry(1, 1.0, tenant), entry(2, 2.0, tenant)
    line.add(moving)
    line.add(other)
    for key in (3.0, 1.0):
        line.remove(moving)
        moving.key = key
        line.add(moving)
    assert names(line) == ["j1", "j2"]


def test_lazy_heap_gives_the_smallest_that_is_alive() -> None:
    """By key, then by seq; the dead are skipped."""
    dead: set[str] = set()
    heap: LazyHeap[float, str] = LazyHeap(lambda key, seq, item: item not in dead)
    for key, seq, item in ((2.0, 1, "b"), (1.0, 3, "second"), (1.0, 2, "first"), (0.0, 4, "x")):
        heap.push(key, seq, item)
    dead.add("x")
    assert heap.top() == "first"
    dead.add("first")
    assert heap.top() == "second"
    dead.update(("second", "b"))
    assert heap.top() is None


def test_lazy_heap_does_not_keep_its_dead() -> None:
    """Swept when it has doubled: memory follows the living, even if the top never dies."""
    alive: set[int] = {-1}
    heap: LazyHeap[float, int] = LazyHeap(lambda key, seq, item: item in alive)
    heap.push(-1.0, 0, -1)
    for n in range(10_000):
        alive.add(n)
        heap.push(float(n), n, n)
        alive.discard(n)
    assert heap.top() == -1
    assert len(heap) <= 65


def test_lazy_heap_sweeps_by_the_question_it_is_asked_with() -> None:
    """All that live stay, whatever of key, seq and item they are known by; of the dead no more
    than of the living."""
    alive = {float(n): (n, f"i{n}") for n in range(100)}
    heap: LazyHeap[float, str] = LazyHeap(lambda key, seq, item: alive.get(key) == (seq, item))
    for key, (seq, item) in alive.items():
        heap.push(key, seq, item)
    for n in range(1000):
        heap.push(500.0 + n, n, "dead")
        assert len(heap) <= 2 * 100 + 1
    found = []
    while (top := heap.top()) is not None:
        found.append(top)
        del alive[float(top[1:])]
    assert found == [f"i{n}" for n in range(100)]
