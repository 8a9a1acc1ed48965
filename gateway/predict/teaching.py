"""Learning from answers: what a finished request changes in a forecaster.

An answer first judges the forecast as it would have been given out, and is put in after that:
a row must not judge a forecast that knew it. It then moves, in this order, the levels of its
class, the correction of its tenant, the alarm for a changed source, the residuals of its
groups, and takes a place in the index.

A censored answer (cut, cancelled, failed, still running) is a lower bound. A running one moves
residuals only; its end is judged once, when it comes.
"""

from __future__ import annotations

from math import log1p

from gateway.predict.calibrate import Channel, GroupKeys, group_keys
from gateway.predict.encoder import Vector, pack, unpack
from gateway.predict.features import NAMES
from gateway.predict.forecast import (
    GRID_ODDS,
    STAGE0,
    ShortOdds,
    apply_levels,
    job_class_of,
    pack_floats,
    unpack_floats,
)
from gateway.predict.forecaster import Estimate, Forecaster
from gateway.predict.lesson import Lesson
from gateway.predict.prompt_view import PromptView, prompt_key, template_key
from gateway.predict.quantiles import NEIGHBOUR_NAMES, Grid, probability_at_most, shifted
from gateway.types import QUANTILE_LEVELS, SHORT_TOKENS, HistoryRow


