"""Prometheus metrics: counts at the end of each request, and the page for a scrape.

Two sources, never mixed. Events are counted here, once per ended request. The present state
(queues, budgets, limits) is read from snapshots at a scrape (state.py), so no decision carries
metric calls and a gauge cannot drift from the truth.

Names are `sagesched_<noun>_<unit>` in base units, counters end in `_total`
(prometheus.io/docs/practices/naming). Labels are bounded: models, accounts, tenants and routes
are those of the settings (`LabelNames`), any other is "other". Never a prompt, key or request
id.

`ended` runs on the loop for every request: the series of each set of label values are looked
up once and kept.
"""

from __future__ import annotations

import gc
import logging
import platform
import time
from collections.abc import Callable, Iterator

from msgspec import Struct
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway import __version__
from gateway.observe.families import Families
from gateway.observe.series import Bins, Count, Counter
from gateway.observe.state import state_metrics
from gateway.settings.schema import Settings
from gateway.snapshots import Snapshots
from gateway.types import (
    CUT_FINISH_REASONS,
    JobClass,
    JobRecord,
    Outcome,
    Rung,
    Usage,
    Workload,
)

log = logging.getLogger("sagesched.observe")

NONE = "none"  # no account was reached, no class was decided
OTHER = "other"  # not in the settings
MAX_TENANTS = 200  # with a label of their own
LAG_WINDOW_S = 60.0

ROUTES = frozenset({
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/models",
    "/v1/messages", "/v1/moderations", "/v1/images/generations", "/v1/audio/speech",
    "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/files", "/v1/batches",
    "/submit", "/predict", "/ingest",
})  # fmt: skip


class LabelNames(Struct, frozen=True):
    """Names that may be label values. A removed account that still drains is one of them."""

    models: frozenset[str] = frozenset()
    accounts: frozenset[str] = frozenset()
    tenants: frozenset[str] = frozenset()
    routes: frozenset[str] = ROUTES

    @classmethod
    def of(cls, settings: Settings) -> LabelNames:
        """The names that stand in the settings."""
        return cls(
            models=frozenset(m for a in settings.accounts for m in a.model_map),
            accounts=frozenset(a.name for a in settings.accounts),
            tenants=frozenset(t.name for t in settings.tenants),
        )

    def bounded_tenants(self) -> frozenset[str]:
        """The first MAX_TENANTS by name, since each tenant's label makes series of its own."""
        return frozenset(sorted(self.tenants)[:MAX_TENANTS])


class _Request(Struct, gc=False):
    """The series of one (route, model, account, class, outcome), and the label of the model."""

    model: str
    requests: Count
    duration: Bins
    ttft: Bins
    wait: Bins
    upstream: Bins


class _Tokens(Struct, gc=False):
    """The series of one model, or one tenant, by kind."""

    prompt: Count
    output: Count
    cached: Count
    reasoning: Count
    audio_prompt: Count
    audio_output: Count

    def add(self, usage: Usage) -> None:
        """Count the tokens of one usage; few have more than the first two."""
        self.prompt.total += usage.prompt_tokens
        self.output.total += usage.output_tokens
        if usage.cached_tokens:
            self.cached.total += usage.cached_tokens
        if usage.reasoning_tokens:
            self.reasoning.total += usage.reasoning_tokens
        if usage.audio_prompt_tokens:
            self.audio_prompt.total += usage.audio_prompt_tokens
        if usage.audio_output_tokens:
            self.audio_output.total += usage.audio_output_tokens


class _Forecast(Struct, gc=False):
    """The series of one rung."""

    used: Count
    censored: Count
    ratio: Bins
    forecast_tokens: Count
    actual_tokens: Count
    p50: tuple[Count, Count]  # not covered, covered
    p90: tuple[Count, Count]


_Kind = tuple[str, str, str | None, JobClass | None, Outcome]
"""Route, model, account, class, outcome of a request."""


