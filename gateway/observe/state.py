"""The state of the gateway as metric families, made from snapshots at scrape time.

Pure: snapshots in, families out. A state (mode, account state) is one-hot over all its values,
so that a chart of it has no gaps; a waiting job has exactly one reason, and every reason has
its series, 0 where nobody waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from msgspec import Struct
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from gateway.snapshots import (
    AccountSnapshot,
    ClassSnapshot,
    LimitSnapshot,
    PoolSnapshot,
    PredictorSnapshot,
    SchedulerSnapshot,
    StoreSnapshot,
    WindowSnapshot,
)
from gateway.types import Mode, Outcome, Reason, Rung, Verdict

REGIMES = ("unknown", "linear", "saturating", "peaked")
ACCOUNT_STATES = ("open", "backoff", "ejected", "half_open", "dead_key", "draining")
REFITS = ("off", "waiting", "running", "accepted", "kept", "failed")
DROPS = tuple(v for v in Verdict if v not in (Verdict.SUCCESS, Verdict.IGNORED))


class Shell(Struct, frozen=True):
    """What the asyncio shell itself has to tell."""

    ready: bool = True
    config_generation: int = 1
    config_reload_ok: bool = True
    config_reload_wall_s: float = 0.0  # the last reload that succeeded, the start included
    body_bytes: int = 0  # request bodies held
    buffer_bytes: int = 0  # written to clients, not yet taken
    open_streams: int = 0
    connections: int = 0
    journal_dropped: int = 0
    log_lines_lost: int = 0
    listener_faults: int = 0


class Snapshots(Struct, frozen=True):
    """All that a scrape reads. None: that part is off."""

    scheduler: SchedulerSnapshot
    shell: Shell = Shell()
    predictor: PredictorSnapshot | None = None
    store: StoreSnapshot | None = None


Samples = Iterable[tuple[tuple[str, ...], float]]


def state_metrics(taken: Snapshots) -> Iterator[Metric]:
    """Every family of the moment."""
    yield from _pools(taken.scheduler.pools)
    yield from _accounts(taken.scheduler.accounts)
    yield from _windows(taken.scheduler.accounts)
    yield from _limits(taken.scheduler.accounts)
    yield from _scheduler(taken.scheduler)
    yield from _shell(taken.shell)
    if taken.predictor is not None:
        yield from _predictor(taken.predictor)
    if taken.store is not None:
        yield from _store(taken.store)


def _gauge(name: str, text: str, labels: tuple[str, ...], samples: Samples) -> Metric:
    family = GaugeMetricFamily(f"sagesched_{name}", text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _counter(name: str, text: str, labels: tuple[str, ...], samples: Samples) -> Metric:
    family = CounterMetricFamily(f"sagesched_{name}", text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _one(value: float) -> Samples:
    return (((), float(value)),)


def _pools(pools: tuple[PoolSnapshot, ...]) -> Iterator[Metric]:
    def of_class(read: Callable[[ClassSnapshot], float]) -> Samples:
        return [
            ((pool.name, job_class.value), float(read(shot)))
            for pool in pools
            for job_class, shot in pool.classes.items()
        ]

    both = ("pool", "class")
    yield _gauge(
        "queue_jobs",
        "Waiting jobs, by the one reason each waits for.",
        ("pool", "class", "reason"),
        [
            ((pool.name, job_class.value, reason.value), shot.blocked.get(reason, 0))
            for pool in pools
            for job_class, shot in pool.classes.items()
            for reason in Reason
        ],
    )
    yield _gauge(
        "queue_oldest_seconds", "Wait of the oldest job.", both, of_class(lambda c: c.oldest_wait_s)
    )
    yield _gauge(
        "queue_tokens", "Reserves of waiting jobs.", both, of_class(lambda c: c.waiting_tokens)
    )
    yield _gauge(
        "queue_bytes",
        "Request bodies of waiting jobs.",
        ("pool",),
        [((pool.name,), pool.waiting_bytes) for pool in pools],
    )
    yield _gauge("inflight_jobs", "Running jobs.", both, of_class(lambda c: c.running))
    yield _gauge(
        "inflight_tokens", "Reserves of running jobs.", both, of_class(lambda c: c.inflight_tokens)
    )
    yield _gauge(
        "borrowed_tokens",
        "Reserves above the class's own budget.",
        both,
        of_class(lambda c: c.borrowed_tokens),
    )
    yield _gauge(
        "budget_tokens", "Tokens a class may hold.", both, of_class(lambda c: c.budget_tokens)
    )
    yield _gauge(
        "retrying_jobs",
        "Jobs between two attempts.",
        ("pool",),
        [((pool.name,), pool.retrying) for pool in pools],
    )
    yield _gauge(
        "pool_mode",
        "1 for the pool's mode, 0 for the others.",
        ("pool", "mode"),
        [((pool.name, mode.value), float(pool.mode is mode)) for pool in pools for mode in Mode],
    )
    yield _gauge(
        "pool_saturation_ratio",
        "Load of the pool, 1 = full.",
        ("pool",),
        [((pool.name,), pool.saturation) for pool in pools],
    )
    yield _gauge(
        "pool_severity_ratio",
        "Overload: from schedule.defer_above on the dearest jobs are deferred.",
        ("pool",),
        [((pool.name,), pool.severity) for pool in pools],
    )
    yield _gauge(
        "pool_clear_seconds",
        "Predicted time to serve what waits; 0 where it is not known.",
        ("pool",),
        [((pool.name,), pool.clear_s) for pool in pools],
    )


def _accounts(accounts: tuple[AccountSnapshot, ...]) -> Iterator[Metric]:
    def of(read: Callable[[AccountSnapshot], float]) -> Samples:
        return [((account.name,), float(read(account))) for account in accounts]

    label = ("account",)
    yield _gauge("account_limit", "Concurrency the account may have.", label, of(lambda a: a.limit))
    yield _gauge("account_inflight", "Attempts running.", label, of(lambda a: a.inflight))
    yield _gauge(
        "account_state",
        "1 for the account's state, 0 for the others.",
        ("account", "state"),
        [
            ((account.name, state), float(account.state == state))
            for account in accounts
            for state in ACCOUNT_STATES
        ],
    )
    yield _gauge(
        "account_rest_seconds",
        "Until the account's state ends by itself.",
        label,
        of(lambda a: a.state_until_s),
    )
    yield _counter(
        "account_successes", "Attempts that succeeded.", label, of(lambda a: a.successes)
    )
    yield _counter(
        "account_drops",
        "Attempts that failed, by what they taught.",
        ("account", "verdict"),
        [
            ((account.name, verdict.value), account.drops.get(verdict, 0))
            for account in accounts
            for verdict in DROPS
        ],
    )
    yield _counter("account_cuts", "Times the limit was cut.", label, of(lambda a: a.cuts))


def _windows(accounts: tuple[AccountSnapshot, ...]) -> Iterator[Metric]:
    """Per account and model, by the provider's name for it: both stand in the settings."""
    known = [(account.name, window) for account in accounts for window in account.windows]

    def of(read: Callable[[WindowSnapshot], float]) -> Samples:
        return [((name, window.model), float(read(window))) for name, window in known]

    label = ("account", "model")
    yield _gauge(
        "window_requests", "Requests given at once: the knee.", label, of(lambda w: w.window)
    )
    yield _gauge("window_inflight", "Of them, running.", label, of(lambda w: w.inflight))
    yield _gauge(
        "window_knee",
        "Requests in flight at the fitted knee or peak, 0 where there is none.",
        label,
        of(lambda w: w.knee),
    )
    yield _gauge(
        "window_slowdown", "Recent latency over that of an idle provider.", label,
        of(lambda w: w.slowdown),
    )  # fmt: skip
    yield _gauge(
        "window_regime",
        "1 for how throughput grows with what is in flight, 0 for the others.",
        (*label, "regime"),
        [
            ((name, window.model, regime), float(window.regime == regime))
            for name, window in known
            for regime in REGIMES
        ],
    )
    yield _gauge(
        "window_curve",
        "The fitted slowdown over N in flight, (1 + (N/turn)^sharp)^(steep/sharp).",
        (*label, "parameter"),
        [
            ((name, window.model, parameter), float(value))
            for name, window in known
            for parameter, value in window.curve.items()
        ],
    )
    yield _gauge(
        "window_unloaded_seconds",
        "The fitted latency when idle: of an empty request, a prompt token, an output token.",
        (*label, "part"),
        [
            ((name, window.model, part), float(getattr(window, f"{part}_s")))
            for name, window in known
            for part in ("base", "prompt_token", "output_token")
        ],
    )


