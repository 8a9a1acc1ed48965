"""A provider that takes its time: so long per output token, and never longer than a cap.

    python -m tests.bench.timed_upstream --token-us 400 --cap-s 2

How many tokens an answer has stands in the request (prompts.py); the text is one word, the
usage tells the truth. It refuses nobody: how many are served at once is the account's
`max_concurrency`, and the gateway's to keep.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from functools import partial

from tests.bench.mock_upstream import Mock, main
from tests.bench.prompts import truth

PROMPT_BYTES = 4  # a token


class Timed(Mock):
    """Answers after the time its tokens take."""

    def __init__(self, token_s: float, cap_s: float) -> None:
        self._token_s, self._cap_s = token_s, cap_s

    def _serve(self, body: bytes) -> None:
        tokens, cut = truth(body)
        asyncio.get_running_loop().call_later(
            min(tokens * self._token_s, self._cap_s),
            self._transport.write,
            whole(max(1, len(body) // PROMPT_BYTES), tokens, cut=cut),
        )


def whole(prompt_tokens: int, tokens: int, *, cut: bool) -> bytes:
    """The answer, head and all."""
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens,
    }
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "Yes."},
        "finish_reason": "length" if cut else "stop",
    }
    tree = {"id": "chatcmpl-timed", "object": "chat.completion", "created": 1_760_000_000}
    body = json.dumps({**tree, "model": "timed", "choices": [choice], "usage": usage}).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


if __name__ == "__main__":
    import uvloop

    parser = argparse.ArgumentParser()
    parser.add_argument("--token-us", type=float, required=True)
    parser.add_argument("--cap-s", type=float, required=True)
    options = parser.parse_args()
    sys.exit(uvloop.run(main(partial(Timed, options.token_us / 1e6, options.cap_s))))
