"""Bodies of requests, read whole, in time, and within two bounds: one for each body, one for all
bodies held at once."""

from __future__ import annotations

import asyncio

from gateway.api.headers import Fields
from gateway.api.request_cycle import Receive
from gateway.errors import BodyTooLarge, RequestTimeout, Stopping, Unavailable
from gateway.settings.schema import Server


class BodyMemory:
    """Bytes of request bodies held at once, bounded."""

    def __init__(self) -> None:
        self.held = 0

    def take(self, size: int, limit: int) -> None:
        """Raises Unavailable when the bound is reached."""
        if self.held + size > limit:
            raise Unavailable(
                "Too many request bodies are held; try again shortly.",
                code="body_memory",
                retry_after_s=1.0,
            )
        self.held += size

    def give_back(self, size: int) -> None:
        """Count bytes as no longer held."""
        self.held -= size


class BodyShare:
    """One body's bytes of a BodyMemory, given back once however often it is released."""

    __slots__ = ("_memory", "_size")

    def __init__(self, memory: BodyMemory, size: int) -> None:
        self._memory = memory
        self._size = size

    def release(self) -> None:
        """Give the bytes back; after the first call nothing."""
        size, self._size = self._size, 0
        self._memory.give_back(size)


class ClientGone(Exception):
    """The client left before its request was complete."""


async def read_body(
    fields: Fields,
    receive: Receive,
    server: Server,
    memory: BodyMemory,
    whole: bytes | None = None,
) -> bytes:
    """The whole request body. The caller gives its bytes back to `memory`.

    `whole` is the body where all of it has come already: nothing is received then. Raises
    BodyTooLarge, RequestTimeout, Unavailable, Stopping, ClientGone; then nothing is held.
    """
    if whole is None:
        announced = fields.get(b"content-length", b"")
        if announced.isdigit():
            _check_size(int(announced), server)
        return await _received(receive, server, memory)
    _check_size(len(whole), server)
    memory.take(len(whole), server.body_memory_bytes)
    return whole


async def _received(receive: Receive, server: Server, memory: BodyMemory) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(server.body_timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part = message.get("body", b"")
                if part:
                    _check_size(size + len(part), server)
                    memory.take(len(part), server.body_memory_bytes)
                    size += len(part)
                    parts.append(part)
                if not message.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError:
        memory.give_back(size)
        raise RequestTimeout("The request body did not arrive in time.") from None
    except asyncio.CancelledError:  # by the server, at its end
        memory.give_back(size)
        raise Stopping from None
    except BaseException:
        memory.give_back(size)
        raise


def _check_size(size: int, server: Server) -> None:
    if size > server.max_body_bytes:
        raise BodyTooLarge(f"The request body is larger than {server.max_body_bytes} bytes.")
