"""A table that one tenant cannot fill with the others' room."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gateway.predict.fair import FairTable


def key(tenant: str, name: object) -> str:
    return f"{tenant}/{name}"


def owner(key: str) -> str:
    return key.split("/")[0]


def test_fair_table_lets_a_flood_push_out_its_own() -> None:
    """A tenant within its share keeps all it has, however long unused."""
    table: FairTable[int] = FairTable(100, owner)
    for number in range(50):
        table.put(key("small", number), number)
    dropped = [table.put(key("flood", number), number) for number in range(1000)]
    assert len(table) == 100
    assert all(key("small", number) in table for number in range(50))
    assert [one for one in dropped if one] == [key("flood", number) for number in range(950)]


def test_fair_table_takes_back_what_was_beyond_a_share() -> None:
    """Alone it may have all of it; who comes later gets as much as it has."""
    table: FairTable[int] = FairTable(100, owner)
    for number in range(100):
        table.put(key("first", number), number)
    for number in range(100):
        table.put(key("second", number), number)
    assert Counter(map(owner, table)) == {"first": 50, "second": 50}
    assert key("first", 99) in table, "the longest unused go first"


def test_fair_table_of_one_entry_each_drops_the_longest_unused() -> None:
    """With more tenants than room; one used again is not it."""
    table: FairTable[int] = FairTable(3, owner)
    for tenant in "abc":
        table.put(key(tenant, 1), 1)
    table.put(key("a", 1), 2)
    assert table.put(key("d", 1), 1) == key("b", 1)
    table.replace(key("c", 1), 5)
    assert table.put(key("e", 1), 1) == key("c", 1), "a replaced value is no use"


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 9)), max_size=200))
def test_fair_table_never_takes_from_a_tenant_within_its_share(
    steps: list[tuple[str, int]],
) -> None:
    """What is dropped is always of a tenant that has the most; the table is full by then."""
    table: FairTable[int] = FairTable(12, owner)
    for tenant, number in steps:
        before = dict(table)
        dropped = table.put(key(tenant, number), number)
        assert set(table) == (set(before) | {key(tenant, number)}) - {dropped}
        assert len(table) <= 12
        if dropped is not None:
            counts = Counter(map(owner, [*table, dropped]))
            assert counts[owner(dropped)] == max(counts.values())
        again: FairTable[int] = FairTable(12, owner, table.items())
        assert dict(again) == dict(table)
