"""The framing of one response: its head, and its body as it goes on the wire. Pure: bytes out.

1. The head is held until the first bytes of the body, to be written with them. Where these are
   all of the body its length is known, and no chunk framing is needed.
2. A body of unknown length is chunked for HTTP/1.1 and ends with the connection for HTTP/1.0.
3. 204 and 304 have neither body nor length; an answer to HEAD has the length alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

NAMES_KEPT: Final = 1000
_CONTROL = bytes([*range(9), *range(10, 32), 127])  # what no header value may hold
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BODILESS = frozenset({204, 304})
_OURS = frozenset({b"content-length: ", b"transfer-encoding: ", b"connection: "})

_prefixes: dict[bytes, bytes] = {}  # header name → "name: ", of names that were checked
_status_lines = {
    status.value: b"HTTP/1.1 %d %s" % (status, status.phrase.encode()) for status in HTTPStatus
}


class ResponseFraming:
    """See the head of this file.

    `keep_alive`: the connection serves on after this response; False closes it.
    """

    __slots__ = ("_bodiless", "_chunked", "_head", "_head_only", "_left", "_old", "_status",
                 "keep_alive")  # fmt: skip

    def __init__(self, method: str, version: str, *, keep_alive: bool) -> None:
        """`method` and `version` are the request's."""
        self.keep_alive = keep_alive
        self._head_only = method == "HEAD"
        self._old = version == "1.0"
        self._status = 0
        self._head = b""  # so far; until it is taken
        self._left: int | None = None  # bytes of the announced length that are still to come
        self._bodiless = False
        self._chunked = False

    @property
    def held(self) -> bool:
        """True where nothing was taken of the response yet."""
        return not self._status or bool(self._head)

    @property
    def until_end(self) -> bool:
        """True where nothing but the connection's end tells the client that the body is whole."""
        return not (self._bodiless or self._chunked) and self._left is None

    def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Take status and headers. A header whose value holds control characters is left out.
        Raises RuntimeError for a name that is none."""
        lines = [_status_lines.get(status) or b"HTTP/1.1 %d " % status]
        for name, value in headers:
            prefix = _prefixes.get(name) or _checked(name)
            if prefix in _OURS:
                self._note(prefix, value)
            else:
                lines.append(prefix + value)
        self._head, self._status = _joined(lines), status
        self._bodiless = self._head_only or status in _BODILESS

    def framed(self, chunk: bytes, *, last: bool) -> bytes:
        """A chunk of the body as it is written, after the head where that is still held. Raises
        RuntimeError for a body that is shorter or longer than its content-length."""
        head = self._take_head(len(chunk) if last else None) if self._head else b""
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

    def _note(self, prefix: bytes, value: bytes) -> None:
        """Take from a header of the framing what it says of the response."""
        if prefix == b"content-length: ":
            self._left = int(value)
        elif prefix == b"connection: " and b"close" in value.lower():
            self.keep_alive = False

    def _take_head(self, length: int | None) -> bytes:
        """The head, which settles the framing. `length` is the body's where that is known."""
        head, self._head = self._head, b""
        if self._left is None and (length or not self._bodiless):
            self._left = length
        if self._status in _BODILESS:
            pass
        elif self._left is not None:
            head += b"\r\ncontent-length: %d" % self._left
        elif self._bodiless:
            pass
        elif self._old:
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
