"""What is compared: the predictor that serves, the same with a part taken away, and baselines.

All of the predictor's variants are the serving `LearningForecaster` itself, given other
artefacts or settings: an ablation must not be a second predictor. A family of features is
taken away by hiding its columns (NaN) from the shipped boosters. That is not a refit without
them: trees that expected a column do a little worse than trees that never knew it, so the loss
shown is an upper bound of what the family is worth.

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
    full_task      full, told the task type
    without_…      full without a family of features
    oracle         the truth
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isnan, log1p, nan, sqrt
from types import MappingProxyType
from typing import Protocol

from msgspec import structs

from gateway.predict.artefacts import Artefacts, Tables
from gateway.predict.encoder import Encoder
from gateway.predict.features import NAMES
from gateway.predict.forecast import Money, workload_of
from gateway.predict.head import Head
from gateway.predict.lengths import LengthModel
from gateway.predict.lesson import Lesson
from gateway.predict.prompt_view import PromptView
from gateway.predict.quantiles import NEIGHBOUR_NAMES, SCATTER, Grid, Z, rearranged
from gateway.predict.teaching import LearningForecaster
from gateway.predict.warm import Warm
from gateway.settings.schema import Predict
from gateway.types import Rung, Workload
from gateway.workbench.evaluate.judged_rows import Case

SPREAD = 1.1  # of log length over all rows, for baselines that know none better
MEAN_TOKENS = 220.0  # where no table of means is loaded
MEMORY = 10.0  # rows' worth of the shipped mean a model starts with
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
    """The family of a feature by its name; what is not known here is `other`."""
    return _BY_NAME.get(name) or _BY_PREFIX.get(name.split("_")[0], "other")


FAMILIES = tuple(
    dict.fromkeys(
        [*map(family, NAMES), "vector", "neighbours", "head", "warm", "tenant_correction"]
    )
)
BASELINES = ("constant", "model_mean", "prompt_length", "llmd_rule", "oracle")
OF_PREDICTOR = ("stage0", "static", "knn", "full", "full_tenants", "full_task")
WITHOUT = tuple(f"without_{name}" for name in FAMILIES)
VARIANTS = (*BASELINES[:-1], *OF_PREDICTOR, *WITHOUT, "oracle")
OF_HISTORY = ("constant", "model_mean", "stage0", "static", "knn", "full", "oracle")
"""What can be judged without a text: in a history only model, limits and vectors are known."""


class Forecaster(Protocol):
    def forecast(self, case: Case) -> Workload: ...
    def learn(self, case: Case) -> None: ...


class Parts(Artefacts):
    """Loaded artefacts with some exchanged."""

    def __init__(
        self,
        whole: Artefacts,
        *,
        encoder: Encoder | None,
        full: LengthModel | None,
        stage0: LengthModel | None,
        head: Head | None,
        warm: Warm | None,
        tables: Tables | None,
    ) -> None:
        self.problems = []
        self.encoder_name = whole.encoder_name
        self.tables = tables
        self.projection = whole.projection
        self.encoder = encoder
        self.full = full
        self.head = head
        self.warm = warm
        self._cheap = stage0

    def stage0(self) -> LengthModel | None:
        return self._cheap


class Hidden(LengthModel):
    """A length model that is not shown some of its columns.

    Args:
        hides: by feature name; columns between the cheap features and the neighbours' are
            all named `vector`.
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
    """Names of a row's columns: stage 0's when it has no more, else the full model's."""
    if width == len(NAMES):
        return list(NAMES)
    between = width - len(NAMES) - len(NEIGHBOUR_NAMES)
    return [*NAMES, *["vector"] * between, *NEIGHBOUR_NAMES]


class NeighboursOnly(LengthModel):
    """A length model that reads the neighbours' lengths and nothing else."""

    def __init__(self, centre: float) -> None:
        self._nothing = normal(centre, SPREAD)

    def grid(self, row: list[float], head: Grid | None = None) -> Grid:
        known = dict(zip(column_names(len(row)), row, strict=True))
        low, middle, high = (known.get(name, nan) for name in ("nn_p10", "nn_p50", "nn_p90"))
        if isnan(middle):
            return self._nothing
        return normal(middle, sqrt(SCATTER**2 + ((high - low) / (Z[5] - Z[1])) ** 2))

    def short(self, row: list[float]) -> float | None:
        return None


