"""A client that sends exactly the bytes it is given, and can misbehave on purpose."""

from __future__ import annotations

import socket
import struct
import time
from typing import Any
from urllib.parse import urlsplit

import msgspec

from tests.kit.http1 import Response, parse_response


class RawClient:
    """One connection. `receive_buffer` (bytes) makes a slow reader bite early."""

    def __init__(
        self, host: str, port: int, *, receive_buffer: int | None = None, timeout_s: float = 5.0
    ) -> None:
        self.timeout_s = timeout_s
        self.received = b""  # not yet taken by a read method
        self.ended = False  # the peer has closed its side
        self.was_reset = False  # … by RST
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if receive_buffer is not None:  # before connect, so that the window is never larger
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.settimeout(timeout_s)
        self._socket.connect((host, port))

    @classmethod
    def to(cls, url: str, **how: Any) -> RawClient:
        """Connect to the host and port of a URL."""
        parts = urlsplit(url)
        return cls(parts.hostname or "127.0.0.1", parts.port or 80, **how)

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ── say ──────────────────────────────────────────────────────────────────

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> None:
        """A whole well-formed request."""
        body = body if json is None else msgspec.json.encode(json)
        fields = {"host": "kit", **(headers or {})}
        if json is not None:
            fields.setdefault("content-type", "application/json")
        if body or method in ("POST", "PUT", "PATCH"):
            fields.setdefault("content-length", str(len(body)))
        lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items()), "", ""]
        self.send("\r\n".join(lines).encode("latin-1") + body)

    # ── hear ─────────────────────────────────────────────────────────────────

    def read_some(self, timeout_s: float | None = None) -> bytes:
        """The next bytes, b"" at the end of the stream. Raises TimeoutError."""
        taken = self.received or self._receive(self._deadline(timeout_s))
        self.received = b""
        return taken

    def read_until(self, mark: bytes, timeout_s: float | None = None) -> bytes:
        """Everything up to and with `mark`. Raises TimeoutError, EOFError at an early end."""
        deadline = self._deadline(timeout_s)
        while mark not in self.received:
            if not self._more(deadline):
                raise EOFError(f"{mark!r} did not come; got {self.received[-200:]!r}")
        taken, _, self.received = self.received.partition(mark)
        return taken + mark

    def read_response(self, timeout_s: float | None = None, *, bodiless: bool = False) -> Response:
        """One whole response. Raises TimeoutError, EOFError when it ends half-way."""
        deadline = self._deadline(timeout_s)
        while True:
            parsed = parse_response(self.received, closed=self.ended, bodiless=bodiless)
            if parsed is not None:
                response, self.received = parsed
                return response
            if not self._more(deadline):
                parsed = parse_response(self.received, closed=True, bodiless=bodiless)
                if parsed is None:
                    raise EOFError(f"half a response: {self.received[-200:]!r}")

    def read_to_end(self, timeout_s: float | None = None) -> bytes:
        """Everything until the peer closes (FIN or RST). Raises TimeoutError."""
        deadline = self._deadline(timeout_s)
        while self._more(deadline):
            pass
        taken, self.received = self.received, b""
        return taken

    # ── leave ────────────────────────────────────────────────────────────────

    def shutdown_write(self) -> None:
        """Half-close: the peer reads the end of our side and may still answer."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._socket.close()

    def reset(self) -> None:
        """Leave by RST, without a farewell."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def _deadline(self, timeout_s: float | None) -> float:
        return time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)

    def _more(self, deadline: float) -> bool:
        data = self._receive(deadline)
        self.received += data
        return bool(data)

    def _receive(self, deadline: float) -> bytes:
        if self.ended:
            return b""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"nothing within the time-out; got {self.received[-200:]!r}")
        self._socket.settimeout(left)
        try:
            data = self._socket.recv(65_536)
        except ConnectionResetError:
            data, self.was_reset = b"", True
        self.ended = not data
        return data
