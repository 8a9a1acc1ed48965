"""Jobs over processes, and the progress line."""

from __future__ import annotations

import io

import pytest

from gateway.workbench.progress import Progress, spread

_added = 0


def begin(add: int) -> None:
    global _added
    _added = add


def work(job: int) -> int:
    if job < 0:
        raise ValueError(f"job {job}")
    return job * job + _added


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(workers: int) -> None:
    """Here or in processes of their own: prepared, in order, each job told of once."""
    told: list[int] = []
    found = spread(work, list(range(12)), begin, (100,), workers, told.append)
    assert found == [n * n + 100 for n in range(12)]
    assert sorted(told) == list(range(12))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_job_is_raised(workers: int) -> None:
    """A job that fails ends the run; it is not a hole in the results."""
    with pytest.raises(ValueError, match="job -1"):
        spread(work, [1, -1, 2, 3], begin, (0,), workers, lambda job: None)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_redraws_one_line_on_a_terminal() -> None:
    """Carriage returns, and one line break at the end."""
    stream = Terminal()
    bar = Progress("rows", 4, stream)
    for _ in range(4):
        bar.step()
    assert stream.getvalue().count("\r") == 4
    assert stream.getvalue().count("\n") == 1
    assert "4/4" in stream.getvalue()


def test_progress_is_brief_in_a_file() -> None:
    """Where nothing can be redrawn, some ten lines stand for a thousand steps."""
    stream = io.StringIO()
    bar = Progress("rows", 1000, stream)
    for _ in range(1000):
        bar.step()
    assert 8 <= len(stream.getvalue().splitlines()) <= 12
    assert "\r" not in stream.getvalue()
