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
    """Results are in the order of the jobs, in this process and in others, and each job is counted
    once."""
    done: list[int] = []
    found = spread(work, list(range(12)), begin, (100,), workers, done.append)
    assert found == [n * n + 100 for n in range(12)]
    assert sorted(done) == list(range(12))


@pytest.mark.parametrize("workers", [1, 2])
def test_error_of_a_job_is_raised(workers: int) -> None:
    """A job that fails ends the run with its error."""
    with pytest.raises(ValueError, match="job -1"):
        spread(work, [1, -1, 2, 3], begin, (0,), workers, lambda job: None)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_redraws_one_line_on_a_terminal() -> None:
    """A terminal gets carriage returns, and one line break at the end."""
    stream = Terminal()
    bar = Progress("rows", 4, stream)
    for _ in range(4):
        bar.step()
    assert stream.getvalue().count("\r") == 4
    assert stream.getvalue().count("\n") == 1
    assert "4/4" in stream.getvalue()


def test_progress_is_brief_in_a_file() -> None:
    """A thousand steps make some ten lines in a file."""
    stream = io.StringIO()
    bar = Progress("rows", 1000, stream)
    for _ in range(1000):
        bar.step()
    assert 8 <= len(stream.getvalue().splitlines()) <= 12
    assert "\r" not in stream.getvalue()
