"""Models fitted anew: better ones come into force completely, worse ones never."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from gateway.predict.artefacts import Artefacts
from gateway.predict.calibrate import group_keys
from gateway.predict.prompt_view import PromptView
from gateway.predict.refit.due import CURRENT, current_version
from gateway.predict.refit.fitting import correction, full_rows, predicted, stage0_rows
from gateway.predict.refit.refit import RefitReport, next_version, refit, run, write
from gateway.predict.teaching import LearningForecaster
from gateway.settings.schema import Predict
from gateway.shipped import shipped
from gateway.types import HistoryRow
from tests.kit.length import short_or_long
from tests.unit.predict.conftest import NAME
from tests.unit.predict.rows import ruled_rows

LEDGER = "tell me what stands in this part of the ledger please"


@pytest.fixture(scope="module")
def rows(artefacts: Artefacts) -> list[HistoryRow]:
    return ruled_rows(artefacts, 700)


@pytest.fixture(scope="module")
def fitted(
    artefacts: Artefacts, rows: list[HistoryRow], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RefitReport]:
    out = tmp_path_factory.mktemp("models")
    return out, refit(rows, artefacts, out)


def median(artefacts: Artefacts, text: str) -> float:
    forecaster = LearningForecaster(Predict(), artefacts, b"key", {})
    return forecaster.forecast(PromptView.of_prompt(text, tenant="z", model="other")).p50


def test_refit_learns_a_rule_the_shipped_models_lack(
    artefacts: Artefacts, fitted: tuple[Path, RefitReport]
) -> None:
    """After seven hundred rows of a rule both new models beat the shipped ones and follow it, also
    for a tenant and a model without a running bias."""
    out, report = fitted
    assert (report.accepted, report.version) == (True, 1)
    for judged in (report.stage0, report.full):
        assert judged.new is not None
        assert judged.old is not None
        assert judged.new < 0.6 * judged.old
    new = artefacts.refitted(current_version(out))
    assert (new.problems, new.version) == ([], 1)
    assert median(new, LEDGER) < 0.5 * median(artefacts, LEDGER)
    assert median(new, "8461 992 7731 5528 9936 1288") > 5 * median(new, LEDGER)


def test_corrections_of_stage0_have_few_trees(artefacts: Artefacts, rows: list[HistoryRow]) -> None:
    """The number of trees goes with the rows; of stage 0, which the loop runs, it is bounded, and
    its fewer trees come as far."""
    many = rows * 4
    for data, trees in ((stage0_rows(many, artefacts), 100), (full_rows(many, artefacts), 170)):
        text = correction(data)
        assert text.count("\nTree=") == trees
        residual = data.y - data.prior - predicted(text, data.x)
        assert np.abs(residual).mean() < 0.6 * np.abs(data.y - data.prior).mean()


def test_refit_keeps_the_old_models_where_new_ones_are_no_better(
    artefacts: Artefacts, fitted: tuple[Path, RefitReport], rows: list[HistoryRow]
) -> None:
    """Later answers that follow no rule change nothing in force."""
    out, _ = fitted
    rng = random.Random(9)
    later = [
        structs.replace(
            row,
            wall_s=row.wall_s + 10_000,
            output_tokens=round(rng.lognormvariate(5, 1.5)) + 1,
        )
        for row in ruled_rows(artefacts, 150, seed=4)
    ]
    report = refit([*rows, *later], artefacts, out)
    assert report.stage0.judged_rows >= 100
    assert (report.accepted, report.version) == (False, 1)
    assert (out / CURRENT).read_text() == "1\n"


def test_refit_judges_on_rows_the_model_in_use_has_not_seen(
    artefacts: Artefacts, fitted: tuple[Path, RefitReport], rows: list[HistoryRow]
) -> None:
    """Without answers since the last refit nothing is judged, and nothing changes."""
    out, _ = fitted
    report = refit(rows, artefacts, out)
    assert report.stage0.new is None
    assert not report.accepted


def test_refit_of_the_full_model_lets_corrections_begin_anew(
    artefacts: Artefacts, fitted: tuple[Path, RefitReport], rows: list[HistoryRow]
) -> None:
    """A tenant's correction of the old models is not added to new ones that hold it already."""
    corrected, level = (LearningForecaster(Predict(), artefacts, b"key", {}) for _ in range(2))
    seen = PromptView.of_prompt(LEDGER, tenant="a", model="m-1")
    for row in rows:
        corrected.remember(row)
        level.remember(structs.replace(row, features=b"", neighbours=b""))
    assert corrected.forecast(seen).p50 < 0.7 * level.forecast(seen).p50
    for one in (corrected, level):
        one.adopt(artefacts.refitted(current_version(fitted[0])))
    assert corrected.forecast(seen).p50 == pytest.approx(level.forecast(seen).p50)


