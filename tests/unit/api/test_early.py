"""The record of a request that never became a job."""

from __future__ import annotations

from gateway.api.early import Early
from gateway.types import Outcome


def test_early_record_tells_what_was_known() -> None:
    """Nothing that a client wrote becomes a label before it was recognised."""
    early = Early("/chat/completions", arrived_s=10.0)
    early.tenant = "t"
    record = early.record(400, Outcome.CLIENT_ERROR, "bad", now=10.5)
    assert (record.id, record.route, record.tenant) == (early.id, "/v1/chat/completions", "t")
    assert (record.model, record.total_s, record.error_code) == ("other", 0.5, "bad")
    assert Early("/whatever", 0.0).route == "other"


def test_early_names_differ() -> None:
    """Each request has its own."""
    names = {Early("", 0.0).id for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith("req_") and len(name) == 28 for name in names)
