"""Frozen values that cross rooms, with small derivations: no I/O, no clock.

Units: `_s` seconds as float on the monotonic clock unless the name says `wall`,
`_tokens` output or prompt tokens, `_ratio` a number without unit.
"""

from __future__ import annotations

from bisect import bisect_left
from enum import StrEnum

from msgspec import Struct

QUANTILE_LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
"""Levels of `Workload.grid`, the forecast distribution of output tokens."""

SHORT_TOKENS = 64
MEDIUM_TOKENS = 256
INTERACTIVE_P_SHORT = 0.3

CUT_FINISH_REASONS = frozenset(
    {
        "length",  # chat completions, completions
        "max_tokens",  # messages
        "incomplete",  # responses: the status of an answer that was cut
        "max_output_tokens",  # responses: the reason inside `incomplete_details`
    }
)
"""Finish reasons of an answer cut at a bound: its natural length is at least what came."""


class JobClass(StrEnum):
    """Class of a job: its queue, its budget, its share of the round-robin."""

    INTERACTIVE = "interactive"
    HEAVY = "heavy"
    BACKGROUND = "background"  # never by forecast: /submit, a tenant or a header says so

    __hash__ = str.__hash__  # Enum's own is slow Python code, and these are keys everywhere


class SizeBucket(StrEnum):
    """Length of an answer in three steps, by its median forecast or by truth."""

    SHORT = "short"
    MEDIUM = "medium"
    LONG = "long"

    __hash__ = str.__hash__

    @classmethod
    def of(cls, output_tokens: float) -> SizeBucket:
        """Bucket of a length: short ≤ 64, medium ≤ 256, long above."""
        if output_tokens <= SHORT_TOKENS:
            return cls.SHORT
        return cls.MEDIUM if output_tokens <= MEDIUM_TOKENS else cls.LONG


class Rung(StrEnum):
    """Source of a forecast, best first; the wire's `fallback_level`."""

    TENANT_NEIGHBORS = "tenant_neighbors"
    GLOBAL_NEIGHBORS = "global_neighbors"
    MODEL_ONLY = "model_only"
    HEURISTIC = "heuristic"


class Outcome(StrEnum):
    """End of a job: exactly one each, and the metric label."""

    OK = "ok"
    CLIENT_ERROR = "client_error"  # the provider answered 4xx other than 429
    UPSTREAM_ERROR = "upstream_error"  # provider errors, after retries, or cut mid-stream
    UPSTREAM_TIMEOUT = "upstream_timeout"
    RATE_LIMITED = "rate_limited"  # the provider's 429, after retries
    CANCELLED = "cancelled"  # the client left
    STALLED = "stalled"  # the client stayed but took nothing for write_timeout_s
    REJECTED = "rejected"  # refused before entering a queue
    EVICTED = "evicted"  # removed from a queue: waited too long, deadline, no account left
    SHUTDOWN = "shutdown"  # ended by the gateway's own stop
    FAILED = "failed"  # a fault of the gateway itself

    __hash__ = str.__hash__


class Mode(StrEnum):
    """Label of a pool's saturation, with hysteresis."""

    FREE = "free"
    MODERATE = "moderate"
    CONGESTED = "congested"

    __hash__ = str.__hash__


class Verdict(StrEnum):
    """Result of one attempt on an account, with which its lease is returned."""

    SUCCESS = "success"
    IGNORED = "ignored"  # client left, 4xx: says nothing about load
    RATE_LIMITED = "rate_limited"  # 429 except exhausted quota
    OVERLOADED = "overloaded"  # 503 and its like
    TIMEOUT = "timeout"  # no first byte, or no next byte, in time
    SERVER_ERROR = "server_error"  # 5xx, a broken answer, a stream cut short
    UNREACHABLE = "unreachable"  # no connection
    DEAD_KEY = "dead_key"  # 401, 402, 403, exhausted quota: the account is out

    __hash__ = str.__hash__


