"""Calibration: the corrections that answers make to the boosters' forecasts.

A request belongs to nested groups: tenant → model family → model → template. All of them are one
tenant's own: lengths reported by one tenant bend no other's forecasts. Two things are corrected:

1. The middle. The boosters were fitted elsewhere; for a model they never saw, or for a tenant's
   template, they are off by a factor more than in their order. Each group keeps a running mean of
   the residual (true minus forecast median, log1p tokens), starting from the mean of the group
   above as if `PRIOR` answers had agreed with it. The mean of the narrowest group is added to the
   grid.
2. The width. For each tenant and job class, apart for stage 0 and the full forecast, the levels
   that are read as p50 and p90 move until the shares of misses are those wanted.

`Residuals` (residuals.py) learn both. The event loop reads a `Calibration`: beside the learner an
immutable table that is replaced whole, in another process a `Mirror` that is sent the entries
that changed. Entries are immutable and are looked up one by one, so no lock is needed.
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
    """Keys of the groups that one request belongs to, the widest first: tenant, family, model.

    Keys are kept in the store between runs: another layout needs another version of that state.
    """

    models: tuple[str, ...]
    templates: tuple[str, ...] = ()

    @property
    def tenant(self) -> str:
        """Key of the tenant's group."""
        return self.models[0]

    @property
    def source(self) -> str:
        """Key of the model as this tenant uses it."""
        return self.models[-1]


@lru_cache(4096)
def group_keys(model: str, tenant: str, template: str = "") -> GroupKeys:
    """Keys of a request's groups; `template` is "" where there is none."""
    return GroupKeys(
        (f"t\x1f{tenant}", f"f\x1f{tenant}\x1f{model_family(model)}", f"m\x1f{tenant}\x1f{model}"),
        (f"p\x1f{tenant}\x1f{model}\x1f{template}",) if template else (),
    )


@lru_cache(4096)
def script_keys(model: str, tenant: str, script: str) -> GroupKeys:
    """Keys of the groups for tokens per byte: of a family and a model, for a tenant and script."""
    end = f"{tenant}\x1f{script}"
    return GroupKeys((f"b\x1f{model_family(model)}\x1f{end}", f"c\x1f{model}\x1f{end}"))


def level_key(stage: str, job_class: JobClass, keys: GroupKeys) -> str:
    """Key of the levels of a tenant's job class, in a table of their own."""
    return f"{stage}\x1f{job_class}\x1f{keys.tenant}"


def tenant_of(key: str) -> str:
    """Tenant of a group's key: its second part, of a script's key the third; "" where there is
    none."""
    parts = key.split("\x1f", 3)
    place = 2 if is_script_key(key) else 1
    return parts[place] if place < len(parts) else ""


def is_script_key(key: str) -> bool:
    """True where the key is of tokens per byte, not of lengths."""
    return key.startswith(_SCRIPTS)


@lru_cache(4096)
def model_family(model: str) -> str:
    """A model's name up to its version or size: "gpt" of "openai/gpt-5.4-mini"."""
    name = model.rsplit("/", 1)[-1].lower()
    parts = re.split(r"[-_:. ]", name)
    words: list[str] = []
    for part in parts:
        if any(c.isdigit() for c in part):
            words += [] if words else [re.split(r"\d", part)[0]]
            break
        words.append(part)
    return "-".join(part for part in words if part) or name


PRIOR = 12.0  # answers' worth of the group above, before the first answer
TARGETS = (0.5, 0.1)  # shares of answers wanted above the median, above p90
TAIL = 0.02  # below it z goes on in a straight line, so that α ≤ 0 has a value

Entry = tuple[float, ...]
Table = Mapping[str, Entry]
V = TypeVar("V")
NO_ENTRY: Entry = (0.0,) * 10
_NO_ENTRIES: Table = MappingProxyType({})
_NORMAL = NormalDist()
_NAN = float("nan")

TOKENS_PER_BYTE = {"latin": 0.25, "cjk": 0.25, "other": 0.22}
"""Used before any usage is known: 4 letters a token; 0.75 tokens a Chinese character (3 bytes)."""


class Channel(IntEnum):
    """Quantities of which a group has a running mean: places in its `Entry`, sum before count."""

    STAGE0 = 0  # residual of stage 0
    FULL = 2  # residual of the full model
    LENGTH = 4  # log1p output tokens
    CACHED = 6  # share of the prompt tokens that were cached
    REASONING = 8  # share of the output tokens that were reasoning


_LENGTH = int(Channel.LENGTH)


class Levels(Struct, frozen=True, gc=False):
    """Shares of misses aimed at now, so that the true shares come out at `TARGETS`."""

    median: float = TARGETS[0]
    high: float = TARGETS[1]

    @property
    def z(self) -> tuple[float, float]:
        """Normal scores of the levels that are read as p50 and p90."""
        return _z(self.median), _z(self.high)


