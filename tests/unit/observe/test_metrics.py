"""The metrics page: naming rules, bounded labels, forecast against truth."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import pytest
from msgspec.structs import replace
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from gateway.observe.metrics import MAX_TENANTS, LabelNames, Metrics
from gateway.snapshots import Snapshots
from gateway.types import CUT_FINISH_REASONS, JobRecord, Outcome, Rung, Usage
from tests.unit.observe.records import record, snapshots, workload
from tests.unit.settings.trees import account, valid

NAMES = LabelNames(frozenset({"m"}), frozenset({"a"}), frozenset({"demo"}))
OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

BAD_UNITS = re.compile(
    r"_(ms|milliseconds|us|micros|minutes|hours|kb|mb|kib|mib|kilobytes|percent)(_|$)"
)
BAD_TYPES = re.compile(r"_(gauge|counter|histogram|summary|metric)(_|$)")
BOUNDED = {
    "route", "model", "account", "class", "outcome", "kind", "tenant", "rung", "level",
    "covered", "pool", "reason", "mode", "state", "verdict", "queue", "version", "python",
    "generation", "le", "implementation", "major", "minor", "patchlevel", "regime",
    "parameter", "part",
}  # fmt: skip


def lint(families: Iterable[Metric]) -> list[str]:
    """Breaks of the naming rules of prometheus.io/docs/practices/naming."""
    found: list[str] = []
    seen: set[str] = set()
    for family in families:
        name = family.name
        if not family.documentation.strip():
            found.append(f"{name}: no HELP")
        if name in seen:
            found.append(f"{name}: twice")
        seen.add(name)
        if not re.fullmatch(r"(sagesched|process|python)_[a-z0-9_]+", name):
            found.append(f"{name}: not in snake case, or no prefix")
        if BAD_UNITS.search(name):
            found.append(f"{name}: no base unit")
        if BAD_TYPES.search(name):
            found.append(f"{name}: its type is in its name")
        for sample in family.samples:
            if family.type == "counter" and not sample.name.endswith("_total"):
                found.append(f"{sample.name}: a counter without _total")
            if family.type == "gauge" and re.search("_(total|count|sum|bucket)$", sample.name):
                found.append(f"{sample.name}: a gauge that ends like another type")
            if family.type != "summary" and "quantile" in sample.labels:
                found.append(f"{name}: a label that belongs to summaries")
            if sample.name.endswith("_created"):
                found.append(f"{sample.name}: a series for nothing")
            found += [
                f"{name}: label {la} is not bounded" for la in sample.labels if la not in BOUNDED
            ]
    return found


def made(read: Callable[[], Snapshots] = snapshots, names: LabelNames = NAMES) -> Metrics:
    return Metrics(read, names)


def shown(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for family in parse_plain(metrics.render()[0].decode())
        for s in family.samples
    }


def series(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """The values of one metric by its label values, labels in alphabetical order."""
    return {
        tuple(v for _, v in labels): value
        for (n, labels), value in shown(metrics).items()
        if n == name
    }


def test_metrics_keep_the_naming_rules() -> None:
    """Every family has HELP, snake case, base units, _total where it counts, bounded labels."""
    metrics = made()
    metrics.ended(record())
    metrics.lag(0.001)
    page = metrics.render(OPEN_METRICS)[0].decode()
    families = list(parse_open(page))
    assert len(families) > 60
    assert lint(families) == []


@pytest.mark.parametrize(
    ("family", "objection"),
    [
        (GaugeMetricFamily("sagesched_wait_ms", "Wait.", value=1), "base unit"),
        (GaugeMetricFamily("sagesched_jobs_total", "Jobs.", value=1), "another type"),
        (GaugeMetricFamily("sagesched_jobs_gauge", "Jobs.", value=1), "type is in its name"),
        (GaugeMetricFamily("sagesched_jobs", "", value=1), "no HELP"),
        (GaugeMetricFamily("jobs", "Jobs.", value=1), "no prefix"),
        (CounterMetricFamily("sagesched_jobs", "Jobs.", labels=("prompt",)), "not bounded"),
        (CounterMetricFamily("sagesched_jobs", "Jobs.", labels=("quantile",)), "summaries"),
    ],
)
def test_metrics_rules_find_what_breaks_them(family: Metric, objection: str) -> None:
    """The twin: the lint objects to each kind of break."""
    if family.type == "counter":
        family.add_metric(("x",), 1)  # type: ignore[attr-defined]
    assert any(objection in words for words in lint([family]))


def test_metrics_count_a_request_by_route_model_account_class_outcome() -> None:
    """One ended request is one count under its five labels, and one observation each."""
    metrics = made()
    metrics.ended(record())
    metrics.ended(record(attempts=3))
    labels = ("a", "interactive", "m", "ok", "/v1/chat/completions")
    assert series(metrics, "sagesched_requests_total") == {labels: 2}
    assert series(metrics, "sagesched_request_duration_seconds_sum") == {
        ("interactive", "m", "/v1/chat/completions"): pytest.approx(2.6)
    }
    assert series(metrics, "sagesched_time_to_first_token_seconds_count") == {
        ("interactive", "m"): 2
    }
    assert series(metrics, "sagesched_queue_wait_seconds_count") == {("interactive",): 2}
    assert series(metrics, "sagesched_upstream_duration_seconds_count") == {("a",): 2}
    assert series(metrics, "sagesched_retries_total") == {("m",): 2}
    assert series(metrics, "sagesched_upstream_tokens_total") == {
        ("prompt", "m"): 200,
        ("output", "m"): 180,
        ("cached", "m"): 20,
        ("reasoning", "m"): 10,
        ("audio_prompt", "m"): 8,
        ("audio_output", "m"): 4,
    }
    assert series(metrics, "sagesched_tenant_requests_total") == {("ok", "demo"): 2}


def test_metrics_duration_leaves_out_requests_without_an_account() -> None:
    """A refusal is counted, but does not make the gateway look fast."""
    metrics = made()
    metrics.ended(
        record(outcome=Outcome.REJECTED, status=429, account=None, attempts=0, job_class=None,
               usage=None, ttft_s=None, upstream_s=None, total_s=0.001)
    )  # fmt: skip
    labels = ("none", "none", "m", "rejected", "/v1/chat/completions")
    assert series(metrics, "sagesched_requests_total") == {labels: 1}
    assert set(series(metrics, "sagesched_request_duration_seconds_count").values()) == {0}
    assert set(series(metrics, "sagesched_queue_wait_seconds_count").values()) == {0}


def test_metrics_long_answers_have_buckets() -> None:
    """Answers of 590 s, of 290 s and of more than the last bound fall in different buckets."""
    metrics = made()
    metrics.ended(record(total_s=590.0))
    buckets = {
        dict(labels)["le"]: value
        for (name, labels), value in shown(metrics).items()
        if name == "sagesched_request_duration_seconds_bucket"
    }
    assert (buckets["300.0"], buckets["600.0"]) == (0, 1)


def hostile(i: int) -> JobRecord:
    return record(id=f"id-{i}", model=f"sk-m{i}", account=f"acc{i}", tenant=f"t{i}", route=f"/r{i}")


def test_metrics_labels_come_from_the_settings_alone() -> None:
    """A request with unknown names adds no series: it counts under "other"."""
    metrics = made()
    metrics.ended(hostile(0))
    before = set(shown(metrics))
    for i in range(1, 300):
        metrics.ended(hostile(i))
    assert set(shown(metrics)) == before
    labels = ("other", "interactive", "other", "ok", "other")
    assert series(metrics, "sagesched_requests_total") == {labels: 300}


def test_metrics_labels_would_grow_if_every_name_were_allowed() -> None:
    """The twin: with the same names in the settings the same requests do add series."""
    names = LabelNames(
        frozenset(f"sk-m{i}" for i in range(50)),
        frozenset(f"acc{i}" for i in range(50)),
        frozenset(f"t{i}" for i in range(50)),
    )
    metrics = made(names=names)
    for i in range(50):
        metrics.ended(hostile(i))
    assert len(series(metrics, "sagesched_requests_total")) == 50


def test_metrics_tenants_are_bounded() -> None:
    """Above MAX_TENANTS configured tenants the rest share one series."""
    names = LabelNames(tenants=frozenset(f"t{i:04}" for i in range(MAX_TENANTS + 100)))
    metrics = made(names=names)
    for tenant in names.tenants:
        metrics.ended(record(tenant=tenant))
    counts = series(metrics, "sagesched_tenant_requests_total")
    assert len(counts) == MAX_TENANTS + 1
    assert counts["ok", "other"] == 100


def test_metrics_renamed_drop_what_left_and_keep_the_rest() -> None:
    """A reload removes the series of removed names; the others go on counting."""
    metrics = made(names=LabelNames(frozenset({"m", "old"}), frozenset({"a"}), frozenset({"demo"})))
    metrics.ended(record())
    metrics.ended(record(model="old"))
    metrics.rename(LabelNames(frozenset({"m", "new"}), frozenset({"a"}), frozenset({"demo"})))
    for model in ("m", "old", "new"):
        metrics.ended(record(model=model))
    counts = {labels[2]: v for labels, v in series(metrics, "sagesched_requests_total").items()}
    assert counts == {"m": 2, "other": 1, "new": 1}
    assert b'"old"' not in metrics.render()[0]


def test_metrics_compare_forecast_with_truth_per_choice() -> None:
    """Usage is divided by the number of choices; p50 and p90 are covered at or above truth."""
    metrics = made()
    metrics.ended(record(workload=workload(100.0, 250.0), usage=Usage(10, 200), n=2))
    metrics.ended(record(workload=workload(50.0, 90.0), usage=Usage(10, 100)))
    rung = "model_only"
    assert series(metrics, "sagesched_forecast_covered_total") == {
        ("yes", "p50", rung): 1,
        ("no", "p50", rung): 1,
        ("yes", "p90", rung): 1,
        ("no", "p90", rung): 1,
    }
    assert series(metrics, "sagesched_forecast_error_ratio_sum") == {(rung,): 3.0}
    assert series(metrics, "sagesched_forecast_tokens_total") == {(rung,): 150}
    assert series(metrics, "sagesched_actual_tokens_total") == {(rung,): 200}


def test_metrics_leave_out_answers_of_unknown_length() -> None:
    """An answer that was cut, failed or not counted counts for its rung, not for coverage."""
    metrics = made()
    metrics.ended(record(finish_reason="length"))
    metrics.ended(record(outcome=Outcome.CANCELLED))
    metrics.ended(record(usage=None, workload=workload(rung=Rung.HEURISTIC)))
    assert series(metrics, "sagesched_forecast_rung_total") == {
        ("model_only",): 2,
        ("heuristic",): 1,
    }
    assert series(metrics, "sagesched_forecast_censored_total")[("model_only",)] == 1
    assert set(series(metrics, "sagesched_forecast_covered_total").values()) == {0}


@pytest.mark.parametrize("reason", sorted(CUT_FINISH_REASONS))
def test_metrics_count_no_cut_answer_as_a_natural_length(reason: str) -> None:
    """Every dialect's word for an answer cut at its bound counts as censored, nowhere else."""
    metrics = made()
    metrics.ended(record(finish_reason=reason))
    assert series(metrics, "sagesched_forecast_censored_total") == {("model_only",): 1}
    assert series(metrics, "sagesched_forecast_error_ratio_count") == {("model_only",): 0}
    assert series(metrics, "sagesched_actual_tokens_total") == {("model_only",): 0}
    assert set(series(metrics, "sagesched_forecast_covered_total").values()) == {0}


