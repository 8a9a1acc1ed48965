"""A request before it is a job: its name, and the record of one that never becomes one."""

from __future__ import annotations

import random
import secrets
import time

from gateway.api.routing import route_label
from gateway.types import JobRecord, Outcome

_ids = random.Random(secrets.randbits(256))


def new_id() -> str:
    """A name, not a secret: what it names is readable by its tenant alone."""
    return f"req_{_ids.getrandbits(96):024x}"


class Early:
    """What is known of a request so far, in words that may be a metric's label."""

    __slots__ = ("arrived_s", "id", "model", "route", "tenant")

    def __init__(self, path: str, arrived_s: float) -> None:
        """`path` is canonical, `arrived_s` of the engine's clock."""
        self.id = new_id()
        self.arrived_s = arrived_s
        self.route = route_label(path)
        self.tenant = "other"
        self.model = "other"

    def record(self, status: int, outcome: Outcome, code: str | None, now: float) -> JobRecord:
        """Its end, as the engine's listeners are told of every request's."""
        return JobRecord(
            id=self.id,
            wall_s=time.time(),
            route=self.route,
            tenant=self.tenant,
            model=self.model,
            outcome=outcome,
            status=status,
            error_code=code,
            total_s=now - self.arrived_s,
        )
