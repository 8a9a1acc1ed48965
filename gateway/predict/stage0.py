"""Stage 0: the forecast the event loop makes by itself, and its cache of repeats.

The loop owns everything here. What comes from the predictor thread is immutable and comes by
replacing a reference (`Trees`, `Calibration`), or through `news`, a deque that is emptied
into the cache a few at a time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Mapping

from msgspec import Struct, structs

from gateway.predict.artefacts import Tables
from gateway.predict.calibrate import Calibration
from gateway.predict.forecast import (
    STAGE0,
    Money,
    heuristic_grid,
    levelled,
    stage0_grid,
    workload_of,
)
from gateway.predict.lengths import LengthModel
from gateway.predict.prices import Price
from gateway.predict.quantiles import shifted
from gateway.predict.scopes import scopes
from gateway.predict.view import PromptView, cut, prompt_key, template_key
from gateway.settings.schema import Predict
from gateway.types import Rung, Workload

CACHE_ITEMS = 4096  # repeats remembered, about 1 kB each
NEWS_ITEMS = 1024  # forecasts on their way to the cache
NEWS_PER_CALL = 64  # taken over by one forecast: some 10 µs

CacheKey = tuple[str, str, int | None, int, bytes]


class Trees(Struct, frozen=True):
    """The loop's own booster and the tables it reads: replaced together."""

    model: LengthModel | None = None
    tables: Tables | None = None


class Known(Struct, frozen=True):
    """All that a forecast rests on, replaced together: residuals are of one model, and a
    forecast of the next that took them would be neither's."""

    trees: Trees = Trees()
    calibration: Calibration = Calibration()


class Stage0:
    """Forecasts on the caller's thread; see `Predictor` for the arguments."""

    def __init__(
        self,
        settings: Predict,
        prices: Mapping[str, Price],
        key: bytes,
    ) -> None:
        self.settings = settings
        self.known = Known()
        self._writing = threading.Lock()  # the loop resets, the predictor's thread learns
        self.generation = object()  # news of another one is not taken over
        self.hits = 0
        self._prices = prices
        self._key = key
        self._cache: OrderedDict[CacheKey, Workload] = OrderedDict()
        self._news: deque[tuple[object, CacheKey, Workload]] = deque(maxlen=NEWS_ITEMS)

    @property
    def calibration(self) -> Calibration:
        return self.known.calibration

    def take(self, trees: Trees, calibration: Calibration) -> None:
        """Another model, and what is known of it."""
        with self._writing:
            self.known = Known(trees, calibration)

    def calibrate(self, calibration: Calibration) -> None:
        """Of the same trees."""
        with self._writing:
            self.known = Known(self.known.trees, calibration)

    def forecast(self, view: PromptView) -> Workload:
        """A repeat that was refined or learned lately comes from the cache, with its rung."""
        if not self.settings.enabled:
            return self.plain(view)
        self._take_news()
        view = self.cut(view)
        key = self.cache_key(view)
        found = self._cache.get(key)
        if found is not None:
            self._cache.move_to_end(key)
            self.hits += 1
            return found
        known = self.known
        table, trees = known.calibration, known.trees
        of = scopes(view.model, view.tenant, template_key(view, self._key))
        cheap = [] if trees.tables is None else trees.tables.features_of(view, table.running(of))
        grid, rung = stage0_grid(view, trees.model, cheap)
        grid = levelled(shifted(grid, table.stage0(of)), STAGE0, table, of)
        return workload_of(view, grid, rung, self._money, table, of)

    def plain(self, view: PromptView) -> Workload:
        """Without any model or correction."""
        return workload_of(view, heuristic_grid(view), Rung.HEURISTIC, self._money)

    def cut(self, view: PromptView) -> PromptView:
        """The view with no more text than the settings let be read."""
        limit = self.settings.max_chars
        if len(view.text) <= limit:
            return view
        return structs.replace(view, text=cut(view.text, limit))

    def forget(self) -> None:
        """Empty the cache; news on its way is void."""
        self.generation = object()
        self._cache.clear()

    def tell(self, generation: object, view: PromptView, workload: Workload) -> None:
        """News for the cache, from the predictor thread. `view` is cut."""
        self._news.append((generation, self.cache_key(view), workload))

    @property
    def _money(self) -> Money:
        return Money(self.settings.cost_output_ratio, self._prices)

    def cache_key(self, view: PromptView) -> CacheKey:
        return view.tenant, view.model, view.max_tokens, view.n, prompt_key(view, self._key)

    def _take_news(self) -> None:
        for _ in range(min(len(self._news), NEWS_PER_CALL)):
            generation, key, workload = self._news.popleft()
            if generation is not self.generation:
                continue
            self._cache[key] = workload
            self._cache.move_to_end(key)
            if len(self._cache) > CACHE_ITEMS:
                self._cache.popitem(last=False)
