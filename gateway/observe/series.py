"""Counters and histograms that one thread writes and any thread may read.

prometheus_client's own take a lock and several calls for each count, some 25 times a request.
These are counted by the loop alone, so plain numbers do; they become the library's families
at a scrape. A scrape from another thread may see a request half counted, as it may with locks
that guard each number by itself.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Set
from typing import TypeVar

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric

Values = tuple[str, ...]
T = TypeVar("T")


class Count:
    """One number that only grows."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0.0

    def add(self, amount: float = 1.0) -> None:
        """Count `amount` more."""
        self.total += amount


class Bins:
    """One histogram: the number of values up to each bound, and the sum of all."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


class Counter:
    """A counter family: a Count per set of label values. `name` without `_total`."""

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._series: dict[Values, Count] = {}
        if not labels:
            self.at()

    def at(self, *values: str) -> Count:
        """Series of these label values, made at its first use."""
        one = self._series.get(values)
        if one is None:
            assert len(values) == len(self._labels)
            one = self._series[values] = Count()
        return one

    def prune(self, allowed: Mapping[str, Set[str]]) -> None:
        """Drop series with a label value that is not allowed any more."""
        self._series = _allowed_series(self._series, self._labels, allowed)

    def family(self) -> Metric:
        """The library's family of the present counts."""
        family = CounterMetricFamily(f"sagesched_{self._name}", self._text, labels=self._labels)
        for values, count in list(self._series.items()):
            family.add_metric(values, count.total)
        return family


class Histogram:
    """A histogram family: Bins per set of label values. `bounds` ascend, without infinity."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...], *labels: str) -> None:
        self._name, self._text, self._bounds, self._labels = name, text, bounds, labels
        self._series: dict[Values, Bins] = {}
        if not labels:
            self.at()

    def at(self, *values: str) -> Bins:
        """Series of these label values, made at its first use."""
        one = self._series.get(values)
        if one is None:
            assert len(values) == len(self._labels)
            one = self._series[values] = Bins(self._bounds)
        return one

    def prune(self, allowed: Mapping[str, Set[str]]) -> None:
        """Drop series with a label value that is not allowed any more."""
        self._series = _allowed_series(self._series, self._labels, allowed)

    def family(self) -> Metric:
        """The library's family of the present counts."""
        family = HistogramMetricFamily(f"sagesched_{self._name}", self._text, labels=self._labels)
        edges = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        for values, bins in list(self._series.items()):
            below, cumulative = 0, []
            for edge, count in zip(edges, list(bins.counts), strict=True):
                below += count
                cumulative.append((edge, below))
            family.add_metric(values, cumulative, bins.sum)
        return family


def _allowed_series(
    series: dict[Values, T], labels: tuple[str, ...], allowed: Mapping[str, Set[str]]
) -> dict[Values, T]:
    return {
        values: one
        for values, one in series.items()
        if all(
            value in allowed.get(label, (value,))
            for label, value in zip(labels, values, strict=True)
        )
    }
