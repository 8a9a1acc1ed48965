"""One request of a client's connection, and the response to it (`RequestCycle`).

A response is written in one of two ways, which end in the same three methods:
- an ASGI application, the control plane's, gets `scope`, `receive` and `send`;
- the data plane gets the cycle and calls `start`, `write` and `finish`, which await nothing.

Rules of the framing:
1. The head is held until the first bytes of the body, and both go out in one write. Where these
   are all of the body its length is known, and no chunk framing is needed.
2. A body of unknown length is chunked for HTTP/1.1 and ends with the connection for HTTP/1.0.
3. 204 and 304 have neither body nor length; an answer to HEAD has the length alone.
4. A response that cannot be finished ends with its connection, short of its end. One whose end
   is the connection's is reset, or it would look whole.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Any, Final, cast
from urllib.parse import unquote

from msgspec import Struct

from gateway.api.client_flow import ClientFlow
from gateway.api.headers import Fields
from gateway.api.problems import internal_error, problem
from gateway.upstream.providers import Headers

logger = logging.getLogger("gateway.api")
Message = dict[str, Any]
Address = tuple[str, int]
Receive = Callable[[], Awaitable[Message]]

HELD_BODY_BYTES: Final = 64 * 1024  # of a request, before it is asked for
NAMES_KEPT: Final = 1000
_CONTROL = bytes([*range(9), *range(10, 32), 127])  # what no header value may hold
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BODILESS = frozenset({204, 304})
_FRAMING = frozenset({b"content-length: ", b"transfer-encoding: ", b"connection: "})
_RESET = struct.pack("ii", 1, 0)

_prefixes: dict[bytes, bytes] = {}  # header name → "name: ", of names that were checked
_status_lines = {
    status.value: b"HTTP/1.1 %d %s" % (status, status.phrase.encode()) for status in HTTPStatus
}


class RequestHead(Struct):
    """The head of a request."""

    method: str
    path: bytes  # as it came, escapes kept
    query: bytes
    headers: Headers  # all of them, names in lower case
    fields: Fields  # the same by name
    version: str  # of HTTP, such as "1.1"
    client: Address | None = None  # None where the connection is no TCP's
    server: Address | None = None

    def scope(self) -> Message:
        """The head as an ASGI scope."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": self.version,
            "server": self.server,
            "client": self.client,
            "scheme": "http",
            "method": self.method,
            "root_path": "",
            "path": unquote(self.path.decode("ascii")),
            "raw_path": self.path,
            "query_string": self.query,
            "headers": self.headers,
            "state": {},
        }


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
        "_begun",
        "_bodiless",
        "_body",
        "_chunked",
        "_delivered",
        "_ended",
        "_expects_continue",
        "_flow",
        "_held",
        "_left",
        "_on_left",
        "_received",
        "_status",
        "_waiter",
        "complete",
        "disconnected",
        "head",
        "keep_alive",
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
        self.keep_alive = keep_alive
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
        self._status = 0
        self._begun = b""  # the head so far, until it is written
        self._left: int | None = None  # bytes of the announced length that are still to come
        self._chunked = False
        self._bodiless = False

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
        except asyncio.CancelledError:
            self._fail()
            raise
        except Exception:
            logger.exception("request failed")
            self._fail()
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

    def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Set status and headers; they are written with the first bytes of the body.

        A header whose value holds control characters is left out. Raises RuntimeError for a name
        that is none, and for a second start.
        """
        if self.started:
            raise RuntimeError("the response has started already")
        lines = [_status_lines.get(status) or b"HTTP/1.1 %d " % status]
        for name, value in headers:
            prefix = _prefixes.get(name) or _checked(name)
            if prefix in _FRAMING:  # which is ours
                self._note(prefix, value)
            else:
                lines.append(prefix + value)
        self._begun, self.started = _joined(lines), True
        self._status = status
        self._bodiless = status in _BODILESS or self.head.method == "HEAD"

    def _note(self, prefix: bytes, value: bytes) -> None:
        """Take from a header of the framing what it says of the response."""
        if prefix == b"content-length: ":
            self._left = int(value)
        elif prefix == b"connection: " and b"close" in value.lower():
            self.keep_alive = False

    def write(self, chunk: bytes) -> bool:
        """Write some of the body, framed, straight to the client's transport.

        True: more may be written. False: the client is slow; whatever is written all the same is
        kept in memory. `await drained()` then waits until it has taken enough, or has left;
        `when_drained(callback)` has that reported. For a client that has left nothing is
        written, and nobody need wait: True.
        """
        if self.complete or not self.started:
            raise RuntimeError("no response is under way")
        if self.disconnected:
            return True
        framed = self._framed(chunk, last=False)
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
        framed = self._framed(chunk, last=True)
        self.complete = True
        self._body.clear()
        transport = self._flow.transport
        if framed:
            transport.write(framed)
        if not self.keep_alive:
            transport.close()
        self._flow.resume_reading()
        self._wake()
        self._ended()

    def when_drained(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, when the client has taken enough or has left; to be asked for
        after a `write` that was False. One waits at a time, by this or by `drained`."""
        self._flow.on_drained = callback

    def drained(self) -> Awaitable[None]:
        """Wait until more may be written, or nobody reads any more."""
        return self._flow.drained()

    def abort(self) -> None:
        """Drop the connection with the bytes that the client has not taken."""
        self.disconnected = True
        self._flow.transport.abort()

    def break_off(self) -> None:
        """End the response short of its end, such that the client can tell."""
        self.disconnected = True
        transport = self._flow.transport
        if not (self._chunked or self._bodiless) and self._left is None:
            sock = transport.get_extra_info("socket")
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            transport.abort()
        else:
            transport.close()

    def _fail(self) -> None:
        """End the response for an application that did not."""
        if self.complete or self.disconnected:
            return
        if self.started and not self._begun:
            self.break_off()
            return
        status, headers, body = problem(internal_error())
        self.started, self._left, self.keep_alive = False, None, False
        self.start(status, headers)
        self.finish(body)

    def _framed(self, chunk: bytes, *, last: bool) -> bytes:
        """A chunk as it is written: after the head where that is still held."""
        head = self._take_head(len(chunk) if last else None) if self._begun else b""
        if self._bodiless:
            return head
        if self._chunked:
            framed = b"%b%x\r\n%b\r\n" % (head, len(chunk), chunk) if chunk else head
            return framed + b"0\r\n\r\n" if last else framed
        if self._left is not None:
            self._left -= len(chunk)
            if self._left < 0 or (last and self._left):
                raise RuntimeError("the body does not have its content-length")
        return head + chunk

    def _take_head(self, length: int | None) -> bytes:
        """The head, with the framing of the body. `length` is the body's where that is known."""
        head, self._begun = self._begun, b""
        if self._left is None and (length or not self._bodiless):
            self._left = length
        if self._status in _BODILESS:
            pass
        elif self._left is not None:
            head += b"\r\ncontent-length: %d" % self._left
        elif not self._bodiless:
            if self.head.version == "1.0":
                self.keep_alive = False
            else:
                self._chunked = True
                head += b"\r\ntransfer-encoding: chunked"
        return head + (b"\r\n\r\n" if self.keep_alive else b"\r\nconnection: close\r\n\r\n")


def _joined(lines: list[bytes]) -> bytes:
    """The lines of a head, without those that hold control characters."""
    head = b"\r\n".join(lines)
    if len(head.translate(None, _CONTROL)) + 2 * (len(lines) - 1) == len(head):
        return head
    return b"\r\n".join(line for line in lines if line.translate(None, _CONTROL) == line)


def _checked(name: bytes) -> bytes:
    """The beginning of a header's line. Raises RuntimeError for what is no name."""
    if not _TOKEN.fullmatch(name):
        raise RuntimeError(f"not a header name: {name!r}")
    prefix = name.lower() + b": "
    if len(_prefixes) < NAMES_KEPT:
        _prefixes[name] = prefix
    return prefix


Application = Callable[[RequestCycle], Awaitable[None]]
"""Serves one request. What it leaves unfinished `run` ends."""
