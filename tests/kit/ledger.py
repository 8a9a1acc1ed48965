"""A permit of the engine's ledger, as the fail-safe reads it."""

from __future__ import annotations

from msgspec import Struct

from gateway.types import Job, Workload


class Live(Struct):
    """A permit, as the engine keeps it."""

    job: Job
    workload: Workload
    account: str | None = None
    attempts: int = 0
    body_bytes: int = 0
