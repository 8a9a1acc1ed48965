"""The slow and better forecast, and learning: what the predictor's thread owns.

Plain synchronous code without a thread of its own, so that every rung is reached in a test
by calling it. One object, one owner: encoder, index, boosters and residual sums are used
by whoever calls, one call at a time.

Which rung a forecast is said to come from (its wire name is `fallback_level`):

1. `tenant_neighbors`: TOP_K_NEIGHBORS rows of the tenant are at least SIMILARITY_THRESHOLD
   near; or fewer, but together worth one true repeat of the prompt (quantiles.py, n_eff).
2. `global_neighbors`: the same over all tenants, the tenant's own rows among them.
3. `model_only`: the boosters alone, or with neighbours fewer and fainter than that.
4. `heuristic`: no model is loaded.

Up to 64 neighbours enter the mixture, whatever the rung is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log1p

from msgspec import Struct

from gateway.predict.artefacts import Artefacts, LengthModel, Tables
from gateway.predict.calibrate import Calibration, Residuals
from gateway.predict.encoder import Vector, pack, unpack
from gateway.predict.features import PromptView, cut, prompt_key
from gateway.predict.index import HistoryIndex, Neighbours
from gateway.predict.prices import Price
from gateway.predict.quantiles import (
    REPEAT,
    Grid,
    Z,
    blended,
    confidence,
    neighbour_features,
    neighbour_grid,
    neighbour_weights,
    p_short,
    rearranged,
    risk,
    shifted,
    to_tokens,
    truncated,
)
from gateway.settings.schema import Predict
from gateway.types import HistoryRow, Rung, Workload

NEIGHBOURS = 64


class Money(Struct, frozen=True):
    """What turns tokens into cost."""

    output_ratio: float
    prices: Mapping[str, Price]


def workload_of(view: PromptView, grid: Grid, rung: Rung, money: Money) -> Workload:
    """The forecast as the other rooms see it, from a grid in log1p tokens.

    Cost in units is prompt tokens + output ratio × n × output tokens; in dollars where the
    model has a price.
    """
    grid = truncated(grid, view.max_tokens)
    tokens = to_tokens(grid)
    p50, p90, prompt = tokens[3], tokens[5], view.prompt_tokens
    price = money.prices.get(view.model)
    return Workload(
        prompt_tokens=prompt,
        p50=p50,
        p90=p90,
        grid=tokens,
        p_short=p_short(grid),
        cost_p50=prompt + money.output_ratio * p50 * view.n,
        cost_p90=prompt + money.output_ratio * p90 * view.n,
        risk=risk(grid),
        confidence=confidence(grid),
        rung=rung,
        cost_usd_p50=None if price is None else price.usd(prompt, p50 * view.n),
    )


def heuristic_grid(view: PromptView) -> Grid:
    """Without any model: some 200 tokens within a factor 3, fewer for structured answers.

    The figures are round ones from public chat logs (median 237, p10 36, p90 703).
    """
    centre = log1p(60) if view.tools or view.json_format else log1p(220)
    if view.text_chars < 40:
        centre -= 0.5
    return rearranged([centre + 1.1 * z for z in Z])


def stage0_grid(
    view: PromptView, model: LengthModel | None, tables: Tables | None, bias: float
) -> tuple[Grid, Rung]:
    """The cheap forecast: no vector, no neighbours. Some 60 µs."""
    if model is None or tables is None:
        return shifted(heuristic_grid(view), bias), Rung.HEURISTIC
    return shifted(model.grid(tables.features_of(view)), bias), Rung.MODEL_ONLY


class Lesson(Struct, frozen=True):
    """The end of one request, to be learned from."""

    view: PromptView
    output_tokens: int  # per choice
    prompt_tokens: int | None
    censored: bool
    success: bool
    wall_s: float


class Foresight:
    """Forecasts with all that is known, and grows what is known.

    Args:
        settings: [predict].
        artefacts: loaded models; what is missing there lowers the rung.
        key: of the prompt hash.
        prices: by model.
    """

    def __init__(
        self,
        settings: Predict,
        artefacts: Artefacts,
        key: bytes,
        prices: Mapping[str, Price],
    ) -> None:
        self._settings = settings
        self._artefacts = artefacts
        self._stage0 = artefacts.stage0()
        self._key = key
        self._prices = prices
        self._residuals = Residuals()
        self._index = self._empty_index()

    @property
    def calibration(self) -> Calibration:
        return self._residuals.table

    @property
    def rows(self) -> int:
        """Rows in the index."""
        return 0 if self._index is None else len(self._index)

    def configure(self, settings: Predict) -> None:
        """Take new settings; another window keeps the newest rows that fit it."""
        self._settings = settings
        if self._index is not None and self._index.window != settings.history_window_size:
            self._index = self._index.resized(settings.history_window_size)
        encoder = self._artefacts.encoder
        if encoder is not None and encoder.max_tokens != settings.max_encoder_tokens:
            encoder.resize(settings.max_encoder_tokens)

    def forget(self) -> None:
        """Empty index and calibration."""
        self._index = self._empty_index()
        self._residuals = Residuals()

    def remember(self, row: HistoryRow) -> bool:
        """Put a stored row into the index; False where its vector is of another encoder."""
        if self._index is None or row.encoder != self._artefacts.encoder_name:
            return False
        vector = unpack(row.vector, self._index.width)
        if vector is None or not _countable(row.output_tokens, row.success, row.censored):
            return False
        self._index.add(vector, row.tenant, row.model, row.output_tokens, censored=row.censored)
        return True

    def forecast(self, view: PromptView) -> Workload:
        """The best forecast there is: encoder, neighbours, boosters, whatever is loaded."""
        money = Money(self._settings.cost_output_ratio, self._prices)
        vector = self._vector(view)
        base, rung = self._base(view)
        table = self._residuals.table
        if vector is None or self._index is None:
            return workload_of(
                view, shifted(base, table.stage0(view.tenant, view.model)), rung, money
            )
        everyone = self._index.global_neighbours(vector, view.model, NEIGHBOURS)
        full = self._full(view, vector, everyone)
        if full is None:
            grid = shifted(base, table.stage0(view.tenant, view.model))
        else:
            grid, rung = shifted(full, table.full(view.tenant, view.model)), Rung.MODEL_ONLY
        own = self._index.tenant_neighbours(vector, view.tenant, view.model, NEIGHBOURS)
        for near, named in ((own, Rung.TENANT_NEIGHBORS), (everyone, Rung.GLOBAL_NEIGHBORS)):
            mixed, carries = self._mixed(grid, near)
            if carries:
                return workload_of(view, mixed, named, money)
        return workload_of(view, mixed, rung, money)

    def learn(self, lesson: Lesson) -> HistoryRow:
        """Grow index and calibration by one answer; the row is what history keeps of it."""
        view = lesson.view
        vector = self._vector(view)
        if _countable(lesson.output_tokens, lesson.success, lesson.censored):
            self._teach(lesson, vector)
        prompt = lesson.prompt_tokens
        return HistoryRow(
            wall_s=lesson.wall_s,
            tenant=view.tenant,
            model=view.model,
            task_type=view.task_type or "",
            prompt_key=prompt_key(view, self._key),
            encoder="" if vector is None else self._artefacts.encoder_name,
            vector=b"" if vector is None else pack(vector),
            prompt_tokens=view.prompt_tokens if prompt is None else prompt,
            output_tokens=lesson.output_tokens,
            max_tokens=view.max_tokens or 0,
            censored=lesson.censored,
            success=lesson.success,
        )

    def _teach(self, lesson: Lesson, vector: Vector | None) -> None:
        """Predict first, learn after: a row must not judge a forecast that knew it."""
        view = lesson.view
        base, _ = self._base(view)
        full: Grid | None = None
        if vector is not None and self._index is not None:
            everyone = self._index.global_neighbours(vector, view.model, NEIGHBOURS)
            full = self._full(view, vector, everyone)
            self._index.add(
                vector, view.tenant, view.model, lesson.output_tokens, censored=lesson.censored
            )
        self._residuals.learn(
            (view.tenant, view.model),
            log1p(lesson.output_tokens),
            stage0=base[3],
            full=None if full is None else full[3],
            censored=lesson.censored,
        )

    def _base(self, view: PromptView) -> tuple[Grid, Rung]:
        return stage0_grid(view, self._stage0, self._artefacts.tables, 0.0)

    def _full(self, view: PromptView, vector: Vector, near: Neighbours) -> Grid | None:
        parts = self._artefacts
        if parts.full is None or parts.projection is None or parts.tables is None:
            return None
        projected: list[float] = (parts.projection[1:] @ (vector - parts.projection[0])).tolist()
        row = [*parts.tables.features_of(view), *projected, *neighbour_features(near)]
        return parts.full.grid(row)

    def _mixed(self, grid: Grid, near: Neighbours) -> tuple[Grid, bool]:
        """The mixture, and whether the pool may give the forecast its name."""
        weights = neighbour_weights(near, self._settings.similarity_threshold)
        effective = float(weights.sum())
        if effective <= 0.0:
            return grid, False
        close = int((near.similarity >= self._settings.similarity_threshold).sum())
        mixed = blended(grid, neighbour_grid(near, weights, grid), effective)
        return mixed, close >= self._settings.top_k_neighbors or effective >= REPEAT

    def _vector(self, view: PromptView) -> Vector | None:
        encoder = self._artefacts.encoder
        if encoder is None or not view.text.strip():
            return None
        text = cut(view.text, self._settings.max_chars)
        return encoder.vector(text, prompt_key(view, self._key))

    def _empty_index(self) -> HistoryIndex | None:
        encoder = self._artefacts.encoder
        if encoder is None:
            return None
        return HistoryIndex(encoder.width, self._settings.history_window_size)


def _countable(output_tokens: int, success: bool, censored: bool) -> bool:
    """A failed answer's length means nothing, unless it is known to be a lower bound."""
    return output_tokens > 0 and (success or censored)