class LearningForecaster(Forecaster):
    """A forecaster that learns from answers and from stored rows."""

    def learn(self, lesson: Lesson) -> HistoryRow:
        """Learn one answer; the row to store of it."""
        estimate = self._estimate(lesson.view)
        if _is_length(lesson.output_tokens, lesson.success, lesson.censored):
            self._teach(lesson, estimate)
        if not lesson.running:
            self._teach_tokens(lesson, estimate.keys)
        return self._row(lesson, estimate)

    def learn_counts(self, lesson: Lesson) -> None:
        """Learn of an answer what needs no forecast of it, at a hundredth of the cost: its length
        for the running means, and its token counts."""
        view = lesson.view
        keys = group_keys(view.model, view.tenant, template_key(view, self._key))
        if _is_length(lesson.output_tokens, lesson.success, lesson.censored):
            censored = lesson.censored or lesson.running
            self.residuals.learn_length(keys, log1p(lesson.output_tokens), censored=censored)
        if not lesson.running:
            self._teach_tokens(lesson, keys)

    def draft(self, lesson: Lesson) -> HistoryRow:
        """The row to store; nothing is learned."""
        return self._row(lesson, self._estimate(lesson.view))

    def remember(self, row: HistoryRow) -> bool:
        """Put a stored row into the index; False where it has no vector of this encoder, or no
        usable length."""
        index = self._index
        if index is None or row.encoder != self._artefacts.encoder_name:
            return False
        vector = unpack(row.vector, index.width)
        if vector is None or not _is_length(row.output_tokens, row.success, row.censored):
            return False
        index.add(
            vector,
            row.tenant,
            row.model,
            row.output_tokens,
            censored=row.censored,
            wall_s=row.wall_s,
            shared=row.shared,
        )
        self._repeat_correction(row, vector)
        return True

    # --- inside -------------------------------------------------------------------------

    def _row(self, lesson: Lesson, estimate: Estimate) -> HistoryRow:
        view, prompt = lesson.view, lesson.prompt_tokens
        vector = estimate.vector if _is_informative(lesson, estimate) else None
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
            features=pack_floats(estimate.cheap),
            neighbours=pack_floats([*estimate.near, *(estimate.head or ())]),
            shared=view.tenant not in self._private,
            text=view.text if self._settings.keep_text else "",
        )

    def _teach(self, lesson: Lesson, estimate: Estimate) -> None:
        view, length = lesson.view, log1p(lesson.output_tokens)
        censored = lesson.censored or lesson.running
        if not lesson.running:
            self._judge(estimate, length, censored=censored)
        full = estimate.full
        self.residuals.learn(
            estimate.keys,
            length,
            stage0=estimate.stage0[3],
            full=None if full is None else full[3] + estimate.correction.length,
            censored=censored,
        )
        index, vector = self._index, estimate.vector
        if index is not None and vector is not None and _is_informative(lesson, estimate):
            index.add(
                vector,
                view.tenant,
                view.model,
                lesson.output_tokens,
                censored=lesson.censored,
                wall_s=lesson.wall_s,
                shared=view.tenant not in self._private,
            )

    def _judge(self, estimate: Estimate, length: float, *, censored: bool) -> None:
        """Compare the answer with the forecasts as they would have been given out."""
        residuals, keys = self.residuals, estimate.keys
        table = residuals.table  # of before this answer, for all stages
        stages = [(estimate.stage, estimate.grid, estimate.odds)]
        if estimate.full is not None:  # stage 0 spoke first, with its own grid
            stages.insert(0, (STAGE0, shifted(estimate.stage0, table.stage0_bias(keys)), GRID_ODDS))
        given = estimate.grid
        for stage, grid, odds in stages:
            given = apply_levels(grid, stage, table, keys, odds)
            missed = length > given[3], length > given[5]
            kind = job_class_of(grid, odds)
            residuals.move_levels(stage, kind, missed, censored=censored, keys=keys)
        if estimate.inputs is not None:
            self._teach_correction(estimate, given, length, censored=censored)
        reached = probability_at_most(given, length)
        residuals.detect_change(keys, reached, censored=censored)

    def _teach_correction(
        self, estimate: Estimate, given: Grid, length: float, *, censored: bool
    ) -> None:
        """Teach the tenant's correction.

        A lower bound teaches only what it decides by itself: that the answer was longer than
        forecast, that it was not short.
        """
        full, inputs = estimate.full, estimate.inputs
        assert full is not None and inputs is not None and self._corrections is not None
        residual = length - full[3] - self.residuals.table.full_bias(estimate.keys)
        short = length <= log1p(SHORT_TOKENS)
        limit = estimate.view.max_tokens
        decided = not (censored and short) and (limit is None or limit > SHORT_TOKENS)
        self._corrections.learn(
            estimate.keys,
            inputs,
            None if censored and residual < estimate.correction.length else residual,
            short - estimate.odds.uncorrected(given) if decided else None,
        )

    def _repeat_correction(self, row: HistoryRow, vector: Vector) -> None:
        """Teach the correction what a stored row taught it before a restart.

        The neighbours' features are those stored with the row: the index is not asked again.
        """
        full, corrections = self._artefacts.full, self._corrections
        cheap, more = unpack_floats(row.features), unpack_floats(row.neighbours)
        near, last = more[: len(NEIGHBOUR_NAMES)], tuple(more[len(NEIGHBOUR_NAMES) :])
        complete = len(cheap) == len(NAMES) and len(near) == len(NEIGHBOUR_NAMES)
        if full is None or corrections is None or row.censored or not complete:
            return
        head = last if len(last) == len(QUANTILE_LEVELS) else None
        keys = group_keys(row.model, row.tenant, row.template)
        projected, length = self._projected(vector), log1p(row.output_tokens)
        columns = [*cheap, *projected, *near]
        grid, bias = full.grid(columns, head), self.residuals.table.full_bias(keys)
        inputs = corrections.inputs(cheap, projected, near, grid[3], head)
        given = shifted(grid, bias + corrections.of(keys, inputs).length)
        odds = ShortOdds(full.short(columns), grid[3])
        short = (length <= log1p(SHORT_TOKENS)) - odds.uncorrected(given)
        corrections.learn(keys, inputs, length - grid[3] - bias, short)

    def _teach_tokens(self, lesson: Lesson, keys: GroupKeys) -> None:
        """Learn from the provider's counts: tokens per byte, shares of cached and reasoning."""
        residuals, view, prompt = self.residuals, lesson.view, lesson.prompt_tokens
        if prompt:
            text_tokens = prompt - view.overhead_tokens
            residuals.learn_tokens(view.model, view.tenant, view.script, view.bytes, text_tokens)
            residuals.learn_share(keys, Channel.CACHED, lesson.cached_tokens / prompt)
        if lesson.output_tokens > 0 and lesson.success:
            share = lesson.reasoning_tokens / lesson.output_tokens
            residuals.learn_share(keys, Channel.REASONING, share)

    def _prompt_tokens(self, view: PromptView) -> int:
        table = self.residuals.table
        return view.tokens_by(table.tokens_per_byte(view.model, view.tenant, view.script))


def _is_informative(lesson: Lesson, estimate: Estimate) -> bool:
    """True where the answer deserves a place in the window. A lower bound below the forecast
    median says nothing, and would take the place of an exact length."""
    if lesson.running:
        return False
    return not lesson.censored or log1p(lesson.output_tokens) > estimate.grid[3]


def _is_length(output_tokens: int, success: bool, censored: bool) -> bool:
    """True where the tokens are a length, or a lower bound of one. Those of a failed answer are
    neither, unless it is marked as censored."""
    return output_tokens > 0 and (success or censored)
