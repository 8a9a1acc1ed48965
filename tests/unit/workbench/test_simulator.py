"""The command end to end, small; and every option that cannot be."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.__main__ import main
from gateway.errors import SettingsError
from gateway.workbench.simulate.simulator import add_arguments, prepare


def parsed(out: Path, *arguments: str) -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["--out", str(out), *arguments])


SMALL = ["--seeds", "2", "--requests", "40", "--warm-up", "20", "--jobs", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulate") / "out"
    scenarios = "burst,drop,isolation"
    argv = ["simulate", "--out", str(out), "--scenarios", scenarios, "--shapes", "knee,linear"]
    assert main([*argv, *SMALL]) == 0
    return out


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def test_report_has_a_group_for_each_scenario_and_shape(report: dict[str, Any]) -> None:
    """A group holds every policy's figures, and every seed's."""
    titles = [(group["scenario"], group["shape"]) for group in report["groups"]]
    assert titles == [(s, f) for s in ("burst", "drop", "isolation") for f in ("knee", "linear")]
    burst = report["groups"][0]
    assert {"naive", "ours", "cold"} < set(burst["policies"])
    assert len(burst["by_seed"]["ours"]["mean_s"]) == 2


def test_report_says_how_it_was_made(report: dict[str, Any], folder: Path) -> None:
    """Command and workload are in the tree and in the text."""
    assert report["about"]["rows_from"] == "generated"
    assert report["about"]["command"].startswith("sagesched")
    assert report["workload"]["forecasts"]["τ 0.55"]["kendall_tau"] == pytest.approx(0.55, abs=0.05)
    text = (folder / "report.md").read_text()
    assert text.startswith("# Simulation\n\n2 paired seeds; rows from generated")


def test_pictures_are_drawn(folder: Path) -> None:
    """Each group that keeps latencies has pictures of latencies, waits and window."""
    names = {path.name for path in folder.glob("*.svg")}
    for kind in ("all", "short", "waits", "window"):
        assert f"{kind}-burst-knee-2-tau-0.55.svg" in names
    assert not [name for name in names if "isolation" in name]


def test_processes_change_nothing(folder: Path, tmp_path: Path) -> None:
    """Two processes give the figures of one."""
    out = tmp_path / "out"
    argv = ["simulate", "--out", str(out), "--shapes", "knee,linear"]
    assert main([*argv, *SMALL[:-1], "2"]) == 0
    groups = json.loads((out / "report.json").read_text())["groups"]
    assert groups == json.loads((folder / "report.json").read_text())["groups"][:2]


def test_first_seed_plays_the_same_world_alone(report: dict[str, Any], tmp_path: Path) -> None:
    """A run from seed 1 on has the second seed's figures and a picture of its window."""
    out = tmp_path / "out"
    argv = ["simulate", "--out", str(out), "--shapes", "knee", "--first-seed", "1"]
    assert main([*argv, "--seeds", "1", *SMALL[2:]]) == 0
    one = json.loads((out / "report.json").read_text())
    assert one["about"]["first_seed"] == 1
    for name, found in one["groups"][0]["by_seed"].items():
        assert found["mean_s"] == report["groups"][0]["by_seed"][name]["mean_s"][1:]
    assert (out / "window-burst-knee-2-tau-0.55.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "round"], "no shape 'round'"),
        (["--scenarios", "war"], "no scenario 'war'"),
        (["--policies", "hope"], "no policy 'hope'"),
        (["--mix", "odd"], "no mix 'odd'"),
        (["--seeds", "0"], "at least 1 seed"),
        (["--jobs", "-1"], "1 job"),
        (["--first-seed", "-1"], "first seed"),
        (["--tau", "1.0"], "out of range"),
        (["--tau", "much"], "'much' is no number"),
        (["--rho", "huge"], "load 'huge'"),
        (["--rho", "0"], "load '0'"),
        (["--provider", "knee"], "expected KEY=NUMBER"),
        (["--provider", "colour=1"], "no provider parameter 'colour'"),
        (["--set", "shed=false"], "expected SECTION.KEY=VALUE"),
        (["--set", "schedule.nothing=1"], "unknown field"),
        (["--arrivals", "nowhere.csv"], "cannot be read"),
        (["--speed", "2"], "--speed is for a file"),
        (["--data", "a", "--history", "b"], "not both"),
        (["--data", "nowhere.jsonl"], "cannot be read"),
        (["--history", "--config", "nowhere.toml"], "names no file"),
        (["--scenarios", ""], "nothing to play"),
    ],
)
def test_simulate_refuses_an_unusable_option(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    """The error names the option, and nothing is played."""
    with pytest.raises(SettingsError, match=message):
        prepare(parsed(tmp_path / "out", *arguments))


def test_loads_have_names(tmp_path: Path) -> None:
    """The paper's loads medium and high are 1.2 and 2."""
    _, cells = prepare(parsed(tmp_path, "--rho", "medium,high,0.5", "--shapes", "knee"))
    assert list(dict.fromkeys(cell.rho for cell in cells)) == [1.2, 2.0, 0.5]


def test_settings_reach_the_core(tmp_path: Path) -> None:
    """Values of --set are JSON where they can be, else text."""
    given = ["schedule.ordering=sjf", "balance.min_window=3", "account.max_concurrency=99"]
    plan, _ = prepare(parsed(tmp_path, *(part for each in given for part in ("--set", each))))
    assert plan.overrides == {
        "schedule": {"ordering": "sjf"},
        "balance": {"min_window": 3},
        "account": {"max_concurrency": 99},
    }
