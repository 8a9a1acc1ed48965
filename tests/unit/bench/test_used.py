"""The provider's pace."""

from __future__ import annotations

import pytest

from tests.bench.prompts import Prompt
from tests.bench.used import CAP_S, MEAN_S, token_s


def of_lengths(*lengths: int) -> list[Prompt]:
    return [Prompt(b"", "m", tokens, False) for tokens in lengths]


@pytest.mark.parametrize("lengths", [(100, 300), (5, 10, 20, 100_000)])
def test_token_time_makes_the_mean_answer_take_the_mean_time(lengths: tuple[int, ...]) -> None:
    """The mean is over answers cut at the cap."""
    each = token_s(of_lengths(*lengths))
    times = [min(tokens * each, CAP_S) for tokens in lengths]
    assert sum(times) / len(times) == pytest.approx(MEAN_S, rel=1e-6)
