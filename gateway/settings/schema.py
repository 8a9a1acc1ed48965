"""Every setting with its default and its check: gateway.toml as frozen, strict structs. Pure.

Unknown keys are errors, ranges are in the types, rules over several fields are in
`__post_init__`. Only `decode` and `convert` validate (msgspec constructors do not), so only
`build` in load.py makes settings.

Keys under "Advanced" have no value that an operator could choose by looking at the provider or
the load: they are there for simulations and benches, which compare values.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta, Struct

from gateway.types import JobClass

# \Z, not $, in every pattern: $ lets a line break at the end pass, and names go into headers.
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Tokens = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Bytes = Annotated[int, Meta(ge=1024, le=64 * 2**30)]

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_SECRET = re.compile(r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:[^\x00-\x1f]+)\Z")
_KEY_HASH = re.compile(r"^sha256:[0-9a-f]{64}\Z")
_MODEL_NAME = re.compile(r"^[^\s\x00-\x1f\x7f]{1,200}\Z")
_HOST = re.compile(r"^[A-Za-z0-9._-]+\Z")
_PLACE = re.compile(r"^(\[[^][]+\]|[^][]*)(:[0-9]*)?\Z")  # urlsplit may let "[::1]x" pass
_URL = re.compile(r"^[\x21-\x7e]+\Z")


class Section(Struct, frozen=True, forbid_unknown_fields=True):
    """One table of gateway.toml."""


class Server(Section, frozen=True):
    """The listening side. `host` and `port` need a restart; the rest is live."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 3000
    max_body_bytes: Bytes = 32 * 2**20  # one request body
    body_memory_bytes: Bytes = 256 * 2**20  # all request bodies held at once
    stream_buffer_bytes: Bytes = 2**20  # between provider and one client
    buffer_memory_bytes: Bytes = 256 * 2**20  # all such buffers
    body_timeout_s: Seconds = 60.0  # for a request body to arrive
    write_timeout_s: Seconds = 60.0  # a client that takes nothing for so long is cut off
    keepalive_s: Seconds = 75.0
    drain_timeout_s: Seconds = 60.0
    max_connections: Count = 10_000


class Admin(Section, frozen=True):
    """The operator's routes."""

    token: str = "env:SAGESCHED_ADMIN_TOKEN"  # or file:PATH

    def __post_init__(self) -> None:
        if not _SECRET.match(self.token):
            raise ValueError("token: expected env:NAME or file:PATH, not the token itself")


def _check_base_url(text: str) -> None:
    try:
        url = urlsplit(text)
        host, port = url.hostname or "", url.port
        if not _PLACE.match(url.netloc):
            raise ValueError
        if not _HOST.match(host) or re.fullmatch(r"[0-9.]+", host):
            ip_address(host)  # an IPv6 address, or one that looks like IPv4
    except ValueError:
        raise ValueError("base_url: expected a host name or address and a port") from None
    if url.scheme not in ("http", "https") or not _URL.match(text) or port == 0:
        raise ValueError("base_url: expected http://… or https://…")
    if "@" in url.netloc or "?" in text or "#" in text:
        raise ValueError("base_url: expected no credentials, query or fragment")


class Account(Section, frozen=True, kw_only=True):
    """One set of credentials at one provider."""

    name: Name
    provider: Literal["openai-compatible", "openai"] = "openai-compatible"
    base_url: str
    api_key: str
    models: list[str] | dict[str, str]  # names, or client name → upstream name
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    initial_concurrency: Count = 16
    max_concurrency: Count = 256
    rpm: Annotated[int, Meta(ge=0)] = 0  # requests a minute, 0 = unknown
    tpm: Annotated[int, Meta(ge=0)] = 0  # tokens a minute, 0 = unknown
    connect_timeout_s: Seconds = 10.0
    first_byte_timeout_s: Seconds = 600.0
    idle_timeout_s: Seconds = 300.0
    stream_usage: bool = True  # understands stream_options.include_usage
    max_tokens_field: Literal["as_sent", "max_tokens", "max_completion_tokens"] = "as_sent"

    def __post_init__(self) -> None:
        _check_base_url(self.base_url)
        if not _SECRET.match(self.api_key):
            raise ValueError("api_key: expected env:NAME or file:PATH, not the key itself")
        if not self.models:
            raise ValueError("models: expected at least one")
        for name in [*self.model_map, *self.model_map.values()]:
            if not _MODEL_NAME.match(name):
                raise ValueError(f"models: {name[:40]!r} is not a model name")
        if self.initial_concurrency > self.max_concurrency:
            raise ValueError("initial_concurrency: expected at most max_concurrency")

    @property
    def model_map(self) -> dict[str, str]:
        """Client name → upstream name."""
        if isinstance(self.models, dict):
            return self.models
        return {name: name for name in self.models}


