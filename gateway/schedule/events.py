"""The events of the scheduler (past tense) and the actions it answers with (imperative).

Events about a job that is not known, because it ended or never came, change nothing: the shell
may report an end twice, in any order, and each job still settles once.
"""

from __future__ import annotations

from msgspec import Struct

from gateway.errors import GatewayError
from gateway.settings.schema import Settings
from gateway.types import Job, Outcome, RateLimits, Verdict, Workload


class Submitted(Struct, frozen=True):
    """A job asks to run. `body_bytes`: the memory that it holds while it waits."""

    job: Job
    body_bytes: int = 0


class Reforecast(Struct, frozen=True):
    """A better forecast of a job: a new place if it waits, a new reserve if it runs."""

    job_id: str
    workload: Workload


class Adopted(Struct, frozen=True):
    """A job that runs already, on `account`: the core counts it and does not start it."""

    job: Job
    workload: Workload
    account: str
    attempts: int
    body_bytes: int = 0


class Outgrown(Struct, frozen=True):
    """A running job's answer is longer than was forecast and goes on; `output_tokens` so far, of
    each choice."""

    job_id: str
    output_tokens: float


class Recalibrated(Struct, frozen=True):
    """The present trust in forecasts: 1 in full, 0 none."""

    trust: float


class Answered(Struct, frozen=True):
    """The first byte of an answer came. `limits`: those of the provider's headers."""

    job_id: str
    limits: RateLimits | None = None


class AttemptFailed(Struct, frozen=True):
    """An attempt ended before its first byte went to the client.

    `error` goes to the client if there is no other attempt; `retryable` is False where another
    attempt cannot help or must not be made (a 4xx, a route with side effects). `outcome` is the
    job's if there is none; None: the one that goes with the verdict.
    """

    job_id: str
    verdict: Verdict
    error: GatewayError
    retryable: bool = True
    retry_after_s: float | None = None
    outcome: Outcome | None = None


class Finished(Struct, frozen=True):
    """The job ended.

    `output_tokens`: over all choices; `prompt_tokens`: as the provider counted them. None where
    not counted. `own_s`: seconds of the last attempt that were not the provider's, at most.
    """

    job_id: str
    outcome: Outcome
    verdict: Verdict
    output_tokens: float | None = None
    prompt_tokens: float | None = None
    own_s: float = 0.0


class Withdrawn(Struct, frozen=True):
    """The client left, or an operator ended the job: waiting, retrying or running."""

    job_id: str
    outcome: Outcome = Outcome.CANCELLED


class Woke(Struct, frozen=True):
    """The time that `next_wake` named has come. At any other time it changes nothing."""


class SettingsChanged(Struct, frozen=True):
    """A reload. Live state is kept by name; waiting jobs move to the pool that now serves them."""

    settings: Settings


class DrainStarted(Struct, frozen=True):
    """The gateway stops: new jobs are refused, jobs that wait still run."""


Event = (
    Submitted
    | Adopted
    | Reforecast
    | Outgrown
    | Recalibrated
    | Answered
    | AttemptFailed
    | Finished
    | Withdrawn
    | Woke
    | SettingsChanged
    | DrainStarted
)


class Dispatch(Struct, frozen=True):
    """Start the job on `account` now. `attempt` counts from 1."""

    job_id: str
    account: str
    attempt: int
    reserve_tokens: int


class Refuse(Struct, frozen=True):
    """Send `error`: the job ended without an answer, and no more is to be reported of it."""

    job_id: str
    error: GatewayError
    outcome: Outcome


Action = Dispatch | Refuse
