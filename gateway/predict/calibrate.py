"""How far off the forecasts are, and for whom: the corrections in force.

Two corrections, for two kinds of wrong.

1. *Where the middle lies.* The boosters were fitted elsewhere; a model they never saw, or a
   tenant's template, is off by a factor more than in its order. Each scope keeps a
   running mean of the residual (true minus forecast median, log1p tokens). Each starts from the
   one above as if `PRIOR` answers had agreed with it, so an unseen model starts from its family,
   and a scope with answers of its own soon speaks for itself. It is added to the grid.
2. *How wide it is.* Per tenant's class, and apart for stage 0 and the full forecast, the level
   that is read as p90, and the one read as the median, are moved so that the share of misses
   comes out at the target.

How both are learned is said in residuals.py. `Residuals` belong to whoever learns. The event
loop sees a `Calibration`: beside the learner an immutable table, replaced as a whole; in another
process than the learner a `Mirror`, told the entries that moved. Entries are immutable and are
looked up one by one, so stage 0 reads either without a lock.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import IntEnum
from functools import lru_cache
from math import exp
from statistics import NormalDist
from types import MappingProxyType
from typing import TypeVar

import msgspec
from msgspec import Struct

from gateway.types import JobClass

_SCRIPTS = ("b\x1f", "c\x1f")


class GroupKeys(Struct, frozen=True, gc=False):
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


def group_keys(model: str, tenant: str, template: str = "") -> GroupKeys:
    """Of a request; `template` is "" where there is none."""
    return GroupKeys(
        (f"t\x1f{tenant}", f"f\x1f{tenant}\x1f{family(model)}", f"m\x1f{tenant}\x1f{model}"),
        (f"p\x1f{tenant}\x1f{model}\x1f{template}",) if template else (),
    )


def script_keys(model: str, tenant: str, script: str) -> GroupKeys:
    """Where tokens per byte are kept."""
    end = f"{tenant}\x1f{script}"
    return GroupKeys((f"b\x1f{family(model)}\x1f{end}", f"c\x1f{model}\x1f{end}"))


def level_key(stage: str, job_class: JobClass, of: GroupKeys) -> str:
    """Where the levels of a tenant's class are kept; in a table of their own."""
    return f"{stage}\x1f{job_class}\x1f{of.tenant}"


def tenant_of(key: str) -> str:
    """Whose a scope's key is: its second part, of a script's the third. "" of what is no key."""
    parts = key.split("\x1f", 3)
    place = 2 if is_script_key(key) else 1
    return parts[place] if place < len(parts) else ""


def is_script_key(key: str) -> bool:
    """Whether tokens per byte are kept there, and no lengths."""
    return key.startswith(_SCRIPTS)


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


PRIOR = 12.0  # answers that agreed with the scope above, before the first
TARGETS = (0.5, 0.1)  # of misses: above the median, above p90
TAIL = 0.02  # below it z goes on in a straight line: α ≤ 0 still means something

Entry = tuple[float, ...]
Table = Mapping[str, Entry]
V = TypeVar("V")
NO_ENTRY: Entry = (0.0,) * 10
_NOTHING: Table = MappingProxyType({})
_NORMAL = NormalDist()
_NAN = float("nan")

TOKENS_PER_BYTE = {"latin": 0.25, "cjk": 0.25, "other": 0.22}
"""Before any usage is known: 4 letters a token; 0.75 tokens a Chinese character of 3 bytes."""


class Channel(IntEnum):
    """What a scope has a running mean of; a place in its `Entry`."""

    STAGE0 = 0  # residual of stage 0
    FULL = 2  # residual of the full model
    LENGTH = 4  # log1p output tokens
    CACHED = 6  # share of the prompt tokens that were cached
    REASONING = 8  # share of the output tokens that were reasoning


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


NO_LEVELS = Levels()
"""Of a class nothing is known of."""


class Calibration(Struct, frozen=True):
    """The corrections in force. Never changes; a new one takes its place."""

    models: Table = _NOTHING
    templates: Table = _NOTHING
    levels: Mapping[str, Levels] = MappingProxyType({})

    def mean(self, of: GroupKeys, channel: Channel, prior: float = 0.0) -> float:
        """The most particular scope's running mean, shrunk to those above it, they to `prior`."""
        for table, keys in ((self.models, of.models), (self.templates, of.templates)):
            for key in keys:
                entry = table.get(key)
                if entry is not None:
                    total, count = entry[channel], entry[channel + 1]
                    prior = (total + PRIOR * prior) / (count + PRIOR)
        return prior

    def running(self, of: GroupKeys) -> tuple[float, ...]:
        """Mean and count of the lengths seen: of the tenant, its model, its template."""
        entries = (
            self.models.get(of.tenant, NO_ENTRY),
            self.models.get(of.source, NO_ENTRY),
            self.templates.get(of.templates[0], NO_ENTRY) if of.templates else NO_ENTRY,
        )
        found: list[float] = []
        for entry in entries:
            total, count = entry[Channel.LENGTH], entry[Channel.LENGTH + 1]
            found += [total / count if count else _NAN, count]
        return tuple(found)

    def stage0(self, of: GroupKeys) -> float:
        """What to add to stage 0's grid."""
        return self.mean(of, Channel.STAGE0)

    def full(self, of: GroupKeys) -> float:
        """What to add to the full model's grid."""
        return self.mean(of, Channel.FULL)

    def tokens_per_byte(self, model: str, tenant: str, script: str) -> float:
        """Of a prompt, before chat overhead. `script` as `PromptView.script`."""
        off = self.mean(script_keys(model, tenant, script), Channel.STAGE0)
        return TOKENS_PER_BYTE.get(script, 0.25) * exp(off)

    def level(self, stage: str, job_class: JobClass, of: GroupKeys) -> Levels:
        """Of the tenant's jobs of a class."""
        return self.levels.get(level_key(stage, job_class, of), NO_LEVELS)

    def dump(self) -> bytes:
        """To be kept in the store: scopes by name (templates as keyed hashes), no text. Not
        while another thread writes the table."""
        return msgspec.msgpack.encode(
            _State(1, _lists(self.models), _lists(self.templates), dict(self.levels))
        )

    @classmethod
    def load(cls, kept: bytes) -> Calibration | None:
        """What `dump` gave; None where it is none of this version."""
        try:
            state = msgspec.msgpack.decode(kept, type=_State)
        except msgspec.DecodeError:
            return None
        rows = [*state.models.values(), *state.templates.values()]
        if state.version != 1 or any(len(row) != len(NO_ENTRY) for row in rows):
            return None
        return cls(_table(state.models), _table(state.templates), state.levels)


class _State(Struct):
    """What is kept in the store between runs."""

    version: int
    models: dict[str, list[float]]
    templates: dict[str, list[float]]
    levels: dict[str, Levels]


def _table(rows: Mapping[str, list[float]]) -> Table:
    return {key: tuple(row) for key, row in rows.items()}


def _lists(table: Table) -> dict[str, list[float]]:
    return {key: list(entry) for key, entry in table.items()}


class Changes(Struct, frozen=True):
    """Entries that moved, for a copy of the table elsewhere; None: dropped."""

    models: dict[str, Entry | None]
    templates: dict[str, Entry | None]
    levels: dict[str, Levels | None]
    whole: bool = False  # these are all there are: forget the others


class Mirror:
    """A copy of a `Calibration`, brought up to date by its `Changes`. Its table changes in
    place, but for `Changes.whole`, after which it is another one."""

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