def test_names_are_those_of_the_settings() -> None:
    """Label names are the clients' names of models, and the accounts' and tenants'."""
    settings = valid(accounts=[account(models={"client": "upstream"})])
    assert LabelNames.of(settings) == LabelNames(
        frozenset({"client"}), frozenset({"a"}), frozenset({"t"})
    )


def test_metrics_lag_shows_its_largest() -> None:
    """The loop's lateness is a histogram, and a gauge of the largest recent value."""
    metrics = made()
    for seconds in (0.001, 0.3, 0.002, -0.1):
        metrics.lag(seconds)
    assert series(metrics, "sagesched_loop_lag_seconds_count") == {(): 4}
    assert series(metrics, "sagesched_loop_lag_max_seconds") == {(): 0.3}


def test_metrics_page_has_the_accepted_format() -> None:
    """The page is plain text, or OpenMetrics where the Accept header asks; both parse."""
    metrics = made()
    metrics.ended(record())
    plain, plain_type = metrics.render()
    opened, opened_type = metrics.render(OPEN_METRICS)
    assert plain_type.startswith("text/plain; version=0.0.4")
    assert opened_type.startswith("application/openmetrics-text; version=1.0.0")
    assert opened.endswith(b"# EOF\n")
    names = [{f.name for f in parse(body.decode())} for parse, body in
             ((parse_plain, plain), (parse_open, opened))]  # fmt: skip
    assert names[0] == names[1]


