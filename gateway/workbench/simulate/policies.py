"""The policies that are compared: the gateway's core, and what people do instead.

Baselines are given what the gateway has to find out: the provider's true best window W.

    naive        everything at once, as without a gateway
    fifo, sjf    at most W in flight, first come or smallest forecast first
    quota        W split into fixed quotas by size: a quarter short, a quarter medium, half long
    fair         at most W, the two classes in turn by tokens (start-time fair queuing)
    short_first  at most W, strictly the interactive class first
    dual_budget  the seed system's: the core with fixed budgets, no borrowing, no window
    static       the core with a fixed window instead of a found one
    ours         the core with its defaults

A baseline's client meets a 429 as OpenAI's libraries do: two more tries, after Retry-After or
0.5 s and 1 s, a little spread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from math import ceil
from typing import Any
from zlib import crc32

import msgspec

from gateway.balance.accounts import Accounts
from gateway.errors import SettingsError
from gateway.schedule import events
from gateway.schedule.events import Action, Dispatch, Event, Refuse
from gateway.schedule.scheduler import Scheduler
from gateway.settings.schema import Settings
from gateway.types import Job, JobClass, Outcome, SizeBucket, Workload

INF = float("inf")
RETRIES = 2
FIRST_RETRY_S = 0.5
PATIENCE_S = 60.0  # a longer Retry-After is ignored
QUOTAS = {SizeBucket.SHORT: 0.25, SizeBucket.MEDIUM: 0.25, SizeBucket.LONG: 0.5}

Key = tuple[float, ...]
Overrides = Mapping[str, Mapping[str, Any]]


class PolicyJob:
    """A job of a WindowPolicy."""

    __slots__ = ("account", "attempts", "job", "lane", "place", "workload")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.workload: Workload = job.workload
        self.lane = 0
        self.account = ""
        self.attempts = 0
        self.place = 0  # number of its present place in a queue; 0: not queued


class PolicyQueue:
    """A queue and the number of its jobs that may run."""

    def __init__(self, window: float) -> None:
        self.window = window
        self.running = 0
        self.queue: list[tuple[Key, int, PolicyJob]] = []


class WindowPolicy:
    """A policy with fixed windows and one order.

    Args:
        windows: the number of jobs in flight, by lane.
        key_of: a waiting job's key by its latest forecast and the key that started last; the
            smallest starts first.
        lane_of: the lane of a job, by its latest forecast.
    """

    def __init__(
        self,
        windows: Sequence[float],
        key_of: Callable[[PolicyJob, Key], Key],
        lane_of: Callable[[PolicyJob], int] = lambda held: 0,
    ) -> None:
        self._lanes = [PolicyQueue(window) for window in windows]
        self._key_of, self._lane_of = key_of, lane_of
        self._jobs: dict[str, PolicyJob] = {}
        self._inflight: dict[str, int] = {}
        self._later: list[tuple[float, int, PolicyJob]] = []  # after a 429
        self._places = 0
        self._served: Key = (0.0,)

    @property
    def room(self) -> float:
        """The sum of the windows."""
        return sum(lane.window for lane in self._lanes)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take an event; the starts and refusals that follow from it."""
        out: list[Action] = []
        match event:
            case events.Submitted(job):
                held = self._jobs[job.id] = PolicyJob(job)
                self._queue(held)
            case events.Reforecast(job_id, workload) if job_id in self._jobs:
                held = self._jobs[job_id]
                held.workload = workload
                if held.place:
                    self._queue(held)
            case events.Finished(job_id):
                self._leave(self._jobs.pop(job_id))
            case events.AttemptFailed(job_id):
                out += self._failed(self._jobs[job_id], event, now)
        while self._later and self._later[0][0] <= now:
            self._queue(heappop(self._later)[2])
        return out + self._start()

    def next_wake(self, now: float) -> float | None:
        """Time of the next retry after a 429; None where none is due."""
        return self._later[0][0] if self._later else None

    def _queue(self, held: PolicyJob) -> None:
        self._places += 1
        held.place = self._places
        held.lane = self._lane_of(held)
        heappush(
            self._lanes[held.lane].queue, (self._key_of(held, self._served), self._places, held)
        )

    def _start(self) -> list[Action]:
        out: list[Action] = []
        for lane in self._lanes:
            while lane.queue and lane.running < lane.window:
                key, place, held = heappop(lane.queue)
                if held.place != place:
                    continue  # it was queued again since
                self._served = key
                held.place = 0
                held.attempts += 1
                held.account = min(held.job.accounts, key=lambda a: self._inflight.get(a, 0))
                lane.running += 1
                self._inflight[held.account] = self._inflight.get(held.account, 0) + 1
                out.append(Dispatch(held.job.id, held.account, held.attempts, 0))
        return out

    def _leave(self, held: PolicyJob) -> None:
        self._lanes[held.lane].running -= 1
        self._inflight[held.account] -= 1

    def _failed(self, held: PolicyJob, event: events.AttemptFailed, now: float) -> list[Action]:
        self._leave(held)
        if held.attempts > RETRIES:
            del self._jobs[held.job.id]
            return [Refuse(held.job.id, event.error, Outcome.RATE_LIMITED)]
        wait_s = event.retry_after_s
        if wait_s is None or not 0 < wait_s <= PATIENCE_S:
            spread = crc32(held.job.id.encode()) / 2**32
            wait_s = FIRST_RETRY_S * 2 ** (held.attempts - 1) * (1 - 0.25 * spread)
        self._places += 1
        heappush(self._later, (now + wait_s, self._places, held))
        return []


