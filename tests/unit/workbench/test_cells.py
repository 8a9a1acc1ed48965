"""Every policy through every scenario, and what stands between them."""

from __future__ import annotations

import pytest

from gateway.workbench.simulate.cells import POLICIES, SEARCHED, TWO_SIDED, play
from gateway.workbench.simulate.worlds import world_of
from tests.unit.workbench.simulate_cases import cell, plan


def test_every_policy_answers_a_burst() -> None:
    """Every policy answers all requests and has figures; first seeds keep single latencies."""
    played = play(plan(), cell(requests=40))
    assert tuple(played) == POLICIES
    for name, one in played.items():
        assert one.figures["completed"] == 1.0, name
        assert len(one.latencies) == len(one.waits) == len(one.tokens) == 40
    assert played["naive"].figures["wait_max_s"] == 0.0
    assert not play(plan(policies=["naive"]), cell(seed=9, requests=40))["naive"].latencies


def test_same_cell_has_the_same_figures() -> None:
    """Two plays of a cell agree to the last digit."""
    some = plan(policies=["naive", "sjf", "ours"])
    assert play(some, cell()) == play(some, cell())


def test_hindsight_is_one_of_the_searched_windows() -> None:
    """The static window is one of those searched, and none of the others costs less."""
    world = world_of(plan(), cell())
    tried = {max(1, round(times * world.best_window)) for times in SEARCHED}
    assert play(plan(policies=["static"]), cell())["static"].figures["window"] in tried


def test_settings_given_do_not_change_what_a_policy_is() -> None:
    """A policy's own ordering and a searched window win over the given settings."""
    some = ["ours", "ours:fcfs"]
    baseline = play(plan(policies=some), cell())
    given = {"schedule": {"ordering": "sjf"}}
    changed = play(plan(policies=some, overrides=given), cell())
    assert changed["ours:fcfs"] == baseline["ours:fcfs"]


def test_warm_up_comes_before_and_is_not_counted() -> None:
    """Warm-up requests are not counted; without any, a cold core has the figures of a warm one."""
    policies = ["ours", "cold"]
    same = play(plan(warm_up=0, policies=policies), cell())
    assert same["ours"] == same["cold"]
    warm = play(plan(warm_up=60, policies=policies), cell())
    assert warm["cold"] == same["cold"]
    assert len(warm["ours"].latencies) == len(warm["cold"].latencies) == 60


def test_steady_run_drops_its_beginning() -> None:
    """A steady run leaves out its first fifth and has no cold twin."""
    played = play(plan(policies=["ours", "cold"]), cell("steady", rho=0.7, requests=50))
    assert list(played) == ["ours"]
    assert len(played["ours"].latencies) == 40


@pytest.mark.parametrize("scenario", ["flood", "isolation"])
def test_quiet_side_is_also_played_alone(scenario: str) -> None:
    """Two-sided scenarios are played by some policies only; alone the quiet side is no slower."""
    played = play(plan(), cell(scenario))
    assert set(played) == set(TWO_SIDED)
    for one in played.values():
        assert one.figures["quiet_alone_p95_s"] <= one.figures["quiet_p95_s"] + 1e-9


def test_pools_of_the_core_do_not_wait_for_each_other() -> None:
    """Two pools add no wait to each other; the check would see a shared window."""
    played = play(plan(), cell("isolation", requests=150))
    assert played["ours"].figures["quiet_added_wait_s"] == 0.0
    assert played["fifo"].figures["quiet_added_wait_s"] > 0.1


@pytest.mark.parametrize("scenario", ["drop", "drift", "limits"])
def test_trouble_loses_no_request_of_the_core(scenario: str) -> None:
    """The core answers every request in scenarios where the provider changes or limits."""
    played = play(plan(policies=["ours"]), cell(scenario, rho=1.5))
    assert played["ours"].figures["completed"] == 1.0
