"""`sagesched report`: what scheduling would have gained on the traffic that was observed.

The journal of `mode = "observe"` is played again twice on a provider fitted to it
(provider_fit.py): as it was, everything at once, and through the gateway's own scheduler. The
observed times stand beside both. As far as the first play differs from them, the fitted provider
differs from the real one, and a gain smaller than that is noise. Noise that neither size nor load
explains stays with each request; a warning says where there is much of it.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from gateway.errors import SettingsError
from gateway.settings.schema import Account, Settings
from gateway.store.store import read_observed
from gateway.types import ObservedRow
from gateway.workbench.arguments import add_config, history_of, settings_of, store_of
from gateway.workbench.report.provider_fit import AccountFit, fitted
from gateway.workbench.simulate import policies
from gateway.workbench.simulate.run_figures import figures
from gateway.workbench.simulate.simulated_provider import SimulatedProvider
from gateway.workbench.simulate.virtual_loop import Policy, RequestResult, SimulatedRequest
from gateway.workbench.simulate.virtual_loop import run as play
from gateway.workbench.tables import NOTHING, number, table, write_report

FIGURES = (
    ("short_p50_s", "short P50 s"),
    ("short_p95_s", "short P95 s"),
    ("heavy_p95_s", "heavy P95 s"),
    ("p95_s", "P95 s"),
    ("mean_s", "mean s"),
    ("deadline_misses", "deadlines missed"),
)
FAR_OFF = 0.25  # of a played figure from the observed one
MUCH_NOISE = 0.6  # sigma of log latencies that neither size nor load explains
MOST_ROWS = 100_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare which store is read and how much of it."""
    add_config(parser)
    add = parser.add_argument
    add("--history", metavar="FILE", help="the store; default: that of --config")
    add("--rows", type=int, default=MOST_ROWS, help="the newest so many")
    add("--out", type=Path, metavar="DIR", help="report.json and report.md, too")


def run(args: argparse.Namespace) -> int:
    """Print the table, write OUT/report.json and OUT/report.md where asked; 0.

    A gateway that runs on the same store is not disturbed.

    Raises:
        SettingsError: no store, or too little was observed.
    """
    rows = read_observed(history_of(args) or store_of(args), args.rows)
    found = tree(rows, settings_of(args))
    text = markdown(found)
    if args.out is not None:
        write_report(args.out, found, text)
    print(text)
    return 0


def tree(rows: Sequence[ObservedRow], settings: Settings | None) -> dict[str, Any]:
    """All figures of the report. Raises SettingsError where too little was observed.

    Args:
        settings: their scheduler is played; None: the defaults.
    """
    if not rows:
        raise SettingsError('report: nothing was observed: [schedule] mode = "observe" notes it')
    journal = fitted(rows)
    fits, requests = journal.fits, journal.requests
    naive = _play(policies.baseline("naive", 1), fits, requests)
    ours = _play(policies.GatewayPolicy(_settings(fits, requests, settings)), fits, requests)
    observed = [_observed(*pair) for pair in zip(requests, journal.rows, strict=True)]
    return {
        "requests": len(rows),
        "played": len(requests),
        "hours": (max(r.arrived_wall_s for r in rows) - rows[0].arrived_wall_s) / 3600,
        "outcomes": dict(Counter(row.outcome.value for row in rows)),
        "would": dict(Counter(row.would for row in rows)),
        "accounts": {name: _account(fit) for name, fit in fits.items()},
        "observed": figures(observed),
        "naive": figures(naive),
        "scheduled": figures(ours),
    }


def _account(fit: AccountFit) -> dict[str, Any]:
    traits = fit.traits
    return {
        "requests": fit.requests,
        "regime": fit.curve.regime,
        "knee": fit.curve.knee,
        "best_window": traits.best_window if fit.curve.regime != "unknown" else None,
        "most_inflight": fit.most_inflight,
        "base_s": traits.base_s,
        "prompt_token_s": traits.prompt_token_s,
        "output_token_s": traits.output_token_s,
        "noise": traits.noise,
    }