class FairTurns:
    """Keys of start-time fair queuing (Goyal 1996): classes take turns by tokens.

    A class that had no job starts where the others are.
    """

    def __init__(self) -> None:
        self._last = dict.fromkeys(JobClass, 0.0)

    def key(self, held: PolicyJob, served: Key) -> Key:
        """The job's virtual start time."""
        cls = held.workload.job_class
        start = max(self._last[cls], served[0])
        self._last[cls] = start + held.workload.p50
        return (start,)


class GatewayPolicy:
    """The gateway's own scheduler and accounts, as its engine holds them."""

    def __init__(self, settings: Settings) -> None:
        self.accounts = Accounts(settings.accounts, settings.balance)
        self.scheduler = Scheduler(settings, self.accounts)
        self.handle = self.scheduler.handle
        self.next_wake = self.scheduler.next_wake
        self._names = [account.name for account in settings.accounts]

    @property
    def room(self) -> float:
        """Jobs in flight that the accounts' windows allow."""
        return self.accounts.room(self._names)


def baseline(name: str, window: int) -> WindowPolicy:
    """A baseline by its name, for the provider's best window. Raises ValueError for no baseline."""
    match name:
        case "naive":
            return WindowPolicy([INF], _arrival)
        case "fifo":
            return WindowPolicy([window], _arrival)
        case "sjf":
            return WindowPolicy([window], lambda held, served: (held.workload.p50,))
        case "quota":
            lanes = list(QUOTAS)
            windows = [ceil(share * window) for share in QUOTAS.values()]
            return WindowPolicy(
                windows, _arrival, lambda held: lanes.index(held.workload.size_bucket)
            )
        case "fair":
            return WindowPolicy([window], FairTurns().key)
        case "short_first":
            return WindowPolicy([window], _interactive_first)
    raise ValueError(name)


def _arrival(held: PolicyJob, served: Key) -> Key:
    return (held.job.arrived_s,)


def _interactive_first(held: PolicyJob, served: Key) -> Key:
    heavy = held.workload.job_class is not JobClass.INTERACTIVE
    return (float(heavy), held.job.arrived_s)


DUAL_BUDGET: Overrides = {
    "schedule": {"policy": "dual_budget", "borrow": False, "ordering": "fcfs"},
    "balance": {"window": "off"},
}


def fixed_window(window: int) -> tuple[Overrides, dict[str, int]]:
    """Settings by section and of the account that fix the core's window."""
    account = {"initial_concurrency": window, "max_concurrency": window}
    return {"balance": {"window": "off"}}, account


def settings_of(
    models: Mapping[str, Sequence[str]],
    tenants: Sequence[str],
    *sections: Overrides,
    account: Mapping[str, Any] | None = None,
) -> Settings:
    """The gateway's settings for these accounts, tenants and overrides.

    Args:
        models: account → the models it serves.
        account: keys of every account; they win over a section `account` of the overrides.


    Raises:
        SettingsError: an override is no setting.
    """
    merged = _merged(sections)
    own = {**merged.pop("account", {}), **(account or {})}
    given: dict[str, Any] = {
        "accounts": [
            {
                "name": name,
                "base_url": "http://127.0.0.1:1",
                "api_key": "env:UNUSED",
                "models": list(served),
                **own,
            }
            for name, served in models.items()
        ],
        "tenants": [
            {"name": name, "keys": [f"sha256:{number:064x}"]} for number, name in enumerate(tenants)
        ],
        **merged,
    }
    try:
        return msgspec.convert(given, Settings)
    except msgspec.ValidationError as error:
        raise SettingsError(f"simulate: {error}") from None


def _merged(sections: Sequence[Overrides]) -> dict[str, dict[str, Any]]:
    """The sections' keys together; later ones win."""
    merged: dict[str, dict[str, Any]] = {}
    for overrides in sections:
        for section, values in overrides.items():
            merged[section] = {**merged.get(section, {}), **values}
    return merged
