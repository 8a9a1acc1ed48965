"""What finished requests teach at once: how far off the forecasts are, and for whom.

Two corrections, for two kinds of wrong.

1. *Where the middle lies.* The boosters were fitted elsewhere; a model they never saw, or a
   tenant's template, is off by a factor more than in its order. Each scope keeps a running
   mean of the residual (true minus forecast median, log1p tokens), the scopes nested:
   tenant → family → model → template. Each starts from the one above as if `PRIOR` answers
   had agreed with it, so an unseen model starts from its family, and a scope with answers of
   its own soon speaks for itself. It is added to the grid.
2. *How wide it is.* Adaptive conformal inference (Gibbs, Candès, 2021): per class, and apart
   for stage 0 and the full forecast, the level that is read as p90 moves with each answer,
   α ← α + η (target − missed); likewise the median's. Over any stretch the share of misses
   comes out at the target, whatever the lengths do.

All of it is a tenant's own: what one reports, true or not, bends no other's forecasts.

A censored length (cut, cancelled, failed, still running) is a lower bound: it may raise and
never lowers. So it counts where it lies above the forecast as corrected so far, and is
otherwise no evidence: a burst, in which the short answers end first, does not teach that
answers are short.

Two-sided CUSUM on the forecast's own probabilities tells a source that has changed: its
scopes then forget most of what they knew, and whoever refits models may want to.

`Residuals` belong to whoever learns. The event loop sees a `Calibration`: beside the learner
an immutable table, replaced as a whole; in another process than the learner a `Mirror`, told
the entries that moved. Entries are immutable and are looked up one by one, so stage 0 reads
either without a lock.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import IntEnum
from functools import lru_cache
from math import exp, log
from statistics import NormalDist
from types import MappingProxyType
from typing import TypeVar

import msgspec
from msgspec import Struct

from gateway.predict.fair import FairTable
from gateway.types import JobClass

MEMORY = 150.0  # answers
PRIOR = 12.0  # answers that agreed with the scope above, before the first
LARGEST = 2.5  # one residual counts for at most this: a factor of 12
MODELS = 4000  # scopes of tenants, their families, models, scripts
TEMPLATES = 4000
SOURCES = 4000  # watched for change; and as many levels
MOVED = 1000  # changed entries told one by one; beyond, all are
RATE = 0.004  # η
TARGETS = (0.5, 0.1)  # of misses: above the median, above p90
ALPHA = ((0.2, 0.8), (-0.15, 0.45))  # within these
TAIL = 0.02  # below it z goes on in a straight line: α ≤ 0 still means something
SLACK, ALARM = 0.12, 5.0  # CUSUM of u − 0.5, u uniform while nothing changes
FORGET = 0.05  # of a changed source's answers is kept

Entry = tuple[float, ...]
Table = Mapping[str, Entry]
V = TypeVar("V")
_NOTHING: Table = MappingProxyType({})
_NO_ENTRY: Entry = (0.0,) * 10
_NORMAL = NormalDist()


class Channel(IntEnum):
    """What a scope has a running mean of; a place in its `Entry`."""

    STAGE0 = 0  # residual of stage 0
    FULL = 2  # residual of the full model
    LENGTH = 4  # log1p output tokens
    CACHED = 6  # share of the prompt tokens that were cached
    REASONING = 8  # share of the output tokens that were reasoning


class Scopes(Struct, frozen=True, gc=False):
    """The scopes one request belongs to, the most general first: tenant, family, model."""

    models: tuple[str, ...]
    templates: tuple[str, ...] = ()

    @property
    def tenant(self) -> str:
        return self.models[0]

    @property
    def source(self) -> str:
        """The model as this tenant uses it."""
        return self.models[-1]


def scopes(model: str, tenant: str, template: str = "") -> Scopes:
    """Of a request; `template` is "" where there is none."""
    return Scopes(
        (f"t\x1f{tenant}", f"f\x1f{tenant}\x1f{family(model)}", f"m\x1f{tenant}\x1f{model}"),
        (f"p\x1f{tenant}\x1f{model}\x1f{template}",) if template else (),
    )


def script_scopes(model: str, tenant: str, script: str) -> Scopes:
    """Where tokens per byte are kept."""
    end = f"{tenant}\x1f{script}"
    return Scopes((f"b\x1f{family(model)}\x1f{end}", f"c\x1f{model}\x1f{end}"))


@lru_cache(4096)
def family(model: str) -> str:
    """A model's name up to its version or size: "gpt" of "openai/gpt-5.4-mini"."""
    name = model.rsplit("/", 1)[-1].lower()
    parts = re.split(r"[-_:. ]", name)
    kept: list[str] = []
    for part in parts:
        if any(c.isdigit() for c in part):
            kept += [] if kept else [re.split(r"\d", part)[0]]
            break
        kept.append(part)
    return "-".join(part for part in kept if part) or name


