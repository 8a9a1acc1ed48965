from __future__ import annotations

from gateway.schedule.lazy_heap import LazyHeap


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
