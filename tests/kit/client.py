"""The server's end of one client's request, without a socket: a real `RequestCycle` on a wire."""

from __future__ import annotations

from functools import partial

from gateway.api.client_flow import ClientFlow
from gateway.api.received_head import received_head
from gateway.api.request_cycle import RequestCycle
from gateway.upstream.providers import Headers
from tests.kit.http1 import Response, parse_response
from tests.kit.wire import Wire


class WiredClient:
    """One request; `completed` counts how often its cycle said that the response is complete."""

    def __init__(
        self,
        method: str = "POST",
        version: str = "1.1",
        *,
        body: bytes | None = None,
        keep_alive: bool = True,
        path: bytes = b"/v1/chat/completions",
        headers: Headers | None = None,
    ) -> None:
        self.wire = Wire()
        self.flow = ClientFlow(self.wire)
        self._ends: list[None] = []
        self.cycle = RequestCycle(
            received_head(method, path, headers or [], version),
            self.flow,
            partial(self._ends.append, None),
            keep_alive=keep_alive,
            expects_continue=False,
        )
        if body is not None:
            self.cycle.feed(body)
            self.cycle.feed_end()

    @property
    def completed(self) -> int:
        return len(self._ends)

    def leave(self) -> None:
        """Lose the connection."""
        self.cycle.lose()
        self.flow.resume_writing()

    def response(self, *, bodiless: bool = False) -> Response:
        """The bytes written, as one whole response."""
        parsed = parse_response(self.wire.written, closed=self.wire.closed, bodiless=bodiless)
        assert parsed is not None
        assert parsed[1] == b""
        return parsed[0]
