from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.mutants_figures import File, Survivor, judgements, report, wilson

GAP = Survivor("schedule/pace", "Pace.started", "a < b", "a <= b")
EQUAL = Survivor("schedule/pace", "Pace.sure", "a\nb", "c", "Nobody can tell.")


def test_wilson_is_the_textbooks_interval() -> None:
    """The interval stays inside 0 to 1, also where all or none hit; without trials it is 0 to 1."""
    assert wilson(8, 10) == pytest.approx((0.490, 0.943), abs=5e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.278), abs=5e-4)
    assert wilson(10, 10) == pytest.approx((0.722, 1.0), abs=5e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_report_counts_survivors_with_and_without_the_equivalent() -> None:
    """Time-outs are among the killed; a file without mutants has no line."""
    text = report(
        [
            File("schedule/pace", 100, 10, 1, [GAP, EQUAL]),
            File("schedule/events", 0, 0),
            File("balance/limit", 300, 10, 0, []),
        ]
    )
    lines = text.splitlines()
    assert lines[2] == (
        "| schedule/pace | 100 | 10 | 8 | 1 | 1 | 1 | 80.0% (49% to 94%) | 88.9% (56% to 98%) |"
    )
    assert lines[3].startswith("| **schedule** | 100 | 10 | 8 |")
    assert lines[5].startswith("| **balance** | 300 | 10 | 10 | 0 | 0 | 0 | 100.0% ")
    assert "schedule 80.0%, balance 100.0%." in text
    assert "events" not in text


def test_report_lists_every_survivor_and_why() -> None:
    """Gaps in the tests come first; an equivalent mutant has its reason on the next line."""
    text = report([File("schedule/pace", 100, 10, 0, [EQUAL, GAP])])
    gaps, equal = text.split("## Gaps")[1].split("## Equivalent")
    assert gaps.strip() == "- `schedule/pace` Pace.started: `a < b` → `a <= b`"
    assert equal.strip() == "- `schedule/pace` Pace.sure: `a ⏎ b` → `c`  \n  Nobody can tell."
    assert report([File("schedule/pace", 1, 1)]).count("None.") == 2


def test_report_weighs_files_by_their_mutants() -> None:
    """The total weighs each file by its number of mutants, since samples are of equal size."""
    text = report([File("schedule/a", 300, 10, 0, []), File("schedule/b", 100, 10, 0, [GAP] * 4)])
    assert "schedule 90.0%" in text


def test_judgements_are_found_by_file_function_and_lines(tmp_path: Path) -> None:
    """A judgement is found by file, function and lines; there are none without the file."""
    path = tmp_path / "judged.toml"
    assert judgements(path) == {}
    path.write_text(
        "[[mutant]]\nfile = 'schedule/pace'\nwhere = 'Pace.sure'\n"
        "old = 'a'\nnew = ' b '\nwhy = 'x'\n"
    )
    assert judgements(path) == {("schedule/pace", "Pace.sure", "a", "b"): "x"}