class Tenant(Section, frozen=True, kw_only=True):
    """Clients that share keys, limits and a part of the queue."""

    name: Name
    keys: list[str] = []
    anonymous: bool = False  # any key or none; only on a loopback bind
    models: list[str] = []  # empty: all
    job_class: JobClass | None = None  # overrides the forecast's
    max_inflight: Annotated[int, Meta(ge=0)] = 0  # 0: no cap
    max_queued: Annotated[int, Meta(ge=0)] = 0  # 0: the pool's bound alone
    share_history: bool = True  # other tenants' forecasts may rest on its answers
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0  # share among tenants of one class
    max_queued_tokens: Annotated[int, Meta(ge=0)] = 0  # by forecast; 0: no bound of its own
    deadline_s: Annotated[float, Meta(ge=0, le=86_400)] = 0.0  # of its requests; 0: their class's
    stateful: bool | None = None  # relay /v1 routes whose objects live at the provider

    def __post_init__(self) -> None:
        for key in self.keys:
            if not _KEY_HASH.match(key):
                raise ValueError("keys: expected sha256:<64 hex digits> (sagesched key makes one)")
        if not self.keys and not self.anonymous:
            raise ValueError("keys: expected at least one, or anonymous = true")


class TierCaps(Section, frozen=True):
    """Most concurrent jobs of one size bucket in a pool; 0: no cap."""

    short: Annotated[int, Meta(ge=0)] = 0
    medium: Annotated[int, Meta(ge=0)] = 0
    long: Annotated[int, Meta(ge=0)] = 0


class Schedule(Section, frozen=True):
    """Order, budgets and bounds of waiting jobs."""

    mode: Literal["schedule", "observe"] = "schedule"  # observe: relay at once, note what would be
    bypass: bool = False  # relay at once, decide and note nothing
    policy: Literal["adaptive", "dual_budget"] = "adaptive"  # dual_budget: fixed budgets, hard caps
    ordering: Literal["boost", "gittins", "sjf", "fcfs", "slowdown"] = "boost"
    interactive_inflight_tokens: Tokens = 3000  # adaptive: only the ratio of these two counts
    heavy_inflight_tokens: Tokens = 7000
    borrow: bool | None = None  # an idle share serves the others; None: not in dual_budget
    tier_caps: TierCaps = TierCaps()
    max_queue_items: Count = 2000  # per pool
    max_queue_bytes: Bytes = 128 * 2**20  # request bodies waiting, per pool
    max_queue_tokens: Annotated[int, Meta(ge=0)] = 0  # waiting by forecast, per pool; 0: no bound
    interactive_deadline_s: Annotated[float, Meta(ge=0, le=86_400)] = 0.0  # 0: none
    heavy_deadline_s: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    background_deadline_s: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    interactive_weight: Annotated[float, Meta(gt=0, le=1000)] = 4.0  # shares of the round-robin
    heavy_weight: Annotated[float, Meta(gt=0, le=1000)] = 4.0
    shed: bool = True  # defer, then reject, under overload
    max_wait_s: Seconds = 600.0
    # Jobs of one class and tenant that come later than this do not overtake a waiting one.
    max_overtake_s: Annotated[float, Meta(ge=0, le=3600)] = 120.0
    # Advanced.
    reserve_quantile: Annotated[float, Meta(ge=0.05, le=0.95)] = 0.5  # of the forecast length
    background_weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    defer_above: Annotated[float, Meta(gt=0, le=100)] = 1.0  # severity
    reject_above: Annotated[float, Meta(gt=0, le=100)] = 5.0  # of the backlog alone
    clear_s: Seconds = 60.0  # a backlog that clears within this is no overload

    def __post_init__(self) -> None:
        if self.defer_above >= self.reject_above:
            raise ValueError("reject_above: expected more than defer_above")


class Balance(Section, frozen=True):
    """Learned limits of accounts, and their rests after refusals."""

    # auto: found at the knee; off: the ceiling alone; watch: both are learned, neither limits.
    window: Literal["auto", "off", "watch"] = "auto"
    default_backoff_s: Seconds = 2.0  # a 429 without Retry-After
    max_backoff_s: Seconds = 300.0
    eject_after: Count = 5  # consecutive failures
    eject_s: Seconds = 30.0  # × the number of ejections, at most max_eject_s
    max_eject_s: Seconds = 300.0
    dead_key_s: Seconds = 300.0  # a refused key is tried again after
    # Advanced.
    min_window: Count = 2  # requests in flight that a window always allows
    express_ratio: Annotated[float, Meta(ge=0, le=1)] = 0.25  # slots above the window, for shorts
    min_limit: Count = 1  # requests in flight that an account always may have
    cut_ratio: Annotated[float, Meta(gt=0, lt=1)] = 0.75  # of the limit, after a refusal


class Retry(Section, frozen=True):
    """Further attempts before the first byte."""

    attempts: Annotated[int, Meta(ge=1, le=10)] = 3  # in all, the first included
    # Advanced.
    budget_ratio: Annotated[float, Meta(ge=0, le=1)] = 0.2  # of the jobs in flight
    budget_min: Annotated[int, Meta(ge=0, le=1000)] = 3  # retries at once, at least


