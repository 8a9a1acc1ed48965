"""The history rows that are removed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.store.retention import plan_trim

COUNTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 40))


@given(COUNTS, st.integers(0, 100))
def test_plan_takes_from_the_largest_first(counts: dict[str, int], number: int) -> None:
    """The plan removes as many as asked, none below zero, and no tenant that gives ends below one
    that does not."""
    plan = plan_trim(counts, number)
    assert sum(plan.values()) == min(number, sum(counts.values()))
    left = {tenant: counts[tenant] - plan.get(tenant, 0) for tenant in counts}
    assert all(count >= 0 for count in left.values())
    floor = max((left[t] for t in counts if t not in plan), default=0)
    assert all(left[tenant] >= floor - 1 for tenant in plan)


def test_plan_spares_the_small() -> None:
    """A tenant with fewer rows than the others end with gives none."""
    assert plan_trim({"a": 100, "b": 10, "c": 60}, 60) == {"a": 50, "c": 10}
