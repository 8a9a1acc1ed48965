"""Metric families that are counted as requests end, and their buckets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

from prometheus_client.metrics_core import Metric

from gateway.observe.series import Counter, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 300, 600)
"""Buckets up to ten minutes, which answers of language models take."""
WAITS = (0.001, *SECONDS)
LAGS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1)
RATIOS = tuple(2.0**k for k in (-6, -5, -4, -3, -2, -1.5, -1, -0.5, -0.25, 0,
                                0.25, 0.5, 1, 1.5, 2, 3, 4, 5, 6))  # fmt: skip
"""Powers of two: a histogram of the ratio is one of its log2."""


class Families:
    """All such families, one attribute each, in the order of the page."""

    def __init__(self) -> None:
        self._requests()
        self._tokens()
        self._forecasts()
        self.lag = Histogram("loop_lag_seconds", "Lateness of the event loop.", LAGS)
        self.scrape_errors = Counter("scrape_errors", "Scrapes without their snapshots.")
        self._all: tuple[Counter | Histogram, ...] = tuple(vars(self).values())

    def _requests(self) -> None:
        self.requests = Counter(
            "requests", "Requests ended.", "route", "model", "account", "class", "outcome"
        )
        self.duration = Histogram(
            "request_duration_seconds",
            "Arrival to the end of the answer, of requests that reached an account.",
            SECONDS, "route", "model", "class",
        )  # fmt: skip
        self.ttft = Histogram(
            "time_to_first_token_seconds", "Arrival to the first byte from the provider.",
            SECONDS, "model", "class",
        )  # fmt: skip
        self.wait = Histogram(
            "queue_wait_seconds", "Wait for a place, of requests that reached an account.",
            WAITS, "class",
        )  # fmt: skip
        self.upstream = Histogram(
            "upstream_duration_seconds", "Last dispatch to the provider's end.",
            SECONDS, "account",
        )  # fmt: skip
        self.retries = Counter("retries", "Further attempts of requests.", "model")

    def _tokens(self) -> None:
        self.tokens = Counter(
            "upstream_tokens",
            "Tokens as providers counted them; cached and audio_prompt are parts of prompt, "
            "reasoning and audio_output of output.",
            "model", "kind",
        )  # fmt: skip
        self.tenant_requests = Counter(
            "tenant_requests", "Requests ended, by tenant.", "tenant", "outcome"
        )
        self.tenant_tokens = Counter(
            "tenant_tokens", "Tokens as providers counted them, by tenant.", "tenant", "kind"
        )
        self.cost = Counter(
            "cost_usd",
            "US dollars of what providers counted, of models that have a price.",
            "model", "tenant",
        )  # fmt: skip
        self.predicted_cost = Counter(
            "predicted_cost_usd",
            "Sum of the forecasts' p50 in US dollars, of requests in sagesched_cost_usd.",
            "model", "tenant",
        )  # fmt: skip

    def _forecasts(self) -> None:
        self.rungs = Counter(
            "forecast_rung", "Requests ended, by the rung of their last forecast.", "rung"
        )
        self.censored = Counter(
            "forecast_censored",
            "Answers cut at their token limit, left out of forecast against truth.", "rung",
        )  # fmt: skip
        self.ratio = Histogram(
            "forecast_error_ratio", "Actual output tokens / forecast p50; buckets even in log2.",
            RATIOS, "rung",
        )  # fmt: skip
        self.covered = Counter(
            "forecast_covered", "Answers whose length the forecast at this level covered, or not.",
            "rung", "level", "covered",
        )  # fmt: skip
        self.forecast_tokens = Counter(
            "forecast_tokens", "Sum of p50 of requests compared with truth.", "rung"
        )
        self.actual_tokens = Counter(
            "actual_tokens", "Sum of output tokens per choice of requests compared.", "rung"
        )

    def __iter__(self) -> Iterator[Metric]:
        return (one.family() for one in self._all)

    def prune(self, allowed: Mapping[str, Set[str]]) -> None:
        """Drop series with a label value that is not allowed any more."""
        for one in self._all:
            one.prune(allowed)
