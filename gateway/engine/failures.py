"""Failed attempts that the relay itself finds, and what a client is told of any of them."""

from __future__ import annotations

from gateway.errors import GatewayError, UpstreamFailed, UpstreamRefused, UpstreamTimeout
from gateway.types import Outcome, Verdict
from gateway.upstream.providers import Failure

REMOVED = Failure(
    Verdict.IGNORED, Outcome.UPSTREAM_ERROR, True, 503, "no_account", "the account was removed"
)
REDIRECT = Failure(
    Verdict.IGNORED,
    Outcome.UPSTREAM_ERROR,
    False,
    502,
    "upstream_redirect",
    "the provider answered with a redirect, which is not followed",
)
CUT = Failure(
    Verdict.SERVER_ERROR,
    Outcome.UPSTREAM_ERROR,
    True,
    502,
    "upstream_broken",
    "the provider's stream ended before its end",
)


def error_of(failure: Failure) -> GatewayError:
    """A refusal in the provider's own words, where it had any."""
    if failure.body is not None:
        return UpstreamRefused(failure.status, failure.body, retry_after_s=failure.retry_after_s)
    kind = UpstreamTimeout if failure.status == 504 else UpstreamFailed
    message = failure.message[:1].upper() + failure.message[1:] + "."
    return kind(message, code=failure.code, retry_after_s=failure.retry_after_s)
