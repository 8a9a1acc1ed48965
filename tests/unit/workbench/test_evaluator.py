"""The command as a whole, on a small file of its own and on a history."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.errors import SettingsError
from gateway.settings.schema import Predict
from gateway.workbench.evaluate.evaluator import add_arguments, run
from gateway.workbench.evaluate.variants import OF_HISTORY, VARIANTS
from tests.unit.workbench.evaluate_cases import row, write
from tests.unit.workbench.test_judged_rows import history_row, stored

ROWS = 60


def evaluate(out: Path, *arguments: str, models: Path | None = None) -> int:
    """A strict replay in one process, with the default settings."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    usual = ["--out", str(out), "--strict-replay", "--workers", "1", "--config", "none.toml"]
    return run(parser.parse_args([*usual, *arguments]), models)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run over all variants; every third prompt is asked again."""
    folder = tmp_path_factory.mktemp("evaluate")
    prompts = [f"Tell me about number {i - i % 3} in some detail" for i in range(ROWS)]
    data = write(folder / "rows.jsonl", [row(i, prompts[i]) for i in range(ROWS)])
    assert evaluate(folder / "out", "--data", str(data)) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def test_report_has_every_variant_for_all_and_for_new_prompts(report: dict[str, Any]) -> None:
    """All variants stand in `overall` and `by`, and in the same of `first_seen`."""
    assert list(report["overall"]) == list(VARIANTS)
    assert list(report["first_seen"]["overall"]) == list(VARIANTS)
    assert set(report["by"]["source"]) == {"left", "right"}
    assert set(report["first_seen"]["by"]["source"]["left"]) == set(VARIANTS)
    assert report["overall"]["full"]["n"] == ROWS
    assert report["first_seen"]["overall"]["full"]["n"] == ROWS // 3


def test_report_says_what_was_judged(report: dict[str, Any]) -> None:
    """The report counts rows read, fitted and judged, names the replay, and holds no text."""
    about = report["about"]
    assert about["rows_read"] == about["rows"] == ROWS
    assert about["fitted_rows"] == 0
    assert about["strict_replay"] is True
    assert about["file"] == "rows.jsonl"
    assert "Tell me about" not in json.dumps(report)


def test_oracle_bounds_the_others(report: dict[str, Any]) -> None:
    """No variant is better than the truth, which has no error."""
    overall = report["overall"]
    assert overall["oracle"]["kendall_tau"] == 1.0
    assert overall["oracle"]["bucket_accuracy"] == 1.0
    assert all(found["pinball"] >= overall["oracle"]["pinball"] for found in overall.values())
    assert overall["constant"]["kendall_tau"] == 0.0


def test_markdown_and_pictures_are_written(folder: Path) -> None:
    """The tables hold the variants; no temporary file is left."""
    text = (folder / "report.md").read_text()
    assert all(f"| {name} |" in text for name in VARIANTS)
    assert {path.name for path in folder.iterdir()} == {
        *("report.json", "report.md", "vectors.npz"),
        *("calibration.svg", "predicted.svg", "tau_over_time.svg"),
    }


def test_run_is_repeatable(folder: Path, report: dict[str, Any], tmp_path: Path) -> None:
    """Two processes that read the last run's vectors give the same figures."""
    data = folder.parent / "rows.jsonl"
    (tmp_path / "vectors.npz").write_bytes((folder / "vectors.npz").read_bytes())
    assert (
        evaluate(tmp_path, "--data", str(data), "--workers", "2", "--variants", "full,static") == 0
    )
    again = json.loads((tmp_path / "report.json").read_text())
    assert list(again["overall"]) == ["static", "full"]
    for name in ("static", "full"):
        first, second = report["overall"][name], again["overall"][name]
        assert first | {"forecast_ms": None} == second | {"forecast_ms": None}


def test_history_is_judged_without_text(tmp_path: Path) -> None:
    """Rows of a store are forecast by vector and model: neighbours find repeated lengths."""
    chance = np.random.default_rng(1)
    kinds = chance.normal(size=(6, 384))
    name = Predict().embedding_model_name
    rows = [
        history_row(
            i,
            encoder=name,
            vector=(kinds[i % 6] / np.linalg.norm(kinds[i % 6])).astype("<f2").tobytes(),
            output_tokens=30 * (1 + i % 6) ** 2 + i % 5,
        )
        for i in range(120)
    ]
    path = stored(tmp_path / "s.db", rows)
    assert evaluate(tmp_path / "out", "--history", str(path)) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["overall"]) == list(OF_HISTORY)
    assert report["about"]["fitted_rows"] is None
    overall = report["overall"]
    assert overall["full"]["kendall_tau"] > 0.6 > abs(overall["static"]["kendall_tau"])
    assert overall["knn"]["kendall_tau"] > 0.6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "rows.jsonl", "--variants", "fulll"], "no variant"),
        (["--data", "rows.jsonl", "--leave-out", "nowhere"], "never fitted"),
        ([], "not both"),
        (["--data", "rows.jsonl", "--history", "s.db"], "not both"),
    ],
)
def test_evaluate_refuses_unusable_options(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    """Each is an error of the command with a sentence, before any work."""
    data = write(tmp_path / "rows.jsonl", [row(i) for i in range(10)])
    given = [str(data) if word == data.name else word for word in arguments]
    with pytest.raises(SettingsError, match=message):
        evaluate(tmp_path / "o", *given)


def test_evaluate_names_a_folder_without_models(tmp_path: Path) -> None:
    """The error names the folder in which the artefacts were looked for."""
    data = write(tmp_path / "rows.jsonl", [row(i) for i in range(10)])
    with pytest.raises(SettingsError, match="nowhere"):
        evaluate(tmp_path / "o", "--data", str(data), models=Path("nowhere"))


def test_nothing_to_judge_is_an_error(tmp_path: Path) -> None:
    """An empty file has no figures."""
    data = write(tmp_path / "rows.jsonl", [])
    with pytest.raises(SettingsError, match="no row to judge"):
        evaluate(tmp_path / "o", "--data", str(data))