@pytest.mark.parametrize(
    "changed", [{"shared": False}, {"features": b""}, {"success": False}, {"output_tokens": 0}]
)
def test_refit_leaves_out_rows_that_may_not_teach(
    artefacts: Artefacts, rows: list[HistoryRow], tmp_path: Path, changed: dict[str, object]
) -> None:
    """Private, featureless, failed and empty rows are not fitted on."""
    report = refit([structs.replace(row, **changed) for row in rows], artefacts, tmp_path)
    assert (report.stage0.fitted_rows, report.full.fitted_rows) == (0, 0)
    assert not report.accepted
    assert list(tmp_path.iterdir()) == []


def test_refit_leaves_out_vectors_of_another_encoder(
    artefacts: Artefacts, rows: list[HistoryRow], tmp_path: Path
) -> None:
    """Rows of another encoder are used for stage 0 and not for the full model."""
    foreign = [structs.replace(row, encoder="another") for row in rows]
    report = refit(foreign, artefacts, tmp_path)
    assert report.stage0.new is not None
    assert report.full.fitted_rows == 0
    new = artefacts.refitted(current_version(tmp_path))
    assert median(new, LEDGER) == pytest.approx(median(artefacts, LEDGER))  # by the full model


def test_version_of_other_shipped_models_is_left_aside(
    artefacts: Artefacts, fitted: tuple[Path, RefitReport], tmp_path: Path
) -> None:
    """After an upgrade of models/ an old refit is reported and not used."""
    found = artefacts.refitted(current_version(fitted[0])).refit
    assert found is not None
    write(found, artefacts.base | {"stage0": "0" * 64}, tmp_path)
    new = artefacts.refitted(current_version(tmp_path))
    assert new.version == 0
    assert "other shipped models" in new.problems[0]
    assert median(new, LEDGER) == median(artefacts, LEDGER)


@pytest.mark.parametrize("name", ["corrections.json", "manifest.toml"])
def test_version_that_is_damaged_is_left_aside(
    artefacts: Artefacts, fitted: tuple[Path, RefitReport], tmp_path: Path, name: str
) -> None:
    """With one byte changed the shipped models serve, and the reason is reported."""
    found = artefacts.refitted(current_version(fitted[0])).refit
    assert found is not None
    folder = write(found, artefacts.base, tmp_path)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 4
    (folder / name).write_bytes(bytes(data))
    new = artefacts.refitted(current_version(tmp_path))
    assert new.version == 0
    assert new.problems
    assert new.stage0() is not None


