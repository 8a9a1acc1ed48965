"""The clock: what happens when, and that nothing is lost."""

from __future__ import annotations

import pytest
from msgspec import structs

from gateway.schedule.events import Action, Event
from gateway.workbench.simulate.policies import GatewayPolicy, WindowPolicy, baseline, settings_of
from gateway.workbench.simulate.simulated_provider import SimulatedProvider
from gateway.workbench.simulate.virtual_loop import CapacityChange, RunResult, SimulatedRequest, run
from tests.unit.workbench.simulate_cases import PLAIN, request

REQUESTS = [request(f"r{i}", 0.1 * i, 20 + 40 * (i % 7)) for i in range(40)]


def core() -> GatewayPolicy:
    return GatewayPolicy(settings_of({"a": ("m",)}, ("one",)))


def played(name: str, requests: list[SimulatedRequest] = REQUESTS) -> RunResult:
    policy = core() if name == "ours" else baseline(name, 4)
    return run(policy, {"a": SimulatedProvider(PLAIN)}, requests)


def test_naive_is_the_provider_alone() -> None:
    """Every request starts as it arrives."""
    found = played("naive")
    assert [r.started_s for r in found.results] == [r.arrived_s for r in REQUESTS]
    assert all(r.completed for r in found.results)


def test_lone_request_takes_its_time_alone() -> None:
    """No policy makes a lone request slower."""
    for name in ("naive", "fifo", "ours"):
        (result,) = played(name, [request("r", 3.0, 150)]).results
        assert result.latency_s == pytest.approx(result.request.alone_s)


@pytest.mark.parametrize("name", ["naive", "fifo", "sjf", "fair", "quota", "short_first", "ours"])
def test_same_run_has_the_same_results(name: str) -> None:
    """Two runs agree to the last digit, under every policy."""
    one, two = played(name), played(name)
    assert [(r.started_s, r.ended_s) for r in one.results] == [
        (r.started_s, r.ended_s) for r in two.results
    ]
    assert one.trace == two.trace


def test_window_bounds_the_requests_in_flight() -> None:
    """The number in flight never exceeds the window, and fills it while there is a queue."""
    found = played("fifo")
    starts = sorted((r.started_s, r.ended_s) for r in found.results)
    running = [sum(s <= begun < e for s, e in starts) for begun, _ in starts]
    assert max(running) == 4
    waited = [r for r in found.results if r.wait_s > 0]
    assert waited
    ends = {r.ended_s for r in found.results}
    assert all(r.started_s in ends for r in waited)


def test_noise_belongs_to_the_request() -> None:
    """A request's work is the same under every policy, and so is the sum of work."""
    noisy = structs.replace(PLAIN, noise=0.5)
    requests = [request(f"r{i}", 0.1 * i, 50, noisy, z=(-1) ** i * 0.7) for i in range(20)]
    sums = []
    for policy in (baseline("naive", 4), baseline("sjf", 4), core()):
        provider = SimulatedProvider(noisy)
        run(policy, {"a": provider}, requests)
        sums.append(provider.done_s)
    assert sums == pytest.approx([sums[0]] * 3)


def test_run_may_begin_later() -> None:
    """A second run on the same policy and provider counts from its own start."""
    policy, provider = baseline("fifo", 4), SimulatedProvider(PLAIN)
    first = run(policy, {"a": provider}, REQUESTS)
    again = [structs.replace(r, id=f"again {r.id}") for r in REQUESTS]
    second = run(policy, {"a": provider}, again, start_s=first.ended_s + 1)
    assert [r.latency_s for r in second.results] == pytest.approx(
        [r.latency_s for r in first.results]
    )


def test_changes_come_at_their_time() -> None:
    """With a quarter of the machines, four streams on a knee of four run at a quarter's speed."""
    requests = [request(f"r{i}", 0.0, 100) for i in range(4)]
    found = run(
        baseline("naive", 4),
        {"a": SimulatedProvider(PLAIN)},
        requests,
        [CapacityChange(0.5, "a", 0.25)],
    )
    assert [r.ended_s for r in found.results] == pytest.approx([0.5 + 0.5 * 4] * 4)


def test_rejected_requests_come_again() -> None:
    """On a provider that takes two at once, the core answers all of a burst."""
    tight = structs.replace(PLAIN, max_concurrency=2)
    requests = [request(f"r{i}", 0.0, 30) for i in range(30)]
    found = run(core(), {"a": SimulatedProvider(tight)}, requests)
    assert all(r.completed for r in found.results)
    assert sum(r.rejections for r in found.results) > 0


def test_client_gives_up_after_three_rejections() -> None:
    """Without a gateway some requests of the same burst fail, each after three 429s."""
    tight = structs.replace(PLAIN, max_concurrency=1)
    requests = [request(f"r{i}", 0.0, 900) for i in range(10)]
    found = run(baseline("naive", 1), {"a": SimulatedProvider(tight)}, requests)
    lost = [r for r in found.results if not r.completed]
    assert lost
    assert {(r.rejections, r.refused) for r in lost} == {(3, "overloaded")}


class Forgetful(WindowPolicy):
    """Starts nothing."""

    def __init__(self) -> None:
        super().__init__([1], lambda held, served: (0.0,))

    def handle(self, event: Event, now: float) -> list[Action]:
        return []


class Restless(Forgetful):
    """Wants to be woken, for nothing."""

    def next_wake(self, now: float) -> float | None:
        return now


@pytest.mark.parametrize("policy", [Forgetful(), Restless()])
def test_policy_that_loses_requests_is_an_error(policy: WindowPolicy) -> None:
    """A run whose policy loses a request ends with an error."""
    with pytest.raises(RuntimeError, match="1 requests are lost"):
        run(policy, {"a": SimulatedProvider(PLAIN)}, [request("r", 0.0, 10)])
