"""`sagesched bench` and `sagesched load` from their command lines, small."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gateway.demo.provider import MODELS
from tests.kit.command import sagesched
from tests.kit.gateway import TENANT_KEY, GatewayProcess, account, tenant
from tests.kit.provider import ScriptedProvider


def run(*arguments: str, cwd: Path, forked: bool = True) -> subprocess.CompletedProcess[str]:
    return sagesched(*arguments, cwd=cwd, forked=forked, SAGESCHED_LOAD_KEY=TENANT_KEY)


def test_bench_compares_the_gateway_with_none(tmp_path: Path) -> None:
    """A run of two seeds, one of them cold as well, reports every policy against naive, all
    answered."""
    done = run(
        *("bench", "--out", str(tmp_path / "out"), "--shapes", "knee", "--seeds", "2"),
        *("--total-requests", "8", "--seed-count", "4", "--warm-up", "3", "--cold-seeds", "1"),
        *("--time-scale", "20", "--parallel", "2", "--set", "schedule.ordering='fcfs'"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((tmp_path / "out" / "report.json").read_text())
    warm, cold = report["groups"]
    assert (set(warm["policies"]), warm["seeds"]) == ({"naive", "ours"}, 2)
    assert (set(cold["policies"]), cold["seeds"]) == ({"naive", "cold"}, 1)
    for group in (warm, cold):
        assert all(own["mean"]["completed"] == 1.0 for own in group["policies"].values())
    assert warm["policies"]["ours"]["against_naive"]["makespan_s"] is not None
    assert report["about"]["time_scale"] == 20
    assert "short P95" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "square"], "no shape 'square'"),
        (["--mix", "sour"], "no mix 'sour'"),
        (["--total-requests", "99999"], "too few"),
        (["--data", "nothing.jsonl"], "cannot be read"),
    ],
)
def test_bench_names_an_unusable_option(tmp_path: Path, arguments: list[str], message: str) -> None:
    """An unusable option is one line on standard error and exit code 2."""
    done = run("bench", "--out", str(tmp_path / "out"), *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_load_counts_what_came_back(tmp_path: Path, provider: ScriptedProvider) -> None:
    """Every request is counted by status and size; one that failed makes the exit code 1."""
    gateway = GatewayProcess(
        tmp_path,
        accounts=[account(provider, models=list(MODELS))],
        tenants=[tenant()],
        forked=True,
    )
    provider.error(400, code="bad", message="no")
    with gateway:
        out = tmp_path / "load.json"
        done = run(
            *("load", gateway.url("/v1"), "--requests", "20", "--rate", "200"),
            *("--stream-share", "0.5", "--out", str(out)),
            cwd=tmp_path,
        )
    assert done.returncode == 1, done.stderr
    report = json.loads(out.read_text())
    assert report["statuses"] == {"200": 19, "400": 1}
    assert report["completed"] == 19
    assert report["by_size"]["short"]["requests"] == 19
    assert "19 of 20 answered in full" in done.stdout


def test_load_lists_the_mixes(tmp_path: Path) -> None:
    """An unknown mix is refused, with the list of mixes, before anything is sent."""
    done = run("load", "http://127.0.0.1:9/v1", "--mix", "sour", cwd=tmp_path)
    assert done.returncode == 2
    assert "no mix 'sour'; there are as-is" in done.stderr
