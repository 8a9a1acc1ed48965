"""One request of the demo provider over raw ASGI: reading, answering, and noticing a disconnect."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from gateway.demo.requests import Json
from gateway.errors import BodyTooLarge, GatewayError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_BODY_BYTES = 32 * 2**20


class Client:
    """One client's request: its body, its connection, and what is sent to it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[str, str] = {
            k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]
        }
        self.started_s = time.monotonic()
        self.extra: dict[str, str] = {}  # headers of the answer
        self.begun = False
        self._receive, self._send = receive, send
        self._gone: asyncio.Task[None] | None = None

    @property
    def key(self) -> str:
        """The API key of the request; "" without one."""
        return self.headers.get("authorization", "").removeprefix("Bearer ").strip()

    async def body(self) -> bytes:
        """The whole body. Raises BodyTooLarge."""
        out = bytearray()
        while True:
            message = await self._receive()
            out += message.get("body", b"")
            if len(out) > MAX_BODY_BYTES:
                raise BodyTooLarge(f"The body is larger than {MAX_BODY_BYTES} bytes.")
            if not message.get("more_body"):
                return bytes(out)

    async def stays(self, seconds: float) -> bool:
        """Waits for `seconds`; False at once if the client has left or leaves."""
        gone = self._watch()
        await asyncio.wait({gone}, timeout=seconds)
        return not gone.done()

    async def stays_until(
        self, moment: asyncio.Future[None], timeout_s: float | None = None
    ) -> bool:
        """Waits for `moment` or `timeout_s`; False at once if the client has left or leaves."""
        gone = self._watch()
        await asyncio.wait({moment, gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return moment.done() or not gone.done()

    def _watch(self) -> asyncio.Task[None]:
        """The task that ends when the client leaves."""
        if self._gone is None:
            self._gone = asyncio.ensure_future(self._leave())
        return self._gone

    def forget(self) -> None:
        """Stops watching for a disconnect."""
        if self._gone is not None:
            self._gone.cancel()

    async def begin(self, status: int, headers: dict[str, str]) -> None:
        """Sends status and headers."""
        spent_ms = round((time.monotonic() - self.started_s) * 1000)
        fields = {
            "x-request-id": f"req_{uuid.uuid4().hex}",
            "openai-processing-ms": str(spent_ms),
            "openai-version": "2020-10-01",
            **self.extra,
            **headers,
        }
        raw = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in fields.items()]
        self.begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Sends a part of the body, the last one with `more` False."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def json(self, status: int, tree: Json, headers: dict[str, str] | None = None) -> None:
        """Sends a whole JSON answer."""
        body = msgspec.json.encode(tree)
        length = {"content-type": "application/json", "content-length": str(len(body))}
        await self.begin(status, {**length, **(headers or {})})
        await self.write(body, more=False)

    async def error(self, error: GatewayError) -> None:
        """Sends an error in OpenAI's form, with Retry-After where it has one."""
        headers = {}
        if error.retry_after_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
            headers["retry-after-ms"] = str(max(1, round(error.retry_after_s * 1000)))
        await self.json(error.status, error.wire(), headers)

    async def _leave(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