def _limits(accounts: tuple[AccountSnapshot, ...]) -> Iterator[Metric]:
    """What providers' headers said, per account and model by the provider's name: a series
    only where something was said, of what stands in the settings."""
    told = [(account.name, limit) for account in accounts for limit in account.limits]

    def of(read: Callable[[LimitSnapshot], float | None]) -> Samples:
        return [
            ((name, limit.model, limit.kind), float(value))
            for name, limit in told
            if (value := read(limit)) is not None
        ]

    label = ("account", "model", "kind")
    yield _gauge(
        "ratelimit_limit",
        "Requests or tokens a minute, by the provider's headers.",
        label,
        of(lambda limit: limit.limit or None),
    )
    yield _gauge(
        "ratelimit_remaining",
        "Left of it: by the last header, less what was sent since; all once it was reset.",
        label,
        of(lambda limit: limit.remaining),
    )
    yield _gauge(
        "ratelimit_reset_seconds",
        "Until all of it is there again.",
        label,
        of(lambda limit: None if limit.remaining is None else limit.reset_s),
    )
    yield _gauge(
        "ratelimit_wait_seconds",
        "Until it lets another request start.",
        label,
        of(lambda limit: limit.wait_s),
    )
    yield _gauge(
        "ratelimit_believed",
        "0 where the header says that nothing is left and requests are served all the same.",
        label,
        of(lambda limit: float(limit.believed)),
    )


