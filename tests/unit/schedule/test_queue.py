from __future__ import annotations

from random import Random

from gateway.schedule.live_job import LiveJob, Tenant
from gateway.schedule.overload import Grade
from gateway.schedule.queue import AccountsQueue, ClassQueue, LazyHeap, TenantQueue
from gateway.schedule.shares import SLACK_TOKENS, Shares
from gateway.types import JobClass
from tests.unit.schedule.build import job, settings


def live(seq: int, key: float, tenant: Tenant, tokens: float = 1000) -> LiveJob:
    it = LiveJob(job(f"j{seq}", tokens), 0, seq, tenant)
    it.weigh(settings().schedule)
    it.key = key
    return it


class Counted(AccountsQueue):
    """A queue that keeps its tenants' shares, as a pool does."""

    def __init__(self) -> None:
        super().__init__("p", "m", ("a",), frozenset())
        self.shares: Shares[TenantQueue] = Shares()

    def add(self, live: LiveJob) -> TenantQueue:
        return self.add_waiting(live, self.shares.of(live.tenant.name, 1.0))


def only_class(queue: AccountsQueue) -> ClassQueue:
    (class_queue,) = queue.class_queues.values()
    return class_queue


def names(queue: AccountsQueue) -> list[str]:
    """The queue's jobs, all of one class, in the order in which they would start; empties it."""
    order = []
    while (best := only_class(queue).best()) is not None:
        assert best.first is not None
        order.append(best.first.job.id)
        queue.remove_waiting(best.first, best)
    return order


def test_queue_orders_jobs_of_several_tenants_by_key() -> None:
    """Tenants of equal shares have one order between them."""
    queue, random = Counted(), Random(1)
    tenants = [Tenant(f"t{n}") for n in range(5)]
    keys = [float(random.randrange(30)) for _ in range(100)]
    for seq, key in enumerate(keys):
        queue.add(live(seq, key, random.choice(tenants)))
    expected = [f"j{seq}" for _, seq in sorted((key, seq) for seq, key in enumerate(keys))]
    assert names(queue) == expected
    assert len(queue.jobs) == queue.waiting == 0


def test_queue_parks_a_capped_tenant_and_shows_the_next() -> None:
    """A tenant at its cap hides nobody; unparked, its jobs are in their place again."""
    queue = Counted()
    capped, free = Tenant("capped"), Tenant("free")
    capped.max_inflight = capped.running = 1
    queue.add(live(1, 1.0, capped))
    queue.add(live(2, 2.0, free))
    queue.add(live(3, 0.5, capped))
    class_queue = only_class(queue)
    best = class_queue.best()
    assert best is not None
    assert best.first is not None
    assert best.first.job.id == "j2"
    queue.add(live(4, 0.1, capped))
    assert class_queue.best() is best
    (parked,) = capped.parked
    capped.running, capped.parked = 0, []
    assert parked.unpark() == ("p", 0.1)
    assert names(queue) == ["j4", "j3", "j1", "j2"]


def test_queue_that_is_empty_names_no_job_when_it_is_unparked() -> None:
    """The jobs of a parked queue may have left in the meantime."""
    queue, capped = Counted(), Tenant("capped")
    capped.max_inflight = capped.running = 1
    gone = live(1, 1.0, capped)
    mine = queue.add(gone)
    assert only_class(queue).best() is None
    queue.remove_waiting(gone, mine)
    assert capped.parked[0].unpark() is None


def test_queue_keeps_classes_and_sizes_apart() -> None:
    """Each class and size has its own queue, for each may be blocked alone."""
    queue, tenant = Counted(), Tenant("t")
    for seq, tokens in enumerate((10, 100, 1000)):
        queue.add(live(seq, 0.0, tenant, tokens))
    assert [(key.cls, key.grade, key.express) for key in queue.class_queues] == [
        (JobClass.INTERACTIVE, Grade.MEDIUM, True),
        (JobClass.HEAVY, Grade.MEDIUM, False),
        (JobClass.HEAVY, Grade.LONG, False),
    ]


