"""A provider that is never slower: streams of fixed pace, however many are open; the rest at once.

    python -m tests.bench.paced_upstream

A stream's first byte comes after `FIRST_S`, its events evenly from then on, its end after
`WHOLE_S`. What is no stream is answered at once, as by mock_upstream.py.
"""

from __future__ import annotations

import asyncio
import sys

from tests.bench import mock_upstream

FIRST_S = 0.05
WHOLE_S = 0.48


def _parts(answer: bytes) -> list[bytes]:
    """The pieces of a streamed answer: each event with what surrounds it; the first with the
    head, the last with the end."""
    events = answer.split(b"data: ")
    parts = [b"data: ".join(events[:2]), *(b"data: " + event for event in events[2:])]
    # An event's chunk begins with its size, which the split left at the end of the one before.
    cut = [part.rfind(b"\n", 0, len(part) - 2) + 1 for part in parts[:-1]]
    heads = [b"", *(part[at:] for part, at in zip(parts, cut, strict=False))]
    ends = [*(part[:at] for part, at in zip(parts, cut, strict=False)), parts[-1]]
    return [head + end for head, end in zip(heads, ends, strict=True)]


PLAIN = _parts(mock_upstream.STREAMED)
COUNTED = _parts(mock_upstream.STREAMED_COUNTED)


class Paced(mock_upstream.Mock):
    """Answers streams event by event."""

    def _serve(self, body: bytes) -> None:
        whole = self._answer(body)
        if whole is mock_upstream.WHOLE:
            self._transport.write(whole)
            return
        parts = COUNTED if whole is mock_upstream.STREAMED_COUNTED else PLAIN
        self._begun_s = asyncio.get_running_loop().time()
        self._send(parts, 0)

    def _send(self, parts: list[bytes], number: int) -> None:
        """Waits until part `number` is due, sends it, and goes on."""
        due_s = FIRST_S + (WHOLE_S - FIRST_S) * number / (len(parts) - 1)
        loop = asyncio.get_running_loop()
        loop.call_at(self._begun_s + due_s, self._sent, parts, number)

    def _sent(self, parts: list[bytes], number: int) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(parts[number])
        if number + 1 < len(parts):
            self._send(parts, number + 1)


if __name__ == "__main__":
    import uvloop

    sys.exit(uvloop.run(mock_upstream.main(Paced)))
