"""Cost of requests since the last reset."""

from __future__ import annotations

from msgspec.structs import replace

from gateway.observe.spend import MOST_NAMES, Spend
from tests.unit.observe.records import record, workload


def test_spend_adds_up_by_model_and_tenant() -> None:
    """Every priced request counts once in each sum; the forecasts' p50 stand beside them."""
    spend, forecast = Spend(), replace(workload(), cost_usd_p50=0.003)
    spend.ended(record(cost_usd=0.002, workload=forecast))
    spend.ended(record(cost_usd=0.004, workload=forecast, tenant="b"))
    spend.ended(record(cost_usd=0.008, workload=None, model="embed"))
    assert spend.report() == {
        "total": 0.014,
        "predicted": 0.006,
        "by_model": {"m": 0.006, "embed": 0.008},
        "by_tenant": {"demo": 0.01, "b": 0.004},
        "unpriced": 0,
    }


def test_spend_counts_unpriced_usage_apart() -> None:
    """Usage without a price is counted apart; a request without usage cost nothing."""
    spend = Spend()
    spend.ended(record(cost_usd=None))
    spend.ended(record(cost_usd=None, usage=None))
    assert (spend.report()["unpriced"], spend.report()["total"]) == (1, 0.0)


def test_spend_cleared_counts_anew() -> None:
    """`clear` forgets every sum."""
    spend = Spend()
    spend.ended(record(cost_usd=1.0))
    spend.clear()
    assert spend.report() == Spend().report()


def test_spend_names_are_bounded() -> None:
    """A new name past the bound counts as "other", and the total stays right."""
    spend = Spend()
    for i in range(MOST_NAMES + 5):
        spend.ended(record(cost_usd=1.0, tenant=f"t{i}"))
    report = spend.report()
    assert (len(report["by_tenant"]), report["by_tenant"]["other"]) == (MOST_NAMES + 1, 5.0)
    assert report["total"] == MOST_NAMES + 5
