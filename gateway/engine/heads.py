"""The headers a client is sent: the provider's, as far as they are its business, and ours."""

from __future__ import annotations

import re

from gateway.engine.engine import Permit
from gateway.upstream.client import Answer
from gateway.upstream.providers import RETURNED, Headers

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # what no header value may hold
_EVENT_HEADERS: Headers = [
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]


def answer_headers(
    answer: Answer, permit: Permit, length: bytes | None, *, stream: bool, closing: bool
) -> Headers:
    """Of a provider's answer.

    Args:
        length: of its body, None where nobody knows.
        stream: the client asked for events.
        closing: the gateway stops; the client is to come again on another connection.
    """
    headers = [(k, v) for k, v in answer.headers if k in RETURNED and not _CONTROL.search(v)]
    upstream_id = answer.header(b"x-request-id")
    if upstream_id is not None and not _CONTROL.search(upstream_id):
        headers.append((b"x-upstream-request-id", upstream_id))
    if length is not None:
        headers.append((b"content-length", length))
    elif stream:
        headers += _EVENT_HEADERS
    headers += call_headers(permit)
    if closing:
        headers.append((b"connection", b"close"))
    return headers


def call_headers(permit: Permit) -> Headers:
    """The headers that tell a client what the gateway did with its request."""
    workload = permit.workload
    headers = [
        (b"x-request-id", permit.job.id.encode()),
        (
            b"x-sagesched-class",
            (permit.job.class_override or workload.job_class).value.encode(),
        ),
        (b"x-sagesched-predicted-tokens", str(round(workload.p50)).encode()),
        (b"x-sagesched-queue-ms", str(round(permit.queue_s * 1000)).encode()),
    ]
    if permit.account is not None:
        headers.append((b"x-sagesched-account", permit.account.encode()))
    return headers
