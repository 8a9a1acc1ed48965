"""Gaps between arrivals."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from gateway.errors import SettingsError
from gateway.workbench.simulate import arrival_gaps as arrivals


def test_gaps_have_mean_one_and_their_variation() -> None:
    """Gaps have mean 1; Poisson gaps vary by 1 and bursts by 4."""
    chance = np.random.default_rng(1)
    for gaps, cv in ((arrivals.poisson(200_000, chance), 1), (arrivals.burst(200_000, chance), 4)):
        assert gaps.mean() == pytest.approx(1, rel=0.05)
        assert gaps.std() == pytest.approx(cv, rel=0.05)


@pytest.mark.parametrize("name", ["trace.csv", "trace.csv.gz"])
def test_trace_is_read_in_the_order_of_time(tmp_path: Path, name: str) -> None:
    """A trace is read packed or not, and its lines may be out of order."""
    lines = ["timestamp_s,prompt_tokens", *(f"{2 * i},5" for i in reversed(range(30)))]
    text = "\n".join(lines).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert arrivals.read(path).tolist() == [2.0] * 29


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("when\n1\n", "a column timestamp_s"),
        ("timestamp_s\nsoon\n", "a column timestamp_s"),
        ("timestamp_s\n1\n2\n", "at least 20 arrivals"),
        ("timestamp_s\n" + "1\n" * 30, "not all at once"),
    ],
)
def test_file_that_is_no_trace_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """The error names the file and the expected format."""
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        arrivals.read(path)
    with pytest.raises(SettingsError, match="cannot be read"):
        arrivals.read(tmp_path / "none.csv")


def test_trace_goes_around() -> None:
    """Gaps of a trace begin at a random place, and a short trace starts over at its end."""
    gaps = np.arange(1.0, 6.0)
    found = arrivals.traced(gaps, 12, np.random.default_rng(2)).tolist()
    first = int(found[0])
    assert found == [float((first - 1 + i) % 5 + 1) for i in range(12)]