class Reason(StrEnum):
    """Reason for which a job waits: exactly one each, and a metric label."""

    OVERLOAD = "overload"
    TENANT_CAP = "tenant_cap"
    CLASS_BUDGET = "class_budget"
    TIER_CAP = "tier_cap"
    WINDOW = "window"  # as many as its accounts serve well: the knee
    ACCOUNT_LIMIT = "account_limit"  # AIMD ceilings full
    ACCOUNT_BACKOFF = "account_backoff"  # Retry-After running
    PACER = "pacer"  # RPM or TPM
    HEALTH = "health"  # no account in health

    __hash__ = str.__hash__


class Workload(Struct, frozen=True, gc=False):
    """The forecast of one request, per choice (`n` is the job's)."""

    prompt_tokens: int
    p50: float
    p90: float
    grid: tuple[float, ...]  # output tokens at QUANTILE_LEVELS, non-decreasing
    p_short: float  # P(output ≤ 64)
    cost_p50: float  # cost units: prompt tokens + output ratio × p50
    cost_p90: float
    risk: float  # [0, 1]
    confidence: float  # [0, 1]
    rung: Rung
    cost_usd_p50: float | None = None
    cost_usd_p90: float | None = None

    @property
    def size_bucket(self) -> SizeBucket:
        """Bucket of the median."""
        return SizeBucket.of(self.p50)

    @property
    def job_class(self) -> JobClass:
        """Interactive where P(output ≤ 64) ≥ 0.3, which protects true shorts; else heavy."""
        return JobClass.INTERACTIVE if self.p_short >= INTERACTIVE_P_SHORT else JobClass.HEAVY

    def quantile(self, level: float) -> float:
        """Output tokens at `level`, linear between the grid's levels, flat outside."""
        levels, grid = QUANTILE_LEVELS, self.grid
        above = bisect_left(levels, level)
        if above == 0:
            return grid[0]
        if above == len(levels):
            return grid[-1]
        below = above - 1
        t = (level - levels[below]) / (levels[above] - levels[below])
        return grid[below] + t * (grid[above] - grid[below])


class Job(Struct, frozen=True, gc=False):
    """One request as the scheduler sees it."""

    id: str
    tenant: str
    model: str  # the client's name for it
    pool: str
    accounts: tuple[str, ...]  # that may serve it, in config order
    workload: Workload
    arrived_s: float
    n: int = 1
    max_tokens: int | None = None
    class_override: JobClass | None = None
    deadline_s: float | None = None  # absolute; waiting beyond it is pointless
    deadline_first_byte: bool = False  # it bounds the first byte, not the whole answer
    client_retries: int = 0  # X-Stainless-Retry-Count: the client's own retries so far
    generates: bool = True  # makes tokens that were forecast; else relayed alone

    @property
    def job_class(self) -> JobClass:
        """Class by override, else by forecast."""
        return self.class_override or self.workload.job_class


