"""One request of a client's connection, and the response to it (`RequestCycle`).

A response is written in one of two ways, which end in the same three methods:
- an ASGI application, the control plane's, gets `scope`, `receive` and `send`;
- the data plane gets the cycle and calls `start`, `write` and `finish`, which await nothing.

The head goes out with the first bytes of the body, in one write (framing.py has the rules). A
response that cannot be finished ends with its connection, short of its end; one whose end is the
connection's is reset, or it would look whole.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from gateway.api.client_flow import ClientFlow
from gateway.api.framing import ResponseFraming
from gateway.api.problems import internal_error, problem
from gateway.api.received_head import Message, RequestHead
from gateway.errors import GatewayError, Stopping
from gateway.upstream.providers import Headers

logger = logging.getLogger("gateway.api")
Receive = Callable[[], Awaitable[Message]]

HELD_BODY_BYTES: Final = 64 * 1024  # of a request, before it is asked for
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time


class RequestCycle:
    """One request and its response.

    `disconnected`: nothing is written any more, since the client has left or was dropped.

    Args:
        flow: the connection's.
        ended: is called when the response is complete.
        keep_alive: the client may send another request on this connection.
        expects_continue: the client waits for a 100 before it sends the body.
    """

    __slots__ = (
        "_body",
        "_delivered",
        "_ended",
        "_expects_continue",
        "_flow",
        "_framing",
        "_held",
        "_on_left",
        "_received",
        "_waiter",
        "complete",
        "disconnected",
        "head",
        "started",
    )

    def __init__(
        self,
        head: RequestHead,
        flow: ClientFlow,
        ended: Callable[[], None],
        *,
        keep_alive: bool,
        expects_continue: bool,
    ) -> None:
        self.head = head
        self._flow = flow
        self._ended = ended
        self._expects_continue = expects_continue
        # The request.
        self._body: list[bytes] = []  # what has come and was not asked for yet
        self._held = 0  # bytes of it
        self._received = False  # the body has come to its last byte …
        self._delivered = False  # … and was handed to the application
        self._waiter: asyncio.Future[None] | None = None
        self.disconnected = False
        self._on_left: Callable[[], None] | None = None
        # The response.
        self.started = False
        self.complete = False
        self._framing = ResponseFraming(head.method, head.version, keep_alive=keep_alive)

    def __repr__(self) -> str:
        state = "complete" if self.complete else "started" if self.started else "open"
        return f"<RequestCycle {self.head.method} {self.head.path!r} {state}>"

    async def run(self, application: Application, tasks: set[asyncio.Task[None]]) -> None:
        """Run an application on this request, and end the response if it does not. The present
        task leaves `tasks` at the end."""
        try:
            await application(self)
            if not self.complete and not self.disconnected:
                raise RuntimeError("the application returned before its response was complete")
        except asyncio.CancelledError:  # by the server, at its end
            self._fail(Stopping())
            raise
        except Exception:
            logger.exception("request failed")
            self._fail(internal_error())
        finally:
            tasks.discard(cast(Any, asyncio.current_task()))

    # -- the connection's side -------------------------------------------------------------------

    def feed(self, part: bytes) -> None:
        """Take some of the request's body."""
        if self.complete:
            return  # the rest of a body that nobody wants
        self._body.append(part)
        self._held += len(part)
        if self._held > HELD_BODY_BYTES:
            self._flow.pause_reading()
        self._wake()

    def feed_end(self) -> None:
        """Take the end of the request's body."""
        self._received = True
        self._wake()

    def lose(self) -> None:
        """Take the end of the connection."""
        if not self.complete and not self.disconnected:
            self.disconnected = True
            left, self._on_left = self._on_left, None
            if left is not None:
                left()
        self._wake()

    def close_after(self) -> None:
        """Have the connection close once the response is complete."""
        self._framing.keep_alive = False

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- the request -----------------------------------------------------------------------------

    def whole_body(self) -> bytes | None:
        """The rest of the body where all of it has come and its end was not handed out before. None
        where it has not, or the client has left."""
        if not self._received or self._delivered or self.disconnected:
            return None
        self._delivered = True
        return self._take()

    async def receive(self) -> Message:
        """The next ASGI message of the client: of its body, then of its leaving."""
        self._ask_for_body()
        while not self.disconnected and not self.complete:
            if not self._delivered and (self._received or self._body):
                self._delivered = self._received
                more = not self._received
                return {"type": "http.request", "body": self._take(), "more_body": more}
            self._flow.resume_reading()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return {"type": "http.disconnect"}

    def _ask_for_body(self) -> None:
        """Tell a client that waits for it to send its body, unless some of it has come."""
        if not self._expects_continue or self.started or self.disconnected:
            return
        self._expects_continue = False
        if not self._body and not self._received:
            self._flow.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _take(self) -> bytes:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._held = 0
        self._flow.resume_reading()
        return body

    def when_left(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` once, when the client leaves before its answer is complete; at once where
        it has left. None: call nothing any more."""
        self._on_left = None if self.disconnected else callback
        if self.disconnected and callback is not None:
            callback()

    # -- the response ----------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        """Write an ASGI message, once the client has taken enough of those before."""
        await self._flow.drained()
        kind = message["type"]
        if kind == "http.response.start":
            self.start(message["status"], message.get("headers", ()))
        elif kind != "http.response.body":
            raise RuntimeError(f"unexpected message: {kind}")
        elif message.get("more_body", False):
            self.write(message.get("body", b""))
        else:
            self.finish(message.get("body", b""))

    def start(self, status: int, headers: Headers) -> None:
        """Set status and headers; they are written with the first bytes of the body.

        A header whose value holds control characters is left out. Raises RuntimeError for a name
        that is none, and for a second start.
        """
        if self.started:
            raise RuntimeError("the response has started already")
        self._framing.start(status, headers)
        self.started = True
        if self._expects_continue and not self._received:
            self.close_after()  # a body that was not asked for may come, or another request

    def write(self, chunk: bytes) -> bool:
        """Write some of the body, framed, straight to the client's transport.

        True: more may be written. False: the client is slow; whatever is written all the same is
        kept in memory. `await drained()` then waits until it has taken enough, or has left. For a
        client that has left nothing is written, and nobody need wait: True.
        """
        if self.complete or not self.started:
            raise RuntimeError("no response is under way")
        if self.disconnected:
            return True
        framed = self._framing.framed(chunk, last=False)
        if framed:
            self._flow.transport.write(framed)
        return not self._flow.write_paused

    def finish(self, chunk: bytes = b"") -> None:
        """Write the last bytes of the body and end the response."""
        if self.complete or not self.started:
            raise RuntimeError("no response is under way")
        if self.disconnected:
            self.complete = True
            return
        framed = self._framing.framed(chunk, last=True)
        self.complete = True
        self._body.clear()
        transport = self._flow.transport
        if framed:
            transport.write(framed)
        if not self._framing.keep_alive:
            transport.close()
        self._flow.resume_reading()
        self._wake()
        self._ended()

    def drained(self) -> Awaitable[None]:
        """Wait until more may be written, or nobody reads any more. One waits at a time."""
        return self._flow.drained()

    def abort(self) -> None:
        """Drop the connection with the bytes that the client has not taken."""
        self.disconnected = True
        self._flow.transport.abort()

    def break_off(self) -> None:
        """End the response short of its end, such that the client can tell."""
        self.disconnected = True
        transport = self._flow.transport
        if self._framing.until_end:
            sock = transport.get_extra_info("socket")
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            transport.abort()
        else:
            transport.close()

    def _fail(self, error: GatewayError) -> None:
        """End the response for an application that did not; by `error` where none has begun."""
        if self.complete or self.disconnected:
            return
        if not self._framing.held:
            self.break_off()
            return
        status, headers, body = problem(error)
        self._framing = ResponseFraming(self.head.method, self.head.version, keep_alive=False)
        self.started = False
        self.start(status, headers)
        self.finish(body)


Application = Callable[[RequestCycle], Awaitable[None]]
"""Serves one request. What it leaves unfinished `run` ends."""
