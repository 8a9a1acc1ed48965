"""Series count as prometheus_client's own metrics do."""

from __future__ import annotations

import random

import prometheus_client as library
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.observe.series import Counter, Histogram

BOUNDS = (0.1, 0.5, 1.0, 2.5)


class One(Collector):
    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> list[Metric]:
        return [self._family]


def text(family: Metric) -> list[str]:
    registry = CollectorRegistry()
    registry.register(One(family))
    return generate_latest(registry).decode().splitlines()


def test_histogram_gives_the_page_of_the_library() -> None:
    """The same observations give the same page, values on a bound included."""
    registry = CollectorRegistry()
    theirs = library.Histogram(
        "sagesched_x_seconds", "X.", ["class"], buckets=BOUNDS, registry=registry
    )
    ours = Histogram("x_seconds", "X.", BOUNDS, "class")
    chance = random.Random(1)
    for value in [*BOUNDS, 0.0, 99.0, *(chance.uniform(0, 3) for _ in range(200))]:
        theirs.labels("a").observe(value)
        ours.at("a").add(value)
    created = "sagesched_x_seconds_created"
    lines = [
        line for line in generate_latest(registry).decode().splitlines() if created not in line
    ]
    assert text(ours.family()) == lines


def test_counter_sums_by_label_values() -> None:
    """A series is one set of label values; without labels there is one from the start."""
    counter, plain = Counter("jobs", "Jobs.", "model"), Counter("runs", "Runs.")
    counter.at("a").add()
    counter.at("b").add(2)
    counter.at("a").add(3)
    assert text(counter.family())[2:] == [
        'sagesched_jobs_total{model="a"} 4.0',
        'sagesched_jobs_total{model="b"} 2.0',
    ]
    assert text(plain.family())[2:] == ["sagesched_runs_total 0.0"]


@pytest.mark.parametrize("family", [Counter("x", "X.", "model", "kind"),
                                    Histogram("x", "X.", BOUNDS, "model", "kind")])  # fmt: skip
def test_series_of_a_name_that_left_are_dropped(family: Counter | Histogram) -> None:
    """`prune` keeps what is allowed, whatever labels it says nothing of."""
    for model in ("old", "new"):
        family.at(model, "any").add(1)
    family.prune({"model": frozenset({"new"})})
    shown = "\n".join(text(family.family()))
    assert 'model="new",kind="any"' in shown.replace(
        'kind="any",model="new"', 'model="new",kind="any"'
    )
    assert "old" not in shown
