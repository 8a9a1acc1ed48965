"""The fastest provider there can be: one fixed answer, at once, over a bare Protocol.

A request may ask it to take its time, in the `user` member, which the gateway sends on and no
forecast reads: `pace-FIRST-GAP-WORDS` is an answer that begins after FIRST milliseconds; if it is a
stream, it has WORDS events with text, one every GAP milliseconds, and an end.

It exists so that `overhead.py` measures the gateway and not its upstream: no framework,
no JSON, no parsing beyond where a request ends and whether it asks for a stream.
Run as a process of its own; prints its port, ends on SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

WORDS = 21  # events with text; with the end, the usage and [DONE] a stream has 24
STREAM = re.compile(rb'"stream":\s?true')
COUNTED = re.compile(rb'"include_usage":\s?true')
PACE = re.compile(rb'"user":\s?"pace-([\d.]+)-([\d.]+)-(\d+)"')

_USAGE = {"prompt_tokens": 12, "completion_tokens": WORDS, "total_tokens": 12 + WORDS}
_BASE = {"id": "chatcmpl-mock", "created": 1_760_000_000, "model": "mock-model"}


def _whole() -> bytes:
    message = {"role": "assistant", "content": "A fixed answer of the mock upstream."}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    tree = {**_BASE, "object": "chat.completion", "choices": [choice], "usage": _USAGE}
    body = json.dumps(tree).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


@cache
def pieces_of(counted: bool, words: int) -> list[bytes]:
    """A stream's chunks: the head and the first word, a word each, the end."""

    def event(choices: list[Any], **more: Any) -> bytes:
        tree = {**_BASE, "object": "chat.completion.chunk", "choices": choices, **more}
        return _chunk(b"data: " + json.dumps(tree).encode() + b"\n\n")

    unused: dict[str, Any] = {"usage": None} if counted else {}
    pieces = [
        event([{"index": 0, "delta": {"content": f"word{i} "}, "finish_reason": None}], **unused)
        for i in range(words)
    ]
    end = event([{"index": 0, "delta": {}, "finish_reason": "stop"}], **unused)
    if counted:
        end += event([], usage=_USAGE)
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    return [head + pieces[0], *pieces[1:], end + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"]


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


WHOLE = _whole()
STREAMED = {counted: b"".join(pieces_of(counted, WORDS)) for counted in (False, True)}


class Mock(asyncio.Protocol):
    """Answers each complete request at once; pipelined ones, too."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            head_end = self._buffer.find(b"\r\n\r\n")
            if head_end < 0:
                return
            end = self._end(self._buffer[:head_end].lower(), head_end + 4)
            if end is None:
                return
            request, self._buffer = self._buffer[:end], self._buffer[end:]
            self._serve(request[head_end + 4 :])

    def _serve(self, body: bytes) -> None:
        pace = PACE.search(body)
        if pace is None:
            self._transport.write(self._answer(body))
            return
        first_s, gap_s, words = float(pace[1]) / 1000, float(pace[2]) / 1000, int(pace[3])
        pieces = [WHOLE]
        if STREAM.search(body) is not None:
            pieces = pieces_of(COUNTED.search(body) is not None, words)
        self._write_at(asyncio.get_running_loop().time() + first_s, gap_s, iter(pieces))

    def _write_at(self, due_s: float, gap_s: float, pieces: Iterator[bytes]) -> None:
        """Write the next piece when it is due, and so on: late ones do not shift the others."""
        piece = next(pieces, None)
        if piece is not None:
            asyncio.get_running_loop().call_at(due_s, self._write, piece, due_s, gap_s, pieces)

    def _write(self, piece: bytes, due_s: float, gap_s: float, pieces: Iterator[bytes]) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(piece)
        self._write_at(due_s + gap_s, gap_s, pieces)

    def _end(self, head: bytes, body_at: int) -> int | None:
        at = head.find(b"content-length:")
        if at >= 0:
            end = body_at + int(head[at + 15 :].split(b"\r\n", 1)[0])
            return end if len(self._buffer) >= end else None
        if b"transfer-encoding: chunked" in head:
            last = self._buffer.find(b"0\r\n\r\n", body_at)
            return last + 5 if last >= 0 else None
        return body_at

    def _answer(self, body: bytes) -> bytes:
        if STREAM.search(body) is None:
            return WHOLE
        return STREAMED[COUNTED.search(body) is not None]


async def main(protocol: Callable[[], asyncio.Protocol] = Mock) -> None:
    """Serve until SIGTERM, a `protocol` for each connection."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    server = await loop.create_server(protocol, "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await stop.wait()
    server.close()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