def _settings(
    fits: Mapping[str, AccountFit], requests: Sequence[SimulatedRequest], given: Settings | None
) -> Settings:
    models = {name: sorted({r.model for r in requests if r.accounts == (name,)}) for name in fits}
    tenants = sorted({request.tenant for request in requests})
    """Settings for these accounts and models, with the scheduler of the given ones."""
    usual = policies.settings_of(models, tenants)
    if given is None:
        return usual
    schedule = msgspec.structs.replace(given.schedule, mode="schedule", bypass=False)
    return msgspec.structs.replace(
        usual,
        schedule=schedule,
        balance=given.balance,
        accounts=[_named(account, given) for account in usual.accounts],
    )


def _named(account: Account, given: Settings) -> Account:
    """The account with its provider's names of models, where the settings have it.

    Clients' names of one model then share its window.
    """
    names = next((own.model_map for own in given.accounts if own.name == account.name), {})
    models = {client: names.get(client, client) for client in account.model_map}
    return msgspec.structs.replace(account, models=models)


def _play(
    policy: Policy, fits: Mapping[str, AccountFit], requests: Sequence[SimulatedRequest]
) -> Sequence[RequestResult]:
    providers = {name: SimulatedProvider(fit.traits) for name, fit in fits.items()}
    return play(policy, providers, requests).results


def _observed(request: SimulatedRequest, row: ObservedRow) -> RequestResult:
    """The observed course of a request."""
    started_s = request.arrived_s + row.queue_s
    return RequestResult(request, started_s, started_s + row.upstream_s, completed=True)


def markdown(found: Mapping[str, Any]) -> str:
    """The tree of figures as a person reads it."""
    parts = [
        "# What scheduling would have gained",
        f"{found['requests']} requests in {found['hours']:.1f} h were observed"
        f" ({_counts(found['outcomes'])}); {found['played']} answered ones are played again.\n"
        f"At their arrival the scheduler would have: {_counts(found['would'])}.",
        _accounts(found["accounts"]),
        _comparison(found),
        "Short is ≤ 64 output tokens, heavy > 256. Deadline: 1 s + 4 × alone.",
        *_warnings(found),
    ]
    return "\n\n".join(parts) + "\n"


def _accounts(accounts: Mapping[str, Any]) -> str:
    rows = [
        (
            name,
            own["regime"],
            str(own["requests"]),
            number(own["best_window"]),
            str(own["most_inflight"]),
            f"{own['base_s']:.2f} s + {1000 * own['output_token_s']:.1f} ms/token",
        )
        for name, own in accounts.items()
    ]
    head = ("account", "regime", "requests", "best window", "most in flight")
    return table((*head, "alone: base + output"), rows, text_columns=2)


def _comparison(found: Mapping[str, Any]) -> str:
    rows = []
    for name, title in FIGURES:
        seen, naive, ours = (found[kind][name] for kind in ("observed", "naive", "scheduled"))
        rows.append((title, number(seen), number(naive), number(ours), _change(ours, naive)))
    return table(("", "observed", "played as it was", "scheduled", "change"), rows)


def _warnings(found: Mapping[str, Any]) -> list[str]:
    """Reasons not to lean on the comparison."""
    accounts = found["accounts"]
    warnings = []
    noisy = [name for name, own in accounts.items() if own["noise"] > MUCH_NOISE]
    if noisy:
        warnings.append(
            f"**On {', '.join(noisy)} neither a request's size nor the load explains most of its"
            " time: a figure about them is worth little.**"
        )
    seconds = [name for name, _ in FIGURES if name.endswith("_s")]
    if any(_differs(found["observed"][name], found["naive"][name]) for name in seconds):
        warnings.append(
            "**Played as it was, a figure differs from what was observed by more than"
            f" {FAR_OFF:.0%}: the fitted provider is not yours. Observe longer, or under more"
            " varied load, before you rely on this.**"
        )
    if all(own["regime"] == "unknown" for own in accounts.values()):
        warnings.append(
            "No account was loaded enough to show where it slows down: there is little to gain at"
            " this load, and this report cannot say what a higher one would bring."
        )
    return warnings


def _differs(seen: float, played: float) -> bool:
    return bool(np.isfinite([seen, played]).all()) and abs(played - seen) > FAR_OFF * max(
        seen, 0.05
    )


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _change(ours: float, naive: float) -> str:
    if not np.isfinite([ours, naive]).all() or naive <= 0:
        return NOTHING
    return f"{ours / naive - 1:+.0%}"
