"""Learning from answers: running means, levels, and the alarm for a changed source."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.predict.calibrate import Channel, Mirror, group_keys
from gateway.predict.residuals import LARGEST, MODELS, TEMPLATES, FairTable, Residuals
from gateway.types import JobClass

M = group_keys("gpt-5.4-mini", "a")


def taught(count: int, residual: float, *, censored: bool = False) -> Residuals:
    residuals = Residuals()
    for _ in range(count):
        residuals.learn(M, 5.0 + residual, stage0=5.0, full=5.0, censored=censored)
    return residuals


def test_a_tenant_s_answers_move_no_other_s_forecasts() -> None:
    """One tenant's reports, true or not, change no bias, tokens per byte or levels of others."""
    residuals, other = taught(100, 2.0), group_keys("gpt-5.4-mini", "b")
    for _ in range(100):
        residuals.learn_tokens("gpt-5.4-mini", "a", "latin", 100, 9000)
        residuals.move_levels("full", JobClass.HEAVY, (True, True), censored=False, keys=M)
    table, fresh = residuals.table, Residuals().table
    assert table.stage0_bias(M) > 1.0
    for seen in (table, fresh):
        assert (seen.stage0_bias(other), seen.full_bias(other)) == (0.0, 0.0)
        assert seen.tokens_per_byte("gpt-5.4-mini", "b", "latin") == 0.25
        assert seen.levels_of("full", JobClass.HEAVY, other).high == 0.1


def test_residuals_approach_the_true_bias() -> None:
    """Few answers move the bias a little, and many move it all the way."""
    few, many = taught(2, 0.7).table.stage0_bias(M), taught(2000, 0.7).table.stage0_bias(M)
    assert 0.0 < few < 0.3
    assert many == pytest.approx(0.7, rel=0.06)


def test_residuals_forget_an_old_bias() -> None:
    """After a change the new bias takes over within a few hundred answers."""
    residuals = taught(1000, 1.0)
    for _ in range(600):
        residuals.learn(M, 4.0, stage0=5.0, full=5.0, censored=False)
    assert residuals.table.stage0_bias(M) < -0.8


def test_residuals_take_a_cut_answer_as_a_lower_bound() -> None:
    """An answer cut below the forecast says nothing, and one cut above it raises the bias."""
    assert taught(50, -1.0, censored=True).table.stage0_bias(M) == 0.0
    assert taught(50, +1.0, censored=True).table.stage0_bias(M) > 0.5


def test_a_cut_answer_never_lowers_a_raised_bias() -> None:
    """A bound above the boosters' forecast but below the corrected one is no evidence."""
    residuals = taught(200, 1.5)
    before = residuals.table.stage0_bias(M)
    for _ in range(50):
        residuals.learn(M, 5.5, stage0=5.0, full=5.0, censored=True)
    assert residuals.table.stage0_bias(M) == before
    residuals.learn(M, 5.5, stage0=5.0, full=5.0, censored=False)
    assert residuals.table.stage0_bias(M) < before


def test_residuals_bound_one_answer() -> None:
    """One absurd length moves the bias no more than the largest residual allows."""
    assert taught(1, 99.0).table.stage0_bias(M) == taught(1, LARGEST).table.stage0_bias(M) < 0.6


def test_residuals_keep_the_two_forecasts_apart() -> None:
    """Stage 0 and the full model have a bias each, and a missing full forecast teaches none."""
    residuals = Residuals()
    residuals.learn(M, 6.0, stage0=5.0, full=None, censored=False)
    assert residuals.table.stage0_bias(M) > 0
    assert residuals.table.full_bias(M) == 0.0


def test_tokens_per_byte_are_learned_by_model_and_script() -> None:
    """A provider's counts move the ratio of their model and script; an unseen model starts from its
    family."""
    residuals = Residuals()
    before = residuals.table.tokens_per_byte("gpt-5", "a", "cjk")
    for _ in range(100):
        residuals.learn_tokens("gpt-5", "a", "cjk", 3000, 450)
    table = residuals.table
    assert table.tokens_per_byte("gpt-5", "a", "cjk") == pytest.approx(0.15, rel=0.05)
    assert table.tokens_per_byte("gpt-6", "a", "cjk") == pytest.approx(0.16, rel=0.15)
    assert table.tokens_per_byte("gpt-5", "a", "latin") == 0.25
    assert table.tokens_per_byte("glm-4", "a", "cjk") == before


def test_shares_start_at_zero_and_follow_usage() -> None:
    """Shares of cached and reasoning tokens are 0 at first and then those seen lately."""
    residuals = Residuals()
    assert residuals.table.mean(M, Channel.CACHED) == 0.0
    for _ in range(300):
        residuals.learn_share(M, Channel.CACHED, 0.8)
    assert residuals.table.mean(M, Channel.CACHED) == pytest.approx(0.8, rel=0.05)
    assert residuals.table.mean(M, Channel.REASONING) == 0.0


@pytest.mark.parametrize("scatter", [0.5, 1.0, 2.0])
def test_levels_bring_the_share_of_misses_to_the_target(scatter: float) -> None:
    """For each true scatter p90 comes to cover 0.9 of the answers and the median 0.5."""
    residuals, rng = Residuals(), random.Random(1)
    missed = []
    for _ in range(4000):
        levels = residuals.table.levels_of("full", JobClass.HEAVY, M)
        y = rng.gauss(0.3, scatter)
        miss = (y > levels.z[0], y > levels.z[1])
        residuals.move_levels("full", JobClass.HEAVY, miss, censored=False, keys=M)
        missed.append(miss)
    late = missed[1000:]
    assert sum(m for m, _ in late) / len(late) == pytest.approx(0.5, abs=0.03)
    assert sum(h for _, h in late) / len(late) == pytest.approx(0.1, abs=0.02)


