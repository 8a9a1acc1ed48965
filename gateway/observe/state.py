"""Metric families of the present state, made from snapshots at a scrape.

Pure: snapshots in, families out. One table, one row a family, in the order of the page:

1. A row reads one number of each item of its source; None leaves the item's series out.
2. A row with a `label` of its own reads a mapping: a series for each of its keys.
3. A state (mode, account state) is one-hot over all its values, so that a chart of it has no
   gaps. A waiting job has exactly one reason, and every reason has its series.
4. A name that ends in `_total` is a counter, any other a gauge. A source that is off has no
   families, which is not the same as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from msgspec import Struct
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from gateway.snapshots import (
    AccountSnapshot,
    ClassSnapshot,
    LimitSnapshot,
    PoolSnapshot,
    PredictorSnapshot,
    ProcessSnapshot,
    SchedulerSnapshot,
    Snapshots,
    StoreSnapshot,
    WindowSnapshot,
)
from gateway.types import Mode, Outcome, Reason, Rung, Verdict

REGIMES = ("unknown", "linear", "saturating", "peaked")
ACCOUNT_STATES = ("open", "backoff", "ejected", "half_open", "dead_key", "draining")
REFITS = ("off", "waiting", "running", "accepted", "kept", "failed")
DROPS = tuple(v for v in Verdict if v not in (Verdict.SUCCESS, Verdict.IGNORED))

T = TypeVar("T")
Items = Iterable[tuple[tuple[str, ...], T]]
"""Things of one kind, each with the label values that tell it apart."""
Value = float | Mapping[Any, float] | None


class Source(Struct, Generic[T], frozen=True):
    """Things of one kind in the snapshots. `items` gives None where their part is off."""

    labels: tuple[str, ...]
    items: Callable[[Snapshots], Items[T] | None]


class FamilyRow(Struct, frozen=True):
    """One family: its name without the prefix, its help text, and how it is read."""

    name: str
    help: str
    source: Source[Any]
    read: Callable[[Any], Value]
    label: str = ""


def state_metrics(taken: Snapshots) -> Iterator[Metric]:
    """Every family of the moment."""
    for row in ROWS:
        items = row.source.items(taken)
        if items is None:
            continue
        kind = CounterMetricFamily if row.name.endswith("_total") else GaugeMetricFamily
        labels = (*row.source.labels, row.label) if row.label else row.source.labels
        family = kind(f"sagesched_{row.name}", row.help, labels=labels)
        for values, item in items:
            value = row.read(item)
            if isinstance(value, Mapping):
                for key, one in value.items():
                    family.add_metric((*values, key), float(one))
            elif value is not None:
                family.add_metric(values, float(value))
        yield family


def _row(
    name: str, text: str, source: Source[T], read: Callable[[T], Value], label: str = ""
) -> FamilyRow:
    """A row whose `read` is checked against what its source holds."""
    return FamilyRow(name, text, source, read, label)


def _one(item: T | None) -> Items[T] | None:
    return None if item is None else [((), item)]


def _one_hot(value: str, values: Iterable[str]) -> dict[str, float]:
    return {str(each): float(each == value) for each in values}


def _refit_state(refit: str) -> str:
    """The first word of "failed: why", "kept the old models" and the like."""
    return refit.partition(":")[0].partition(" ")[0]


POOL: Source[PoolSnapshot] = Source(
    ("pool",), lambda taken: [((pool.name,), pool) for pool in taken.scheduler.pools]
)
CLASS: Source[ClassSnapshot] = Source(
    ("pool", "class"),
    lambda taken: [
        ((pool.name, name.value), item)
        for pool in taken.scheduler.pools
        for name, item in pool.classes.items()
    ],
)
ACCOUNT: Source[AccountSnapshot] = Source(
    ("account",), lambda taken: [((each.name,), each) for each in taken.scheduler.accounts]
)
# By the provider's name for a model, which stands in the settings, as the account's does.
WINDOW: Source[WindowSnapshot] = Source(
    ("account", "model"),
    lambda taken: [
        ((account.name, window.model), window)
        for account in taken.scheduler.accounts
        for window in account.windows
    ],
)
LIMIT: Source[LimitSnapshot] = Source(
    ("account", "model", "kind"),
    lambda taken: [
        ((account.name, limit.model, limit.kind), limit)
        for account in taken.scheduler.accounts
        for limit in account.limits
    ],
)
SCHEDULER: Source[SchedulerSnapshot] = Source((), lambda taken: _one(taken.scheduler))
WHOLE: Source[Snapshots] = Source((), _one)
PROCESS: Source[ProcessSnapshot] = Source((), lambda taken: _one(taken.process))
PREDICTOR: Source[PredictorSnapshot] = Source((), lambda taken: _one(taken.predictor))
STORE: Source[StoreSnapshot] = Source((), lambda taken: _one(taken.store))

# fmt: off
ROWS = (
    _row("queue_jobs", "Waiting jobs, by the one reason each waits for.", CLASS,
         lambda c: {reason.value: c.blocked.get(reason, 0) for reason in Reason}, "reason"),
    _row("queue_oldest_seconds", "Wait of the oldest job.", CLASS, lambda c: c.oldest_wait_s),
    _row("queue_tokens", "Reserves of waiting jobs.", CLASS, lambda c: c.waiting_tokens),
    _row("queue_bytes", "Request bodies of waiting jobs.", POOL, lambda p: p.waiting_bytes),
    _row("inflight_jobs", "Running jobs.", CLASS, lambda c: c.running),
    _row("inflight_tokens", "Reserves of running jobs.", CLASS, lambda c: c.inflight_tokens),
    _row("borrowed_tokens", "Reserves above the class's own budget.", CLASS,
         lambda c: c.borrowed_tokens),
    _row("budget_tokens", "Tokens a class may hold.", CLASS, lambda c: c.budget_tokens),
    _row("retrying_jobs", "Jobs between two attempts.", POOL, lambda p: p.retrying),
    _row("pool_mode", "1 for the pool's mode, 0 for the others.", POOL,
         lambda p: _one_hot(p.mode, Mode), "mode"),
    _row("pool_saturation_ratio", "Load of the pool, 1 = full.", POOL, lambda p: p.saturation),
    _row("pool_severity_ratio",
         "Overload: from schedule.defer_above on the dearest jobs are deferred.", POOL,
         lambda p: p.severity),
    _row("pool_clear_seconds", "Predicted time to serve what waits; 0 where it is not known.",
         POOL, lambda p: p.clear_s),

    _row("account_limit", "Concurrency the account may have.", ACCOUNT, lambda a: a.limit),
    _row("account_inflight", "Attempts running.", ACCOUNT, lambda a: a.inflight),
    _row("account_state", "1 for the account's state, 0 for the others.", ACCOUNT,
         lambda a: _one_hot(a.state, ACCOUNT_STATES), "state"),
    _row("account_rest_seconds", "Until the account's state ends by itself.", ACCOUNT,
         lambda a: a.state_until_s),
    _row("account_successes_total", "Attempts that succeeded.", ACCOUNT, lambda a: a.successes),
    _row("account_drops_total", "Attempts that failed, by what they taught.", ACCOUNT,
         lambda a: {verdict.value: a.drops.get(verdict, 0) for verdict in DROPS}, "verdict"),
    _row("account_cuts_total", "Times the limit was cut.", ACCOUNT, lambda a: a.cuts),

    _row("window_requests", "Requests given at once: the knee.", WINDOW, lambda w: w.window),
    _row("window_inflight", "Of them, running.", WINDOW, lambda w: w.inflight),
    _row("window_knee", "Requests in flight at the fitted knee or peak, 0 where there is none.",
         WINDOW, lambda w: w.knee),
    _row("window_slowdown", "Recent latency over that of an idle provider.", WINDOW,
         lambda w: w.slowdown),
    _row("window_regime", "1 for how throughput grows with what is in flight, 0 for the others.",
         WINDOW, lambda w: _one_hot(w.regime, REGIMES), "regime"),
    _row("window_curve",
         "The fitted slowdown over N in flight, (1 + (N/turn)^sharp)^(steep/sharp).", WINDOW,
         lambda w: w.curve, "parameter"),
    _row("window_unloaded_seconds",
         "The fitted latency when idle: of an empty request, a prompt token, an output token.",
         WINDOW, lambda w: {"base": w.base_s, "prompt_token": w.prompt_token_s,
                            "output_token": w.output_token_s}, "part"),

    _row("ratelimit_limit", "Requests or tokens a minute, by the provider's headers.", LIMIT,
         lambda limit: limit.limit or None),
    _row("ratelimit_remaining",
         "Left of it: by the last header, less what was sent since; all once it was reset.",
         LIMIT, lambda limit: limit.remaining),
    _row("ratelimit_reset_seconds", "Until all of it is there again.", LIMIT,
         lambda limit: None if limit.remaining is None else limit.reset_s),
    _row("ratelimit_wait_seconds", "Until it lets another request start.", LIMIT,
         lambda limit: limit.wait_s),
    _row("ratelimit_believed",
         "0 where the header says that nothing is left and requests are served all the same.",
         LIMIT, lambda limit: limit.believed),

    _row("jobs_submitted_total", "Jobs the scheduler was given.", SCHEDULER,
         lambda s: s.submitted),
    _row("jobs_dispatched_total", "Dispatches, retries included.", SCHEDULER,
         lambda s: s.dispatched),
    _row("jobs_ended_total", "Jobs the scheduler saw end.", SCHEDULER,
         lambda s: {outcome.value: s.ended.get(outcome, 0) for outcome in Outcome}, "outcome"),
    _row("draining", "1 while the gateway drains.", SCHEDULER, lambda s: s.draining),
    _row("scheduler_rebuilds_total", "Times the scheduler's core raised and was built anew.",
         SCHEDULER, lambda s: s.rebuilds),
    _row("scheduler_degraded",
         "1 while jobs go first come, first served, or unscheduled, after such a fault.",
         SCHEDULER, lambda s: s.degraded),
    _row("scheduler_around_jobs", "Jobs under way past the scheduler.", SCHEDULER,
         lambda s: s.around),

    _row("ready", "1 when the gateway takes requests.", WHOLE, lambda all: all.ready),
    _row("config_generation", "Settings swapped in so far.", PROCESS,
         lambda p: p.config_generation),
    _row("config_reload_ok", "1 if the last reload succeeded.", PROCESS,
         lambda p: p.config_reload_ok),
    _row("config_reload_timestamp_seconds", "Unix time of the last reload that succeeded.",
         PROCESS, lambda p: p.config_reload_wall_s),
    _row("body_bytes", "Request bodies held in memory.", PROCESS, lambda p: p.body_bytes),
    _row("buffer_bytes", "Answers their clients have not taken yet.", PROCESS,
         lambda p: p.buffer_bytes),
    _row("open_streams", "Answers being relayed.", PROCESS, lambda p: p.open_streams),
    _row("connections", "Connections of clients.", PROCESS, lambda p: p.connections),
    _row("journal_dropped_total", "Events that fell off the journal.", PROCESS,
         lambda p: p.journal_dropped),
    _row("log_lines_lost_total", "Log lines never written.", PROCESS, lambda p: p.log_lines_lost),
    _row("listener_faults_total",
         "Times a journal, metric or other listener of the engine raised.", PROCESS,
         lambda p: p.listener_faults),

    _row("predictor_ready", "1 when the predictor's process works.", PREDICTOR,
         lambda p: p.ready),
    _row("predictor_index_rows", "Rows of the index.", PREDICTOR, lambda p: p.index_rows),
    _row("predictor_queue_items", "Items waiting for the predictor.", PREDICTOR,
         lambda p: {"forecast": p.forecast_queue, "learn": p.learn_queue}, "queue"),
    _row("predictor_forecasts_total", "Forecasts made, by rung.", PREDICTOR,
         lambda p: {rung.value: p.forecasts.get(rung, 0) for rung in Rung}, "rung"),
    _row("predictor_skipped_total", "Forecasts not made: too late, or no room in the queue.",
         PREDICTOR, lambda p: {"late": p.skipped_late, "full": p.dropped_full}, "reason"),
    _row("predictor_learn_lost_total", "Results not learned from.", PREDICTOR,
         lambda p: p.learn_lost),
    _row("predictor_cache_hits_total", "Hits of the repeat cache.", PREDICTOR,
         lambda p: p.cache_hits),
    _row("predictor_busy_seconds_total", "CPU time of the predictor's process.", PREDICTOR,
         lambda p: p.seconds),
    _row("predictor_lessons_total",
         "Results learned from, or sampled out: of these the token counts alone were learned.",
         PREDICTOR, lambda p: {"learned": p.learned, "sampled_out": p.sampled_out}, "outcome"),
    _row("predictor_restarts_total", "Times the predictor's process was replaced.", PREDICTOR,
         lambda p: p.restarts),
    _row("predictor_drifts_total", "Sources whose lengths were seen to change.", PREDICTOR,
         lambda p: p.drifts),
    _row("predictor_models_version", "Version of the refitted models in use, 0 as shipped.",
         PREDICTOR, lambda p: p.version),
    _row("predictor_refit",
         "1 for what the refit does, or became of the last one, 0 for the others.", PREDICTOR,
         lambda p: _one_hot(_refit_state(p.refit), REFITS), "state"),

    _row("store_ok", "1 when the last commit succeeded.", STORE, lambda s: s.ok),
    _row("store_queue_items", "Work waiting for the store.", STORE, lambda s: s.queue),
    _row("store_history_rows", "Rows of history.", STORE, lambda s: s.rows),
    _row("store_commit_seconds", "Duration of the last group commit.", STORE,
         lambda s: s.last_commit_s),
    _row("store_committed_items_total", "Work done and committed.", STORE,
         lambda s: s.committed),
    _row("store_lost_items_total", "Work refused for want of room.", STORE, lambda s: s.lost),
    _row("store_errors_total", "Group commits that failed.", STORE, lambda s: s.errors),
)
# fmt: on
