"""Builders of settings, forecasts, jobs and schedulers for tests of the pure rooms."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec

from gateway.balance.accounts import Accounts
from gateway.errors import UpstreamFailed
from gateway.schedule.events import (
    Action,
    AttemptFailed,
    Dispatch,
    Finished,
    Refuse,
    Submitted,
)
from gateway.schedule.live_job import LiveJob
from gateway.schedule.model_pool import Pool
from gateway.schedule.rounds import Turn
from gateway.schedule.scheduler import Scheduler
from gateway.settings.schema import Settings
from gateway.types import Blocked, Job, Outcome, Reason, Rung, Verdict, Workload
from tests.unit.schedule.judge import judge_rest, judge_start


def settings(
    accounts: dict[str, dict[str, Any]] | None = None,
    tenants: dict[str, dict[str, Any]] | None = None,
    **sections: Any,
) -> Settings:
    """Settings that are validated as a file's are.

    `accounts`: name → fields; models are ["m"] where none are given, and a limit that is given
    stays as it is. Windows are off unless `balance` says otherwise: they have tests of their own.
    """
    sections["balance"] = {"window": "off"} | sections.get("balance", {})
    return msgspec.convert(
        {
            "accounts": [
                {
                    "name": name,
                    "base_url": "http://127.0.0.1:1/v1",
                    "api_key": "env:KEY",
                    "models": ["m"],
                    **({"max_concurrency": n} if (n := fields.get("initial_concurrency")) else {}),
                    **fields,
                }
                for name, fields in (accounts or {"a": {}}).items()
            ],
            "tenants": [
                {"name": name, "keys": [f"sha256:{n:064x}"], **fields}
                for n, (name, fields) in enumerate((tenants or {"t": {}}).items())
            ],
            **sections,
        },
        Settings,
    )


def workload(
    tokens: float = 100,
    *,
    short: bool | None = None,
    rung: Rung = Rung.MODEL_ONLY,
    prompt: int = 10,
) -> Workload:
    """A forecast that is sure of itself: every quantile is `tokens`."""
    if short is None:
        short = tokens <= 64
    return Workload(
        prompt_tokens=prompt,
        p50=tokens,
        p90=tokens,
        grid=(tokens,) * 7,
        p_short=1.0 if short else 0.0,
        cost_p50=prompt + 4 * tokens,
        cost_p90=prompt + 4 * tokens,
        risk=0.0,
        confidence=1.0,
        rung=rung,
    )


def job(
    job_id: str,
    tokens: float = 100,
    *,
    at: float = 0.0,
    model: str = "m",
    accounts: tuple[str, ...] = ("a",),
    tenant: str = "t",
    short: bool | None = None,
    **fields: Any,
) -> Job:
    return Job(
        id=job_id,
        tenant=tenant,
        model=model,
        pool=model,
        accounts=accounts,
        workload=workload(tokens, short=short),
        arrived_s=at,
        **fields,
    )


class Judged(Scheduler):
    """A scheduler whose starts are judged one by one, by the state just before each."""

    judging = True

    def dispatch(
        self, pool: Pool, live: LiveJob, account: str, turn: Turn | None, now: float
    ) -> None:
        if self.judging:
            judge_start(self, pool, live, account, turn, now)
        super().dispatch(pool, live, account, turn, now)


class World:
    """A scheduler with the real accounts, checked after every event and judged before every start;
    long runs go without the latter (`judged=False`)."""

    def __init__(self, given: Settings | None = None, *, judged: bool = True) -> None:
        self.settings = given or settings()
        self.accounts = Accounts(self.settings.accounts, self.settings.balance)
        kind = Judged if judged else Scheduler
        self.scheduler: Scheduler = kind(self.settings, self.accounts, Random(0))
        self.now = 0.0

    def feed(self, event: Any, *, at: float | None = None) -> list[Action]:
        """Handle an event, and check every invariant, work conservation included."""
        if at is not None:
            self.now = at
        actions = self.scheduler.handle(event, self.now)
        self.scheduler.check(self.now)
        judge_rest(self.scheduler, self.now)
        return actions

    def submit(self, job_id: str, tokens: float = 100, **fields: Any) -> list[Action]:
        body = fields.pop("body_bytes", 0)
        fields.setdefault("at", self.now)
        self.now = max(self.now, fields["at"])
        return self.feed(Submitted(job(job_id, tokens, **fields), body))

    def finish(self, job_id: str, output: float | None = None, **at: float) -> list[Action]:
        return self.feed(Finished(job_id, Outcome.OK, Verdict.SUCCESS, output), **at)

    def fail(
        self,
        job_id: str,
        verdict: Verdict = Verdict.SERVER_ERROR,
        *,
        retryable: bool = True,
        retry_after_s: float | None = None,
        **at: float,
    ) -> list[Action]:
        error = UpstreamFailed(f"the attempt of {job_id} failed")
        return self.feed(AttemptFailed(job_id, verdict, error, retryable, retry_after_s), **at)

    @property
    def leases(self) -> int:
        """Requests in flight on all accounts."""
        return sum(account.inflight for account in self.accounts.snapshot(self.now))

    @property
    def waiting(self) -> set[str]:
        return {
            job_id
            for job_id in self.scheduler.jobs
            if self.scheduler.fits(job_id, self.now) is not None
        }


def started(actions: list[Action]) -> list[str]:
    return [a.job_id for a in actions if isinstance(a, Dispatch)]


def places(actions: list[Action]) -> dict[str, str]:
    return {a.job_id: a.account for a in actions if isinstance(a, Dispatch)}


def refused(actions: list[Action]) -> dict[str, tuple[str | None, Outcome]]:
    """Job → the error's code and the outcome."""
    return {a.job_id: (a.error.code, a.outcome) for a in actions if isinstance(a, Refuse)}


def reason(it: World, job_id: str) -> Reason:
    """The reason of a job that waits."""
    answer = it.scheduler.fits(job_id, it.now)
    assert isinstance(answer, Blocked)
    return answer.reason
