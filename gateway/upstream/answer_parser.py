"""The parser of the answers on one connection, and what it has read of the present one.

llhttp parses; here is what the rules of HTTP/1.1 leave to a client. 1xx answers are skipped,
trailers are dropped, a body without a length ends with the connection, unless that is reset. A
provider may send `MAX_HEAD_BYTES` without a final head, a body byte or an end, no more: that bounds
heads, 1xx answers, trailers and chunk extensions at once.
"""

from __future__ import annotations

from typing import Final

import httptools

from gateway.upstream.providers import Headers

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_HEADERS: Final = 512
PIECE_BYTES: Final = 64 * 1024  # of a body, taken at once
NO_BODY_UPGRADE: Final = 101


class InvalidAnswer(Exception):
    """The bytes are no valid answer; the message says why."""


class AnswerParser:
    """One answer after another: `begin`, then `feed` until `complete`.

    `status` is 0 before the final head. `complete`: the answer is here to its last byte.
    `reusable`: the answer allows another on its connection. `held`: bytes of the body that were
    not taken yet.
    """

    __slots__ = (
        "_chunks",
        "_head_only",
        "_parser",
        "_silent",
        "_until_end",
        "complete",
        "headers",
        "held",
        "reusable",
        "status",
    )

    def __init__(self) -> None:
        self._parser = _parser(self)
        self._chunks: list[bytes] = []
        self.held = 0
        self.begin(head_only=False)

    def begin(self, *, head_only: bool) -> None:
        """Await the answer to another request, which may be a HEAD: its answer has no body."""
        self._head_only = head_only
        self._silent = 0  # bytes since the last that brought something on
        self._until_end = False  # the body ends with the connection
        self.status = 0
        self.headers: Headers = []
        self.complete = self.reusable = False

    @property
    def untouched(self) -> bool:
        """True where nothing of an answer has come."""
        return not self.status and not self._silent

    def feed(self, data: bytes) -> None:
        """Read what has come. Raises InvalidAnswer."""
        self._silent += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise InvalidAnswer("the provider changed to another protocol") from None
        except httptools.HttpParserError as error:
            if not self.complete:
                raise InvalidAnswer(f"no valid HTTP: {error.__context__ or error}") from None
            self.reusable = False  # the answer is whole; what came after it is not
        if self._silent > MAX_HEAD_BYTES and not self.complete:
            raise InvalidAnswer("too many bytes without an answer")

    def end(self) -> None:
        """Take the connection's clean end, which may be the answer's."""
        self.reusable = False
        if self._until_end and self.status:
            self.complete = True

    def take(self) -> bytes:
        """The bytes that are held, at most `PIECE_BYTES` of them."""
        chunks = self._chunks
        piece = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        if len(piece) > PIECE_BYTES:
            chunks.append(piece[PIECE_BYTES:])
            piece = piece[:PIECE_BYTES]
        self.held -= len(piece)
        return piece

    def take_all(self) -> bytes:
        """All bytes that are held."""
        body = b"".join(self._chunks)
        self._chunks.clear()
        self.held = 0
        return body

    def close(self) -> None:
        """Parse no more; what was read stays."""
        del self._parser  # it holds the callbacks of this object: else a reference cycle

    # ---- llhttp's side

    def on_message_begin(self) -> None:
        if self.complete:
            raise ValueError("bytes after the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.status:
            return  # a trailer
        if len(self.headers) >= MAX_HEADERS:
            raise ValueError("too many headers")
        self.headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            self.headers = []
            if status == NO_BODY_UPGRADE:
                raise ValueError("an upgrade nobody asked for")
            return
        self.status = status
        self._silent = 0
        if self._head_only:
            # llhttp cannot be told that no body follows: this parser has done its work.
            self.reusable = self._parser.should_keep_alive()
            self.complete = True
            self._parser = _parser(self)
            return
        framed = status in (204, 304)
        for name, value in self.headers:
            if name == b"content-length" or (
                name == b"transfer-encoding" and value.lower().endswith(b"chunked")
            ):
                framed = True
        self._until_end = not framed

    def on_body(self, body: bytes) -> None:
        if self.complete:  # of an answer to HEAD, which has none: the rest is still to come
            self.reusable = False
            return
        self._silent = 0
        self._chunks.append(body)
        self.held += len(body)

    def on_message_complete(self) -> None:
        if not self.status or self.complete:
            return  # a 1xx answer
        self.complete = True
        self.reusable = not self._until_end and self._parser.should_keep_alive()


def _parser(answer: AnswerParser) -> httptools.HttpResponseParser:
    parser = httptools.HttpResponseParser(answer)
    # What a client must bear of servers; requests of clients are parsed strictly.
    parser.set_dangerous_leniencies(
        lenient_headers=True,
        lenient_optional_cr_before_lf=True,
        lenient_spaces_after_chunk_size=True,
    )
    return parser