def normal(centre: float, spread: float) -> Grid:
    """A normal grid in log1p tokens."""
    return rearranged([centre + spread * z for z in Z])


# --- the predictor ----------------------------------------------------------------------


class Serving:
    """The serving predictor on cases."""

    def __init__(
        self,
        settings: Predict,
        artefacts: Artefacts,
        *,
        learns: bool = True,
        by_source: bool = False,
        tell_task: bool = False,
    ) -> None:
        self._forecaster = LearningForecaster(settings, artefacts, b"evaluate", {})
        self._learns, self._by_source, self._tell_task = learns, by_source, tell_task

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
        if not self._by_source and not self._tell_task:
            return case.view
        return structs.replace(
            case.view,
            tenant=case.source if self._by_source else case.view.tenant,
            task_type=(case.task_type or None) if self._tell_task else case.view.task_type,
        )


def serving(name: str, settings: Predict, whole: Artefacts, *, has_text: bool) -> Serving:
    """One of OF_PREDICTOR or WITHOUT; without texts all that is read of one is hidden."""
    encoder, full, stage0 = whole.encoder, whole.full, whole.stage0()
    head, warm, tables = whole.head, whole.warm, whole.tables
    if tables is not None and (not has_text or name in ("knn", "without_tenant_correction")):
        tables = structs.replace(tables, correction_columns=None)
    if not has_text:
        full = full and Hidden(full, _of_text)
        stage0 = stage0 and Hidden(stage0, _of_text)
    if name == "stage0":
        encoder = full = None
    elif name == "knn":
        full = stage0 = NeighboursOnly(centre_of(whole))
    elif name.startswith("without_"):
        taken = name.removeprefix("without_")

        def hides(column: str) -> bool:
            return family(column) == taken

        full = full and Hidden(full, hides)
        stage0 = stage0 and Hidden(stage0, hides)
        head = None if taken == "head" else head
        warm = None if taken == "warm" else warm
        if taken == "neighbours":  # nothing is nearer than 1: the mixture has no part either
            settings = structs.replace(settings, similarity_threshold=1.0)
    return Serving(
        settings,
        Parts(
            whole, encoder=encoder, full=full, stage0=stage0, head=head, warm=warm, tables=tables
        ),
        learns=name != "static",
        by_source=name == "full_tenants",
        tell_task=name == "full_task",
    )


def _of_text(column: str) -> bool:
    return family(column) not in ("neighbours", "model", "parameters", "vector")


def centre_of(artefacts: Artefacts) -> float:
    return log1p(MEAN_TOKENS) if artefacts.tables is None else artefacts.tables.mean


# --- baselines --------------------------------------------------------------------------


class Baseline:
    """A centre and a spread in log tokens, by a rule that its subclasses have."""

    def __init__(self, artefacts: Artefacts, ratio: float) -> None:
        self._centre = centre_of(artefacts)
        self._money = Money(ratio, MappingProxyType({}))

    def forecast(self, case: Case) -> Workload:
        return workload_of(case.view, self.grid(case), Rung.HEURISTIC, self._money)

    def grid(self, case: Case) -> Grid:
        return normal(self._centre, SPREAD)

    def learn(self, case: Case) -> None:
        """The constant learns nothing."""


class ModelMean(Baseline):
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


class Rule(Baseline):
    def grid(self, case: Case) -> Grid:
        found = "thinking" if case.thinking else "tools" if case.has_tools else "unknown"
        return normal(log1p(BINS[found]), SPREAD)


class Oracle(Baseline):
    def grid(self, case: Case) -> Grid:
        return (log1p(case.output_tokens),) * len(Z)


_BASELINES: Mapping[str, type[Baseline]] = {
    "constant": Baseline,
    "model_mean": ModelMean,
    "prompt_length": PromptLength,
    "llmd_rule": Rule,
    "oracle": Oracle,
}


def forecaster(name: str, settings: Predict, whole: Artefacts, *, has_text: bool) -> Forecaster:
    """A fresh one of VARIANTS. `whole` has an encoder that answers for every case."""
    if name in _BASELINES:
        return _BASELINES[name](whole, settings.cost_output_ratio)
    return serving(name, settings, whole, has_text=has_text)