class Usage(Struct, frozen=True, gc=False):
    """Tokens as the provider counted them, or as the relay counted events (`estimated`)."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    audio_prompt_tokens: int = 0
    audio_output_tokens: int = 0


class RateLimits(Struct, frozen=True, gc=False):
    """Rate limits in a provider's headers: per minute, left, seconds until all is there again.
    None where a header is absent."""

    limit_requests: int | None = None
    remaining_requests: int | None = None
    reset_requests_s: float | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    reset_tokens_s: float | None = None


class Fit(Struct, frozen=True, gc=False):
    """Permission to start now, on this account."""

    account: str


class Blocked(Struct, frozen=True, gc=False):
    """A refusal, for one reason. `until_s`: the time that ends it; None: time alone does not."""

    reason: Reason
    until_s: float | None = None


class JobRecord(Struct, frozen=True, gc=False, omit_defaults=False):
    """The end of one request, for listeners: metrics, journal, log, learning.

    Holds no prompt, key or answer text.
    """

    id: str
    wall_s: float  # when it ended, Unix time
    route: str  # "/v1/chat/completions", "/submit", …; "other" where it is not known
    tenant: str
    model: str  # the client's name; "other" where it is not configured
    outcome: Outcome
    status: int  # sent to the client, 499 where it left first
    stream: bool = False
    account: str | None = None
    attempts: int = 0
    job_class: JobClass | None = None
    first: Workload | None = None  # stage 0
    workload: Workload | None = None  # the last forecast
    usage: Usage | None = None
    reserve_tokens: float = 0.0
    queue_s: float = 0.0
    ttft_s: float | None = None  # arrival at the gateway → first upstream byte
    upstream_s: float | None = None  # last dispatch → upstream end
    total_s: float = 0.0
    finish_reason: str | None = None
    error_code: str | None = None
    bytes_out: int = 0
    n: int = 1  # choices asked for: `usage` counts all of them, `workload` one
    generates: bool = True  # as the job's
    cost_usd: float | None = None  # of `usage`, all choices; None: no usage, or no price


class Listener:
    """Receiver of each job's life, called by the engine; all methods do nothing.

    A subclass overrides those it needs. Methods are called on the loop and must be quick;
    one that raises is counted, and the job goes on (gateway/engine/listeners.py).
    """

    def submitted(self, job: Job) -> None:
        """A job was handed to the scheduler."""

    def dispatched(self, job: Job, account: str, queue_s: float, attempt: int) -> None:
        """An attempt on `account` begins, the first `queue_s` seconds after arrival."""

    def reforecast(self, job: Job, workload: Workload) -> None:
        """A better forecast has come; `job.workload` is the first one."""

    def retried(self, job: Job, account: str, verdict: Verdict) -> None:
        """An attempt on `account` failed with `verdict`; another may follow."""

    def refused(self, job: Job, outcome: Outcome, code: str | None) -> None:
        """The scheduler ended the job without an answer; `code` is the error's."""

    def ended(self, record: JobRecord) -> None:
        """A request is over, whether it became a job or not."""

    def alarm(self, event: str, reason: str) -> None:
        """A fault of the gateway itself: `rebuilt` (the scheduler), `listener_failed`."""


class LifeEvent(Struct, frozen=True, gc=False, omit_defaults=True):
    """One line of the events journal (`GET /events`)."""

    wall_s: float
    event: str  # submitted, reforecast, dispatched, retried, finished, refused, reloaded, …
    job: str | None = None
    pool: str | None = None
    detail: dict[str, str | float | int | None] = {}


class HistoryRow(Struct, frozen=True, gc=False):
    """Example of one answered request, to learn from: a vector, a keyed hash and numbers; the
    prompt's text only with `predict.keep_text`."""

    wall_s: float
    tenant: str
    model: str
    task_type: str
    prompt_key: bytes  # keyed hash (BLAKE2b) of the normalised prompt view, 16 bytes
    encoder: str  # id of the encoder that made the vector; "" where there is none
    vector: bytes  # unit vector, little-endian float16, or b""
    prompt_tokens: int
    output_tokens: int
    max_tokens: int  # 0: not given
    censored: bool  # the answer was cut at output_tokens: its natural length is longer
    success: bool
    template: str = ""  # keyed hash of system prompt and tools; "" without either
    features: bytes = b""  # the cheap features, little-endian float16, as the forecast saw them
    neighbours: bytes = b""  # the neighbours' features, likewise
    shared: bool = True  # other tenants' forecasts may rest on it
    text: str = ""  # the last user text, cut; only with predict.keep_text


class ObservedRow(Struct, frozen=True, gc=False):
    """One request under `schedule.mode = "observe"`: its forecast, what it took, and the
    scheduler's would-be decision. No text, no key of the prompt."""

    arrived_wall_s: float
    tenant: str
    model: str
    account: str
    outcome: Outcome
    status: int
    n: int
    prompt_tokens: int
    output_tokens: int  # of all choices; 0: not counted
    first: bytes  # the forecast at arrival, a Workload as msgpack; b"": none
    last: bytes  # the last one
    queue_s: float
    ttft_s: float  # 0: no byte came
    upstream_s: float
    attempts: int
    would: str  # "start", "refuse", or the Reason it would have waited for at arrival
    would_wait_s: float  # estimated
