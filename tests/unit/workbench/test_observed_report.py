"""A provider fitted to an observed journal, and the journal played again."""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
import numpy as np
import pytest

from gateway.errors import SettingsError
from gateway.settings.schema import Store as StoreSettings
from gateway.store.store import Store
from gateway.types import ObservedRow, Outcome
from gateway.workbench.report import observed_report
from gateway.workbench.report.provider_fit import fitted, mean_inflight
from gateway.workbench.simulate import policies
from gateway.workbench.simulate.request_rows import generated, noisy
from gateway.workbench.simulate.simulated_provider import ProviderTraits, SimulatedProvider
from gateway.workbench.simulate.virtual_loop import SimulatedRequest, run

SEEDS = range(5)


def observed(
    traits: ProviderTraits, rho: float, count: int = 1500, seed: int = 0
) -> list[ObservedRow]:
    """The journal of naive dispatch to this provider at rho × its capacity, in two waves with a
    lull between them, so that it is seen idle and crowded."""
    chance = np.random.default_rng(seed)
    rows = noisy(generated(count, seed), 0.6, seed)
    work_s = np.mean([traits.work_s(r.prompt_tokens, r.output_tokens, 0.0) for r in rows])
    rates = np.where(np.arange(count) % 500 < 250, rho, 0.5) * traits.capacity / work_s
    times = np.cumsum(chance.exponential(1.0 / rates)).tolist()
    noise = chance.standard_normal(count).tolist()
    requests = [
        SimulatedRequest(
            id=f"r{i}", arrived_s=at_s, row=row, z=z,
            alone_s=traits.alone_s(row.prompt_tokens, row.output_tokens, z),
        )
        for i, (at_s, row, z) in enumerate(zip(times, rows, noise, strict=True))
    ]  # fmt: skip
    results = run(policies.baseline("naive", 1), {"a": SimulatedProvider(traits)}, requests).results
    return [
        ObservedRow(
            arrived_wall_s=1e9 + r.request.arrived_s,
            tenant="t", model="m", account="a", outcome=Outcome.OK, status=200, n=1,
            prompt_tokens=r.request.row.prompt_tokens,
            output_tokens=r.request.row.output_tokens,
            first=msgspec.msgpack.encode(r.request.row.first),
            last=msgspec.msgpack.encode(r.request.row.first),
            queue_s=0.0, ttft_s=0.1, upstream_s=r.latency_s, attempts=1,
            would="start", would_wait_s=0.0,
        )
        for r in results
    ]  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_report_finds_the_provider_that_was_observed(seed: int) -> None:
    """The fit finds the best window within a third and the token time within a fifth, and playing
    the traffic again gives the observed P95 within a fifth."""
    traits = ProviderTraits(shape="knee", knee=16, output_token_s=0.012, base_s=0.4)
    rows = observed(traits, 1.1, seed=seed)  # far above, a P95 hangs on the last per cent of a knee
    fit = fitted(rows).fits["a"]
    assert fit.traits.best_window == pytest.approx(traits.best_window, rel=0.34)
    assert fit.traits.output_token_s == pytest.approx(0.012, rel=0.2)
    found = observed_report.tree(rows, None)
    assert found["naive"]["p95_s"] == pytest.approx(found["observed"]["p95_s"], rel=0.2)
    assert found["scheduled"]["short_p50_s"] < found["naive"]["short_p50_s"]


def test_report_knows_which_names_are_one_model() -> None:
    """Twenty clients' names of one model share a window where the settings map them to it."""
    traits = ProviderTraits(shape="power", knee=16, power=1.5, output_token_s=0.012, base_s=0.4)
    rows = observed(traits, 1.1)
    named = [msgspec.structs.replace(row, model=f"m{i % 20}") for i, row in enumerate(rows)]
    models = {f"m{i}": "m" for i in range(20)}
    settings = policies.settings_of({"a": list(models)}, ("t",))
    account = msgspec.structs.replace(settings.accounts[0], models=models)
    found = observed_report.tree(named, msgspec.structs.replace(settings, accounts=[account]))
    assert found["scheduled"]["mean_s"] == pytest.approx(
        observed_report.tree(rows, None)["scheduled"]["mean_s"], rel=0.01
    )


def test_report_does_not_promise_where_nothing_was_crowded() -> None:
    """No window is named of a provider that was never near its knee, and the text says so."""
    rows = observed(ProviderTraits(shape="knee", knee=64), 0.05, count=300)
    found = observed_report.tree(rows, None)
    assert found["accounts"]["a"]["best_window"] is None
    assert "There is little to gain" in observed_report.markdown(found).replace("there", "There")


def test_report_warns_where_latencies_follow_nothing() -> None:
    """Latencies that follow neither size nor load give a warning, and others none."""
    rows = observed(ProviderTraits(knee=16), 1.2, count=600)
    factors = np.exp(np.random.default_rng(3).normal(0.0, 1.2, len(rows))).tolist()
    strange = [
        msgspec.structs.replace(row, upstream_s=row.upstream_s * factor)
        for row, factor in zip(rows, factors, strict=True)
    ]
    assert "is worth little" in observed_report.markdown(observed_report.tree(strange, None))
    assert "is worth little" not in observed_report.markdown(observed_report.tree(rows, None))


def test_report_refuses_too_little(tmp_path: Path) -> None:
    """An empty store and one with too few answers are errors of one line."""
    with pytest.raises(SettingsError, match="nothing was observed"):
        observed_report.tree([], None)
    few = observed(ProviderTraits(), 0.5, count=30)
    with pytest.raises(SettingsError, match="50 on one account"):
        observed_report.tree(few, None)


def test_report_reads_the_store_and_writes_its_files(tmp_path: Path) -> None:
    """The command reads the gateway's own store and writes report.md."""
    path = tmp_path / "s.db"
    store = Store(path, StoreSettings(path=str(path)))
    store.start()
    for row in observed(ProviderTraits(), 1.2, count=200):
        assert store.append_observed(row)
    assert store.stop()
    parser = argparse.ArgumentParser()
    observed_report.add_arguments(parser)
    arguments = ["--history", str(path), "--out", str(tmp_path / "out"), "--config", "none.toml"]
    assert observed_report.run(parser.parse_args(arguments)) == 0
    assert "| short P95 s |" in (tmp_path / "out" / "report.md").read_text()


def test_mean_inflight_is_the_average_over_a_life() -> None:
    """Two requests that overlap for half of each life count 1.5, one alone 1."""
    began, ended = np.array([0.0, 1.0, 10.0]), np.array([2.0, 3.0, 11.0])
    assert mean_inflight(began, ended).tolist() == pytest.approx([1.5, 1.5, 1.0])
