"""What the scheduler is told (past tense) and what it answers (imperative).

Events about a job that is not known, because it ended or never came, change nothing: the shell
may report an end twice, in any order, and each job still settles once.
"""

from __future__ import annotations

from msgspec import Struct

from gateway.errors import GatewayError
from gateway.settings.schema import Settings
from gateway.types import Job, Outcome, RateLimits, Verdict, Workload


class Submitted(Struct, frozen=True):
    """A job asks to run. `body_bytes` is what it holds in memory while it waits."""

    job: Job
    body_bytes: int = 0


class Reforecast(Struct, frozen=True):
    """A better forecast came: a waiting job gets a new place, a running one a new reserve."""

    job_id: str
    workload: Workload


class Adopted(Struct, frozen=True):
    """A job that runs already, on `account`: the core is told, it does not start it."""

    job: Job
    workload: Workload
    account: str
    attempts: int
    body_bytes: int = 0


class Outgrown(Struct, frozen=True):
    """A running job's answer is longer than was forecast: `output_tokens` of each choice, and
    it goes on."""

    job_id: str
    output_tokens: float


class Recalibrated(Struct, frozen=True):
    """How far forecasts can be trusted just now: 1 in full, 0 not at all."""

    trust: float


class Answered(Struct, frozen=True):
    """The first byte of an answer came. `limits` are those of the provider's headers."""

    job_id: str
    limits: RateLimits | None = None


class AttemptFailed(Struct, frozen=True):
    """An attempt ended before its first byte went to the client.

    `error` is what the client gets if there is no other attempt; `retryable` is False where
    another attempt cannot help or must not be made (a 4xx, a route with side effects).
    """

    job_id: str
    verdict: Verdict
    error: GatewayError
    retryable: bool = True
    retry_after_s: float | None = None


class Finished(Struct, frozen=True):
    """The job ended. `output_tokens` over all choices, None where nobody counted;
    `prompt_tokens` as the provider counted them."""

    job_id: str
    outcome: Outcome
    verdict: Verdict
    output_tokens: float | None = None
    prompt_tokens: float | None = None


class Withdrawn(Struct, frozen=True):
    """The client left (or an operator ended it): waiting, retrying or running."""

    job_id: str
    outcome: Outcome = Outcome.CANCELLED


class Woke(Struct, frozen=True):
    """The time named by `next_wake` came (or any other: it is harmless)."""


class SettingsChanged(Struct, frozen=True):
    """A reload. Live state is kept by name; waiting jobs move to where their model now lives."""

    settings: Settings


class DrainStarted(Struct, frozen=True):
    """The gateway stops: nothing new is let in, what waits still runs."""


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
    """Start this job on `account` now. `attempt` counts from 1."""

    job_id: str
    account: str
    attempt: int
    reserve_tokens: int


class Refuse(Struct, frozen=True):
    """The job ended without an answer: send `error`. Nothing more is to be reported of it."""

    job_id: str
    error: GatewayError
    outcome: Outcome


Action = Dispatch | Refuse
