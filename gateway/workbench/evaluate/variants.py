"""Forecasters to compare: the serving predictor, the same with parts taken away, baselines.

All variants of the predictor are the serving `LearningForecaster`, given other artefacts or
settings: an ablation must not be a second predictor. A family of features is taken away by hiding
its columns (NaN) from the shipped boosters. Trees that expected a column do a little worse than
trees fitted without it, so the loss shown is an upper bound of what the family is worth.

    constant       one length for all: the mean of the fitted rows
    model_mean     the model's mean length so far
    prompt_length  a line through log prompt length, refitted after every row
    llmd_rule      llm-d-router's three bins (its pull request 2309): thinking 4,096,
                   tools 100, else 1,000 tokens
    stage0         the forecast on the event loop: cheap features, no vector, learning
    static         everything, nothing learned
    knn            neighbours in history alone, learning
    full           everything, learning
    full_tenants   full, each source a tenant of its own
    full_task      full, with the task type
    without_…      full without a family of features
    oracle         the truth
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isnan, log1p, nan, sqrt
from types import MappingProxyType
from typing import Protocol

from msgspec import structs

from gateway.predict.artefacts import Artefacts
from gateway.predict.features import NAMES
from gateway.predict.forecast import Pricing, workload_of
from gateway.predict.lengths import LengthModel
from gateway.predict.lesson import Lesson
from gateway.predict.prompt_view import PromptView
from gateway.predict.quantiles import NEIGHBOUR_NAMES, SCATTER, Grid, Z, rearranged
from gateway.predict.teaching import LearningForecaster
from gateway.settings.schema import Predict
from gateway.types import Rung, Workload
from gateway.workbench.evaluate.judged_rows import Case

SPREAD = 1.1  # of log length over all rows, for baselines without a better one
MEAN_TOKENS = 220.0  # without a table of means
MEMORY = 10.0  # rows that the shipped mean of a model counts for
BINS = {"thinking": 4096.0, "tools": 100.0, "unknown": 1000.0}

_FAMILIES: dict[str, tuple[str, ...]] = {
    "size": ("text", "text_bytes", "chars", "words", "word_length", "lines"),
    "signs": (
        *(
            "wide",
            "cjk",
            "cjk_share",
            "digits",
            "upper",
            "code_signs",
            "questions",
            "stops",
            "commas",
        ),
        *("fences", "bullets", "urls", "quotes", "dollars", "choices"),
    ),
    "words": ("ends_question", "ends_colon", "asked_size", "first_word"),
    "conversation": ("prior_mean", "last_answer", "messages", "turns", "answers", "tool_results"),
    "parameters": (
        *("tools", "json_format", "max_tokens", "temperature", "effort", "stop", "n"),
        *("thinking", "thinking_budget", "tools_bytes"),
    ),
    "model": ("model_mean", "task_mean"),
    "running": tuple(
        f"{of}_run_{what}" for of in ("tenant", "model", "template") for what in ("mean", "count")
    ),
    "vector": ("vector",),
}
_BY_NAME = {name: title for title, names in _FAMILIES.items() for name in names}
_BY_PREFIX = {"words": "words", "zh": "words", "system": "system", "nn": "neighbours"}


def family(name: str) -> str:
    """The family of a feature by its name; `other` for a name without a family."""
    return _BY_NAME.get(name) or _BY_PREFIX.get(name.split("_")[0], "other")


FAMILIES = tuple(
    dict.fromkeys([*map(family, NAMES), "vector", "neighbours", "head", "tenant_correction"])
)
BASELINES = ("constant", "model_mean", "prompt_length", "llmd_rule", "oracle")
OF_PREDICTOR = ("stage0", "static", "knn", "full", "full_tenants", "full_task")
WITHOUT = tuple(f"without_{name}" for name in FAMILIES)
VARIANTS = (*BASELINES[:-1], *OF_PREDICTOR, *WITHOUT, "oracle")
OF_HISTORY = ("constant", "model_mean", "stage0", "static", "knn", "full", "oracle")
"""Variants that need no text: a history holds only model, limits and vectors."""


class CaseForecaster(Protocol):
    """Forecasts cases, and learns them later."""

    def forecast(self, case: Case) -> Workload:
        """The forecast of a case; its truth is not read."""

    def learn(self, case: Case) -> None:
        """Learn from the truth of a case."""


class ChangedArtefacts(Artefacts):
    """A copy of loaded artefacts, of which parts may be replaced or set to None."""

    def __init__(self, artefacts: Artefacts) -> None:
        self.problems = []
        self.encoder_name = artefacts.encoder_name
        self.tables = artefacts.tables
        self.projection = artefacts.projection
        self.encoder = artefacts.encoder
        self.full = artefacts.full
        self.head = artefacts.head
        self.cheap = artefacts.stage0()

    def stage0(self) -> LengthModel | None:
        return self.cheap

    def hide(self, hides: Callable[[str], bool]) -> None:
        """Hide columns from both length models."""
        self.full = self.full and MaskedModel(self.full, hides)
        self.cheap = self.cheap and MaskedModel(self.cheap, hides)


class MaskedModel(LengthModel):
    """A length model from which some columns are hidden.

    Args:
        hides: tells by the feature's name; the columns between the cheap features and those of
            the neighbours are all named `vector`.
    """

    def __init__(self, inner: LengthModel, hides: Callable[[str], bool]) -> None:
        self._inner = inner
        self._hides = hides
        self._columns: list[int] | None = None

    def grid(self, row: list[float], head: Grid | None = None) -> Grid:
        return self._inner.grid(self._hidden(row), head)

    def short(self, row: list[float]) -> float | None:
        return self._inner.short(self._hidden(row))

    def _hidden(self, row: list[float]) -> list[float]:
        if self._columns is None:
            self._columns = [i for i, n in enumerate(column_names(len(row))) if self._hides(n)]
        row = list(row)
        for column in self._columns:
            row[column] = nan
        return row


def column_names(width: int) -> list[str]:
    """Names of a row's columns: stage 0's where it has no more, else the full model's."""
    if width == len(NAMES):
        return list(NAMES)
    between = width - len(NAMES) - len(NEIGHBOUR_NAMES)
    return [*NAMES, *["vector"] * between, *NEIGHBOUR_NAMES]