def test_levels_take_a_bound_below_the_quantile_as_no_evidence() -> None:
    """A cut answer under p90 does not narrow the grid, and one above it widens it."""
    residuals = Residuals()
    residuals.move_levels("full", JobClass.HEAVY, (False, False), censored=True, keys=M)
    assert residuals.table.levels_of("full", JobClass.HEAVY, M).high == 0.1
    residuals.move_levels("full", JobClass.HEAVY, (True, True), censored=True, keys=M)
    assert residuals.table.levels_of("full", JobClass.HEAVY, M).high < 0.1


def test_detect_change_finds_a_changed_source_and_forgets_it() -> None:
    """Answers that lie high again and again raise an alarm within some twenty; noise raises
    none."""
    residuals, rng = taught(1000, 0.0), random.Random(3)
    assert not any(residuals.detect_change(M, rng.random(), censored=False) for _ in range(5000))
    alarms = [residuals.detect_change(M, 0.97, censored=False) for _ in range(25)]
    assert any(alarms)
    assert residuals.drifts == sum(alarms)
    for _ in range(20):
        residuals.learn(M, 6.0, stage0=5.0, full=5.0, censored=False)
    slow = taught(1000, 0.0)
    for _ in range(20):
        slow.learn(M, 6.0, stage0=5.0, full=5.0, censored=False)
    assert residuals.table.stage0_bias(M) > 1.5 * slow.table.stage0_bias(M)


def test_groups_are_bounded() -> None:
    """The groups longest without an answer are dropped first, and templates push out no models."""
    residuals = taught(1, 1.0)
    for i in range(TEMPLATES + 1):
        of = group_keys("gpt-5.4-mini", "b", f"template {i}")
        residuals.learn(of, 6.0, stage0=5.0, full=5.0, censored=False)
    assert len(residuals.table.templates) == TEMPLATES
    assert residuals.table.models.keys() >= set(M.models)
    for i in range(MODELS):
        residuals.learn(group_keys("m-1", f"c{i}"), 6.0, stage0=5.0, full=5.0, censored=False)
    assert len(residuals.table.models) == MODELS
    assert M.source not in residuals.table.models


def test_a_tenant_s_templates_without_end_cost_no_other_s() -> None:
    """With a schema made per request by another tenant, a tenant's template is corrected as before,
    also in a mirror and after a restart."""
    residuals, mirror = Residuals(), Mirror()
    of = group_keys("m-1", "a", "template")
    for _ in range(50):
        residuals.learn(of, 6.0, stage0=5.0, full=5.0, censored=False)
    before = residuals.table.stage0_bias(of)
    for i in range(2 * TEMPLATES):
        flood = group_keys("m-1", "b", f"template {i}")
        residuals.learn(flood, 2.0, stage0=5.0, full=5.0, censored=False)
        if i % 500 == 0:
            mirror.apply(residuals.changes())
    mirror.apply(residuals.changes())
    again = Residuals()
    assert again.restore(residuals.table.dump())
    for table in (residuals.table, mirror.table, again.table):
        assert len(table.templates) == TEMPLATES
        assert table.stage0_bias(of) == before


def test_state_comes_back_as_it_was_dumped() -> None:
    """A dumped calibration is restored completely, and other bytes change nothing."""
    residuals = taught(30, 1.0)
    residuals.learn_tokens("gpt-5", "a", "cjk", 3000, 450)
    residuals.move_levels("full", JobClass.HEAVY, (True, True), censored=False, keys=M)
    other = Residuals()
    assert other.restore(residuals.table.dump())
    assert other.table == residuals.table
    for broken in (b"", b"\xff", b"\x80", residuals.table.dump()[:-3]):
        assert not other.restore(broken)
    assert other.table == residuals.table


def test_other_models_begin_with_no_residual_and_keep_the_rest() -> None:
    """After a refit biases are gone; lengths, levels and tokens per byte stay."""
    residuals = taught(30, 1.0)
    residuals.learn_tokens("gpt-5", "a", "cjk", 3000, 450)
    before = residuals.table
    residuals.forget_models()
    after = residuals.table
    assert (after.stage0_bias(M), after.full_bias(M)) == (0.0, 0.0)
    assert after.running(M)[0] == before.running(M)[0]
    assert after.tokens_per_byte("gpt-5", "a", "cjk") == before.tokens_per_byte("gpt-5", "a", "cjk")


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
    """A tenant alone may use all of the table, and a later one gets an equal share of it."""
    table: FairTable[int] = FairTable(100, owner)
    for number in range(100):
        table.put(key("first", number), number)
    for number in range(100):
        table.put(key("second", number), number)
    assert Counter(map(owner, table)) == {"first": 50, "second": 50}
    assert key("first", 99) in table, "the longest unused go first"


def test_fair_table_of_one_entry_each_drops_the_longest_unused() -> None:
    """With more tenants than room the longest unused entry goes; using one again protects it."""
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
    """A dropped entry is always of a tenant with the most entries, and only once the table
    is full."""
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
