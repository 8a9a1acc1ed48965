"""A provider that can be played again, fitted to an observed journal.

The journal tells when each request began and ended at the provider, and its tokens. Beginnings and
ends give the number in flight over each life; the fits of the live windows (balance/curve.py,
balance/evidence.py) give how long a request takes alone and how the provider slows down. Here they
see the whole journal at once instead of a fading memory.

The residual of both fits is the request's own noise. It is kept with the request, so that playing
the journal again as it was nearly gives back the observed times; the difference bounds the
accuracy of the counterfactual.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from msgspec import Struct

from gateway.balance.curve import Curve, Floats, LatencyBins
from gateway.balance.evidence import UnloadedLatency
from gateway.errors import SettingsError
from gateway.types import ObservedRow, Outcome, Workload
from gateway.workbench.simulate.request_rows import RequestRow
from gateway.workbench.simulate.simulated_provider import ProviderTraits
from gateway.workbench.simulate.virtual_loop import SimulatedRequest

LEAST = 50  # answered requests, for a fit
ROUNDS = 6
NOISE = 0.3  # sigma of log latencies, for the fit
LEAST_NOISE = 0.02

_workload = msgspec.msgpack.Decoder(Workload).decode


class AccountFit(Struct, frozen=True):
    """The provider of one account, as fitted."""

    account: str
    traits: ProviderTraits
    curve: Curve
    requests: int
    most_inflight: int


class FittedJournal(Struct, frozen=True):
    """A provider per account, and the requests in order of arrival beside their observed rows."""

    fits: dict[str, AccountFit]
    requests: list[SimulatedRequest]
    rows: list[ObservedRow]


def fitted(rows: Sequence[ObservedRow]) -> FittedJournal:
    """Fit a provider to each account; requests that were not answered in full are left out.

    Raises:
        SettingsError: no account has enough answered requests.
    """
    answered = [row for row in rows if _usable(row)]
    by_account: dict[str, list[ObservedRow]] = {}
    for row in answered:
        by_account.setdefault(row.account, []).append(row)
    enough = {name: own for name, own in by_account.items() if len(own) >= LEAST}
    if not enough:
        raise SettingsError(
            f"report: {len(answered)} answered requests were observed; {LEAST} on one account are"
            " needed"
        )
    start_s = min(row.arrived_wall_s for own in enough.values() for row in own)
    fits: dict[str, AccountFit] = {}
    pairs: list[tuple[SimulatedRequest, ObservedRow]] = []
    for name, own in sorted(enough.items()):
        fit, noise = _fit(name, own)
        fits[name] = fit
        pairs += [
            (_request(row, number, z, fit, start_s), row)
            for number, (row, z) in enumerate(zip(own, noise.tolist(), strict=True))
        ]
    pairs.sort(key=lambda pair: pair[0].arrived_s)
    return FittedJournal(fits, [request for request, _ in pairs], [row for _, row in pairs])


def _usable(row: ObservedRow) -> bool:
    return row.outcome is Outcome.OK and row.upstream_s > 0 and row.output_tokens > 0


def _fit(name: str, rows: Sequence[ObservedRow]) -> tuple[AccountFit, Floats]:
    """The account's fit, and each request's noise in units of its standard deviation."""
    began = np.array([row.arrived_wall_s + row.queue_s for row in rows])
    took = np.array([row.upstream_s for row in rows])
    inflight = mean_inflight(began, began + took)
    sizes = np.array([(1.0, row.prompt_tokens, row.output_tokens / row.n) for row in rows])
    ln_n = np.log(np.maximum(inflight, 1.0))
    expected = np.zeros(len(rows))
    ones = np.ones(len(rows))
    for _ in range(ROUNDS):  # size and curve in turn, each given the other
        unloaded, bins = UnloadedLatency(), LatencyBins()
        for _ in range(3):  # each takes its weights from the fit before
            unloaded.learn(sizes, took / np.exp(expected), 0.0)
        logs = np.log(took / unloaded.of(sizes))
        flat = np.zeros_like(bins.weights)
        bins.add(ln_n, logs, ones, flat, np.ones_like(bins.weights))
        posterior = bins.posterior(NOISE**2)
        expected = posterior.slowdown_at(ln_n) + posterior.scale
    curve = posterior.curve(bins.explored())
    residual = np.log(took / unloaded.of(sizes)) - posterior.slowdown_at(ln_n) - posterior.scale
    noise = max(float(residual.std()), LEAST_NOISE)
    base_s, prompt_s, output_s = (unloaded.theta * np.exp(posterior.scale)).tolist()
    traits = ProviderTraits(
        shape="fitted",
        knee=curve.turn or 10.0 * float(inflight.max()),
        sharp=curve.sharp or 4.0,
        power=curve.steep or 1.0,
        base_s=base_s,
        prompt_token_s=prompt_s,
        output_token_s=output_s,
        noise=noise,
    )
    return AccountFit(name, traits, curve, len(rows), int(inflight.max())), residual / noise


def mean_inflight(began_s: Floats, ended_s: Floats) -> Floats:
    """Mean number in flight over each request's life, itself included."""
    times = np.concatenate([began_s, ended_s])
    order = np.argsort(times, kind="stable")
    steps = np.concatenate([np.ones(len(began_s)), -np.ones(len(ended_s))])[order]
    times = times[order]
    level = np.cumsum(steps)
    area = np.concatenate([[0.0], np.cumsum(level[:-1] * np.diff(times))])

    def until(at_s: Floats) -> Floats:
        value: Floats = np.interp(at_s, times, area)
        return value

    life = np.maximum(ended_s - began_s, 1e-9)
    mean: Floats = (until(ended_s) - until(began_s)) / life
    return mean


def _request(
    row: ObservedRow, number: int, z: float, fit: AccountFit, start_s: float
) -> SimulatedRequest:
    first = _workload(row.first)
    last = _workload(row.last)
    output = max(1, round(row.output_tokens / row.n))
    request_row = RequestRow(row.prompt_tokens, output, first, last if last != first else None)
    return SimulatedRequest(
        id=f"{fit.account}/{number}",
        arrived_s=row.arrived_wall_s - start_s,
        row=request_row,
        z=z,
        alone_s=fit.traits.alone_s(row.prompt_tokens, output, z),
        tenant=row.tenant,
        model=row.model,
        accounts=(fit.account,),
    )
