"""The state's families: one-hot states, a reason for each waiting job, counters that match."""

from __future__ import annotations

import pytest
from msgspec import structs

from gateway.observe.state import ACCOUNT_STATES, DROPS, REFITS, REGIMES, state_metrics
from gateway.types import Mode, Reason, Verdict
from tests.unit.observe.records import snapshots

Page = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def page(**more: object) -> Page:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in state_metrics(snapshots(**more))
        for sample in family.samples
    }


def of(shown: Page, name: str) -> dict[tuple[str, ...], float]:
    return {tuple(v for _, v in labels): value for (n, labels), value in shown.items() if n == name}


def test_state_names_every_waiting_job_once() -> None:
    """The reasons sum to the waiting jobs, and each reason has its series."""
    waiting = of(page(), "sagesched_queue_jobs")
    assert len(waiting) == 2 * len(Reason)
    assert sum(waiting.values()) == 3
    assert waiting["interactive", "p", "class_budget"] == 2


def test_state_mode_is_one_hot() -> None:
    """The series of the pool's mode is 1, that of each other mode 0."""
    assert of(page(), "sagesched_pool_mode") == {
        (mode.value, "p"): float(mode is Mode.MODERATE) for mode in Mode
    }


def test_state_account_is_one_hot_and_counted() -> None:
    """An account's state is one-hot; its drops have a series per verdict that is a drop."""
    shown = page()
    states = of(shown, "sagesched_account_state")
    assert states == {("a", state): float(state == "backoff") for state in ACCOUNT_STATES}
    drops = of(shown, "sagesched_account_drops_total")
    assert drops == {("a", v.value): 3.0 if v is Verdict.RATE_LIMITED else 0.0 for v in DROPS}
    assert of(shown, "sagesched_account_limit") == {("a",): 16.5}
    assert of(shown, "sagesched_account_cuts_total") == {("a",): 1.0}


@pytest.mark.parametrize(
    ("refit", "state"),
    [
        ("off", "off"),
        ("waiting", "waiting"),
        ("running", "running"),
        ("accepted", "accepted"),
        ("kept the old models", "kept"),
        ("failed: exit status 9", "failed"),
        ("failed: it took too long", "failed"),
    ],
)
def test_state_refit_is_one_hot(refit: str, state: str) -> None:
    """The label is the first word of the sentence that people read."""
    taken = snapshots().predictor
    assert taken is not None
    shown = page(predictor=structs.replace(taken, refit=refit))
    states = of(shown, "sagesched_predictor_refit")
    assert states == {(each,): float(each == state) for each in REFITS}


def test_state_has_budgets_queues_and_losses() -> None:
    """Each number of the snapshots is on the page, under its name and unit."""
    shown = page()
    expected = {
        ("sagesched_budget_tokens", (("class", "heavy"), ("pool", "p"))): 7000,
        ("sagesched_inflight_tokens", (("class", "interactive"), ("pool", "p"))): 160,
        ("sagesched_queue_oldest_seconds", (("class", "interactive"), ("pool", "p"))): 1.5,
        ("sagesched_pool_saturation_ratio", (("pool", "p"),)): 0.8,
        ("sagesched_pool_severity_ratio", (("pool", "p"),)): 1.25,
        ("sagesched_pool_clear_seconds", (("pool", "p"),)): 75,
        ("sagesched_jobs_submitted_total", ()): 50,
        ("sagesched_config_generation", ()): 3,
        ("sagesched_config_reload_ok", ()): 1,
        ("sagesched_journal_dropped_total", ()): 7,
        ("sagesched_listener_faults_total", ()): 5,
        ("sagesched_predictor_skipped_total", (("reason", "late"),)): 4,
        ("sagesched_predictor_learn_lost_total", ()): 6,
        ("sagesched_predictor_queue_items", (("queue", "learn"),)): 2,
        ("sagesched_predictor_drifts_total", ()): 3,
        ("sagesched_predictor_models_version", ()): 2,
        ("sagesched_store_ok", ()): 1,
        ("sagesched_store_lost_items_total", ()): 2,
        ("sagesched_store_commit_seconds", ()): 0.001,
    }
    assert {key: shown.get(key) for key in expected} == expected


def test_state_without_a_part_leaves_its_families_out() -> None:
    """A predictor or store that is off has no series, which is not the same as 0."""
    whole, part = page(), page(predictor=None, store=None)
    left_out = {name for name, _ in whole} - {name for name, _ in part}
    assert left_out
    assert all(n.startswith(("sagesched_predictor_", "sagesched_store_")) for n in left_out)


def test_state_window_has_its_size_and_curve() -> None:
    """The page has each window's size, its regime one-hot, and the fitted numbers."""
    shown = page()
    assert of(shown, "sagesched_window_requests") == {("a", "m"): 16.0}
    regimes = of(shown, "sagesched_window_regime")
    assert regimes == {("a", "m", name): float(name == "saturating") for name in REGIMES}
    assert of(shown, "sagesched_window_curve")["a", "m", "turn"] == 15.0
    assert of(shown, "sagesched_window_unloaded_seconds")["a", "m", "output_token"] == 0.012


def test_state_has_header_limits_that_were_given() -> None:
    """A limit that no header gave has no series, which is not the same as 0."""
    shown = page()
    requests, tokens = ("a", "requests", "m"), ("a", "tokens", "m")
    assert of(shown, "sagesched_ratelimit_limit") == {requests: 600}
    assert of(shown, "sagesched_ratelimit_remaining") == {requests: 120}
    assert of(shown, "sagesched_ratelimit_reset_seconds") == {requests: 9.5}
    assert of(shown, "sagesched_ratelimit_wait_seconds") == {requests: 1.5, tokens: 0}
    assert of(shown, "sagesched_ratelimit_believed") == {requests: 1, tokens: 0}