class NeighboursOnly(LengthModel):
    """A length model that reads the neighbours' lengths and nothing else."""

    def __init__(self, centre: float) -> None:
        self._nothing = normal(centre, SPREAD)

    def grid(self, row: list[float], head: Grid | None = None) -> Grid:
        columns = dict(zip(column_names(len(row)), row, strict=True))
        low, middle, high = (columns.get(name, nan) for name in ("nn_p10", "nn_p50", "nn_p90"))
        if isnan(middle):
            return self._nothing
        return normal(middle, sqrt(SCATTER**2 + ((high - low) / (Z[5] - Z[1])) ** 2))

    def short(self, row: list[float]) -> float | None:
        return None


def normal(centre: float, spread: float) -> Grid:
    """A normal grid in log1p tokens."""
    return rearranged([centre + spread * z for z in Z])


# --- the predictor ----------------------------------------------------------------------


class ServingVariant:
    """The serving predictor on cases.

    Args:
        by_source: makes each source a tenant of its own.
        with_task: hands the task type over.
    """

    def __init__(
        self,
        settings: Predict,
        artefacts: Artefacts,
        *,
        learns: bool = True,
        by_source: bool = False,
        with_task: bool = False,
    ) -> None:
        self._forecaster = LearningForecaster(settings, artefacts, b"evaluate", {})
        self._learns, self._by_source, self._with_task = learns, by_source, with_task

    def forecast(self, case: Case) -> Workload:
        return self._forecaster.forecast(self._view(case))

    def learn(self, case: Case) -> None:
        if self._learns:
            self._forecaster.learn(
                Lesson(
                    view=self._view(case),
                    output_tokens=case.output_tokens,
                    prompt_tokens=None,
                    censored=case.censored,
                    success=True,
                    wall_s=float(case.seq),
                )
            )

    def _view(self, case: Case) -> PromptView:
        if not self._by_source and not self._with_task:
            return case.view
        return structs.replace(
            case.view,
            tenant=case.source if self._by_source else case.view.tenant,
            task_type=(case.task_type or None) if self._with_task else case.view.task_type,
        )


def serving(
    name: str, settings: Predict, artefacts: Artefacts, *, has_text: bool
) -> ServingVariant:
    """One of OF_PREDICTOR or WITHOUT; without texts all features of a text are hidden."""
    changed = ChangedArtefacts(artefacts)
    if changed.tables is not None and (
        not has_text or name in ("knn", "without_tenant_correction")
    ):
        changed.tables = structs.replace(changed.tables, correction_columns=None)
    if not has_text:
        changed.hide(_of_text)
    if name == "stage0":
        changed.encoder = changed.full = None
    elif name == "knn":
        changed.full = changed.cheap = NeighboursOnly(centre_of(artefacts))
    elif name.startswith("without_"):
        taken = name.removeprefix("without_")
        changed.hide(lambda column: family(column) == taken)
        if taken == "head":
            changed.head = None
        if taken == "neighbours":  # no neighbour is nearer than 1, so none is mixed in either
            settings = structs.replace(settings, similarity_threshold=1.0)
    return ServingVariant(
        settings,
        changed,
        learns=name != "static",
        by_source=name == "full_tenants",
        with_task=name == "full_task",
    )


