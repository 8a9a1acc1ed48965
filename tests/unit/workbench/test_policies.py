"""The order in which each policy starts requests, and the core's settings."""

from __future__ import annotations

import pytest

from gateway.errors import Refused, SettingsError
from gateway.schedule import events
from gateway.schedule.events import Action, Dispatch, Refuse
from gateway.types import Job, Outcome, Verdict, Workload
from gateway.workbench.simulate.policies import (
    DUAL_BUDGET,
    GatewayPolicy,
    baseline,
    fixed_window,
    settings_of,
)
from gateway.workbench.simulate.request_rows import RequestRow, truth
from tests.unit.workbench.simulate_cases import UNKNOWN


def forecast_of(output_tokens: int) -> Workload:
    return truth(RequestRow(10, output_tokens, UNKNOWN)).first


def submitted(id: str, output_tokens: int, arrived_s: float = 0.0) -> events.Submitted:
    return events.Submitted(
        Job(id, "one", "m", "m", ("a", "b"), forecast_of(output_tokens), arrived_s), 0
    )


def finished(id: str) -> events.Finished:
    return events.Finished(id, Outcome.OK, Verdict.SUCCESS)


def failed(id: str, retry_after_s: float | None = None) -> events.AttemptFailed:
    return events.AttemptFailed(
        id, Verdict.RATE_LIMITED, Refused("429"), retry_after_s=retry_after_s
    )


def started(actions: list[Action]) -> list[str]:
    return [a.job_id for a in actions if isinstance(a, Dispatch)]


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("fifo", ["long", "medium", "short"]),
        ("sjf", ["short", "medium", "long"]),
        ("short_first", ["short", "long", "medium"]),
    ],
)
def test_policies_choose_as_they_say(name: str, order: list[str]) -> None:
    """Each policy starts four requests, one at a time, in its own order."""
    policy = baseline(name, 1)
    assert started(policy.handle(submitted("first", 100), 0.0)) == ["first"]
    for at_s, (id, tokens) in enumerate({"long": 900, "medium": 200, "short": 20}.items(), 1):
        assert policy.handle(submitted(id, tokens, at_s), at_s) == []
    found: list[str] = []
    running = "first"
    while found != order and len(found) < 3:
        (running,) = started(policy.handle(finished(running), 9.0))
        found.append(running)
    assert found == order


def test_fair_queuing_takes_turns_by_tokens() -> None:
    """Two long answers weigh as much as many short ones, which go between them."""
    policy = baseline("fair", 1)
    policy.handle(submitted("running", 10), 0.0)
    for i in range(2):
        policy.handle(submitted(f"long{i}", 300), 0.0)
    for i in range(20):
        policy.handle(submitted(f"short{i}", 30), 0.0)
    running, order = "running", []
    for _ in range(14):
        (running,) = started(policy.handle(finished(running), 1.0))
        order.append(running)
    assert order.index("long1") - order.index("long0") == 1 + 10


def test_fair_queuing_gives_no_credit_for_absence() -> None:
    """A class that comes late does not make up for its absence."""
    policy = baseline("fair", 1)
    running, order = "long0", []
    for i in range(12):
        policy.handle(submitted(f"long{i}", 300), 0.0)
    for _ in range(6):
        (running,) = started(policy.handle(finished(running), 1.0))
    for i in range(30):
        policy.handle(submitted(f"short{i}", 60), 2.0)
    for _ in range(12):
        (running,) = started(policy.handle(finished(running), 3.0))
        order.append(running)
    assert any(id.startswith("long") for id in order[:7])


def test_quotas_are_walls() -> None:
    """A size whose quota is full waits while other quotas are idle."""
    policy = baseline("quota", 4)  # one short, one medium, two long
    actions = [a for i in range(3) for a in policy.handle(submitted(f"s{i}", 10), 0.0)]
    assert started(actions) == ["s0"]
    assert started(policy.handle(submitted("l", 900), 0.0)) == ["l"]


def test_better_forecast_moves_what_waits() -> None:
    """A better forecast moves a waiting job once; a running job stays."""
    policy = baseline("sjf", 1)
    policy.handle(submitted("running", 100), 0.0)
    policy.handle(submitted("a", 500), 0.0)
    policy.handle(submitted("b", 300), 0.0)
    policy.handle(events.Reforecast("a", forecast_of(50)), 0.0)
    policy.handle(events.Reforecast("running", forecast_of(5)), 0.0)
    policy.handle(events.Reforecast("gone", forecast_of(5)), 0.0)
    assert started(policy.handle(finished("running"), 1.0)) == ["a"]
    assert started(policy.handle(finished("a"), 2.0)) == ["b"]
    assert started(policy.handle(finished("b"), 3.0)) == []


def test_accounts_are_used_evenly() -> None:
    """A request goes to the account with fewer in flight."""
    policy = baseline("naive", 1)
    actions = [a for i in range(4) for a in policy.handle(submitted(f"{i}", 10), 0.0)]
    assert [a.account for a in actions if isinstance(a, Dispatch)] == ["a", "b", "a", "b"]


def test_client_retries_as_libraries_do() -> None:
    """A client retries after Retry-After, or about 0.5 s and 1 s; the third 429 is the last."""
    policy = baseline("fifo", 1)
    policy.handle(submitted("r", 10), 0.0)
    assert policy.handle(failed("r", 3.0), 1.0) == []
    assert policy.next_wake(1.0) == 4.0
    assert started(policy.handle(events.Woke(), 4.0)) == ["r"]
    assert policy.handle(failed("r", 900.0), 5.0) == []  # nobody waits so long
    wake_s = policy.next_wake(5.0)
    assert wake_s is not None
    assert 5.75 <= wake_s <= 6.0
    assert started(policy.handle(events.Woke(), wake_s)) == ["r"]
    (last,) = policy.handle(failed("r"), 7.0)
    assert isinstance(last, Refuse)
    assert policy.next_wake(7.0) is None
    assert started(policy.handle(submitted("next", 10), 8.0)) == ["next"]


def test_fixed_window_is_the_cores_room() -> None:
    """A fixed window is the core's room, and successes do not move it."""
    sections, account = fixed_window(7)
    core = GatewayPolicy(settings_of({"a": ("m",)}, ("one",), sections, account=account))
    assert core.room == 7
    actions = [a for i in range(9) for a in core.handle(submitted(f"{i}", 2000), 0.0)]
    assert len(started(actions)) <= 7


def test_overrides_are_settings() -> None:
    """Overrides apply by section, later ones first, and a searched window wins over all."""
    settings = settings_of(
        {"a": ("m",)},
        ("one", "two"),
        DUAL_BUDGET,
        {"schedule": {"borrow": True}, "account": {"max_concurrency": 9}},
        account={"initial_concurrency": 5, "max_concurrency": 5},
    )
    assert settings.schedule.policy == "dual_budget"
    assert settings.schedule.borrow is True
    assert settings.accounts[0].max_concurrency == 5
    assert [tenant.name for tenant in settings.tenants] == ["one", "two"]
    with pytest.raises(SettingsError, match="unknown field"):
        settings_of({"a": ("m",)}, ("one",), {"schedule": {"no_such": 1}})


def test_unknown_baseline_is_an_error() -> None:
    """A baseline without a name of its own is a ValueError."""
    with pytest.raises(ValueError, match="nothing"):
        baseline("nothing", 1)
