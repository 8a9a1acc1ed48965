"""A provider's answer that is no event stream.

JSON is held until it is whole, up to a bound, so that a provider that breaks off can still be
replaced; what is longer, and all that is no JSON, passes through.
"""

from __future__ import annotations

import msgspec

from gateway.engine.attempt import is_json, refused_late
from gateway.engine.passage import Passage
from gateway.engine.reply import Reply
from gateway.types import Outcome, Verdict
from gateway.upstream.usage import answer_usage, tail_usage

USAGE_TAIL_BYTES = 4096  # of an answer too long to be read whole


async def relay_whole(passage: Passage, reply: Reply, max_held_bytes: int) -> None:
    """To its end, settled. Raises AttemptError, whether the client has had something or not."""
    trip, answer = passage.trip, passage.answer
    with passage:
        limit = max_held_bytes if is_json(answer) else 0
        body, ended = await _held(passage, limit)
        if ended:
            if limit:
                _check_refusal(passage, body)
                trip.usage, trip.finish_reason = answer_usage(body)
            trip.settle(Outcome.OK, Verdict.SUCCESS)
            await reply.start(answer, str(len(body)).encode())
            await reply.last(body)
            return
        await reply.start(answer, answer.header(b"content-length"))
        tail = b""
        while body:
            await passage.write(body)
            tail = (tail + body)[-USAGE_TAIL_BYTES:]
            body = await passage.read()
        if limit:
            trip.usage = tail_usage(tail)
        trip.settle(Outcome.OK, Verdict.SUCCESS)
        await reply.last(b"")


async def _held(passage: Passage, limit: int) -> tuple[bytes, bool]:
    """The body's first bytes, more than `limit` of them unless it ended before; whether it did."""
    parts: list[bytes] = []
    size = 0
    ended = False
    while not ended and size <= limit:
        chunk = await passage.read()
        passage.trip.first_byte()
        ended = not chunk
        parts.append(chunk)
        size += len(chunk)
    return b"".join(parts), ended


def _check_refusal(passage: Passage, body: bytes) -> None:
    """A 200 whose body is an error: read it as the refusal it is."""
    if body.lstrip()[:9] != b'{"error":':
        return
    try:
        error = msgspec.json.decode(body)["error"]
    except (msgspec.MsgspecError, KeyError, RecursionError):
        return
    if error:
        said = error if isinstance(error, dict) else {}
        raise refused_late(passage.answer, said, body, passage.target)