class Predict(Section, frozen=True):
    """Forecasts of length and cost, and what they learn from."""

    enabled: bool = True
    embedding_model_name: str = "minilm-l6-length-1"
    top_k_neighbors: Annotated[int, Meta(ge=1, le=64)] = 5
    similarity_threshold: Annotated[float, Meta(ge=-1, le=1)] = 0.8
    history_window_size: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    predict_wait_s: Annotated[float, Meta(gt=0, le=5)] = 0.25  # POST /predict
    cost_output_ratio: Annotated[float, Meta(gt=0, le=1000)] = 4.0  # in prompt tokens
    keep_text: bool = False  # store the last user text, cut, with each history row
    refit_every_s: Annotated[float, Meta(ge=0, le=30 * 86_400)] = 21_600.0  # 0: never
    models_path: str = "var/models"  # refitted models, exported encoders; needs a restart
    # Advanced.
    cpu_share: Annotated[float, Meta(ge=0.01, le=1)] = 0.15  # of a core, to learn while serving
    max_chars: Annotated[int, Meta(ge=64, le=100_000)] = 2000  # read of a prompt
    max_encoder_tokens: Annotated[int, Meta(ge=8, le=512)] = 64  # changed, stored rows match less
    queue_items: Count = 256  # forecasts waiting
    learn_items: Count = 2048  # results waiting
    refit_min_rows: Annotated[int, Meta(ge=100, le=1_000_000)] = 500  # of history, for a refit
    refit_rows: Annotated[int, Meta(ge=100, le=1_000_000)] = 20_000  # the newest, fitted on


class Store(Section, frozen=True):
    """The SQLite file: history, submitted jobs, learned state."""

    path: str = "var/sagesched.db"
    job_ttl_s: Annotated[float, Meta(gt=0, le=30 * 86_400)] = 86_400.0
    history_rows: Count = 100_000  # kept on disk
    history_max_age_s: Annotated[float, Meta(ge=0, le=3650 * 86_400)] = 0.0  # 0: any age
    observed_rows: Count = 100_000  # of mode = "observe", kept on disk
    # Advanced.
    queue_items: Count = 10_000  # rows waiting to be written


class Observe(Section, frozen=True):
    """Log and journal."""

    events: Annotated[int, Meta(ge=10, le=100_000)] = 1000  # journal length
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    access_log: bool = True


class Demo(Section, frozen=True):
    """The built-in demo provider, started along with the gateway when enabled."""

    enabled: bool = False
    host: Literal["127.0.0.1", "::1", "localhost"] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 4010
    base_latency_s: Annotated[float, Meta(ge=0, le=60)] = 0.15
    token_latency_s: Annotated[float, Meta(ge=0, le=10)] = 0.01
    congestion_knee: Annotated[int, Meta(ge=1)] = 16  # streams served at full speed
    congestion_exponent: Annotated[float, Meta(ge=0, le=4)] = 1.0
    noise: Annotated[float, Meta(ge=0, le=2)] = 0.1  # log-normal sigma of latencies
    rpm: Annotated[int, Meta(ge=0)] = 0  # per key, 0 = no limit
    max_concurrency: Annotated[int, Meta(ge=0)] = 0  # per key, 0 = no limit
    error_rate: Annotated[float, Meta(ge=0, le=1)] = 0.0
    seed: int = 0


class Settings(Section, frozen=True, kw_only=True):
    """All of gateway.toml."""

    server: Server = Server()
    admin: Admin = Admin()
    accounts: list[Account]
    tenants: list[Tenant]
    schedule: Schedule = Schedule()
    balance: Balance = Balance()
    retry: Retry = Retry()
    predict: Predict = Predict()
    store: Store = Store()
    observe: Observe = Observe()
    demo: Demo = Demo()

    @property
    def private_tenants(self) -> frozenset[str]:
        """Tenants whose answers other tenants' forecasts must not rest on."""
        return frozenset(t.name for t in self.tenants if not t.share_history)

    def __post_init__(self) -> None:
        if not self.accounts:
            raise ValueError("accounts: expected at least one")
        if not self.tenants:
            raise ValueError("tenants: expected at least one")
        for what, names in (
            ("accounts", [a.name for a in self.accounts]),
            ("tenants", [t.name for t in self.tenants]),
        ):
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ValueError(f"{what}: the name {min(twice)!r} stands twice")
        keys = [key for t in self.tenants for key in t.keys]
        if len(set(keys)) != len(keys):
            raise ValueError("tenants: one key belongs to two tenants")
        anonymous = [t.name for t in self.tenants if t.anonymous]
        if len(anonymous) > 1:
            raise ValueError("tenants: only one may be anonymous")
        if anonymous and self.server.host not in LOOPBACK:
            raise ValueError(
                "tenants: anonymous = true is accepted only when server.host is a loopback address"
            )
        models = {model for a in self.accounts for model in a.model_map}
        for t in self.tenants:
            for model in t.models:
                if model not in models:
                    raise ValueError(f"tenants: {t.name} names the model {model!r} of no account")
