"""The built-in demo provider: an OpenAI-compatible server without a model.

With it the gateway can be seen scheduling, learning and holding back within a minute, without a key
or a network. Its answers have lengths worth predicting (language.py), it slows down under load and
refuses what is too much (congestion.py), and it speaks the real wire format (requests.py reads,
answers.py writes), faults included. It is a process of its own, so it never shares the gateway's
loop.

`_generate` serves a request: a clock per stream hands out as many tokens as time and congestion
allow, wakes at most every 5 ms, and stops when the client leaves. `GET /demo/state` has the
provider's counts.
"""

from __future__ import annotations

import base64
import hashlib
import json
import signal
import socket
import struct
import sys
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from typing import Any

import uvicorn

from gateway.demo import answers, requests
from gateway.demo.asgi import Client, Receive, Scope, Send
from gateway.demo.congestion import TICK_S, Congestion, KeyLimits
from gateway.demo.requests import Choice, DemoRequest, Json
from gateway.errors import (
    GatewayError,
    MethodNotAllowed,
    ModelNotFound,
    NotFound,
    Unauthorized,
)
from gateway.settings.schema import Demo

MODELS = ("gpt-5.4-mini", "gpt-5.4", "gpt-5.4-nano", "text-embedding-3-small")
MAX_KEYS = 1000  # keys whose limits are kept, as any key is accepted where none are given
MAX_PROMPTS = 4096  # prompts whose attempts are counted
WHOLE_TICK_S = 0.05  # tick of an answer that is not streamed


class Fault(GatewayError):
    """A random fault (`error_rate`), in OpenAI's words."""

    def __init__(self, status: int) -> None:
        super().__init__(
            "The server had an error while processing your request. Sorry about that!"
            if status == 500
            else "The engine is currently overloaded, please try again later."
        )
        self.status = status
        self.code = None if status == 500 else "overloaded"


