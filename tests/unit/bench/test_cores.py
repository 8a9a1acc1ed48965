"""A load that fills its own core ends the run."""

from __future__ import annotations

import pytest

from tests.bench.cores import MOST, Unfit, check_load


def test_load_up_to_the_bound_is_believed() -> None:
    """The bound itself is no reason to give up."""
    check_load(MOST, "200 requests/s")


def test_load_over_the_bound_is_given_up_and_named() -> None:
    """The error of a load over the bound says when, by how much, and what to do."""
    with pytest.raises(Unfit, match=r"200 requests/s: .* used 71% of their core"):
        check_load(MOST + 0.01, "200 requests/s")