def test_versions_are_written_aside_and_old_ones_removed(
    artefacts: Artefacts, fitted: tuple[Path, RefitReport], tmp_path: Path
) -> None:
    """Left-overs of a killed refit are removed, three versions stay, and `current` names
    the last."""
    found = artefacts.refitted(current_version(fitted[0])).refit
    assert found is not None
    (tmp_path / ".new-1").mkdir()
    assert current_version(tmp_path) is None
    for number in range(1, 6):
        write(structs.replace(found, version=number), artefacts.base, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4", "5", CURRENT]
    assert current_version(tmp_path) == tmp_path / "5"


def test_tail_gives_the_calibration_a_start(
    artefacts: Artefacts, fitted: tuple[Path, RefitReport]
) -> None:
    """Adopting a refit drops the old residuals and takes those of its last rows."""
    new = artefacts.refitted(current_version(fitted[0]))
    assert 400 < len(new.tail) <= 500
    forecaster = LearningForecaster(Predict(), artefacts, b"key", {})
    forecaster.adopt(new)
    assert group_keys("m-1", "a").source in forecaster.calibration.models


@pytest.mark.parametrize("changed", ["stage0", "full", "both"])
def test_residuals_of_a_model_that_stays_are_kept(
    artefacts: Artefacts, fitted: tuple[Path, RefitReport], tmp_path: Path, changed: str
) -> None:
    """A refit of one model leaves what was learned of the other, for groups that its last rows do
    not have, too."""
    found = artefacts.refitted(current_version(fitted[0])).refit
    assert found is not None
    one = structs.replace(
        found,
        stage0=found.stage0 if changed != "full" else "",
        full=found.full if changed != "stage0" else "",
    )
    write(one, artefacts.base, tmp_path)
    forecaster = LearningForecaster(Predict(), artefacts, b"key", {})
    keys = group_keys("m-2", "elsewhere")
    forecaster.residuals.learn(keys, 8.0, stage0=5.0, full=5.0, censored=False)
    before = forecaster.calibration
    forecaster.adopt(artefacts.refitted(current_version(tmp_path)))
    after = forecaster.calibration
    assert (after.stage0_bias(keys) == before.stage0_bias(keys)) is (changed == "full")
    assert (after.full_bias(keys) == before.full_bias(keys)) is (changed == "stage0")
    assert after.running(keys) == before.running(keys)


def test_killed_refit_leaves_a_complete_version_in_force(
    artefacts: Artefacts, fitted: tuple[Path, RefitReport], tmp_path: Path
) -> None:
    """After kill -9 at several moments of writing, `current` names a version that loads and is no
    older than the last one reported."""
    found = artefacts.refitted(current_version(fitted[0])).refit
    assert found is not None
    write(structs.replace(found, version=1), artefacts.base, tmp_path)
    for looks in short_or_long((0, 3, 9), range(10)):
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.predict.writing", str(tmp_path)],
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        reported = int(child.stdout.readline())
        for _ in range(40 * looks):  # a little further into the next version each time
            os.listdir(tmp_path)
        child.kill()
        child.wait()
        reported = int((child.stdout.read().split() or [reported])[-1])
        child.stdout.close()
        new = artefacts.refitted(current_version(tmp_path))
        assert new.problems == []
        assert reported <= new.version < next_version(tmp_path)


def test_refit_run_reports_as_json_and_by_its_exit_status(
    rows: list[HistoryRow], tmp_path: Path
) -> None:
    """The report is a line of JSON; the exit status is 0 for a new version and 3 for none."""
    lines: list[str] = []
    codes = [run(rows[-400:], shipped("models"), tmp_path, NAME, lines.append, int) for _ in "12"]
    reports = [json.loads(line) for line in lines]
    assert [(it["accepted"], it["version"]) for it in reports] == [(True, 1), (False, 1)]
    assert codes == [0, 3]


def test_refit_run_lowers_the_priority_of_its_process(tmp_path: Path) -> None:
    """A process that refits has the lowest priority."""
    script = (
        "import os, sys; from pathlib import Path; from gateway.shipped import shipped;"
        "from gateway.predict.refit.refit import run;"
        f"code = run([], shipped('models'), Path(sys.argv[1]), {NAME!r});"
        "print(os.nice(0)); sys.exit(code)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    report, nice = done.stdout.splitlines()
    assert (json.loads(report)["accepted"], int(nice), done.returncode) == (False, 19, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="the idle class is Linux's")
def test_refit_run_gives_way_to_the_predictors_child(tmp_path: Path) -> None:
    """A refit is in the idle class beside a child that is: any other class, at any nice value, goes
    before the child's forecasts."""
    script = (
        "import os, sys; from pathlib import Path; from gateway.shipped import shipped;"
        "from gateway.predict.process.priority import IDLE, lower_priority;"
        "from gateway.predict.refit.refit import run;"
        f"run([], shipped('models'), Path(sys.argv[1]), {NAME!r}, str);"
        "print(os.sched_getscheduler(0) == os.SCHED_IDLE, lower_priority() == IDLE)"
    )
    leader = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"
    command = [sys.executable, "-c", leader, sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, start_new_session=True
    )
    refit, child = done.stdout.split()
    assert refit == child