def _scheduler(shot: SchedulerSnapshot) -> Iterator[Metric]:
    yield _counter("jobs_submitted", "Jobs the scheduler was given.", (), _one(shot.submitted))
    yield _counter("jobs_dispatched", "Dispatches, retries included.", (), _one(shot.dispatched))
    yield _counter(
        "jobs_ended",
        "Jobs the scheduler saw end.",
        ("outcome",),
        [((outcome.value,), shot.ended.get(outcome, 0)) for outcome in Outcome],
    )
    yield _gauge("draining", "1 while the gateway drains.", (), _one(shot.draining))
    yield _counter(
        "scheduler_rebuilds",
        "Times the scheduler's core raised and was built anew.",
        (),
        _one(shot.rebuilds),
    )
    yield _gauge(
        "scheduler_degraded",
        "1 while jobs go first come, first served, or unscheduled, after such a fault.",
        (),
        _one(shot.degraded),
    )
    yield _gauge(
        "scheduler_around_jobs", "Jobs under way past the scheduler.", (), _one(shot.around)
    )


def _shell(shell: Shell) -> Iterator[Metric]:
    for name, text, value in (
        ("ready", "1 when the gateway takes requests.", shell.ready),
        ("config_generation", "Settings swapped in so far.", shell.config_generation),
        ("config_reload_ok", "1 if the last reload succeeded.", shell.config_reload_ok),
        (
            "config_reload_timestamp_seconds",
            "Unix time of the last reload that succeeded.",
            shell.config_reload_wall_s,
        ),
        ("body_bytes", "Request bodies held in memory.", shell.body_bytes),
        ("buffer_bytes", "Answers their clients have not taken yet.", shell.buffer_bytes),
        ("open_streams", "Answers being relayed.", shell.open_streams),
        ("connections", "Connections of clients.", shell.connections),
    ):
        yield _gauge(name, text, (), _one(value))
    yield _counter(
        "journal_dropped", "Events that fell off the journal.", (), _one(shell.journal_dropped)
    )
    yield _counter("log_lines_lost", "Log lines never written.", (), _one(shell.log_lines_lost))
    yield _counter(
        "listener_faults",
        "Times a journal, metric or other listener of the engine raised.",
        (),
        _one(shell.listener_faults),
    )


def _predictor(shot: PredictorSnapshot) -> Iterator[Metric]:
    yield _gauge("predictor_ready", "1 when the predictor's process works.", (), _one(shot.ready))
    yield _gauge("predictor_index_rows", "Rows of the index.", (), _one(shot.index_rows))
    yield _gauge(
        "predictor_queue_items",
        "Items waiting for the predictor.",
        ("queue",),
        _of({"forecast": shot.forecast_queue, "learn": shot.learn_queue}),
    )
    yield _counter(
        "predictor_forecasts",
        "Forecasts made, by rung.",
        ("rung",),
        [((rung.value,), shot.forecasts.get(rung, 0)) for rung in Rung],
    )
    yield _counter(
        "predictor_skipped",
        "Forecasts not made: too late, or no room in the queue.",
        ("reason",),
        _of({"late": shot.skipped_late, "full": shot.dropped_full}),
    )
    yield _counter("predictor_learn_lost", "Results not learned from.", (), _one(shot.learn_lost))
    yield _counter("predictor_cache_hits", "Hits of the repeat cache.", (), _one(shot.cache_hits))
    yield _counter(
        "predictor_busy_seconds", "Time the predictor's process worked.", (), _one(shot.seconds)
    )
    yield _counter(
        "predictor_learned_briefly",
        "Results learned in a flood, without a place in the index.",
        (),
        _one(shot.learned_briefly),
    )
    yield _counter(
        "predictor_restarts", "Times the predictor's process was replaced.", (), _one(shot.restarts)
    )
    yield _counter(
        "predictor_drifts", "Sources whose lengths were seen to change.", (), _one(shot.drifts)
    )
    yield _gauge(
        "predictor_models_version",
        "Version of the refitted models in use, 0 as shipped.",
        (),
        _one(shot.version),
    )
    now = shot.refit.partition(":")[0].partition(" ")[0]  # "failed: why", "kept the old models"
    yield _gauge(
        "predictor_refit",
        "1 for what the refit does, or became of the last one, 0 for the others.",
        ("state",),
        [((state,), float(state == now)) for state in REFITS],
    )


def _store(shot: StoreSnapshot) -> Iterator[Metric]:
    yield _gauge("store_ok", "1 when the last commit succeeded.", (), _one(shot.ok))
    yield _gauge("store_queue_items", "Work waiting for the store.", (), _one(shot.queue))
    yield _gauge("store_history_rows", "Rows of history.", (), _one(shot.rows))
    yield _gauge(
        "store_commit_seconds", "Duration of the last group commit.", (), _one(shot.last_commit_s)
    )
    yield _counter("store_committed_items", "Work done and committed.", (), _one(shot.committed))
    yield _counter("store_lost_items", "Work refused for want of room.", (), _one(shot.lost))
    yield _counter("store_errors", "Group commits that failed.", (), _one(shot.errors))


def _of(values: Mapping[str, float]) -> Samples:
    return [((name,), float(value)) for name, value in values.items()]
