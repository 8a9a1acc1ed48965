"""Learning the corrections of calibrate.py from finished requests.

The middle: each answer moves the running means of its groups, which remember some `MEMORY`
answers.

The width: adaptive conformal inference (Gibbs, Candès, 2021) moves a level with each answer,
α ← α + η (target − missed). Over any stretch the share of misses comes out at the target,
whatever the lengths do.

A censored length (cut, cancelled, failed, still running) is a lower bound: it may raise a mean
and never lowers one. It counts where it lies above the forecast as corrected so far, and is no
evidence otherwise. So a burst, in which the short answers end first, does not teach that answers
are short.

A two-sided CUSUM of the level at which answers lie in their forecasts detects a source (a model
as a tenant uses it) that has changed. Its groups then forget most of what they learned.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from math import log
from types import MappingProxyType
from typing import TypeVar

from gateway.predict.calibrate import (
    NO_ENTRY,
    NO_LEVELS,
    TARGETS,
    TOKENS_PER_BYTE,
    Calibration,
    Changes,
    Channel,
    Entry,
    GroupKeys,
    Levels,
    is_script_key,
    level_key,
    script_keys,
    tenant_of,
)
from gateway.types import JobClass

V = TypeVar("V")


class FairTable(dict[str, V]):
    """A bounded table whose room is shared fairly between tenants.

    One tenant may use all of it. Once it is full, the tenant with the most entries gives up the
    one it has not used for longest: a tenant that makes keys without end (a schema per request, a
    system prompt with a name in it) pushes out its own, and one with less than an equal share
    keeps all it has. Written by `put` and `replace` alone.

    Args:
        most: entries held.
        tenant_of: the tenant of a key.
        entries: to begin with, the longest unused first.
    """

    def __init__(
        self,
        most: int,
        tenant_of: Callable[[str], str],
        entries: Iterable[tuple[str, V]] = (),
    ) -> None:
        super().__init__()
        self._most = most
        self._tenant_of = tenant_of
        self._owned: dict[str, dict[str, None]] = {}  # by tenant its keys, longest unused first
        self._ranks: dict[int, dict[str, None]] = {}  # tenants by number of keys
        self._top = 0  # the largest number of keys
        for key, value in entries:
            self.put(key, value)

    def put(self, key: str, value: V) -> str | None:
        """Store an entry as used just now; the key that was dropped for it, None where none was."""
        self.pop(key, None)
        self[key] = value  # last in order, so that a copy keeps the order of use
        tenant = self._tenant_of(key)
        owned = self._owned.setdefault(tenant, {})
        before = len(owned)
        owned.pop(key, None)
        owned[key] = None
        self._rank(tenant, before, len(owned))
        return self._drop() if len(self) > self._most else None

    def replace(self, key: str, value: V) -> None:
        """Give an existing entry another value, without counting that as a use."""
        assert key in self
        self[key] = value

    def _drop(self) -> str:
        tenant = next(iter(self._ranks[self._top]))
        owned = self._owned[tenant]
        key = next(iter(owned))
        del owned[key], self[key]
        self._rank(tenant, len(owned) + 1, len(owned))
        if not owned:
            del self._owned[tenant]
        return key

    def _rank(self, tenant: str, before: int, now: int) -> None:
        """Move a tenant to another rank. Ranks change by one, so the top needs no search."""
        if before:
            del self._ranks[before][tenant]
            if not self._ranks[before]:
                del self._ranks[before]
        if now:
            self._ranks.setdefault(now, {})[tenant] = None
        self._top = max(self._top, now)
        if self._top and self._top not in self._ranks:
            self._top -= 1


MEMORY = 150.0  # answers
LARGEST = 2.5  # one residual counts for at most this: a factor of 12
MODELS = 4000  # groups of tenants, their families, models, scripts
TEMPLATES = 4000
SOURCES = 4000  # watched for change; and as many levels
MOST_CHANGES = 1000  # changed entries handed over singly; beyond, all entries are
RATE = 0.004  # η
ALPHA = ((0.2, 0.8), (-0.15, 0.45))  # bounds of the two levels
SLACK, ALARM = 0.12, 5.0  # CUSUM of u − 0.5, u uniform while nothing changes
KEPT_SHARE = 0.05  # of what a changed source taught


class Residuals:
    """The running means, levels and alarms behind a `Calibration`. Belongs to one thread."""

    def __init__(self) -> None:
        self._models: FairTable[Entry] = FairTable(MODELS, tenant_of)
        self._templates: FairTable[Entry] = FairTable(TEMPLATES, tenant_of)
        self._levels: dict[str, Levels] = {}
        self._cusum: dict[str, tuple[float, float]] = {}
        self._table: Calibration | None = None
        # Keys changed since the last call of `changes`; None: too many, hand over all.
        self._changed: tuple[set[str], set[str], set[str]] | None = None
        self.drifts = 0  # sources whose lengths were seen to change, so far

    def __repr__(self) -> str:
        sizes = f"{len(self._models)} models, {len(self._templates)} templates"
        return f"<Residuals {sizes}, {len(self._levels)} levels, {self.drifts} drifts>"

    @property
    def table(self) -> Calibration:
        """The calibration as of now; the same object until something is learned."""
        if self._table is None:
            self._table = Calibration(
                MappingProxyType(self._models.copy()),
                MappingProxyType(self._templates.copy()),
                MappingProxyType(self._levels.copy()),
            )
        return self._table

    def changes(self) -> Changes:
        """Entries changed since the last call; all of them at the first and after a restore."""
        changed, self._changed = self._changed, (set(), set(), set())
        if changed is None:
            return Changes(
                dict(self._models), dict(self._templates), dict(self._levels), complete=True
            )
        models, templates, levels = changed
        return Changes(
            {key: self._models.get(key) for key in models},
            {key: self._templates.get(key) for key in templates},
            {key: self._levels.get(key) for key in levels},
        )

    def learn(
        self,
        keys: GroupKeys,
        length: float,
        *,
        stage0: float,
        full: float | None,
        censored: bool,
    ) -> None:
        """Learn one answer.

        Args:
            length: log1p tokens.
            stage0, full: medians forecast for it, before any correction; None: no full model.
        """
        medians = {Channel.STAGE0: stage0} | ({} if full is None else {Channel.FULL: full})
        for channel, forecast in medians.items():
            residual = max(-LARGEST, min(LARGEST, length - forecast))
            if not censored or residual > self.mean(keys, channel):
                self._add(keys, channel, residual)
        self.learn_length(keys, length, censored=censored)

    def learn_length(self, keys: GroupKeys, length: float, *, censored: bool) -> None:
        """Learn the length of one answer, log1p tokens, for the running means alone."""
        entry = self._models.get(keys.source, NO_ENTRY)
        count = entry[Channel.LENGTH + 1]
        mean = entry[Channel.LENGTH] / count if count else 0.0
        if not censored or length > mean > 0.0:
            self._add(keys, Channel.LENGTH, length)

    def learn_residual(self, keys: GroupKeys, channel: Channel, residual: float) -> None:
        """Learn a residual that a refit measured on a row it did not fit."""
        self._add(keys, channel, max(-LARGEST, min(LARGEST, residual)))

    def learn_tokens(
        self, model: str, tenant: str, script: str, text_bytes: int, tokens: float
    ) -> None:
        """Learn a provider's count: `tokens` of a prompt of `text_bytes`, without chat overhead."""
        if text_bytes >= 32 and tokens >= 1.0:
            off = log(tokens / text_bytes / TOKENS_PER_BYTE.get(script, 0.25))
            keys = script_keys(model, tenant, script)
            self._add(keys, Channel.STAGE0, max(-LARGEST, min(LARGEST, off)))

    def learn_share(self, keys: GroupKeys, channel: Channel, share: float) -> None:
        """Learn the share of one request's tokens that were cached, or were reasoning."""
        self._add(keys, channel, max(0.0, min(1.0, share)))

    def move_levels(
        self,
        stage: str,
        job_class: JobClass,
        missed: tuple[bool, bool],
        *,
        censored: bool,
        keys: GroupKeys,
    ) -> None:
        """Move the levels of a tenant's class by one answer.

        Args:
            missed: was it above the p50 given out, above the p90?
            censored: then it may still come to lie above a quantile that it is below: no
                evidence.
        """
        key = level_key(stage, job_class, keys)
        before = self._levels.pop(key, NO_LEVELS)
        moved = []
        for alpha, miss, target, (low, high) in zip(
            (before.median, before.high), missed, TARGETS, ALPHA, strict=True
        ):
            decided = miss or not censored
            moved.append(min(max(alpha + decided * RATE * (target - miss), low), high))
        self._levels[key] = Levels(*moved)
        self._mark(2, key)
        if len(self._levels) > SOURCES:
            self._mark(2, first := next(iter(self._levels)))
            del self._levels[first]

    def detect_change(self, keys: GroupKeys, level: float, *, censored: bool) -> bool:
        """True where this answer shows that its source has changed, which is then forgotten.

        Args:
            level: probability that the forecast given out put at or below the answer.
        """
        if censored and level < 0.5:
            return False
        key = keys.source
        up, down = self._cusum.pop(key, (0.0, 0.0))
        up = max(0.0, up + level - 0.5 - SLACK)
        down = 0.0 if censored else max(0.0, down + 0.5 - level - SLACK)
        changed = max(up, down) > ALARM
        self._cusum[key] = (0.0, 0.0) if changed else (up, down)
        if len(self._cusum) > SOURCES:
            del self._cusum[next(iter(self._cusum))]
        if changed:
            self.drifts += 1
            self._forget(keys)
        return changed

    def forget_models(self, channels: Collection[Channel] = (Channel.STAGE0, Channel.FULL)) -> None:
        """Drop the residuals of models in whose place others forecast from now on; keep all
        else."""
        for table in (self._models, self._templates):
            for key, entry in table.items():
                if not is_script_key(key):
                    values = list(entry)
                    for channel in channels:
                        values[channel] = values[channel + 1] = 0.0
                    table.replace(key, tuple(values))
        self._table = self._changed = None

    def mean(self, keys: GroupKeys, channel: Channel) -> float:
        """The mean of `Calibration.mean`, of what is learned so far."""
        return Calibration(self._models, self._templates).mean(keys, channel)

    def restore(self, data: bytes) -> bool:
        """Take over a calibration as `Calibration.dump` encoded it; False, and nothing changes,
        where it is of another version."""
        table = Calibration.load(data)
        if table is None:
            return False
        self._models = FairTable(MODELS, tenant_of, table.models.items())
        self._templates = FairTable(TEMPLATES, tenant_of, table.templates.items())
        self._levels = dict(table.levels)
        self._table = self._changed = None
        return True

    def _add(self, keys: GroupKeys, channel: Channel, value: float) -> None:
        keep = 1.0 - 1.0 / MEMORY
        pairs = (self._models, keys.models), (self._templates, keys.templates)
        for place, (table, group) in enumerate(pairs):
            for key in group:
                entry = list(table.get(key, NO_ENTRY))
                entry[channel] = entry[channel] * keep + value
                entry[channel + 1] = entry[channel + 1] * keep + 1.0
                dropped = table.put(key, tuple(entry))
                self._mark(place, key)
                if dropped is not None:
                    self._mark(place, dropped)

    def _forget(self, keys: GroupKeys) -> None:
        """Forget most of the source and its templates; the tenant and family keep all."""
        pairs = (self._models, (keys.source,)), (self._templates, keys.templates)
        for place, (table, group) in enumerate(pairs):
            for key in group:
                entry = table.get(key)
                if entry is not None:
                    table.replace(key, tuple(value * KEPT_SHARE for value in entry))
                    self._mark(place, key)

    def _mark(self, place: int, key: str) -> None:
        """Note that an entry changed. `place`: 0 models, 1 templates, 2 levels."""
        self._table = None
        if self._changed is not None:
            keys = self._changed[place]
            keys.add(key)
            if len(keys) > MOST_CHANGES:
                self._changed = None
