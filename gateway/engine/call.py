"""What is asked of the relay: one request, parsed and authenticated."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from msgspec import Struct

from gateway.types import Job
from gateway.upstream.providers import Headers


class Connection(Protocol):
    """The client's connection, where the server gives access to it."""

    def abort(self) -> None: ...


class Ending(StrEnum):
    """How an event stream of a route ends when it is whole."""

    CHOICES = "choices"  # [DONE], or a finish reason for every choice
    TERMINAL = "terminal"  # a terminal event
    ANY = "any"  # not known: as the provider ends it


class Call(Struct):
    """One request to relay, parsed and authenticated."""

    job: Job
    route: str  # metric label
    method: str
    path: str  # below /v1, canonical, such as "/chat/completions"
    query: bytes
    headers: Headers  # the client's
    body: bytes
    stream: bool = False
    wants_usage: bool = True  # False: usage is asked for on our account and hidden again
    ending: Ending = Ending.ANY
    connection: Connection | None = None
    release: Callable[[], None] | None = None  # the body is not needed any more
    outgrown: Callable[[int], object] | None = None  # told of lengths past the p90: see overrun.py

    def let_go_of_body(self) -> None:
        """No further attempt will need it."""
        if self.release is not None:
            self.body = b""
            self.release()
