"""The operator's routes."""

from __future__ import annotations

from msgspec.structs import replace

from gateway.api.admin import health_report
from tests.unit.observe.records import snapshots


def test_health_report_names_readiness_and_what_it_rests_on() -> None:
    """A drain is named before a lack of accounts; a store that fails is named by its state."""
    taken = snapshots()
    assert health_report(taken, 1.26) == {
        "status": "ok",
        "version": "0.1.0",
        "uptime_s": 1.3,
        "accounts": {"usable": 1, "all": 1},
        "predictor": "ready",
        "store": "ok",
        "settings": {"generation": 3, "last_reload_ok": True},
    }
    scheduler = taken.scheduler
    bare = snapshots(scheduler=replace(scheduler, accounts=()), predictor=None, store=None)
    assert health_report(bare, 0)["status"] == "no_account"
    assert (health_report(bare, 0)["predictor"], health_report(bare, 0)["store"]) == ("off", "ok")
    assert taken.store is not None
    failing = snapshots(
        scheduler=replace(scheduler, draining=True), store=replace(taken.store, ok=False)
    )
    assert health_report(failing, 0)["status"] == "draining"
    assert health_report(failing, 0)["store"] == "failing"
