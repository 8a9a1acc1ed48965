"""The report as a person reads it: goals first, then changes against naive, then seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.workbench.simulate.run_figures import Change

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


def markdown(report: Mapping[str, Any]) -> str:
    parts = ["# Simulation", "", _about(report), ""]
    failed = [group for group in report["groups"] if _misses(group)]
    parts += ["## Not met", ""]
    parts += [line for group in failed for line in _misses(group)] or ["Nothing: all goals are."]
    parts.append("")
    for group in report["groups"]:
        parts += _group(group)
    return "\n".join(parts) + "\n"


def _misses(group: Mapping[str, Any]) -> list[str]:
    found = [
        f"- {group['title']}, {name}: {row['goal']} {_found(row)}, wanted"
        f" {_target(row)}{'; limit: ' + row['limit'] if row['limit'] else ''}"
        for name, rows in group["goals"].items()
        for row in rows
        if not row["met"]
    ]
    return found + [
        f"- {group['title']}: {row['check']}: {_number(row['value'])}, wanted ≤ {row['at_most']:g}"
        for row in group["checks"]
        if not row["met"]
    ]


def _about(report: Mapping[str, Any]) -> str:
    about, load = report["about"], report["workload"]
    shares = ", ".join(f"{name} {share:.1%}" for name, share in load["shares"].items())
    quantiles = ", ".join(f"p{level} {value:.0f}" for level, value in load["output_tokens"].items())
    told = "".join(
        f"; {name}: τ {_number(own['kendall_tau'])}, AUC(short) {_number(own['auc_short'])}"
        for name, own in load["forecasts"].items()
    )
    return (
        f"{about['seeds']} paired seeds; rows from {about['rows_from']}: {load['rows']}, output"
        f" tokens {quantiles} ({shares}), drawn as mix {about['mix']}{told}. Arrivals"
        f" {about['arrivals']}.{_timing(about)} Changes are against naive over the same requests,"
        f" with 95 % bootstrap intervals. Made by `{about['command']}` in {about['seconds']:.0f} s."
    )


def _timing(about: Mapping[str, Any]) -> str:
    """Of real HTTP alone."""
    if "time_scale" not in about:
        return ""
    busy = ", ".join(f"{who} {share:.0%}" for who, share in about["cpu_share_at_most"].items())
    return (
        f" Warm-up of {about['warm_up']} requests, {about['seed_count']} rows taught before; times"
        f" divided by {about['time_scale']:g}, {about['parallel']} seeds at a time; of a core at"
        f" most: {busy}; left at most {about['left_late_s_at_most']:.2f} s late."
    )


def _group(group: Mapping[str, Any]) -> list[str]:
    parts = [f"## {group['title']}", ""]
    parts += [f"{group['seeds']} seeds of {group['requests']} requests.", ""]
    for name, rows in group["goals"].items():
        head = (f"goal ({name})", "against naive", "wanted", "seed's", "met", "beats seed")
        body = [
            (
                row["goal"],
                _found(row),
                _target(row),
                f"{row['seed']:+.1%}" if row["goal"] != "completed" else f"{row['seed']:.1%}",
                "yes" if row["met"] else "**no**",
                "yes" if row["beats_seed"] else "**no**",
                _percent(row["true_lengths"]),
                _percent(row["alone"]),
                row["limit"],
            )
            for row in rows
        ]
        parts += _table((*head, "with true lengths", "alone", "limit"), body)
    if group["checks"]:
        checks = [
            (
                row["check"],
                _number(row["value"]),
                f"≤ {row['at_most']:g}",
                "yes" if row["met"] else "**no**",
            )
            for row in group["checks"]
        ]
        parts += _table(("check (ours)", "found", "wanted", "met"), checks)
    against = {n: p["against_naive"] for n, p in group["policies"].items() if "against_naive" in p}
    if against:
        changes = [
            (name, *(_percent(own.get(figure)) for figure, _ in CHANGES))
            for name, own in against.items()
        ]
        parts += _table(("against naive", *(title for _, title in CHANGES)), changes)
    return parts + _absolute(group["policies"])


def _absolute(policies: Mapping[str, Any]) -> list[str]:
    means = {name: policy["mean"] for name, policy in policies.items()}
    others = [(f, t) for f, t in OTHERS if any(f in own for own in means.values())]
    body = [
        (
            name,
            *(_number(own.get(figure)) for figure, _ in SECONDS),
            *("" if own.get(f) is None else f"{own[f]:.2%}" for f, _ in SHARES),
            *(_number(own.get(figure)) for figure, _ in others),
        )
        for name, own in means.items()
    ]
    titles = [f"{title} s" for _, title in SECONDS] + [title for _, title in (*SHARES, *others)]
    refused = [
        f"{name} refused: {', '.join(f'{code} {n}' for code, n in policy['refused'].items())}."
        for name, policy in policies.items()
        if policy.get("refused")
    ]
    return _table(("mean of seeds", *titles), body) + ([*refused, ""] if refused else [])


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rows = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return [*("| " + " | ".join(row) + " |" for row in rows), ""]


def _found(row: Mapping[str, Any]) -> str:
    """A change; of completion the share itself."""
    is_share = row["goal"] == "completed"
    return f"{row['found'].value:.2%}" if is_share else _percent(row["found"])


def _target(row: Mapping[str, Any]) -> str:
    return "100 %" if row["goal"] == "completed" else f"≤ {row['target']:+.0%}"


def _percent(found: Change | None) -> str:
    if found is None:
        return "–"
    return f"{found.value:+.1%} ({found.low:+.0%} … {found.high:+.0%})"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
