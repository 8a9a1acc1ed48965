"""A run on virtual time: one policy, some providers, and requests with their arrival times.

A policy takes the scheduler's events and gives its actions (schedule/events.py), so the gateway's
own core runs here unchanged, beside the small policies it is compared with. The next thing to
happen is the earliest of a provider's next step, a timer (an arrival, a better forecast, a 429
that arrives, a change of capacity), and the policy's own wake; at equal times in this order, so
a run is a function of its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import Protocol

from msgspec import Struct

from gateway.errors import Refused
from gateway.schedule import events
from gateway.schedule.events import Action, Event
from gateway.types import Job, Outcome, Verdict
from gateway.workbench.simulate.request_rows import RequestRow
from gateway.workbench.simulate.simulated_provider import SimulatedProvider

BETTER_AFTER_S = 0.02  # until the full forecast comes from the predictor's process
IDLE_WAKES = 1000  # in a row without anything else: the policy is stuck
INF = float("inf")


class Policy(Protocol):
    """Decides which request starts when; the gateway's Scheduler is one."""

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take an event; the starts and refusals that follow from it."""

    def next_wake(self, now: float) -> float | None:
        """Time at which it wants to be woken; None for never."""

    @property
    def room(self) -> float:
        """Number of requests it would have in flight."""


class SimulatedRequest(Struct, frozen=True, gc=False):
    """One request to be played.

    Args:
        z: its noise, standard normal.
        alone_s: seconds it takes alone at its provider.
    """

    id: str
    arrived_s: float  # from the start of the run
    row: RequestRow
    z: float
    alone_s: float
    tenant: str = "one"
    model: str = "m"
    accounts: tuple[str, ...] = ("a",)


class CapacityChange(Struct, frozen=True):
    """The share of an account's machines that is up from `at_s` on."""

    at_s: float
    account: str
    share: float


class RequestResult(Struct, gc=False):
    """Times of one request in seconds from the start of the run; NaN where it never got so far."""

    request: SimulatedRequest
    started_s: float = float("nan")  # the first dispatch
    ended_s: float = float("nan")
    completed: bool = False
    rejections: int = 0  # 429s of the provider
    refused: str = ""  # the code of the gateway's refusal

    @property
    def latency_s(self) -> float:
        """Seconds from arrival to end."""
        return self.ended_s - self.request.arrived_s

    @property
    def wait_s(self) -> float:
        """Seconds from arrival to the first dispatch."""
        return self.started_s - self.request.arrived_s


class RunResult(Struct):
    """Everything that a run gives.

    Args:
        results: in the order of the requests.
        trace: (seconds from the start, the policy's room, requests in flight) at every end.
    """

    results: list[RequestResult]
    trace: list[tuple[float, float, int]]
    ended_s: float  # virtual time, not from the start of the run


def run(
    policy: Policy,
    providers: Mapping[str, SimulatedProvider],
    requests: Sequence[SimulatedRequest],
    changes: Sequence[CapacityChange] = (),
    start_s: float = 0.0,
) -> RunResult:
    """Play all requests to their ends.

    Raises:
        RuntimeError: the policy lost a request, or wakes for ever without an effect.
    """
    return _Loop(policy, providers, requests, changes, start_s).play()


class _Loop:
    def __init__(
        self,
        policy: Policy,
        providers: Mapping[str, SimulatedProvider],
        requests: Sequence[SimulatedRequest],
        changes: Sequence[CapacityChange],
        start_s: float,
    ) -> None:
        self._policy, self._providers = policy, providers
        self._start_s = start_s
        self._results = {r.id: RequestResult(r) for r in requests}
        self._open = len(self._results)
        self._trace: list[tuple[float, float, int]] = []
        self._timers: list[tuple[float, int, Event | CapacityChange]] = []
        self._order = count()
        self._wake_s = INF
        for change in changes:
            self._at(start_s + change.at_s, change)
        for request in requests:
            arrived_s = start_s + request.arrived_s
            self._at(arrived_s, events.Submitted(_job(request, arrived_s)))
            if request.row.better is not None:
                better = events.Reforecast(request.id, request.row.better)
                self._at(arrived_s + BETTER_AFTER_S, better)

    def play(self) -> RunResult:
        now, idle = self._start_s, 0
        while self._open:
            account, step_s = self._next_step()
            timer_s = self._timers[0][0] if self._timers else INF
            idle = idle + 1 if self._wake_s < min(step_s, timer_s) else 0
            if step_s <= min(timer_s, self._wake_s) and step_s < INF:
                now = max(now, step_s)
                self._step(account, now)
            elif timer_s <= self._wake_s and timer_s < INF:
                now = max(now, timer_s)
                self._timer(now)
            elif self._wake_s < INF and idle < IDLE_WAKES:
                now = max(now, self._wake_s)
                self._feed(events.Woke(), now)
            else:
                raise RuntimeError(f"{self._open} requests are lost, {idle} wakes in vain")
        return RunResult(list(self._results.values()), self._trace, now)

    def _next_step(self) -> tuple[str, float]:
        best, at_s = "", INF
        for name, provider in self._providers.items():
            if (due_s := provider.next_s) < at_s:
                best, at_s = name, due_s
        return best, at_s

    def _step(self, account: str, now: float) -> None:
        provider = self._providers[account]
        id, ended = provider.step(now)
        if not ended:
            self._feed(events.Answered(id, provider.limits(now)), now)
            return
        result = self._results[id]
        result.completed = True
        self._end(result, now)
        row = result.request.row
        finished = events.Finished(
            id, Outcome.OK, Verdict.SUCCESS, float(row.output_tokens), float(row.prompt_tokens)
        )
        self._feed(finished, now)
        inflight = sum(p.inflight for p in self._providers.values())
        self._trace.append((now - self._start_s, self._policy.room, inflight))

    def _timer(self, now: float) -> None:
        _, _, what = heappop(self._timers)
        if isinstance(what, CapacityChange):
            self._providers[what.account].change(what.share, now)
        else:
            self._feed(what, now)

    def _feed(self, event: Event, now: float) -> None:
        for action in self._policy.handle(event, now):
            result = self._results[action.job_id]
            if isinstance(action, events.Refuse):
                result.refused = action.error.code or action.outcome.value
                self._end(result, now)
            else:
                self._dispatch(result, action.account, now)
        wake_s = self._policy.next_wake(now)
        self._wake_s = INF if wake_s is None else wake_s

    def _dispatch(self, result: RequestResult, account: str, now: float) -> None:
        request, row = result.request, result.request.row
        if result.started_s != result.started_s:
            result.started_s = now - self._start_s
        provider = self._providers[account]
        rejected = provider.offer(request.id, row.prompt_tokens, row.output_tokens, request.z, now)
        if rejected is not None:
            result.rejections += 1
            failed = events.AttemptFailed(
                request.id,
                Verdict.RATE_LIMITED,
                Refused("The provider answered 429."),
                retry_after_s=rejected.retry_after_s,
            )
            self._at(now + provider.traits.reject_s, failed)

    def _end(self, result: RequestResult, now: float) -> None:
        result.ended_s = now - self._start_s
        self._open -= 1

    def _at(self, at_s: float, what: Event | CapacityChange) -> None:
        heappush(self._timers, (at_s, next(self._order), what))


def _job(request: SimulatedRequest, arrived_s: float) -> Job:
    return Job(
        id=request.id,
        tenant=request.tenant,
        model=request.model,
        pool=request.model,
        accounts=request.accounts,
        workload=request.row.first,
        arrived_s=arrived_s,
    )
