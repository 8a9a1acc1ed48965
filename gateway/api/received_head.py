"""The head of a request as it was received (`RequestHead`)."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import httptools
from msgspec import Struct

from gateway.api.headers import Fields, fields_of
from gateway.upstream.providers import Headers

Message = dict[str, Any]
"""A message of ASGI, or a scope."""

Address = tuple[str, int]
"""Host and port."""


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


def received_head(
    method: str,
    target: bytes,
    headers: Headers,
    version: str,
    client: Address | None = None,
    server: Address | None = None,
) -> RequestHead:
    """A head of what a parser read. `target` is a path, perhaps with a query, or a URL. Raises
    httptools' HttpParserInvalidURLError."""
    if target.startswith(b"/v1/") and b"?" not in target and b"#" not in target:
        path, query = target, b""
    else:
        url = httptools.parse_url(target)
        path, query = url.path or b"/", url.query or b""
    fields = fields_of(headers)
    return RequestHead(method, path, query, headers, fields, version, client, server)