@lru_cache(8192)
def _z(alpha: float) -> float:
    beyond = max(TAIL - alpha, 0.0)
    z = _NORMAL.inv_cdf(1.0 - alpha - beyond)
    return z + beyond / _NORMAL.pdf(z)


NO_LEVELS = Levels()
"""The levels of a class without answers."""


class Calibration(Struct, frozen=True):
    """The corrections in force. Immutable, but for that of a `Mirror`."""

    models: Table = _NO_ENTRIES
    templates: Table = _NO_ENTRIES
    levels: Mapping[str, Levels] = MappingProxyType({})

    def mean(self, keys: GroupKeys, channel: Channel, prior: float = 0.0) -> float:
        """Running mean of the narrowest group, shrunk to that of each wider one in turn, and the
        widest one's to `prior`."""
        at = int(channel)
        for table, group in ((self.models, keys.models), (self.templates, keys.templates)):
            for key in group:
                entry = table.get(key)
                if entry is not None:
                    prior = (entry[at] + PRIOR * prior) / (entry[at + 1] + PRIOR)
        return prior

    def running(self, keys: GroupKeys) -> tuple[float, ...]:
        """Mean and count of the lengths learned: of the tenant, its model, its template."""
        tenant = self.models.get(keys.tenant, NO_ENTRY)
        source = self.models.get(keys.source, NO_ENTRY)
        template = self.templates.get(keys.templates[0], NO_ENTRY) if keys.templates else NO_ENTRY
        return *_length(tenant), *_length(source), *_length(template)

    def stage0_bias(self, keys: GroupKeys) -> float:
        """Mean residual of stage 0, to be added to its grid."""
        return self.mean(keys, Channel.STAGE0)

    def full_bias(self, keys: GroupKeys) -> float:
        """Mean residual of the full model, to be added to its grid."""
        return self.mean(keys, Channel.FULL)

    def tokens_per_byte(self, model: str, tenant: str, script: str) -> float:
        """Prompt tokens per byte, without chat overhead. `script` as `PromptView.script`."""
        off = self.mean(script_keys(model, tenant, script), Channel.STAGE0)
        return TOKENS_PER_BYTE.get(script, 0.25) * exp(off)

    def levels_of(self, stage: str, job_class: JobClass, keys: GroupKeys) -> Levels:
        """The levels of the tenant's jobs of a class."""
        return self.levels.get(level_key(stage, job_class, keys), NO_LEVELS)

    def dump(self) -> bytes:
        """Bytes to keep in the store: groups by name (templates as keyed hashes), no text."""
        return msgspec.msgpack.encode(
            _State(1, _lists(self.models), _lists(self.templates), dict(self.levels))
        )

    @classmethod
    def load(cls, data: bytes) -> Calibration | None:
        """The table that `dump` encoded; None where the bytes are not of this version."""
        try:
            state = msgspec.msgpack.decode(data, type=_State)
        except msgspec.DecodeError:
            return None
        rows = [*state.models.values(), *state.templates.values()]
        if state.version != 1 or any(len(row) != len(NO_ENTRY) for row in rows):
            return None
        return cls(_table(state.models), _table(state.templates), state.levels)


def _length(entry: Entry) -> tuple[float, float]:
    """Mean and count of the lengths learned."""
    total, count = entry[_LENGTH], entry[_LENGTH + 1]
    return total / count if count else _NAN, count


class _State(Struct):
    """The stored form of a calibration."""

    version: int
    models: dict[str, list[float]]
    templates: dict[str, list[float]]
    levels: dict[str, Levels]


def _table(rows: Mapping[str, list[float]]) -> Table:
    return {key: tuple(row) for key, row in rows.items()}


def _lists(table: Table) -> dict[str, list[float]]:
    return {key: list(entry) for key, entry in table.items()}


class Changes(Struct, frozen=True):
    """Entries that changed, for a copy of the table elsewhere; None: dropped."""

    models: dict[str, Entry | None]
    templates: dict[str, Entry | None]
    levels: dict[str, Levels | None]
    complete: bool = False  # these are all entries: drop the others


class Mirror:
    """A copy of a `Calibration`, brought up to date by its `Changes`. Its table changes in
    place, but for `Changes.complete`, after which it is another one."""

    def __init__(self) -> None:
        self._models: dict[str, Entry] = {}
        self._templates: dict[str, Entry] = {}
        self._levels: dict[str, Levels] = {}
        self.table = Calibration(self._models, self._templates, self._levels)

    def apply(self, changes: Changes) -> None:
        """Take over what changed."""
        if changes.complete:
            self._models, self._templates, self._levels = {}, {}, {}
        _merge(self._models, changes.models)
        _merge(self._templates, changes.templates)
        _merge(self._levels, changes.levels)
        if changes.complete:
            self.table = Calibration(self._models, self._templates, self._levels)


def _merge(table: dict[str, V], changes: Mapping[str, V | None]) -> None:
    for key, entry in changes.items():
        if entry is None:
            table.pop(key, None)
        else:
            table[key] = entry