def test_queue_puts_the_tenant_first_that_was_given_less() -> None:
    """Counters decide in steps, keys within a step; a step forward moves the waiting jobs."""
    queue = Counted()
    busy, idle = Tenant("busy"), Tenant("idle")
    for seq, (key, tenant) in enumerate(((1.0, busy), (2.0, idle), (3.0, busy), (4.0, idle))):
        queue.add(live(seq, key, tenant))
    queue.shares.charge(queue.shares.of("busy", 1.0), 10.0)
    best = only_class(queue).best()
    assert best is not None
    assert best.tenant is busy, "as good as equal"
    queue.shares.charge(queue.shares.of("busy", 1.0), SLACK_TOKENS)
    assert names(queue) == ["j1", "j3", "j0", "j2"]


def test_queue_moves_a_job_to_another_key() -> None:
    """A new key moves the job within its tenant's queue, and that queue among the others."""
    queue, one, other = Counted(), Tenant("one"), Tenant("other")
    moving = live(1, 1.0, one)
    mine = queue.add(moving)
    for it in (live(2, 2.0, one), live(3, 3.0, other)):
        queue.add(it)
    mine.rekey(moving, 9.0)
    assert moving.key == 9.0
    assert names(queue) == ["j2", "j3", "j1"]


def test_tenant_queue_knows_its_oldest() -> None:
    """The oldest is the first by arrival, whatever the keys; then the next one."""
    queue, tenant = Counted(), Tenant("t")
    jobs = [LiveJob(job(f"j{n}", at=at), 0, n, tenant) for n, at in enumerate((5.0, 3.0, 4.0))]
    for it in jobs:
        it.weigh(settings().schedule)
        mine = queue.add(it)
    assert mine.oldest is jobs[1]
    queue.remove_waiting(jobs[1], mine)
    assert mine.oldest is jobs[2]


def test_queue_knows_the_jobs_it_holds() -> None:
    """A job is in its accounts' and its tenant's queue until it is removed."""
    queue, tenant = Counted(), Tenant("t")
    here, never = live(1, 1.0, tenant), live(2, 1.0, tenant)
    mine = queue.add(here)
    assert [it in queue.jobs for it in (here, never)] == [True, False]
    assert [it in mine.jobs for it in (here, never)] == [True, False]
    queue.remove_waiting(here, mine)
    assert not queue.jobs
    assert not mine.jobs


def test_queue_finds_a_job_again_that_moved_and_came_back() -> None:
    """A job that moved to another key and back stands once in the order, not twice."""
    queue, tenant = Counted(), Tenant("t")
    moving, other = live(1, 1.0, tenant), live(2, 2.0, tenant)
    mine = queue.add(moving)
    queue.add(other)
    for key in (3.0, 1.0):
        queue.remove_waiting(moving, mine)
        moving.key = key
        queue.add(moving)
    assert names(queue) == ["j1", "j2"]


def test_lazy_heap_gives_the_smallest_that_is_alive() -> None:
    """The top is the smallest by key, then by seq; the dead are skipped."""
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
    """The heap is swept when it has doubled: memory follows the living, even if the top never
    dies."""
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
    """A sweep keeps all that live, by key, seq and item, and leaves no more dead than living."""
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


def test_lazy_heap_is_swept_when_it_has_doubled() -> None:
    """The first sweep comes with the 65th item, the next at twice what lived through the last."""
    alive = set(range(40))
    heap: LazyHeap[float, int] = LazyHeap(lambda key, seq, item: item in alive)
    sizes = []
    for n in range(64 + 1 + 41 + 1):
        heap.push(float(n), n, n)
        sizes.append(len(heap))
    assert sizes[:65] == [*range(1, 65), 40], "64 fit, and 40 of 65 live"
    assert sizes[65:] == [*range(41, 81), 40, 41], "80 fit: twice 40"
    alive = set(range(10))
    heap = LazyHeap(lambda key, seq, item: item in alive)
    sizes = []
    for n in range(65 + 55):
        heap.push(float(n), n, n)
        sizes.append(len(heap))
    assert sizes[64:] == [10, *range(11, 65), 10], "64 fit again, however few live"