class Levels(Struct, frozen=True, gc=False):
    """Shares of misses aimed at now, so that the true ones come out at `TARGETS`."""

    median: float = TARGETS[0]
    high: float = TARGETS[1]

    @property
    def z(self) -> tuple[float, float]:
        """Normal scores of the levels that are to be read as p50 and p90."""
        return _z(self.median), _z(self.high)


@lru_cache(8192)
def _z(alpha: float) -> float:
    beyond = max(TAIL - alpha, 0.0)
    z = _NORMAL.inv_cdf(1.0 - alpha - beyond)
    return z + beyond / _NORMAL.pdf(z)


class Calibration(Struct, frozen=True):
    """The corrections in force. Never changes; a new one takes its place."""

    models: Table = _NOTHING
    templates: Table = _NOTHING
    levels: Mapping[str, Levels] = MappingProxyType({})

    def mean(self, of: Scopes, channel: Channel, prior: float = 0.0) -> float:
        """The most particular scope's running mean, shrunk to those above it, they to `prior`."""
        for table, keys in ((self.models, of.models), (self.templates, of.templates)):
            for key in keys:
                entry = table.get(key)
                if entry is not None:
                    total, count = entry[channel], entry[channel + 1]
                    prior = (total + PRIOR * prior) / (count + PRIOR)
        return prior

    def running(self, of: Scopes) -> tuple[float, ...]:
        """Mean and count of the lengths seen: of the tenant, its model, its template."""
        entries = (
            self.models.get(of.tenant, _NO_ENTRY),
            self.models.get(of.source, _NO_ENTRY),
            self.templates.get(of.templates[0], _NO_ENTRY) if of.templates else _NO_ENTRY,
        )
        found: list[float] = []
        for entry in entries:
            total, count = entry[Channel.LENGTH], entry[Channel.LENGTH + 1]
            found += [total / count if count else _NAN, count]
        return tuple(found)

    def stage0(self, of: Scopes) -> float:
        """What to add to stage 0's grid."""
        return self.mean(of, Channel.STAGE0)

    def full(self, of: Scopes) -> float:
        """What to add to the full model's grid."""
        return self.mean(of, Channel.FULL)

    def tokens_per_byte(self, model: str, tenant: str, script: str) -> float:
        """Of a prompt, before chat overhead. `script` as `PromptView.script`."""
        off = self.mean(script_scopes(model, tenant, script), Channel.STAGE0)
        return TOKENS_PER_BYTE.get(script, 0.25) * exp(off)

    def level(self, stage: str, job_class: JobClass, of: Scopes) -> Levels:
        """Of the tenant's jobs of a class."""
        return self.levels.get(_level_key(stage, job_class, of), _LEVELS)

    def dump(self) -> bytes:
        """To be kept in the store: scopes by name (templates as keyed hashes), no text. Not
        while another thread writes the table."""
        return msgspec.msgpack.encode(
            _State(1, _lists(self.models), _lists(self.templates), dict(self.levels))
        )


def _level_key(stage: str, job_class: JobClass, of: Scopes) -> str:
    return f"{stage}\x1f{job_class}\x1f{of.tenant}"


_LEVELS = Levels()
_NAN = float("nan")

TOKENS_PER_BYTE = {"latin": 0.25, "cjk": 0.25, "other": 0.22}
"""Before any usage is known: 4 letters a token; 0.75 tokens a Chinese character of 3 bytes."""


class Changes(Struct, frozen=True):
    """Entries that moved, for a copy of the table elsewhere; None: dropped."""

    models: dict[str, Entry | None]
    templates: dict[str, Entry | None]
    levels: dict[str, Levels | None]
    whole: bool = False  # these are all there are: forget the others


