"""The slow and better forecast, and learning: what the predictor's process owns.

Plain synchronous code without a thread of its own, so that every rung is reached in a test
by calling it. One object, one owner: encoder, index, boosters and residual sums are used
by whoever calls, one call at a time.

Which rung a forecast is said to come from (its wire name is `fallback_level`):

1. `tenant_neighbors`: TOP_K_NEIGHBORS rows of the tenant are at least SIMILARITY_THRESHOLD
   near; or fewer, but together worth one true repeat of the prompt (quantiles.py, n_eff).
2. `global_neighbors`: the same over all the tenant may see, its own rows among them.
3. `model_only`: the boosters alone, or with neighbours fewer and fainter than that.
4. `heuristic`: no model is loaded.

Up to 64 neighbours enter the mixture, whatever the rung is called. A prompt mostly unknown
to the encoder's vocabulary has none.

A forecast goes boosters and head (lengths.py, head.py) → bias of its scopes (calibrate.py) →
its tenant's leaning (leaning.py) → neighbours → levels of its class → cut at max_tokens. Learning
looks at the forecast as it would have been given out, before the answer is put in.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import log1p

from msgspec import Struct

from gateway.predict.artefacts import Artefacts
from gateway.predict.calibrate import Calibration, Changes, Channel
from gateway.predict.encoder import Reading, Vector, pack, unpack
from gateway.predict.features import NAMES
from gateway.predict.forecast import (
    BY_GRID,
    FULL,
    STAGE0,
    Money,
    Odds,
    job_class_of,
    levelled,
    pack_floats,
    stage0_grid,
    unpack_floats,
    workload_of,
)
from gateway.predict.index import NO_NEIGHBOURS, HistoryIndex, Neighbours
from gateway.predict.leaning import UPRIGHT, Lean, Leanings, Seen
from gateway.predict.lesson import Lesson
from gateway.predict.prices import Price
from gateway.predict.quantiles import (
    NEIGHBOUR_NAMES,
    REPEAT,
    Grid,
    faded,
    mixture,
    neighbour_features,
    neighbour_weights,
    probability_at_most,
    shifted,
)
from gateway.predict.residuals import Residuals
from gateway.predict.scopes import Scopes, scopes
from gateway.predict.view import PromptView, cut, prompt_key, template_key
from gateway.settings.schema import Predict
from gateway.types import QUANTILE_LEVELS, SHORT_TOKENS, HistoryRow, Rung, Workload

__all__ = ["Foresight", "Lesson", "Money", "workload_of"]

NEIGHBOURS = 64


class _Look(Struct, frozen=True):
    """All that is seen of one request before anything is said about it."""

    view: PromptView
    scopes: Scopes
    vector: Vector | None  # to be searched by, and remembered
    near: list[float]  # the neighbours' features
    head: Grid | None  # what the head says alone
    cheap: list[float]
    stage0: Grid  # as the boosters say it
    full: Grid | None
    seen: Seen | None  # as the leaning sees it
    lean: Lean  # the leaning's part in `grid`
    odds: Odds
    grid: Grid  # corrected and mixed, its class's levels not yet applied
    rung: Rung


class Foresight:
    """Forecasts with all that is known, and grows what is known.

    Args:
        settings: [predict].
        artefacts: loaded models; what is missing there lowers the rung.
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
        self._stage0 = artefacts.stage0()
        self._key = key
        self._prices = prices
        self._private = frozenset(private)
        self._residuals = Residuals()
        self._leanings = _leanings(artefacts)
        self._index = self._empty_index()

    @property
    def calibration(self) -> Calibration:
        return self._residuals.table

    @property
    def drifts(self) -> int:
        """Sources whose lengths were seen to change, so far."""
        return self._residuals.drifts

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
        """Take other boosters over the same encoder. The index stays; residuals begin anew,
        with those of the refit's last rows; leanings too, where the full model is another."""
        if _speaks(artefacts) != _speaks(self._artefacts):
            self._leanings = _leanings(artefacts)
        self._artefacts = artefacts
        self._stage0 = artefacts.stage0()
        self._residuals.forget_models()
        for row in artefacts.tail:
            of = scopes(row.model, row.tenant, row.template)
            self._residuals.learn_residuals(of, row.stage0, row.full)

    def forget(self) -> None:
        """Empty index and calibration."""
        self._index = self._empty_index()
        self._residuals = Residuals()
        self._leanings = _leanings(self._artefacts)

    def changes(self) -> Changes:
        """What moved in the calibration since the last call."""
        return self._residuals.changes()

    def restore(self, kept: bytes) -> bool:
        """Take up a calibration that was kept; False where it cannot be."""
        return self._residuals.restore(kept)

    def remember(self, row: HistoryRow) -> bool:
        """Put a stored row into the index; False where its vector is of another encoder."""
        if self._index is None or row.encoder != self._artefacts.encoder_name:
            return False
        vector = unpack(row.vector, self._index.width)
        if vector is None or not _countable(row.output_tokens, row.success, row.censored):
            return False
        self._index.add(
            vector,
            row.tenant,
            row.model,
            row.output_tokens,
            censored=row.censored,
            wall_s=row.wall_s,
            shared=row.shared,
        )
        self._lean_again(row, vector)
        return True

    def forecast(self, view: PromptView) -> Workload:
        """The best forecast there is: encoder, neighbours, boosters, whatever is loaded."""
        look = self._look(view)
        table = self._residuals.table
        money = Money(self._settings.cost_output_ratio, self._prices)
        grid = levelled(look.grid, _stage(look), table, look.scopes, look.odds)
        return workload_of(view, grid, look.rung, money, table, look.scopes, look.odds)

    def learn(self, lesson: Lesson) -> HistoryRow:
        """Grow index and calibration by one answer; the row is what history keeps of it.

        A brief lesson costs a tenth, and leaves the index out: no vector, no row there.
        """
        view = lesson.view
        look = self._look(view, brief=lesson.brief)
        if _countable(lesson.output_tokens, lesson.success, lesson.censored):
            self._teach(lesson, look)
        if not lesson.running:
            self._count_tokens(lesson, look.scopes)
        return self._row(lesson, look)

    def draft(self, lesson: Lesson) -> HistoryRow:
        """The row alone; nothing is learned."""
        return self._row(lesson, self._look(lesson.view))

    def _row(self, lesson: Lesson, look: _Look) -> HistoryRow:
        view, prompt = lesson.view, lesson.prompt_tokens
        vector = look.vector if _says_much(lesson, look) else None
        return HistoryRow(
            wall_s=lesson.wall_s,
            tenant=view.tenant,
            model=view.model,
            task_type=view.task_type or "",
            prompt_key=prompt_key(view, self._key),
            encoder="" if vector is None else self._artefacts.encoder_name,
            vector=b"" if vector is None else pack(vector),
            prompt_tokens=self._prompt_tokens(view) if prompt is None else prompt,
            output_tokens=lesson.output_tokens,
            max_tokens=view.max_tokens or 0,
            censored=lesson.censored,
            success=lesson.success,
            template=template_key(view, self._key),
            features=pack_floats(look.cheap),
            neighbours=pack_floats([*look.near, *(look.head or ())]),
            shared=view.tenant not in self._private,
            text=view.text if self._settings.keep_text else "",
        )

    def _teach(self, lesson: Lesson, look: _Look) -> None:
        """Predict first, learn after: a row must not judge a forecast that knew it."""
        view, length, residuals = lesson.view, log1p(lesson.output_tokens), self._residuals
        censored, table = lesson.censored or lesson.running, residuals.table
        bare = shifted(look.stage0, table.stage0(look.scopes))
        full = (FULL, look.grid, look.odds)
        stages = ((STAGE0, bare, BY_GRID), full) if look.full else ((STAGE0, look.grid, BY_GRID),)
        # A running answer is judged at its end, once.
        for stage, grid, odds in stages if not lesson.running else ():
            given = levelled(grid, stage, table, look.scopes, odds)
            missed, kind = (length > given[3], length > given[5]), job_class_of(grid, odds)
            residuals.cover(stage, kind, missed, censored=censored, of=look.scopes)
        if not lesson.running and look.seen is not None:
            self._lean(look, given, length, censored=censored)
        if not lesson.running:
            reached = probability_at_most(given, length)
            residuals.watch(look.scopes, reached, censored=censored)
        residuals.learn(
            look.scopes,
            length,
            stage0=look.stage0[3],
            full=None if look.full is None else look.full[3] + look.lean.offset,
            censored=censored,
        )
        if look.vector is not None and self._index is not None and _says_much(lesson, look):
            self._index.add(
                look.vector,
                view.tenant,
                view.model,
                lesson.output_tokens,
                censored=lesson.censored,
                wall_s=lesson.wall_s,
                shared=view.tenant not in self._private,
            )

    def _lean(self, look: _Look, given: Grid, length: float, *, censored: bool) -> None:
        """Teach the tenant's leaning. Of a lower bound it learns what the bound alone decides:
        that the answer was longer than forecast, that it was not short."""
        assert look.full is not None and look.seen is not None and self._leanings is not None
        residual = length - look.full[3] - self._residuals.table.full(look.scopes)
        short = length <= log1p(SHORT_TOKENS)
        limit = look.view.max_tokens
        told = not (censored and short) and (limit is None or limit > SHORT_TOKENS)
        self._leanings.learn(
            look.scopes,
            look.seen,
            None if censored and residual < look.lean.offset else residual,
            short - look.odds.untilted(given) if told else None,
        )

    def _lean_again(self, row: HistoryRow, vector: Vector) -> None:
        """Teach the leaning what a stored row taught it before a restart; neighbours that spoke
        then are not asked again."""
        full, leanings = self._artefacts.full, self._leanings
        cheap, more = unpack_floats(row.features), unpack_floats(row.neighbours)
        near, head = more[: len(NEIGHBOUR_NAMES)], tuple(more[len(NEIGHBOUR_NAMES) :])
        whole = len(cheap) == len(NAMES) and len(near) == len(NEIGHBOUR_NAMES)
        if full is None or leanings is None or row.censored or not whole:
            return
        said = head if len(head) == len(QUANTILE_LEVELS) else None
        projected, of = self._projected(vector), scopes(row.model, row.tenant, row.template)
        read, length = [*cheap, *projected, *near], log1p(row.output_tokens)
        grid, bias = full.grid(read, said), self._residuals.table.full(of)
        seen = leanings.read(cheap, projected, near, grid[3], said)
        given = shifted(grid, bias + leanings.said(of, seen).offset)
        short = (length <= log1p(SHORT_TOKENS)) - Odds(full.short(read), grid[3]).untilted(given)
        leanings.learn(of, seen, length - grid[3] - bias, short)

    def _count_tokens(self, lesson: Lesson, of: Scopes) -> None:
        """What the provider's own count says of tokens per byte, and of what was cached."""
        view, prompt = lesson.view, lesson.prompt_tokens
        if prompt:
            text_tokens = prompt - view.overhead_tokens
            self._residuals.learn_tokens(
                view.model, view.tenant, view.script, view.bytes, text_tokens
            )
            self._residuals.learn_share(of, Channel.CACHED, lesson.cached_tokens / prompt)
        if lesson.output_tokens > 0 and lesson.success:
            share = lesson.reasoning_tokens / lesson.output_tokens
            self._residuals.learn_share(of, Channel.REASONING, share)

    def _prompt_tokens(self, view: PromptView) -> int:
        table = self._residuals.table
        return view.tokens_by(table.tokens_per_byte(view.model, view.tenant, view.script))

    def _look(self, view: PromptView, *, brief: bool = False) -> _Look:
        table, tables = self._residuals.table, self._artefacts.tables
        of = scopes(view.model, view.tenant, template_key(view, self._key))
        cheap = [] if tables is None else tables.features_of(view, table.running(of))
        base, rung = stage0_grid(view, self._stage0, cheap)
        reading = self._read(view, brief)
        vector = None if reading is None else reading.vector
        foreign = reading is not None and reading.foreign
        own = everyone = NO_NEIGHBOURS
        searchable = None if foreign else vector
        if searchable is not None and self._index is not None:
            threshold = self._settings.similarity_threshold
            own, everyone = self._index.near(
                searchable, view.tenant, view.model, NEIGHBOURS, threshold
            )
        near = neighbour_features(self._read_of(everyone, searchable, view.model))
        head = None if reading is None else self._head(view, cheap, reading)
        full = seen = None
        lean, odds = UPRIGHT, BY_GRID
        if vector is not None and (model := self._artefacts.full) is not None and cheap:
            projected = self._projected(vector)
            read = [*cheap, *projected, *near]
            full, rung = model.grid(read, head), Rung.MODEL_ONLY
            if self._leanings is not None:
                seen = self._leanings.read(cheap, projected, near, full[3], head)
                lean = self._leanings.said(of, seen)
            odds = Odds(model.short(read), full[3], lean.tilt)
            grid = shifted(full, table.full(of) + lean.offset)
        else:
            grid = shifted(base, table.stage0(of))
        mixed, carries = self._mixed(grid, own)
        if carries:
            rung = Rung.TENANT_NEIGHBORS
        else:
            mixed, carries = self._mixed(grid, everyone)
            rung = Rung.GLOBAL_NEIGHBORS if carries else rung
        return _Look(
            *(view, of, searchable, near, head, cheap, base, full, seen, lean, odds, mixed, rung)
        )

    def _read_of(self, real: Neighbours, vector: Vector | None, model: str) -> Neighbours:
        """The rows whose lengths the boosters read."""
        warm = self._artefacts.warm
        return real if warm is None or vector is None else warm.instead_of(real, vector, model)

    def _head(self, view: PromptView, cheap: list[float], reading: Reading) -> Grid | None:
        head, code = self._artefacts.head, reading.code
        if head is None or code is None or not cheap:
            return None
        return head.grid(code, view.model, cheap)

    def _projected(self, vector: Vector) -> list[float]:
        projection = self._artefacts.projection
        assert projection is not None  # without it there is no full model
        found: list[float] = (projection[1:] @ (vector - projection[0])).tolist()
        return found

    def _mixed(self, grid: Grid, near: Neighbours) -> tuple[Grid, bool]:
        """The mixture, and whether the pool may give the forecast its name."""
        weights = neighbour_weights(near, self._settings.similarity_threshold)
        effective = float(weights.sum())
        if effective <= 0.0:
            return grid, False
        close = int((near.similarity >= self._settings.similarity_threshold).sum())
        mixed = mixture(grid, near, faded(near, weights))
        return mixed, close >= self._settings.top_k_neighbors or effective >= REPEAT

    def _read(self, view: PromptView, brief: bool) -> Reading | None:
        """What the encoder says of the prompt, where there is one and anything to read."""
        encoder = self._artefacts.encoder
        if encoder is None or not view.text.strip():
            return None
        key = prompt_key(view, self._key)
        if brief:
            return encoder.at_hand(key)
        return encoder.read(cut(view.text, self._settings.max_chars), key, view.system)

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


def _leanings(artefacts: Artefacts) -> Leanings | None:
    """Anew: what is learned is of these models. None where they say nothing to lean from."""
    columns = None if artefacts.tables is None else artefacts.tables.leaning
    return None if columns is None or artefacts.full is None else Leanings(columns)


def _speaks(artefacts: Artefacts) -> str:
    """Which full model: the refit's correction of the shipped one."""
    return "" if artefacts.corrections is None else artefacts.corrections.full


def _stage(look: _Look) -> str:
    return STAGE0 if look.full is None else FULL


def _says_much(lesson: Lesson, look: _Look) -> bool:
    """Whether the answer is worth a place in the window: a bound below what is forecast
    anyway would only take one from a length that is known."""
    if lesson.running:
        return False
    return not lesson.censored or log1p(lesson.output_tokens) > look.grid[3]


def _countable(output_tokens: int, success: bool, censored: bool) -> bool:
    """A failed answer's length means nothing, unless it is known to be a lower bound."""
    return output_tokens > 0 and (success or censored)
