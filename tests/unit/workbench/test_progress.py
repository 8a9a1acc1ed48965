"""Jobs over processes, the progress line, and files of arrays."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from gateway.workbench.progress import Progress, load_arrays, save_arrays, spread


def prepare(add: int) -> int:
    return add


def work(add: int, job: int) -> int:
    if job < 0:
        raise ValueError(f"job {job}")
    return job * job + add


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(
    workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results are in the order of the jobs, in this process and in others, and all are counted."""
    jobs = list(range(12))
    assert spread("jobs", work, jobs, prepare, (100,), workers, lambda job: job) == [
        n * n + 100 for n in jobs
    ]
    assert f"{sum(jobs)}/{sum(jobs)}" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [1, 2])
def test_error_of_a_job_is_raised(workers: int) -> None:
    """A job that fails ends the run with its error."""
    with pytest.raises(ValueError, match="job -1"):
        spread("jobs", work, [1, -1, 2, 3], prepare, (0,), workers)


@pytest.mark.parametrize("damage", ["name", "bytes", "key", "file"])
def test_arrays_of_another_file_are_not_loaded(tmp_path: Path, damage: str) -> None:
    """A file under another name, cut short, without a key, or missing gives nothing."""
    path = tmp_path / "a.npz"
    save_arrays(path, "these", {"one": np.arange(3)})
    (found,) = load_arrays(path, "these", ["one"]) or ()
    assert found.tolist() == [0, 1, 2]
    if damage == "bytes":
        path.write_bytes(path.read_bytes()[:50])
    if damage == "file":
        path.unlink()
    name, keys = "those" if damage == "name" else "these", ["one", "two"][: 1 + (damage == "key")]
    assert load_arrays(path, name, keys) is None


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
