"""The two parts of a request's head, and values that would add lines to it."""

from __future__ import annotations

import httpx
import pytest

from gateway.upstream.request_head import Origin, first_lines, last_lines

HOST = Origin("http", "h", 80)


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("GET", b"/a b", []),
        ("GET", b"/a\r\nx: y", []),
        ("GET /a", b"/", []),
        ("GET", b"/", [(b"x", b"1\r\ny: 2")]),
        ("GET", b"/", [(b"x\n", b"1")]),
        ("GET", b"/", [(b"x", b"1\0")]),
        ("GET", b"/", [(b"x", b"1\r")]),
    ],
)
def test_head_with_a_line_break_is_refused(
    method: str, target: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    """No value can add a header or a request, in either part."""
    with pytest.raises(ValueError, match="where none may be"):
        first_lines(HOST, method, target, headers)
    if headers:
        with pytest.raises(ValueError, match="line break"):
            last_lines(method, headers, 0)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://h/v1", b"h"),
        ("http://h:80/v1", b"h"),
        ("http://h:8080/v1", b"h:8080"),
        ("https://h/v1", b"h"),
        ("https://h:8443/", b"h:8443"),
        ("http://[::1]:9/", b"[::1]:9"),
        ("http://b\u00fccher.example/", b"xn--bcher-kva.example"),
    ],
)
def test_host_header_is_the_origins(url: str, host: bytes) -> None:
    """The port stands where it is not the scheme's own; IPv6 in brackets; names as IDNA."""
    head = first_lines(Origin.of(httpx.URL(url)), "GET", b"/", [])
    assert head == b"GET / HTTP/1.1\r\nhost: " + host + b"\r\n"


@pytest.mark.parametrize(
    ("method", "length", "lines"),
    [
        ("GET", 0, b"x: 1\r\n\r\n"),
        ("DELETE", 7, b"x: 1\r\ncontent-length: 7\r\n\r\n"),
        ("POST", 0, b"x: 1\r\ncontent-length: 0\r\n\r\n"),
    ],
)
def test_length_stands_where_there_is_a_body(method: str, length: int, lines: bytes) -> None:
    """A method that has a body says how long it is even where it is empty."""
    assert last_lines(method, [(b"x", b"1")], length) == lines
