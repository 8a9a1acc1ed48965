"""A report of what was played: one tree of figures, and its Markdown.

Groups are cells that differ by seed alone. Every figure is given as its mean over the seeds
and, against naive, as a change with its interval (run_figures.py). `by_seed` keeps the seeds'
own figures, from which tests/bench/goals.py judges a report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gateway.types import MEDIUM_TOKENS, SHORT_TOKENS
from gateway.workbench.figures import RelativeChange, auc, change, kendall_tau
from gateway.workbench.simulate.cells import PolicyFigures
from gateway.workbench.simulate.request_rows import RequestRow
from gateway.workbench.simulate.run_figures import COUNTS
from gateway.workbench.simulate.worlds import Cell
from gateway.workbench.tables import number, percent, table

CHANGES = (
    ("short_mean_s", "short average"),
    ("short_p50_s", "short P50"),
    ("short_p95_s", "short P95"),
    ("short_by_forecast_p95_s", "short P95 (by forecast)"),
    ("heavy_p95_s", "heavy P95"),
    ("p95_s", "P95"),
    ("mean_s", "mean"),
    ("makespan_s", "makespan"),
    ("deadline_misses", "misses"),
    ("goodput_per_s", "met/s"),
    ("completed", "completed"),
)
SECONDS = (
    ("short_mean_s", "short mean"),
    ("short_p50_s", "short P50"),
    ("short_p95_s", "short P95"),
    ("heavy_p95_s", "heavy P95"),
    ("p95_s", "P95"),
    ("mean_s", "mean"),
    ("makespan_s", "makespan"),
    ("wait_max_s", "longest wait"),
)
SHARES = (
    ("deadline_misses", "misses"),
    ("completed", "completed"),
)
OTHERS = (
    ("goodput_per_s", "met/s"),
    ("slowdown_p95", "slowdown P95"),
    ("rejections_429", "429s"),
    ("window", "window"),
    ("forecast_tau", "τ"),
    ("first_forecast_tau", "τ at once"),
    ("short_auc", "AUC(short)"),
    ("short_queue_p50_s", "short queued P50 s (wall)"),
    ("window_end", "window at the end"),
    ("best_window", "best window"),
    ("quiet_p95_s", "quiet P95 s"),
    ("quiet_alone_p95_s", "alone s"),
    ("quiet_added_wait_s", "added wait s"),
)


Group = list[tuple[Cell, dict[str, PolicyFigures]]]


def tree(cells: Sequence[Cell], played: Sequence[dict[str, PolicyFigures]]) -> list[dict[str, Any]]:
    """One entry per group, in the order of their first cells."""
    return [_group_tree(members) for members in groups(cells, played)]


def groups(cells: Sequence[Cell], played: Sequence[dict[str, PolicyFigures]]) -> list[Group]:
    """Cells that differ by seed alone together, in the order of their first cells."""
    found: dict[tuple[Any, ...], Group] = {}
    for cell, one in zip(cells, played, strict=True):
        found.setdefault(cell.group, []).append((cell, one))
    return list(found.values())


def _group_tree(members: Group) -> dict[str, Any]:
    cell = members[0][0]
    by_policy = {name: _by_figure(members, name) for name in members[0][1]}
    naive = by_policy.get("naive")
    policies: dict[str, Any] = {}
    for name, own in by_policy.items():
        refused = sum((Counter(found[name].refused) for _, found in members), Counter[str]())
        means = {figure: _mean(values) for figure, values in own.items()}
        policies[name] = {"mean": means, "refused": dict(refused)}
        if naive is not None and name != "naive":
            policies[name]["against_naive"] = _against(own, naive)
    return {
        "title": cell.title,
        "scenario": cell.scenario,
        "shape": cell.shape,
        "rho": cell.rho,
        "forecast": cell.forecast,
        "requests": cell.requests,
        "seeds": len(members),
        "policies": policies,
        "by_seed": by_policy,
    }


def _by_figure(members: Group, policy: str) -> dict[str, list[float]]:
    names = list(members[0][1][policy].figures)
    return {name: [found[policy].figures[name] for _, found in members] for name in names}


def _mean(values: Sequence[float]) -> float | None:
    numbers = [value for value in values if value == value]
    return sum(numbers) / len(numbers) if numbers else None


def _against(
    own: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]
) -> dict[str, RelativeChange | None]:
    return {
        name: change(own[name], other[name], by_sums=name in COUNTS)
        for name in other
        if name in own
    }


def workload(rows: Mapping[str, Sequence[RequestRow]]) -> dict[str, Any]:
    """Sizes of the rows, and how good each kind of forecast of them is."""
    some = next(iter(rows.values()))
    tokens = np.array([row.output_tokens for row in some], float)
    short = tokens <= SHORT_TOKENS
    levels = (10, 50, 90, 99)
    return {
        "rows": len(some),
        "output_tokens": dict(zip(levels, np.percentile(tokens, levels).tolist(), strict=True)),
        "shares": {
            "short": float(short.mean()),
            "medium": float(((tokens > SHORT_TOKENS) & (tokens <= MEDIUM_TOKENS)).mean()),
            "long": float((tokens > MEDIUM_TOKENS).mean()),
        },
        "forecasts": {
            name: {
                "kendall_tau": kendall_tau(np.array([r.forecast.p50 for r in own]), tokens),
                "auc_short": auc(np.array([r.forecast.p_short for r in own]), short),
            }
            for name, own in rows.items()
        },
    }


# --- Markdown ---------------------------------------------------------------------------


def markdown(report: Mapping[str, Any], title: str = "Simulation") -> str:
    """The report as a person reads it: changes against naive, then seconds."""
    parts = [f"# {title}", _about(report)]
    for group in report["groups"]:
        parts += _group(group)
    return "\n\n".join(parts) + "\n"


def _about(report: Mapping[str, Any]) -> str:
    about, load = report["about"], report["workload"]
    shares = ", ".join(f"{name} {share:.1%}" for name, share in load["shares"].items())
    quantiles = ", ".join(f"p{level} {value:.0f}" for level, value in load["output_tokens"].items())
    forecasts = "".join(
        f"; {name}: τ {number(own['kendall_tau'])}, AUC(short) {number(own['auc_short'])}"
        for name, own in load["forecasts"].items()
    )
    return (
        f"{about['seeds']} paired seeds; rows from {about['rows_from']}: {load['rows']}, output"
        f" tokens {quantiles} ({shares}), drawn as mix {about['mix']}{forecasts}. Arrivals"
        f" {about['arrivals']}.{_timing(about)} Changes are against naive over the same requests,"
        f" with 95 % bootstrap intervals. Made by `{about['command']}` in {about['seconds']:.0f} s."
    )


def _timing(about: Mapping[str, Any]) -> str:
    """Conditions of a bench; "" of a simulation."""
    if "time_scale" not in about:
        return ""
    busy = ", ".join(f"{who} {share:.0%}" for who, share in about["cpu_share_at_most"].items())
    return (
        f" Warm-up of {about['warm_up']} requests, {about['seed_count']} rows taught before; times"
        f" divided by {about['time_scale']:g}, {about['parallel']} seeds at a time; of a core at"
        f" most: {busy}; left at most {about['left_late_s_at_most']:.2f} s late."
    )


def _group(group: Mapping[str, Any]) -> list[str]:
    parts = [f"## {group['title']}", f"{group['seeds']} seeds of {group['requests']} requests."]
    against = {n: p["against_naive"] for n, p in group["policies"].items() if "against_naive" in p}
    if against:
        changes = [
            (name, *(percent(own.get(figure)) for figure, _ in CHANGES))
            for name, own in against.items()
        ]
        parts.append(table(("against naive", *(title for _, title in CHANGES)), changes))
    return parts + _absolute(group["policies"])


def _absolute(policies: Mapping[str, Any]) -> list[str]:
    means = {name: policy["mean"] for name, policy in policies.items()}
    others = [(f, t) for f, t in OTHERS if any(f in own for own in means.values())]
    body = [
        (
            name,
            *(number(own.get(figure)) for figure, _ in SECONDS),
            *("" if own.get(f) is None else f"{own[f]:.2%}" for f, _ in SHARES),
            *(number(own.get(figure)) for figure, _ in others),
        )
        for name, own in means.items()
    ]
    titles = [f"{title} s" for _, title in SECONDS] + [title for _, title in (*SHARES, *others)]
    refused = [
        f"{name} refused: {', '.join(f'{code} {n}' for code, n in policy['refused'].items())}."
        for name, policy in policies.items()
        if policy.get("refused")
    ]
    lines = ["\n".join(refused)] if refused else []
    return [table(("mean of seeds", *titles), body), *lines]
