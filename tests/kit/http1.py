"""Just enough HTTP/1.1, by hand, to say exactly what stands on the wire.

`parse_request` reads what clients send to the scripted provider, `parse_response` what
the gateway answers to the raw client. Both are pure: bytes in, one message and the rest
out, None while it is incomplete.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec


class Malformed(ValueError):
    """The peer does not speak HTTP/1.1 as we know it."""


@dataclass(frozen=True)
class Message:
    """A request or a response; header names in lower case, in the order of the wire."""

    start: tuple[str, str, str]  # method, path, version or version, status, reason
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""

    def header(self, name: str, default: str | None = None) -> str | None:
        """The first value of a header."""
        return next((v for k, v in self.headers if k == name.lower()), default)

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Request(Message):
    @property
    def method(self) -> str:
        return self.start[0]

    @property
    def path(self) -> str:
        return self.start[1]

    def wants(self, key: str) -> Any:
        """A top-level key of a JSON body, None where there is none."""
        try:
            tree = self.json()
        except msgspec.DecodeError:
            return None
        return tree.get(key) if isinstance(tree, dict) else None


class Response(Message):
    @property
    def status(self) -> int:
        return int(self.start[1])

    def events(self) -> list[str]:
        """The `data:` payloads of a server-sent event body."""
        lines = self.body.decode().splitlines()
        return [line[5:].removeprefix(" ") for line in lines if line.startswith("data:")]


def parse_request(buffer: bytes) -> tuple[Request, bytes] | None:
    """One whole request and what follows it."""
    head = _head(buffer)
    if head is None:
        return None
    start, headers, rest = head
    body = _body(headers, rest, until_close=False, closed=False)
    if body is None:
        return None
    return Request(start, headers, body[0]), body[1]


def parse_response(
    buffer: bytes, *, closed: bool = False, bodiless: bool = False
) -> tuple[Response, bytes] | None:
    """One whole response and what follows it; `closed`: the peer has ended its side."""
    head = _head(buffer)
    if head is None:
        return None
    start, headers, rest = head
    if bodiless or start[1] in ("204", "304"):
        return Response(start, headers, b""), rest
    body = _body(headers, rest, until_close=True, closed=closed)
    if body is None:
        return None
    return Response(start, headers, body[0]), body[1]


def _head(buffer: bytes) -> tuple[tuple[str, str, str], list[tuple[str, str]], bytes] | None:
    head, found, rest = buffer.partition(b"\r\n\r\n")
    if not found:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    parts = first.split(" ", 2)
    if len(parts) < 2:
        raise Malformed(f"start line {first[:80]!r}")
    headers = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise Malformed(f"header line {line[:80]!r}")
        headers.append((name.strip().lower(), value.strip()))
    return (parts[0], parts[1], parts[2] if len(parts) > 2 else ""), headers, rest


def _body(
    headers: list[tuple[str, str]], rest: bytes, *, until_close: bool, closed: bool
) -> tuple[bytes, bytes] | None:
    fields = dict(headers)
    if "chunked" in fields.get("transfer-encoding", "").lower():
        return unchunk(rest)
    if "content-length" in fields:
        length = int(fields["content-length"])
        return (rest[:length], rest[length:]) if len(rest) >= length else None
    if not until_close:
        return b"", rest
    return (rest, b"") if closed else None


def unchunk(data: bytes) -> tuple[bytes, bytes] | None:
    """The body of a chunked message and what follows; None while the last chunk is missing."""
    body, at = bytearray(), 0
    while True:
        line = data.find(b"\r\n", at)
        if line < 0:
            return None
        try:
            size = int(data[at:line].split(b";")[0], 16)
        except ValueError:
            raise Malformed(f"chunk size {data[at:line][:20]!r}") from None
        at = line + 2
        if size == 0:
            end = data.find(b"\r\n", at)  # trailers are not used here
            return (bytes(body), data[end + 2 :]) if end >= 0 else None
        if len(data) < at + size + 2:
            return None
        body += data[at : at + size]
        at += size + 2
