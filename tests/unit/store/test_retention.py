"""Which history rows leave."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.store.retention import plan_trim

COUNTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 40))


@given(COUNTS, st.integers(0, 100))
def test_plan_takes_from_the_largest_first(counts: dict[str, int], number: int) -> None:
    """As many as asked for, nobody below zero, and no giver ends below one who gave nothing."""
    plan = plan_trim(counts, number)
    assert sum(plan.values()) == min(number, sum(counts.values()))
    left = {tenant: counts[tenant] - plan.get(tenant, 0) for tenant in counts}
    assert all(count >= 0 for count in left.values())
    floor = max((left[t] for t in counts if t not in plan), default=0)
    assert all(left[tenant] >= floor - 1 for tenant in plan)


def test_plan_spares_the_small() -> None:
    """A tenant below what the others come down to gives nothing."""
    assert plan_trim({"a": 100, "b": 10, "c": 60}, 60) == {"a": 50, "c": 10}