class Metrics:
    """The gateway's metrics. Its methods are for the loop's thread, `render` for any.

    Args:
        snapshots: called by `take`, on the caller's thread.
        names: bounds the labels.
    """

    def __init__(self, snapshots: Callable[[], Snapshots], names: LabelNames) -> None:
        self._snapshots = snapshots
        self._families = Families()
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        self._lag_max_s = 0.0
        self._lag_before_s = 0.0  # the largest of the window before
        self._lag_window_began_s = time.monotonic()
        self.rename(names)

    def rename(self, names: LabelNames) -> None:
        """Take the names of new settings; series of names that have left them are dropped."""
        self._names = names
        self._tenants = names.bounded_tenants()
        self._requests: dict[_Kind, _Request] = {}
        self._model_tokens: dict[str, _Tokens] = {}
        self._tenant_tokens: dict[str, _Tokens] = {}
        self._tenant_requests: dict[tuple[str, Outcome], Count] = {}
        self._forecasts: dict[Rung, _Forecast] = {}
        self._families.prune(
            {
                "model": names.models | {OTHER},
                "account": names.accounts | {OTHER, NONE},
                "tenant": self._tenants | {OTHER},
                "route": names.routes | {OTHER},
            }
        )

    # — counting —

    def ended(self, record: JobRecord) -> None:
        """Count one ended request."""
        kind = (record.route, record.model, record.account, record.job_class, record.outcome)
        series = self._requests.get(kind) or self._request(*kind)
        tenant = record.tenant if record.tenant in self._tenants else OTHER
        series.requests.total += 1
        if record.attempts:
            series.duration.add(record.total_s)
            series.wait.add(record.queue_s)
            if record.attempts > 1:
                self._families.retries.at(series.model).add(record.attempts - 1)
        if record.ttft_s is not None:
            series.ttft.add(record.ttft_s)
        if record.upstream_s is not None:
            series.upstream.add(record.upstream_s)
        requests = self._tenant_requests.get((tenant, record.outcome))
        if requests is None:
            requests = self._families.tenant_requests.at(tenant, record.outcome.value)
            self._tenant_requests[tenant, record.outcome] = requests
        requests.total += 1
        if record.usage is not None:
            self._used(record.usage, series.model, tenant)
        if record.cost_usd is not None:
            self._paid(record.cost_usd, record.workload, series.model, tenant)
        if record.workload is not None:
            self._forecast_against_truth(record, record.workload)

    def lag(self, seconds: float) -> None:
        """Count a measured lateness of the event loop."""
        seconds = max(0.0, seconds)
        self._families.lag.at().add(seconds)
        now = time.monotonic()
        if now - self._lag_window_began_s >= LAG_WINDOW_S:
            self._lag_before_s, self._lag_max_s = self._lag_max_s, 0.0
            self._lag_window_began_s = now
        self._lag_max_s = max(self._lag_max_s, seconds)

    # — the page —

    def take(self) -> Snapshots | None:
        """The snapshots for a `render` on another thread. None, with a log line, where they
        fail."""
        try:
            return self._snapshots()
        except Exception:
            self._families.scrape_errors.at().add()
            log.exception("the snapshots for a scrape failed")
            return None

    def render(self, accept: str = "", taken: Snapshots | None = None) -> tuple[bytes, str]:
        """Body and content type of the page, OpenMetrics where the Accept header asks for it.

        It takes milliseconds. To keep them off the loop: `taken = metrics.take()` on the loop,
        then `render(accept, taken)` in a thread.
        """
        encode, content_type = choose_encoder(accept)
        return encode(_Scrape(self._collect, taken or self.take())), content_type

    # — inside —

    def _collect(self, taken: Snapshots | None) -> Iterator[Metric]:
        yield from self._families
        yield _info()
        yield GaugeMetricFamily(
            "sagesched_loop_lag_max_seconds",
            "Largest lateness of the event loop in the last one to two minutes.",
            value=max(self._lag_max_s, self._lag_before_s),
        )
        if taken is not None:
            yield from state_metrics(taken)
        yield _collections()
        yield from self._process.collect()

    def _request(
        self,
        route: str,
        model: str,
        account: str | None,
        job_class: JobClass | None,
        outcome: Outcome,
    ) -> _Request:
        """The series of one kind. Those of a kind with names that are not in the settings are
        not kept, since such names have no bound."""
        names = self._names
        kind = (route, model, account, job_class, outcome)
        route = route if route in names.routes else OTHER
        model = model if model in names.models else OTHER
        account = NONE if account is None else account if account in names.accounts else OTHER
        label = NONE if job_class is None else job_class.value
        families = self._families
        series = _Request(
            model=model,
            requests=families.requests.at(route, model, account, label, outcome.value),
            duration=families.duration.at(route, model, label),
            ttft=families.ttft.at(model, label),
            wait=families.wait.at(label),
            upstream=families.upstream.at(account),
        )
        if (route, model, account) == (kind[0], kind[1], kind[2] or NONE):
            self._requests[kind] = series
        return series

    def _used(self, usage: Usage, model: str, tenant: str) -> None:
        by_model = self._model_tokens.get(model)
        if by_model is None:
            by_model = self._model_tokens[model] = _tokens(self._families.tokens, model)
        by_tenant = self._tenant_tokens.get(tenant)
        if by_tenant is None:
            by_tenant = self._tenant_tokens[tenant] = _tokens(self._families.tenant_tokens, tenant)
        by_model.add(usage)
        by_tenant.add(usage)

    def _paid(self, usd: float, workload: Workload | None, model: str, tenant: str) -> None:
        self._families.cost.at(model, tenant).add(usd)
        predicted = None if workload is None else workload.cost_usd_p50
        self._families.predicted_cost.at(model, tenant).add(predicted or 0.0)

    def _forecast_against_truth(self, record: JobRecord, workload: Workload) -> None:
        series = self._forecasts.get(workload.rung) or self._forecast(workload.rung)
        series.used.total += 1
        if record.outcome is not Outcome.OK or record.usage is None:
            return
        if record.finish_reason in CUT_FINISH_REASONS:  # the natural length is not known
            series.censored.total += 1
            return
        actual, p50 = record.usage.output_tokens / max(record.n, 1), workload.p50
        series.ratio.add(actual / max(p50, 1.0))
        series.forecast_tokens.total += max(p50, 0.0)
        series.actual_tokens.total += actual
        series.p50[actual <= p50].total += 1
        series.p90[actual <= workload.p90].total += 1

    def _forecast(self, of: Rung) -> _Forecast:
        families, rung = self._families, of.value

        def covered(level: str) -> tuple[Count, Count]:
            at = families.covered.at  # not "quantile": that label is a summary's
            return at(rung, level, "no"), at(rung, level, "yes")

        series = self._forecasts[of] = _Forecast(
            used=families.rungs.at(rung),
            censored=families.censored.at(rung),
            ratio=families.ratio.at(rung),
            forecast_tokens=families.forecast_tokens.at(rung),
            actual_tokens=families.actual_tokens.at(rung),
            p50=covered("p50"),
            p90=covered("p90"),
        )
        return series


class _Scrape(Collector):
    """Collector of one scrape's families, the form that the library's encoders take."""

    def __init__(
        self,
        collect: Callable[[Snapshots | None], Iterator[Metric]],
        taken: Snapshots | None,
    ) -> None:
        self._collect = collect
        self._taken = taken

    def collect(self) -> Iterator[Metric]:
        """All families."""
        return self._collect(self._taken)


def _tokens(family: Counter, name: str) -> _Tokens:
    return _Tokens(*(family.at(name, kind) for kind in _Tokens.__struct_fields__))


def _info() -> Metric:
    family = GaugeMetricFamily(
        "sagesched_build_info", "Always 1; the labels tell the build.", labels=("version", "python")
    )
    family.add_metric((__version__, platform.python_version()), 1)
    return family


def _collections() -> Metric:
    """Runs of the garbage collector, each of which stops the loop."""
    family = CounterMetricFamily(
        "python_gc_collections", "Runs of the garbage collector.", labels=("generation",)
    )
    for generation, stat in enumerate(gc.get_stats()):
        family.add_metric((str(generation),), stat["collections"])
    return family
