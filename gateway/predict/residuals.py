"""What finished requests teach at once, of the corrections in calibrate.py.

*Where the middle lies*: each answer moves the running means of all its scopes, which remember
some `MEMORY` of them.

*How wide it is*: adaptive conformal inference (Gibbs, Candès, 2021): the level moves with each
answer, α ← α + η (target − missed). Over any stretch the share of misses comes out at the
target, whatever the lengths do.

A censored length (cut, cancelled, failed, still running) is a lower bound: it may raise and
never lowers. So it counts where it lies above the forecast as corrected so far, and is
otherwise no evidence: a burst, in which the short answers end first, does not teach that
answers are short.

Two-sided CUSUM on the forecast's own probabilities tells a source that has changed: its
scopes then forget most of what they knew, and whoever refits models may want to.

`Residuals` belong to whoever learns, and to one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    """At most `most` entries; written by `put` and `replace` alone.

    Args:
        tenant_of: whose a key is.
        entries: put in, one after the other.
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
        self._ranks: dict[int, dict[str, None]] = {}  # by number of keys its tenants, likewise
        self._top = 0  # the largest number
        for key, value in entries:
            self.put(key, value)

    def put(self, key: str, value: V) -> str | None:
        """An entry, new or not, used just now. The key that was dropped for it, if one was."""
        self.pop(key, None)
        self[key] = value  # last in order, so that a copy tells which is unused longest
        tenant = self._tenant_of(key)
        owned = self._owned.setdefault(tenant, {})
        before = len(owned)
        owned.pop(key, None)
        owned[key] = None
        self._rank(tenant, before, len(owned))
        return self._drop() if len(self) > self._most else None

    def replace(self, key: str, value: V) -> None:
        """Another value for an entry that is here, which is no use of it."""
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
        """Move a tenant; numbers change by one at a time, so that the top is at hand."""
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
MODELS = 4000  # scopes of tenants, their families, models, scripts
TEMPLATES = 4000
SOURCES = 4000  # watched for change; and as many levels
MOVED = 1000  # changed entries told one by one; beyond, all are
RATE = 0.004  # η
ALPHA = ((0.2, 0.8), (-0.15, 0.45))  # within these
SLACK, ALARM = 0.12, 5.0  # CUSUM of u − 0.5, u uniform while nothing changes
FORGET = 0.05  # of a changed source's answers is kept


class Residuals:
    """The running means behind a `Calibration`."""

    def __init__(self) -> None:
        self._models: FairTable[Entry] = FairTable(MODELS, tenant_of)
        self._templates: FairTable[Entry] = FairTable(TEMPLATES, tenant_of)
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
        of: GroupKeys,
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
        entry = self._models.get(of.source, NO_ENTRY)
        count = entry[Channel.LENGTH + 1]
        mean = entry[Channel.LENGTH] / count if count else 0.0
        if not censored or length > mean > 0.0:
            self._add(of, Channel.LENGTH, length)

    def learn_residuals(self, of: GroupKeys, stage0: float, full: float | None) -> None:
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
            of = script_keys(model, tenant, script)
            self._add(of, Channel.STAGE0, max(-LARGEST, min(LARGEST, off)))

    def learn_share(self, of: GroupKeys, channel: Channel, share: float) -> None:
        """What part of one request's tokens was cached, or was reasoning."""
        self._add(of, channel, max(0.0, min(1.0, share)))

    def cover(
        self,
        stage: str,
        job_class: JobClass,
        missed: tuple[bool, bool],
        *,
        censored: bool,
        of: GroupKeys,
    ) -> None:
        """Move the levels of a tenant's class by one answer: was it above the p50, the p90
        given out?

        Censored below a quantile it may still come to lie above: no evidence.
        """
        key = level_key(stage, job_class, of)
        now = self._levels.pop(key, NO_LEVELS)
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

    def watch(self, of: GroupKeys, probability: float, *, censored: bool) -> bool:
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
                if not is_script_key(key):
                    table.replace(key, (0.0,) * Channel.LENGTH + entry[Channel.LENGTH :])
        self._table = self._moved = None

    def mean(self, of: GroupKeys, channel: Channel) -> float:
        """As `Calibration.mean`, of what is learned so far."""
        return Calibration(self._models, self._templates).mean(of, channel)

    def restore(self, kept: bytes) -> bool:
        """Take what `Calibration.dump` gave; False, and nothing changed, where it is none of
        this version."""
        table = Calibration.load(kept)
        if table is None:
            return False
        self._models = FairTable(MODELS, tenant_of, table.models.items())
        self._templates = FairTable(TEMPLATES, tenant_of, table.templates.items())
        self._levels = dict(table.levels)
        self._table = self._moved = None
        return True

    def _add(self, of: GroupKeys, channel: Channel, value: float) -> None:
        keep = 1.0 - 1.0 / MEMORY
        pairs = (self._models, of.models), (self._templates, of.templates)
        for place, (table, keys) in enumerate(pairs):
            for key in keys:
                entry = list(table.get(key, NO_ENTRY))
                entry[channel] = entry[channel] * keep + value
                entry[channel + 1] = entry[channel + 1] * keep + 1.0
                dropped = table.put(key, tuple(entry))
                self._touch(place, key)
                if dropped is not None:
                    self._touch(place, dropped)

    def _forget(self, of: GroupKeys) -> None:
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
