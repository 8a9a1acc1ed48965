"""The head of a request as it goes on the wire.

It is made in two parts: the first lines are the same for every request to one path of an account
and can be kept, the last lines belong to one request. No value can add a line: each part is
refused where it holds more line ends than lines.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import httpx
from msgspec import Struct

PORTS: Final = {"http": 80, "https": 443}
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})


class Origin(Struct, frozen=True):
    """A server: what connections are shared for."""

    scheme: str  # "http" or "https"
    host: str  # a name or an address, IPv6 without brackets
    port: int

    @staticmethod
    def of(url: httpx.URL) -> Origin:
        """The origin of an absolute URL."""
        return Origin(url.scheme, url.raw_host.decode("ascii"), url.port or PORTS[url.scheme])


def first_lines(
    origin: Origin, method: str, target: bytes, headers: Iterable[tuple[bytes, bytes]]
) -> bytes:
    """The request line, the Host header and `headers`, each with its line end.

    `target` is path and query. Raises ValueError where a part has a line break, NUL or, in the
    request line, a space.
    """
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    if origin.port != PORTS[origin.scheme]:
        host = f"{host}:{origin.port}"
    request = b"%b %b HTTP/1.1" % (method.encode("ascii"), target)
    if request.count(b" ") != 2:
        raise ValueError("a space where none may be")
    return _joined([request, b"host: " + host.encode("ascii"), *_lines(headers)])


def last_lines(method: str, headers: Iterable[tuple[bytes, bytes]], length: int) -> bytes:
    """`headers`, the length of the body, where it has one, and the empty line that ends a head.

    Raises ValueError where a header has a line break or NUL.
    """
    lines = _lines(headers)
    if length or method in _WITH_BODY:
        lines.append(b"content-length: %d" % length)
    return _joined(lines) + b"\r\n"


def _lines(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    return [name + b": " + value for name, value in headers]


def _joined(lines: list[bytes]) -> bytes:
    lines.append(b"")
    part = b"\r\n".join(lines)
    breaks = len(lines) - 1
    if part.count(b"\n") != breaks or part.count(b"\r") != breaks or b"\0" in part:
        raise ValueError("a line break or NUL where none may be")
    return part
