"""A world is made of its seed."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.errors import SettingsError
from gateway.workbench.figures import buckets
from gateway.workbench.simulate.request_rows import generated, noisy
from gateway.workbench.simulate.simulated_provider import SHAPES
from gateway.workbench.simulate.worlds import SCENARIOS, World, world_of
from tests.unit.workbench.simulate_cases import cell, plan

PLAN = plan()


def sizes(world: World) -> list[int]:
    return [r.row.output_tokens for r in world.requests]


def test_seed_is_the_same_world() -> None:
    """The same seed gives the same world, and another seed another."""
    one, same, other = (world_of(PLAN, cell(seed=seed)) for seed in (1, 1, 2))
    assert one.requests == same.requests
    assert one.traits == same.traits
    assert sizes(one) != sizes(other)
    assert one.traits != other.traits


def test_shapes_and_forecasts_are_paired() -> None:
    """All shapes and forecasts meet the same rows and noise; arrivals differ by scale only."""
    rows = {**PLAN.rows, "τ 0.80": noisy(generated(300, 3), 0.8, 1)}
    worlds = [world_of(plan(rows=rows), cell(shape=shape)) for shape in SHAPES]
    worlds.append(world_of(plan(rows=rows), cell(forecast="τ 0.80")))
    first = worlds[0]
    for world in worlds[1:]:
        assert sizes(world) == sizes(first)
        assert [r.z for r in world.requests] == [r.z for r in first.requests]
        scale = world.requests[-1].arrived_s / first.requests[-1].arrived_s
        assert [r.arrived_s for r in world.requests] == pytest.approx(
            [scale * r.arrived_s for r in first.requests]
        )


def test_load_is_that_of_the_best_throughput() -> None:
    """ρ = 2 brings twice the work that the provider can do in the time."""
    for shape in ("knee", "quadratic"):
        world = world_of(plan(mix="as-is"), cell(shape=shape, requests=3000))
        own = world.traits["a"]
        work = sum(
            own.work_s(r.row.prompt_tokens, r.row.output_tokens, r.z) for r in world.requests
        )
        assert work / world.requests[-1].arrived_s / own.capacity == pytest.approx(2, rel=0.1)


def test_world_has_the_shares_of_its_mix() -> None:
    """The published mix has a tenth of short answers."""
    kinds = buckets(np.array(sizes(world_of(PLAN, cell(requests=100))), float))
    assert np.bincount(kinds).tolist() == [10, 48, 42]


def test_mix_the_rows_lack_is_an_error() -> None:
    """A mix whose size the rows lack is refused by name before anything is played."""
    rows = {"τ 0.60": [row for row in PLAN.rows["τ 0.60"] if row.output_tokens > 64]}
    with pytest.raises(SettingsError, match="mix 'published': no row of size short"):
        world_of(plan(rows=rows), cell())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_makes_a_world(scenario: str) -> None:
    """Requests are in order, with distinct ids, for accounts that serve their model."""
    world = world_of(PLAN, cell(scenario))
    times = [r.arrived_s for r in world.requests]
    assert times == sorted(times)
    ids = [r.id for r in (*world.requests, *world.warm_up)]
    assert len(set(ids)) == len(ids)
    for r in world.requests:
        assert all(r.model in world.models[account] for account in r.accounts)
        assert r.tenant in world.tenants


def test_drop_takes_half_and_gives_it_back() -> None:
    """A drop halves the machines in the middle of the arrivals, and a drift ends where it began."""
    world = world_of(PLAN, cell("drop"))
    last = world.requests[-1].arrived_s
    assert [c.at_s / last for c in world.changes] == pytest.approx([0.4, 0.7])
    assert [c.share for c in world.changes] == [0.5, 1.0]
    shares = [c.share for c in world_of(PLAN, cell("drift")).changes]
    assert (min(shares), max(shares), shares[-1]) == pytest.approx((0.5, 1.0, 1.0))


def test_limits_bite_before_congestion() -> None:
    """The limits allow less concurrency than the best window and less a minute than could be
    served."""
    free, bound = world_of(PLAN, cell()).traits["a"], world_of(PLAN, cell("limits")).traits["a"]
    assert free.max_concurrency == 0
    assert 0 < bound.max_concurrency < bound.best_window
    assert bound.rpm > 0


def test_arrivals_of_a_trace_keep_its_rhythm() -> None:
    """Arrivals of a trace are scaled to the load, or by the given factor."""
    gaps = np.array([1.0, 1.0, 8.0] * 10)
    scaled = world_of(plan(gaps=gaps), cell(requests=30)).requests
    poisson = world_of(PLAN, cell(requests=3000)).requests
    rate = 3000 / poisson[-1].arrived_s
    assert 30 / scaled[-1].arrived_s == pytest.approx(rate, rel=0.1)
    faster = world_of(plan(gaps=gaps, speed=10.0), cell(requests=30)).requests
    assert faster[-1].arrived_s == pytest.approx(10.0)
