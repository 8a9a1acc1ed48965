"""Records and snapshots for the tests of metrics, journal and logs."""

from __future__ import annotations

from typing import Any

from gateway.snapshots import (
    AccountSnapshot,
    ClassSnapshot,
    LimitSnapshot,
    PoolSnapshot,
    PredictorSnapshot,
    ProcessSnapshot,
    SchedulerSnapshot,
    Snapshots,
    StoreSnapshot,
    WindowSnapshot,
)
from gateway.types import (
    Job,
    JobClass,
    JobRecord,
    Mode,
    Outcome,
    Reason,
    Rung,
    Usage,
    Verdict,
    Workload,
)


def workload(p50: float = 80.0, p90: float = 200.0, rung: Rung = Rung.MODEL_ONLY) -> Workload:
    return Workload(
        prompt_tokens=100,
        p50=p50,
        p90=p90,
        grid=(p50,) * 5 + (p90, p90),
        p_short=0.4,
        cost_p50=420.0,
        cost_p90=900.0,
        risk=0.1,
        confidence=0.5,
        rung=rung,
    )


def job(**more: Any) -> Job:
    fields: dict[str, Any] = {
        "id": "j-1",
        "tenant": "demo",
        "model": "m",
        "pool": "p",
        "accounts": ("a",),
        "workload": workload(),
        "arrived_s": 1.0,
    }
    return Job(**fields | more)


def record(**more: Any) -> JobRecord:
    """An answered request on the account `a`, all fields given."""
    fields: dict[str, Any] = {
        "id": "req-1",
        "wall_s": 1_700_000_000.25,
        "route": "/v1/chat/completions",
        "tenant": "demo",
        "model": "m",
        "outcome": Outcome.OK,
        "status": 200,
        "stream": True,
        "account": "a",
        "attempts": 1,
        "job_class": JobClass.INTERACTIVE,
        "first": workload(),
        "workload": workload(),
        "usage": Usage(
            prompt_tokens=100,
            output_tokens=90,
            cached_tokens=10,
            reasoning_tokens=5,
            audio_prompt_tokens=4,
            audio_output_tokens=2,
        ),
        "reserve_tokens": 80.0,
        "queue_s": 0.012,
        "ttft_s": 0.3,
        "upstream_s": 1.0,
        "total_s": 1.3,
        "finish_reason": "stop",
        "bytes_out": 1000,
    }
    return JobRecord(**fields | more)


def snapshots(**more: Any) -> Snapshots:
    """One pool, two classes, one account, every part on."""
    light = ClassSnapshot(
        budget_tokens=3000,
        inflight_tokens=160.0,
        borrowed_tokens=0.0,
        running=2,
        waiting=3,
        waiting_tokens=240.0,
        oldest_wait_s=1.5,
        blocked={Reason.CLASS_BUDGET: 2, Reason.PACER: 1},
    )
    idle = ClassSnapshot(7000, 0.0, 0.0, 0, 0, 0.0, 0.0, {})
    pool = PoolSnapshot(
        name="p",
        models=("m",),
        mode=Mode.MODERATE,
        saturation=0.8,
        classes={JobClass.INTERACTIVE: light, JobClass.HEAVY: idle},
        retrying=0,
        waiting_bytes=2048,
        severity=1.25,
        clear_s=75.0,
    )
    account = AccountSnapshot(
        name="a",
        limit=16.5,
        inflight=2,
        state="backoff",
        state_until_s=2.5,
        successes=40,
        drops={Verdict.RATE_LIMITED: 3},
        cuts=1,
        rpm=0,
        tpm=0,
        windows=(
            WindowSnapshot(
                model="m",
                window=16.0,
                inflight=2,
                regime="saturating",
                knee=15.0,
                base_s=0.3,
                prompt_token_s=0.0002,
                output_token_s=0.012,
                curve={"turn": 15.0, "sharp": 32.0, "steep": 1.0},
                slowdown=1.1,
            ),
        ),
        limits=(
            LimitSnapshot("m", "requests", 600, 120.0, 9.5, 1.5, True),
            LimitSnapshot("m", "tokens", 0, None, 0.0, 0.0, False),
        ),
    )
    fields: dict[str, Any] = {
        "scheduler": SchedulerSnapshot((pool,), (account,), 50, 45, {Outcome.OK: 40}, False),
        "process": ProcessSnapshot(
            config_generation=3,
            config_reload_wall_s=1_700_000_000.0,
            journal_dropped=7,
            listener_faults=5,
        ),
        "predictor": PredictorSnapshot(
            ready=True,
            state="ready",
            encoder="e",
            index_rows=12,
            forecast_queue=1,
            learn_queue=2,
            forecasts={Rung.MODEL_ONLY: 9},
            skipped_late=4,
            dropped_full=5,
            learn_lost=6,
            cache_hits=8,
            seconds=1.25,
            drifts=3,
            version=2,
            refit="kept the old models",
        ),
        "store": StoreSnapshot(
            ok=True, queue=1, committed=20, lost=2, last_commit_s=0.001, rows=18, errors=1
        ),
    }
    return Snapshots(**fields | more)