def _of_text(column: str) -> bool:
    return family(column) not in ("neighbours", "model", "parameters", "vector")


def centre_of(artefacts: Artefacts) -> float:
    """Mean log length of the fitted rows."""
    return log1p(MEAN_TOKENS) if artefacts.tables is None else artefacts.tables.mean


# --- baselines --------------------------------------------------------------------------


class Baseline:
    """One length for all, and the base of the other baselines: a normal grid in log tokens."""

    def __init__(self, artefacts: Artefacts, ratio: float) -> None:
        self._centre = centre_of(artefacts)
        self._pricing = Pricing(ratio, MappingProxyType({}))

    def forecast(self, case: Case) -> Workload:
        return workload_of(case.view, self.grid(case), Rung.HEURISTIC, self._pricing)

    def grid(self, case: Case) -> Grid:
        """Quantiles of log length."""
        return normal(self._centre, SPREAD)

    def learn(self, case: Case) -> None:
        """Learn nothing; other baselines do."""


class ModelMean(Baseline):
    """The model's mean log length so far, starting from the shipped one."""

    def __init__(self, artefacts: Artefacts, ratio: float) -> None:
        super().__init__(artefacts, ratio)
        shipped: Mapping[str, float] = artefacts.tables.models if artefacts.tables else {}
        self._sums = {name: (MEMORY, MEMORY * mean) for name, mean in shipped.items()}
        self._errors = (MEMORY, MEMORY * SPREAD**2)

    def grid(self, case: Case) -> Grid:
        count, total = self._errors
        return normal(self._mean(case), sqrt(total / count))

    def learn(self, case: Case) -> None:
        y = log1p(case.output_tokens)
        count, total = self._errors
        self._errors = count + 1, total + (y - self._mean(case)) ** 2
        count, total = self._sums.get(case.view.model, (MEMORY, MEMORY * self._centre))
        self._sums[case.view.model] = count + 1, total + y

    def _mean(self, case: Case) -> float:
        count, total = self._sums.get(case.view.model, (1.0, self._centre))
        return total / count


class PromptLength(Baseline):
    """Least squares of log answer length on log prompt length, from running sums."""

    def __init__(self, artefacts: Artefacts, ratio: float) -> None:
        super().__init__(artefacts, ratio)
        # As if a few rows of the mean length had been seen, at prompts of e⁵ ± a little.
        c = self._centre
        self._n, self._x, self._y = 2.0, 10.0, 2 * c
        self._xx, self._xy, self._yy = 52.0, 10 * c, 2 * (c**2 + SPREAD**2)

    def grid(self, case: Case) -> Grid:
        x_mean, y_mean = self._x / self._n, self._y / self._n
        x_var = self._xx / self._n - x_mean**2
        slope = (self._xy / self._n - x_mean * y_mean) / x_var
        left = self._yy / self._n - y_mean**2 - slope**2 * x_var
        return normal(y_mean + slope * (log1p(case.view.chars) - x_mean), sqrt(max(left, 0.01)))

    def learn(self, case: Case) -> None:
        x, y = log1p(case.view.chars), log1p(case.output_tokens)
        self._n += 1
        self._x, self._y = self._x + x, self._y + y
        self._xx, self._xy, self._yy = self._xx + x * x, self._xy + x * y, self._yy + y * y


class BinRule(Baseline):
    """One of three fixed lengths, by thinking and tools."""

    def grid(self, case: Case) -> Grid:
        found = "thinking" if case.thinking else "tools" if case.has_tools else "unknown"
        return normal(log1p(BINS[found]), SPREAD)


class Oracle(Baseline):
    """The truth."""

    def grid(self, case: Case) -> Grid:
        return (log1p(case.output_tokens),) * len(Z)


_BASELINES: Mapping[str, type[Baseline]] = {
    "constant": Baseline,
    "model_mean": ModelMean,
    "prompt_length": PromptLength,
    "llmd_rule": BinRule,
    "oracle": Oracle,
}


def forecaster(
    name: str, settings: Predict, artefacts: Artefacts, *, has_text: bool
) -> CaseForecaster:
    """A fresh forecaster of VARIANTS; the encoder of `artefacts` must have every case's vector."""
    if name in _BASELINES:
        return _BASELINES[name](artefacts, settings.cost_output_ratio)
    return serving(name, settings, artefacts, has_text=has_text)
