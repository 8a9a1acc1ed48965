"""One tree of figures from all forecasts, the same for all rows and for new prompts.

    overall.VARIANT.FIGURE
    by.source|model|lang|class|size|training.NAME.VARIANT.FIGURE
    first_seen.overall…, first_seen.by…      rows whose prompt no earlier row had
    apart.SOURCE.VARIANT.FIGURE              of sources never fitted, after their first rows
    drift.SOURCE.VARIANT.FIGURE              of a source that doubles its lengths
    over_time.VARIANT                        [row, τ of the rows up to it]
    timing, about

`class` is by a variant's own forecast (interactive, heavy), `size` by truth (short, medium,
long), `training` by whether the models were fitted on other rows of the source (fitted, never
fitted; absent for a history). A mean over sources takes those with at least SOURCE_ROWS rows, a
group is listed from GROUP_ROWS on: smaller ones are noise.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from gateway.types import INTERACTIVE_P_SHORT, JobClass, SizeBucket
from gateway.workbench import figures
from gateway.workbench.evaluate.judged_rows import Case
from gateway.workbench.evaluate.row_replay import DRIFT_ROWS, RUNGS, ForecastTable
from gateway.workbench.figures import MEDIAN, P90, Flags

SOURCE_ROWS = 20
GROUP_ROWS = 10
ROLLING_ROWS = 2000
FIRST_ROWS = 200  # of a source never fitted: they only teach
DRIFT_LAST = 200  # of DRIFT_ROWS
WINDOW = 500  # rows, of τ over time
SIZES = tuple(SizeBucket)

Tree = dict[str, Any]


class Truth:
    """Truth about the cases, a column each.

    Args:
        never_fitted: sources that no model was fitted on; None where that is unknown.
    """

    def __init__(self, cases: Sequence[Case], never_fitted: Collection[str] | None = None) -> None:
        self.tokens = np.array([case.output_tokens for case in cases], float)
        self.censored = np.array([case.censored for case in cases], bool)
        self.first_seen = np.array([case.first_seen for case in cases], bool)
        self.source = np.array([case.source for case in cases], object)
        self.model = np.array([case.view.model for case in cases], object)
        self.lang = np.array([case.lang or "unknown" for case in cases], object)
        self.training: Any = None
        if never_fitted is not None:
            names = ["never fitted" if c.source in never_fitted else "fitted" for c in cases]
            self.training = np.array(names, object)
        self.size = np.array([SIZES[b] for b in figures.buckets(self.tokens)], object)

    def __len__(self) -> int:
        return len(self.tokens)


def classes(forecasts: ForecastTable) -> Flags:
    """True where the forecast makes a job interactive."""
    interactive: Flags = forecasts.p_short >= INTERACTIVE_P_SHORT
    return interactive


def judged(truth: Truth, forecasts: ForecastTable, rows: Flags) -> Tree:
    """Figures of one group."""
    return dict(
        figures.judged(
            forecasts.grid[rows], forecasts.p_short[rows], truth.tokens[rows], truth.censored[rows]
        )
    )


def tree(truth: Truth, variants: Mapping[str, ForecastTable], rows: Flags) -> Tree:
    """`overall` and `by` of some rows."""
    found: Tree = {
        "overall": {name: overall(truth, forecasts, rows) for name, forecasts in variants.items()},
        "by": {
            what: by_name(truth, variants, rows, getattr(truth, what))
            for what in ("source", "model", "lang", "size", "training")
            if getattr(truth, what) is not None
        },
    }
    own: Tree = {}
    for job_class in (JobClass.INTERACTIVE, JobClass.HEAVY):
        groups = {
            name: rows & _in_class(forecasts, job_class) for name, forecasts in variants.items()
        }
        own[job_class] = {
            name: judged(truth, forecasts, groups[name])
            for name, forecasts in variants.items()
            if groups[name].sum() >= GROUP_ROWS
        }
    found["by"]["class"] = own
    return found


def by_name(
    truth: Truth, variants: Mapping[str, ForecastTable], rows: Flags, names: Any
) -> dict[str, Tree]:
    """Figures of each group of rows by `names`, and by variant."""
    found: dict[str, Tree] = {}
    for name in sorted(set(names[rows].tolist())):
        group = rows & (names == name)
        if group.sum() >= GROUP_ROWS:
            found[name] = {v: judged(truth, forecasts, group) for v, forecasts in variants.items()}
    return found


def overall(truth: Truth, forecasts: ForecastTable, rows: Flags) -> Tree:
    """Figures of one group, and those that only make sense over many rows."""
    found = judged(truth, forecasts, rows)
    exact = rows & ~truth.censored
    sources = [rows & (truth.source == name) for name in sorted(set(truth.source.tolist()))]
    found["kendall_tau_mean_source"] = figures.mean(
        [_tau(truth, forecasts, group) for group in sources if group.sum() >= SOURCE_ROWS]
    )
    covered = truth.tokens <= forecasts.grid[:, P90] * (1 + 1e-9)
    found["coverage_p90_rolling"] = {
        "all": figures.rolling(covered[exact], ROLLING_ROWS),
        **{
            str(name): figures.rolling(covered[exact & _in_class(forecasts, name)], ROLLING_ROWS)
            for name in (JobClass.INTERACTIVE, JobClass.HEAVY)
        },
    }
    found["calibration"] = [
        round(float(share), 4)
        for share in figures.coverage(forecasts.grid[exact], truth.tokens[exact])
    ]
    found["rungs"] = _rungs(truth, forecasts, rows)
    # Risk is the chance of more than twice the median; confidence falls with the spread.
    over = truth.tokens > 2 * forecasts.grid[:, MEDIAN]
    found["risk_auc_overrun"] = figures.auc(forecasts.risk[exact], over[exact])
    error = np.abs(np.log1p(truth.tokens) - np.log1p(forecasts.grid[:, MEDIAN]))
    tau = figures.kendall_tau(forecasts.confidence[exact], error[exact])
    found["confidence_tau_error"] = None if tau is None else -tau
    found["forecast_ms"] = timing(1000 * forecasts.seconds[rows])
    return found


def _rungs(truth: Truth, forecasts: ForecastTable, rows: Flags) -> Tree:
    found: Tree = {}
    for place, rung in enumerate(RUNGS):
        group = rows & (forecasts.rung == place)
        if group.any():
            found[str(rung)] = {
                "share": float(group.sum() / rows.sum()),
                "n": int(group.sum()),
                "kendall_tau": _tau(truth, forecasts, group),
            }
    return found


def _tau(truth: Truth, forecasts: ForecastTable, rows: Flags) -> float | None:
    exact = rows & ~truth.censored
    return figures.kendall_tau(forecasts.grid[exact, MEDIAN], truth.tokens[exact])


def _in_class(forecasts: ForecastTable, name: JobClass) -> Flags:
    interactive = classes(forecasts)
    return interactive if name is JobClass.INTERACTIVE else ~interactive


def timing(ms: figures.Floats) -> Tree | None:
    """Mean, p50 and p99 (interpolated linearly) of milliseconds; None of nothing."""
    if not len(ms):
        return None
    p50, p99 = np.percentile(ms, (50, 99))
    return {"mean": float(ms.mean()), "p50": float(p50), "p99": float(p99)}


def over_time(truth: Truth, forecasts: ForecastTable) -> list[list[float | None]]:
    """[rows so far, τ of the last WINDOW of them] at every half window."""
    points: list[list[float | None]] = []
    for end in range(min(WINDOW, len(truth)), len(truth) + 1, WINDOW // 2):
        rows = np.zeros(len(truth), bool)
        rows[max(0, end - WINDOW) : end] = True
        points.append([float(end), _tau(truth, forecasts, rows)])
    return points


# --- scenarios --------------------------------------------------------------------------


def apart(cases: Sequence[Case], variants: Mapping[str, ForecastTable]) -> Tree:
    """Figures of a source never fitted, of the rows after its first FIRST_ROWS."""
    truth = Truth(cases)
    late = np.arange(len(truth)) >= FIRST_ROWS
    found: Tree = {}
    for name, forecasts in variants.items():
        found[name] = judged(truth, forecasts, late)
        found[name]["first_seen"] = judged(truth, forecasts, late & truth.first_seen)
    return found


def drift(
    cases: Sequence[Case],
    variants: Mapping[str, ForecastTable],
    control: Mapping[str, ForecastTable],
) -> Tree:
    """Shares at most p90 after a doubling, and of the same rows without it, by variant."""
    truth = np.array([case.output_tokens for case in cases], float)
    last, first = slice(-DRIFT_LAST, None), slice(-DRIFT_ROWS, -DRIFT_LAST)

    def share(forecasts: ForecastTable, lengths: figures.Floats, rows: slice) -> float:
        return float((lengths[rows] <= forecasts.grid[rows, P90] * (1 + 1e-9)).mean())

    return {
        name: {
            f"coverage_p90_first_{DRIFT_ROWS - DRIFT_LAST}": share(forecasts, 2 * truth, first),
            f"coverage_p90_last_{DRIFT_LAST}": share(forecasts, 2 * truth, last),
            "coverage_p90_without_drift": share(control[name], truth, last),
        }
        for name, forecasts in variants.items()
    }


def mean_of(scenario: Mapping[str, Tree]) -> Tree:
    """Means over a scenario's sources, by variant and figure."""
    found: Tree = {}
    for name in dict.fromkeys(v for each in scenario.values() for v in each):
        own = [each[name] for each in scenario.values()]
        found[name] = {
            key: figures.mean([tree.get(key) for tree in own])
            for key, value in own[0].items()
            if key != "n" and not isinstance(value, dict)
        }
        if "first_seen" in own[0]:
            found[name]["first_seen"] = {
                "kendall_tau": figures.mean([tree["first_seen"]["kendall_tau"] for tree in own])
            }
    return found


def rounded(value: Any) -> Any:
    """The tree with floats rounded to five decimals and keys as text."""
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return round(value, 5) if isinstance(value, float) else value
