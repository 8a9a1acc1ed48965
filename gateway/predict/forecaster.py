"""Forecasts from the encoder, the neighbours and the boosters.

Plain synchronous code, one call at a time, on the thread that owns the object. `Forecaster`
reads what is loaded (`Artefacts`) and what is learned (index, residuals, tenant corrections);
`LearningForecaster` (teaching.py) adds to the latter.

The source of a forecast (its wire name is `fallback_level`):

1. `tenant_neighbors`: at least TOP_K_NEIGHBORS rows of the tenant are within
   SIMILARITY_THRESHOLD; or fewer that together weigh as much as one repeat of the prompt.
2. `global_neighbors`: the same over every row the tenant may see, its own among them.
3. `model_only`: the boosters alone, or with neighbours fewer and fainter than that.
4. `heuristic`: no model is loaded.

Up to 64 neighbours enter the mixture under each of these names. A prompt mostly outside the
encoder's vocabulary has none.

Steps of a forecast: boosters and head (lengths.py, head.py) → bias of the request's groups
(calibrate.py) → correction of its tenant (tenant_correction.py) → neighbours (quantiles.py) →
levels of its class → cut at max_tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from msgspec import Struct

from gateway.predict.artefacts import Artefacts
from gateway.predict.calibrate import Calibration, Channel, GroupKeys, group_keys
from gateway.predict.encoder import EncodedPrompt, Vector
from gateway.predict.forecast import (
    FULL,
    GRID_ODDS,
    STAGE0,
    Pricing,
    ShortOdds,
    apply_levels,
    stage0_grid,
    workload_of,
)
from gateway.predict.index import NO_NEIGHBOURS, HistoryIndex, Neighbours
from gateway.predict.prices import Price
from gateway.predict.prompt_view import PromptView, cut, prompt_key, template_key
from gateway.predict.quantiles import (
    REPEAT,
    Grid,
    faded,
    mixture,
    neighbour_features,
    neighbour_weights,
    shifted,
)
from gateway.predict.residuals import Residuals
from gateway.predict.tenant_correction import (
    NO_CORRECTION,
    Correction,
    Inputs,
    TenantCorrections,
)
from gateway.settings.schema import Predict
from gateway.types import Rung, Workload

NEIGHBOURS = 64


class Estimate(Struct, frozen=True):
    """Everything computed about one request, up to the levels of its class."""

    view: PromptView
    keys: GroupKeys
    vector: Vector | None  # None: not to be searched by, nor stored
    near: list[float]  # features of the neighbours
    head: Grid | None  # the head's grid
    cheap: list[float]  # features; empty without tables
    stage0: Grid  # of stage 0's boosters, uncorrected
    full: Grid | None  # of the full model, uncorrected; None: not loaded, or no vector
    inputs: Inputs | None  # of the tenant's correction
    correction: Correction  # the tenant's part in `grid`
    odds: ShortOdds
    grid: Grid  # corrected and mixed; the levels are not applied yet
    rung: Rung

    @property
    def stage(self) -> str:
        """The kind of forecast whose levels apply."""
        return STAGE0 if self.full is None else FULL


class Forecaster:
    """The best forecast that what is loaded and learned allows.

    Args:
        settings: [predict].
        artefacts: loaded models; each that is missing lowers the rung.
        key: of the prompt hash.
        prices: by model.
        private: tenants whose answers teach nobody else.
    """

    def __init__(
        self,
        settings: Predict,
        artefacts: Artefacts,
        key: bytes,
        prices: Mapping[str, Price],
        private: Collection[str] = (),
    ) -> None:
        self._settings = settings
        self._artefacts = artefacts
        self._key = key
        self._private = frozenset(private)
        self.residuals = Residuals()
        self._corrections = _new_corrections(artefacts)
        self._index = self._empty_index()
        self._prices = prices
        self._stage0 = artefacts.stage0()

    def __repr__(self) -> str:
        encoder = self._artefacts.encoder_name or "no encoder"
        return f"<Forecaster {encoder}, {self.rows} rows, refit {self._artefacts.version}>"

    @property
    def calibration(self) -> Calibration:
        """The corrections in force now."""
        return self.residuals.table

    @property
    def rows(self) -> int:
        """Rows in the index."""
        return 0 if self._index is None else len(self._index)

    def configure(self, settings: Predict, private: Collection[str] | None = None) -> None:
        """Take new settings; a smaller window keeps the newest rows of each tenant."""
        self._settings = settings
        if private is not None:
            self._private = frozenset(private)
        if self._index is not None:
            if self._index.window != settings.history_window_size:
                self._index = self._index.resized(settings.history_window_size)
            self._index.set_private(self._private)
        encoder = self._artefacts.encoder
        if encoder is not None:
            encoder.resize(settings.max_encoder_tokens)

    def adopt(self, artefacts: Artefacts) -> None:
        """Take other boosters over the same encoder, and keep the index.

        The residuals of a model that is another one begin anew with those of the refit's last
        rows; so do the tenant corrections where that is the full model.
        """
        before, self._artefacts = self._artefacts, artefacts
        channels = set()
        if artefacts.stage0_refit != before.stage0_refit:
            channels.add(Channel.STAGE0)
        if artefacts.full_refit != before.full_refit:
            channels.add(Channel.FULL)
            self._corrections = _new_corrections(artefacts)
        self._stage0 = artefacts.stage0()
        self.residuals.forget_models(channels)
        for row in artefacts.tail:
            keys = group_keys(row.model, row.tenant, row.template)
            for channel, residual in ((Channel.STAGE0, row.stage0), (Channel.FULL, row.full)):
                if channel in channels and residual is not None:
                    self.residuals.learn_residual(keys, channel, residual)

    def forget(self) -> None:
        """Empty index, calibration and tenant corrections."""
        self._index = self._empty_index()
        self.residuals = Residuals()
        self._corrections = _new_corrections(self._artefacts)

    def forecast(self, view: PromptView) -> Workload:
        """Forecast of one request, with the models and rows there are."""
        estimate = self._estimate(view)
        table, keys, odds = self.residuals.table, estimate.keys, estimate.odds
        pricing = Pricing(self._settings.cost_output_ratio, self._prices)
        grid = apply_levels(estimate.grid, estimate.stage, table, keys, odds)
        return workload_of(view, grid, estimate.rung, pricing, table, keys, odds)

    # --- inside -------------------------------------------------------------------------

    def _estimate(self, view: PromptView) -> Estimate:
        """Everything about one request, before the levels of its class are applied."""
        table, tables = self.residuals.table, self._artefacts.tables
        keys = group_keys(view.model, view.tenant, template_key(view, self._key))
        cheap = [] if tables is None else tables.features_of(view, table.running(keys))
        base, rung = stage0_grid(view, self._stage0, cheap)
        encoded = self._encode(view)
        vector = None if encoded is None or encoded.foreign else encoded.vector
        own, everyone = self._neighbours(view, vector)
        near = neighbour_features(everyone)
        head = None if encoded is None else self._head(view, cheap, encoded)
        full = inputs = None
        correction, odds = NO_CORRECTION, GRID_ODDS
        if encoded is not None and (model := self._artefacts.full) is not None and cheap:
            projected = self._projected(encoded.vector)
            row = [*cheap, *projected, *near]
            full, rung = model.grid(row, head), Rung.MODEL_ONLY
            if self._corrections is not None:
                inputs = self._corrections.inputs(cheap, projected, near, full[3], head)
                correction = self._corrections.of(keys, inputs)
            odds = ShortOdds(model.short(row), full[3], correction.short)
            grid = shifted(full, table.full_bias(keys) + correction.length)
        else:
            grid = shifted(base, table.stage0_bias(keys))
        mixed, rung = self._with_neighbours(grid, own, everyone, rung)
        return Estimate(
            *(view, keys, vector, near, head, cheap, base, full),
            *(inputs, correction, odds, mixed, rung),
        )

    def _projected(self, vector: Vector) -> list[float]:
        """The vector's principal components. Only where a full model is loaded."""
        projection = self._artefacts.projection
        assert projection is not None  # without it there is no full model
        found: list[float] = (projection[1:] @ (vector - projection[0])).tolist()
        return found

    def _encode(self, view: PromptView) -> EncodedPrompt | None:
        """The encoder's result; None without an encoder, or for a blank prompt."""
        encoder = self._artefacts.encoder
        if encoder is None or not view.text.strip():
            return None
        key = prompt_key(view, self._key)
        return encoder.encode(cut(view.text, self._settings.max_chars), key, view.system)

    def _neighbours(self, view: PromptView, vector: Vector | None) -> tuple[Neighbours, Neighbours]:
        """Nearest rows of the tenant, and of all that it may see."""
        if vector is None or self._index is None:
            return NO_NEIGHBOURS, NO_NEIGHBOURS
        threshold = self._settings.similarity_threshold
        return self._index.near(vector, view.tenant, view.model, NEIGHBOURS, threshold)

    def _head(self, view: PromptView, cheap: list[float], encoded: EncodedPrompt) -> Grid | None:
        head, code = self._artefacts.head, encoded.code
        if head is None or code is None or not cheap:
            return None
        return head.grid(code, view.model, cheap)

    def _with_neighbours(
        self, grid: Grid, own: Neighbours, everyone: Neighbours, rung: Rung
    ) -> tuple[Grid, Rung]:
        """The grid mixed with the tenant's rows, or else with all; and the rung it comes from."""
        mixed, enough = self._mixed(grid, own)
        if enough:
            return mixed, Rung.TENANT_NEIGHBORS
        mixed, enough = self._mixed(grid, everyone)
        return mixed, Rung.GLOBAL_NEIGHBORS if enough else rung

    def _mixed(self, grid: Grid, near: Neighbours) -> tuple[Grid, bool]:
        """The mixture; whether there are rows enough to name the forecast after them."""
        threshold = self._settings.similarity_threshold
        weights = neighbour_weights(near, threshold)
        effective = float(weights.sum())
        if effective <= 0.0:
            return grid, False
        close = int((near.similarity >= threshold).sum())
        mixed = mixture(grid, near, faded(near, weights))
        return mixed, close >= self._settings.top_k_neighbors or effective >= REPEAT

    def _empty_index(self) -> HistoryIndex | None:
        encoder = self._artefacts.encoder
        if encoder is None:
            return None
        return HistoryIndex(
            encoder.width,
            self._settings.history_window_size,
            self._private,
            encoder.similarity_scale,
        )


def _new_corrections(artefacts: Artefacts) -> TenantCorrections | None:
    """Without anything learned; None where the full model or the columns are missing."""
    columns = None if artefacts.tables is None else artefacts.tables.correction_columns
    return None if columns is None or artefacts.full is None else TenantCorrections(columns)