class Mirror:
    """A copy of a `Calibration`, kept up by its `Changes`. One thread writes, any reads:
    an entry is replaced at once, and nobody walks the tables."""

    def __init__(self) -> None:
        self._models: dict[str, Entry] = {}
        self._templates: dict[str, Entry] = {}
        self._levels: dict[str, Levels] = {}
        self.table = Calibration(self._models, self._templates, self._levels)

    def apply(self, changes: Changes) -> None:
        if changes.whole:
            self._models, self._templates, self._levels = {}, {}, {}
        _merge(self._models, changes.models)
        _merge(self._templates, changes.templates)
        _merge(self._levels, changes.levels)
        if changes.whole:
            self.table = Calibration(self._models, self._templates, self._levels)


def _merge(table: dict[str, V], changes: Mapping[str, V | None]) -> None:
    for key, entry in changes.items():
        if entry is None:
            table.pop(key, None)
        else:
            table[key] = entry


class _State(Struct):
    """What is kept in the store between runs."""

    version: int
    models: dict[str, list[float]]
    templates: dict[str, list[float]]
    levels: dict[str, Levels]


class Residuals:
    """The running means behind a `Calibration`."""

    def __init__(self) -> None:
        self._models: FairTable[Entry] = FairTable(MODELS)
        self._templates: FairTable[Entry] = FairTable(TEMPLATES)
        self._levels: dict[str, Levels] = {}
        self._cusum: dict[str, tuple[float, float]] = {}
        self._table: Calibration | None = None
        # Keys that moved since `changes` was last asked; None: more than is worth telling.
        self._moved: tuple[set[str], set[str], set[str]] | None = None
        self.drifts = 0

    @property
    def table(self) -> Calibration:
        """As it stands now; made anew only after something was learned."""
        if self._table is None:
            self._table = Calibration(
                MappingProxyType(self._models.copy()),
                MappingProxyType(self._templates.copy()),
                MappingProxyType(self._levels.copy()),
            )
        return self._table

    def changes(self) -> Changes:
        """What moved since the last call; at the first, and after a restore, all there is."""
        moved, self._moved = self._moved, (set(), set(), set())
        if moved is None:
            return Changes(
                dict(self._models), dict(self._templates), dict(self._levels), whole=True
            )
        models, templates, levels = moved
        return Changes(
            {key: self._models.get(key) for key in models},
            {key: self._templates.get(key) for key in templates},
            {key: self._levels.get(key) for key in levels},
        )

    def learn(
        self,
        of: Scopes,
        length: float,
        *,
        stage0: float,
        full: float | None,
        censored: bool,
    ) -> None:
        """One answer of `length` log1p tokens, of which the medians `stage0`, `full` were
        forecast before any correction."""
        told = {Channel.STAGE0: stage0} | ({} if full is None else {Channel.FULL: full})
        for channel, forecast in told.items():
            residual = max(-LARGEST, min(LARGEST, length - forecast))
            if not censored or residual > self.mean(of, channel):
                self._add(of, channel, residual)
        entry = self._models.get(of.source, _NO_ENTRY)
        count = entry[Channel.LENGTH + 1]
        mean = entry[Channel.LENGTH] / count if count else 0.0
        if not censored or length > mean > 0.0:
            self._add(of, Channel.LENGTH, length)

    def learn_residuals(self, of: Scopes, stage0: float, full: float | None) -> None:
        """Residuals that a refit measured on rows it did not fit."""
        self._add(of, Channel.STAGE0, max(-LARGEST, min(LARGEST, stage0)))
        if full is not None:
            self._add(of, Channel.FULL, max(-LARGEST, min(LARGEST, full)))

    def learn_tokens(
        self, model: str, tenant: str, script: str, text_bytes: int, tokens: float
    ) -> None:
        """A provider counted `tokens` in a prompt of so many bytes, chat overhead taken off."""
        if text_bytes >= 32 and tokens >= 1.0:
            off = log(tokens / text_bytes / TOKENS_PER_BYTE.get(script, 0.25))
            of = script_scopes(model, tenant, script)
            self._add(of, Channel.STAGE0, max(-LARGEST, min(LARGEST, off)))

    def learn_share(self, of: Scopes, channel: Channel, share: float) -> None:
        """What part of one request's tokens was cached, or was reasoning."""
        self._add(of, channel, max(0.0, min(1.0, share)))

    def cover(
        self,
        stage: str,
        job_class: JobClass,
        missed: tuple[bool, bool],
        *,
        censored: bool,
        of: Scopes,
    ) -> None:
        """Move the levels of a tenant's class by one answer: was it above the p50, the p90
        given out?

        Censored below a quantile it may still come to lie above: no evidence.
        """
        key = _level_key(stage, job_class, of)
        now = self._levels.pop(key, _LEVELS)
        moved = []
        for alpha, miss, target, (low, high) in zip(
            (now.median, now.high), missed, TARGETS, ALPHA, strict=True
        ):
            known = miss or not censored
            moved.append(min(max(alpha + known * RATE * (target - miss), low), high))
        self._levels[key] = Levels(*moved)
        self._touch(2, key)
        if len(self._levels) > SOURCES:
            self._touch(2, first := next(iter(self._levels)))
            del self._levels[first]

    def watch(self, of: Scopes, probability: float, *, censored: bool) -> bool:
        """Whether this answer shows that its source has changed. `probability`: at which level
        of the forecast as given out it lay; censored, there or above."""
        if censored and probability < 0.5:
            return False
        key = of.source
        up, down = self._cusum.pop(key, (0.0, 0.0))
        up = max(0.0, up + probability - 0.5 - SLACK)
        down = 0.0 if censored else max(0.0, down + 0.5 - probability - SLACK)
        changed = max(up, down) > ALARM
        self._cusum[key] = (0.0, 0.0) if changed else (up, down)
        if len(self._cusum) > SOURCES:
            del self._cusum[next(iter(self._cusum))]
        if changed:
            self.drifts += 1
            self._forget(of)
        return changed

    def forget_models(self) -> None:
        """Other models speak from now on: their residuals begin anew, the rest is kept."""
        for table in (self._models, self._templates):
            for key, entry in table.items():
                if key[0] not in "bc":
                    table.replace(key, (0.0,) * Channel.LENGTH + entry[Channel.LENGTH :])
        self._table = self._moved = None

    def mean(self, of: Scopes, channel: Channel) -> float:
        """As `Calibration.mean`, of what is learned so far."""
        return Calibration(self._models, self._templates).mean(of, channel)

    def restore(self, kept: bytes) -> bool:
        """Take what `Calibration.dump` gave; False, and nothing changed, where it is none of
        this version."""
        try:
            state = msgspec.msgpack.decode(kept, type=_State)
        except msgspec.DecodeError:
            return False
        rows = [*state.models.values(), *state.templates.values()]
        if state.version != 1 or any(len(row) != len(_NO_ENTRY) for row in rows):
            return False
        self._models = FairTable(MODELS, _entries(state.models))
        self._templates = FairTable(TEMPLATES, _entries(state.templates))
        self._levels = state.levels
        self._table = self._moved = None
        return True

    def _add(self, of: Scopes, channel: Channel, value: float) -> None:
        keep = 1.0 - 1.0 / MEMORY
        pairs = (self._models, of.models), (self._templates, of.templates)
        for place, (table, keys) in enumerate(pairs):
            for key in keys:
                entry = list(table.get(key, _NO_ENTRY))
                entry[channel] = entry[channel] * keep + value
                entry[channel + 1] = entry[channel + 1] * keep + 1.0
                dropped = table.put(key, tuple(entry))
                self._touch(place, key)
                if dropped is not None:
                    self._touch(place, dropped)

    def _forget(self, of: Scopes) -> None:
        """The source and its template; their tenant and family go on."""
        pairs = (self._models, (of.source,)), (self._templates, of.templates)
        for place, (table, keys) in enumerate(pairs):
            for key in keys:
                entry = table.get(key)
                if entry is not None:
                    table.replace(key, tuple(value * FORGET for value in entry))
                    self._touch(place, key)

    def _touch(self, place: int, key: str) -> None:
        self._table = None
        if self._moved is not None:
            keys = self._moved[place]
            keys.add(key)
            if len(keys) > MOVED:
                self._moved = None


def _entries(rows: Mapping[str, list[float]]) -> Iterator[tuple[str, Entry]]:
    return ((key, tuple(row)) for key, row in rows.items())


def _lists(table: Table) -> dict[str, list[float]]:
    return {key: list(entry) for key, entry in table.items()}
