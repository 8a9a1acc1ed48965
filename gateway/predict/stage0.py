"""Stage 0: the forecast that the event loop makes by itself, and its cache of repeats.

Everything here belongs to the event loop. Model, tables and calibration are replaced together:
residuals belong to one model, and a forecast that mixed them with another's trees would be
neither's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from msgspec import structs

from gateway.predict.artefacts import Tables
from gateway.predict.calibrate import Calibration, group_keys
from gateway.predict.forecast import (
    STAGE0,
    Pricing,
    apply_levels,
    heuristic_grid,
    stage0_grid,
    workload_of,
)
from gateway.predict.lengths import LengthModel
from gateway.predict.prices import Price
from gateway.predict.prompt_view import PromptView, cut, prompt_key, template_key
from gateway.predict.quantiles import shifted
from gateway.settings.schema import Predict
from gateway.types import Rung, Workload

CACHE_ITEMS = 4096  # repeats remembered, about 1 kB each


CacheKey = tuple[str, str, int | None, int, bytes]


def cache_key(view: PromptView, secret: bytes) -> CacheKey:
    """Key that repeats of a request share. The view is already cut.

    Args:
        secret: key of the prompt hash.
    """
    return view.tenant, view.model, view.max_tokens, view.n, prompt_key(view, secret)


class Stage0:
    """The cheap forecast; see `Predictor` for the arguments.

    Attributes:
        generation: changes whenever the cache is emptied; a forecast asked for under another
            one is not remembered.
    """

    def __init__(
        self,
        settings: Predict,
        prices: Mapping[str, Price],
        key: bytes,
    ) -> None:
        self.settings = settings
        self.calibration = Calibration()
        self.tables: Tables | None = None
        self.generation = object()
        self.hits = 0
        self._model: LengthModel | None = None
        self._prices = prices
        self._key = key
        self._cache: OrderedDict[CacheKey, Workload] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Stage0 cached={len(self._cache)} hits={self.hits}>"

    def take(
        self, model: LengthModel | None, tables: Tables | None, calibration: Calibration
    ) -> None:
        """Replace the model, its tables, and its calibration."""
        self._model, self.tables, self.calibration = model, tables, calibration

    def calibrate(self, calibration: Calibration) -> None:
        """Replace the calibration by a newer one of the same model."""
        self.calibration = calibration

    def forecast(self, view: PromptView) -> Workload:
        """Forecast a request; a repeat that was refined or learned lately comes from the cache,
        with the rung it was given then."""
        if not self.settings.enabled:
            return self.plain(view)
        view = self.cut(view)
        key = cache_key(view, self._key)
        cached = self._cache.get(key)
        if cached is not None:
            self._cache.move_to_end(key)
            self.hits += 1
            return cached
        table, tables = self.calibration, self.tables
        keys = group_keys(view.model, view.tenant, template_key(view, self._key))
        cheap = [] if tables is None else tables.features_of(view, table.running(keys))
        grid, rung = stage0_grid(view, self._model, cheap)
        grid = apply_levels(shifted(grid, table.stage0_bias(keys)), STAGE0, table, keys)
        return workload_of(view, grid, rung, self._pricing, table, keys)

    def plain(self, view: PromptView) -> Workload:
        """Forecast without any model or correction."""
        return workload_of(view, heuristic_grid(view), Rung.HEURISTIC, self._pricing)

    def cut(self, view: PromptView) -> PromptView:
        """The view with no more text than the settings let be read."""
        limit = self.settings.max_chars
        if len(view.text) <= limit:
            return view
        return structs.replace(view, text=cut(view.text, limit))

    def forget(self) -> None:
        """Empty the cache; forecasts asked for before this are not remembered."""
        self.generation = object()
        self._cache.clear()

    def remember(self, generation: object, view: PromptView, workload: Workload) -> None:
        """Cache a better forecast.

        Args:
            generation: the one under which it was asked for.
            view: already cut.
        """
        self.remember_as(generation, cache_key(view, self._key), workload)

    def remember_as(self, generation: object, key: CacheKey, workload: Workload) -> None:
        """Cache a better forecast under the key of its request, for the rest as `remember`."""
        if generation is not self.generation:
            return
        self._cache[key] = workload
        self._cache.move_to_end(key)
        if len(self._cache) > CACHE_ITEMS:
            self._cache.popitem(last=False)

    @property
    def _pricing(self) -> Pricing:
        return Pricing(self.settings.cost_output_ratio, self._prices)