def test_metrics_have_build_and_process() -> None:
    """build_info is 1; the process's memory and file descriptors are there."""
    page = shown(made())
    assert [v for (name, _), v in page.items() if name == "sagesched_build_info"] == [1]
    assert page["process_resident_memory_bytes", ()] > 1e6
    assert page["process_open_fds", ()] > 0


def test_metrics_survive_a_snapshot_that_fails() -> None:
    """A scrape still gets what was counted, and the failure is counted too."""

    def broken() -> Snapshots:
        raise RuntimeError("core")

    metrics = made(broken)
    metrics.ended(record())
    assert len(series(metrics, "sagesched_requests_total")) == 1
    assert series(metrics, "sagesched_scrape_errors_total") == {(): 2}


def test_metrics_render_snapshots_taken_elsewhere() -> None:
    """`render` does not read the snapshots again where they are given."""
    reads: list[int] = []

    def read() -> Snapshots:
        reads.append(1)
        return snapshots()

    metrics = made(read)
    taken = metrics.take()
    body, _ = metrics.render("", taken)
    assert reads == [1]
    assert b"sagesched_budget_tokens" in body


def test_money_is_counted_by_model_and_tenant_beside_its_forecast() -> None:
    """A request without a price adds no series; unknown names count under "other"."""
    metrics, forecast = made(), replace(workload(), cost_usd_p50=0.001)
    metrics.ended(record(cost_usd=None))
    assert series(metrics, "sagesched_cost_usd_total") == {}
    metrics.ended(record(cost_usd=0.002, workload=forecast))
    metrics.ended(record(cost_usd=0.004, workload=forecast, tenant="unknown", model="unknown"))
    metrics.ended(record(cost_usd=0.008, workload=None))
    assert series(metrics, "sagesched_cost_usd_total") == {
        ("m", "demo"): pytest.approx(0.010),
        ("other", "other"): pytest.approx(0.004),
    }
    assert series(metrics, "sagesched_predicted_cost_usd_total") == {
        ("m", "demo"): pytest.approx(0.001),
        ("other", "other"): pytest.approx(0.001),
    }
