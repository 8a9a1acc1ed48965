from __future__ import annotations

from random import Random

from gateway.schedule.entry import Entry, Tenant
from gateway.schedule.queue import LazyHeap, Line, Tier
from gateway.types import JobClass, SizeBucket
from tests.unit.schedule.build import job, settings


def entry(seq: int, key: float, tenant: Tenant, tokens: float = 1000) -> Entry:
    it = Entry(job(f"j{seq}", tokens), 0, seq, tenant)
    it.weigh(settings().schedule)
    it.key = key
    return it


def only_tier(line: Line) -> Tier:
    (tier,) = line.tiers.values()
    return tier


def names(line: Line) -> list[str]:
    """Empties the line's only tier in its order."""
    order = []
    while (first := only_tier(line).best()) is not None:
        order.append(first.job.id)
        line.remove(first)
    return order


def test_lazy_heap_gives_the_smallest_that_is_alive() -> None:
    """By key, then by seq; the dead are skipped."""
    dead: set[str] = set()
    heap: LazyHeap[str] = LazyHeap(lambda key, seq, item: item not in dead)
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
    heap: LazyHeap[int] = LazyHeap(lambda key, seq, item: item in alive)
    heap.push(-1.0, 0, -1)
    for n in range(10_000):
        alive.add(n)
        heap.push(float(n), n, n)
        alive.discard(n)
    assert heap.top() == -1
    assert len(heap) <= 65


def test_line_orders_jobs_of_several_tenants_by_key() -> None:
    """One order over all lanes of a tier."""
    line, random = Line("p", "m", ("a",), frozenset()), Random(1)
    tenants = [Tenant(f"t{n}") for n in range(5)]
    keys = [float(random.randrange(30)) for _ in range(100)]
    for seq, key in enumerate(keys):
        line.add_waiting(entry(seq, key, random.choice(tenants)))
    expected = [f"j{seq}" for _, seq in sorted((key, seq) for seq, key in enumerate(keys))]
    assert names(line) == expected
    assert line.size == line.waiting == 0


def test_line_parks_a_capped_tenant_and_shows_the_next() -> None:
    """A tenant at its cap hides nobody; unparked, it is in its place again."""
    line = Line("p", "m", ("a",), frozenset())
    capped, free = Tenant("capped"), Tenant("free")
    capped.max_inflight = capped.running = 1
    line.add_waiting(entry(1, 1.0, capped))
    line.add_waiting(entry(2, 2.0, free))
    line.add_waiting(entry(3, 0.5, capped))
    tier = only_tier(line)
    best = tier.best()
    assert best is not None
    assert best.job.id == "j2"
    line.add_waiting(entry(4, 0.1, capped))
    assert tier.best() is best
    (lane,) = capped.parked
    capped.running, capped.parked = 0, []
    lane.unpark()
    assert names(line) == ["j4", "j3", "j1", "j2"]


def test_line_keeps_classes_and_sizes_apart() -> None:
    """Each has its own heap, for each may be blocked alone."""
    line, tenant = Line("p", "m", ("a",), frozenset()), Tenant("t")
    for seq, tokens in enumerate((10, 100, 1000)):
        line.add_waiting(entry(seq, 0.0, tenant, tokens))
    assert list(line.tiers) == [
        (JobClass.INTERACTIVE, SizeBucket.SHORT),
        (JobClass.HEAVY, SizeBucket.MEDIUM),
        (JobClass.HEAVY, SizeBucket.LONG),
    ]


def test_line_finds_a_job_again_that_moved_and_came_back() -> None:
    """Moved with another key and back with the old one: once in the order, not twice."""
    line, tenant = Line("p", "m", ("a",), frozenset()), Tenant("t")
    moving, other = entry(1, 1.0, tenant), entry(2, 2.0, tenant)
    line.add_waiting(moving)
    line.add_waiting(other)
    for key in (3.0, 1.0):
        line.remove(moving)
        moving.key = key
        line.add_waiting(moving)
    assert names(line) == ["j1", "j2"]