class DemoProvider:
    """The demo provider as an ASGI application."""

    def __init__(self, settings: Demo, keys: Sequence[str] | None) -> None:
        self.settings = settings
        self.congestion = Congestion(settings)
        self.served = self.left = self.refused = 0
        self._keys = frozenset(keys) if keys else None
        self._limits: OrderedDict[str, KeyLimits] = OrderedDict()
        self._attempts: OrderedDict[bytes, int] = OrderedDict()
        self._posts: dict[str, Callable[[Client], Awaitable[None]]] = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completions,
            "/v1/responses": self._responses,
            "/v1/embeddings": self._embeddings,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])  # uvicorn runs with lifespan off
        client = Client(scope, receive, send)
        try:
            await self._route(client)
        except GatewayError as error:
            self.refused += 1
            if not client.begun:
                await client.error(error)
        finally:
            client.forget()

    async def _route(self, client: Client) -> None:
        path = client.path.rstrip("/")
        if path in ("/demo/state", "/health"):
            await client.json(200, self._state())
            return
        models = path == "/v1/models" or path.startswith("/v1/models/")
        if not models and path not in self._posts:
            raise NotFound(f"Invalid URL ({client.method} {client.path})", code="unknown_url")
        if client.method != ("GET" if models else "POST"):
            raise MethodNotAllowed(f"Not allowed to {client.method} on {client.path}.")
        if self._keys is not None and client.key not in self._keys:
            raise Unauthorized("Incorrect API key provided.")
        if models:
            await self._models(client, path.removeprefix("/v1/models").removeprefix("/"))
            return
        await self._limited(client, self._posts[path])

    async def _limited(self, client: Client, serve: Callable[[Client], Awaitable[None]]) -> None:
        now = time.monotonic()
        limits = self._limits_of(client.key, now)
        with ExitStack() as inside:
            try:
                inside.enter_context(limits.request(now))
            finally:
                client.extra = limits.headers(now)
            status = self.congestion.fault()
            if status is not None:
                raise Fault(status)
            await serve(client)

    def _limits_of(self, key: str, now: float) -> KeyLimits:
        limits = self._limits.get(key)
        if limits is None:
            limits = self._limits[key] = KeyLimits(self.settings, now)
            if len(self._limits) > MAX_KEYS:
                self._limits.popitem(last=False)
        return limits

    # ── endpoints ────────────────────────────────────────────────────────────

    async def _chat(self, client: Client) -> None:
        request = requests.from_chat(requests.decode(await client.body(), requests.ChatBody))
        await self._answer(client, request, answers.Chat, "chatcmpl-")

    async def _completions(self, client: Client) -> None:
        body = requests.decode(await client.body(), requests.CompletionBody)
        await self._answer(client, requests.from_completion(body), answers.Completions, "cmpl-")

    async def _responses(self, client: Client) -> None:
        body = requests.decode(await client.body(), requests.ResponsesBody)
        request = requests.from_responses(body)
        await self._answer(client, request, answers.Responses, "resp_")

    async def _embeddings(self, client: Client) -> None:
        body = requests.decode(await client.body(), requests.EmbeddingsBody)
        inputs = requests.embedding_inputs(body)
        if not await client.stays(self.settings.base_latency_s * self.congestion.noise()):
            self.left += 1
            return
        vectors: list[Any] = [requests.embedding(text, body.dimensions) for text, _ in inputs]
        if body.encoding_format == "base64":
            vectors = [base64.b64encode(struct.pack(f"<{len(v)}f", *v)).decode() for v in vectors]
        data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
        tokens = sum(count for _, count in inputs)
        counted = {"prompt_tokens": tokens, "total_tokens": tokens}
        self.served += 1
        await client.json(
            200, {"object": "list", "data": data, "model": body.model, "usage": counted}
        )

    async def _models(self, client: Client, wanted: str) -> None:
        listed = [
            {"id": m, "object": "model", "created": 1_760_000_000, "owned_by": "sagesched-demo"}
            for m in MODELS
        ]
        if not wanted:
            await client.json(200, {"object": "list", "data": listed})
        elif wanted in MODELS:
            await client.json(200, listed[MODELS.index(wanted)])
        else:
            raise ModelNotFound(f"The model '{wanted}' does not exist.", param="model")

    def _state(self) -> Json:
        return {
            "status": "ok",
            "active": self.congestion.active,
            "served": self.served,
            "left": self.left,  # clients that left before the end of their answer
            "refused": self.refused,
        }

    # ── answering ────────────────────────────────────────────────────────────

    async def _answer(
        self,
        client: Client,
        request: DemoRequest,
        shape: Callable[[DemoRequest, Sequence[Choice], str, int], answers.AnswerWriter],
        prefix: str,
    ) -> None:
        choices = requests.choices(request, self.settings.seed, self._attempt(request))
        answer = shape(request, choices, prefix + uuid.uuid4().hex[:29], int(time.time()))
        with self.congestion.stream():
            stayed = await self._generate(client, request, choices, answer)
        if not stayed:
            self.left += 1
            return
        self.served += 1
        if request.stream:
            await client.write(answer.ending(), more=False)
        else:
            await client.json(200, answer.body())

    async def _generate(
        self,
        client: Client,
        request: DemoRequest,
        choices: Sequence[Choice],
        answer: answers.AnswerWriter,
    ) -> bool:
        """Waits for the time that the tokens take and streams them; False if the client left.

        All choices of a request grow side by side, as on a real server.
        """
        slow = self.congestion.noise()
        first_s = self.settings.base_latency_s * self.congestion.noise() / self.congestion.speed()
        if not await client.stays(first_s):
            return False
        if request.stream:
            await client.begin(200, {"content-type": "text/event-stream; charset=utf-8"})
            await client.write(answer.opening())
        total = max(len(choice.tokens) for choice in choices)
        done, due, last_s = 0, 0.0, time.monotonic()
        while done < total:
            token_s = self.settings.token_latency_s * slow / self.congestion.speed()
            if token_s > 0:
                longest = WHOLE_TICK_S if not request.stream else token_s
                pause_s = max(TICK_S, min(longest, (total - done) * token_s))
                if not await client.stays(
                    pause_s * (self.congestion.noise() if request.stream else 1)
                ):
                    return False
                now = time.monotonic()
                due, last_s = due + (now - last_s) / token_s, now
            upto = total if token_s <= 0 else min(total, int(due))
            if request.stream and upto > done:
                parts = [answer.tokens(i, c.tokens[done:upto]) for i, c in enumerate(choices)]
                await client.write(b"".join(parts))
            done = max(done, upto)
        return True

    def _attempt(self, request: DemoRequest) -> int:
        """Number of times this prompt came before; 0 if the answer has to repeat."""
        if request.repeats:
            return 0
        key = hashlib.blake2b("\x1f".join(request.prompts).encode(), digest_size=16).digest()
        attempt = self._attempts.pop(key, -1) + 1
        self._attempts[key] = attempt
        if len(self._attempts) > MAX_PROMPTS:
            self._attempts.popitem(last=False)
        return attempt


def app(settings: Demo, keys: Sequence[str] | None = None) -> DemoProvider:
    """The provider as an ASGI application. `keys`: the API keys it accepts; None: all."""
    return DemoProvider(settings, keys)


def run(settings: Demo, keys: Sequence[str] | None = None) -> None:
    """Serves until SIGTERM or SIGINT; streams that run then are cut after a second.

    Once connections are accepted, prints one JSON line with msg "listening", host and port (port 0:
    any free one).

    Raises:
        OSError: the address is taken.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((settings.host, settings.port))
    listener.listen(1024)
    host, port = listener.getsockname()[:2]
    server = uvicorn.Server(
        uvicorn.Config(
            app(settings, keys),
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=1,
        )
    )
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises it again when it has ended
        signal.signal(number, lambda *_: None)
    line = {"msg": "listening", "role": "demo-provider", "host": host, "port": port}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
    server.run(sockets=[listener])
