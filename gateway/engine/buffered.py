"""The relay of an answer that is no event stream (`relay_buffered`).

JSON is held until it is complete, up to a bound, so that a provider that breaks off can still be
replaced; what is longer, and all that is no JSON, passes through.
"""

from __future__ import annotations

import msgspec

from gateway.engine.attempt import TimedBody, is_json, late_refusal
from gateway.engine.response import ClientResponse
from gateway.types import Outcome, Verdict
from gateway.upstream.answer_parser import PIECE_BYTES
from gateway.upstream.usage import answer_usage, tail_usage

USAGE_TAIL_BYTES = 4096  # of an answer too long to be held, where its usage is looked for


async def relay_buffered(body: TimedBody, response: ClientResponse, max_held_bytes: int) -> None:
    """Relay to the end and settle. Raises AttemptError, before the first byte to the client or
    after it."""
    exchange, answer = body.exchange, body.answer
    with body:
        limit = max_held_bytes if is_json(answer) else 0
        held, ended = await _hold(body, limit)
        if ended:
            if limit:
                _check_refusal(body, held)
            response.start(answer, _length(body, held))
            response.last(held)
            if limit:
                exchange.usage, exchange.finish_reason = answer_usage(held)
            exchange.settle(Outcome.OK, Verdict.SUCCESS)
            return
        response.start(answer, answer.header(b"content-length"))
        chunk, tail = held, b""
        while chunk:
            if not body.write(chunk):
                await body.drained()
            tail = (tail + chunk)[-USAGE_TAIL_BYTES:]
            chunk = await body.read()
        response.last(b"")
        if limit:
            exchange.usage = tail_usage(tail)
        exchange.settle(Outcome.OK, Verdict.SUCCESS)


def _length(body: TimedBody, held: bytes) -> bytes | None:
    """The content-length of a body that is `held` whole; the provider's where it was asked for the
    head alone."""
    if body.exchange.method == "HEAD":
        return body.answer.header(b"content-length")
    return str(len(held)).encode()


async def _hold(body: TimedBody, limit: int) -> tuple[bytes, bool]:
    """The first bytes, more than `limit` of them unless the body ended before; whether it did."""
    whole = body.answer.read_whole(max(limit, PIECE_BYTES))
    if whole is not None:
        body.exchange.first_byte()
        return whole, True
    parts: list[bytes] = []
    size = 0
    ended = False
    while not ended and size <= limit:
        chunk = await body.read()
        body.exchange.first_byte()
        ended = not chunk
        parts.append(chunk)
        size += len(chunk)
    return b"".join(parts), ended


def _check_refusal(body: TimedBody, held: bytes) -> None:
    """Read a 200 whose body is an error as the refusal it is. Raises AttemptError."""
    if held.lstrip()[:9] != b'{"error":':
        return
    try:
        error = msgspec.json.decode(held)["error"]
    except (msgspec.MsgspecError, KeyError, RecursionError):
        return
    if error:
        fields = error if isinstance(error, dict) else {}
        raise late_refusal(body.answer, fields, held, body.target)
