"""A child process that lives as long as the gateway: the demo provider.

The child is told to end when its standard input closes, so it does not outlive a gateway
that was killed without a chance to say so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence

logger = logging.getLogger("gateway.engine")
STOP_S = 3.0


class Child:
    """One supervised process; `start` returns once it says it is ready."""

    def __init__(self, name: str, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._name = name
        self._command = command
        self._environ = dict(environ)
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self, timeout_s: float = 20.0) -> None:
        """Spawn, and wait for the child's first line. Raises RuntimeError."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._environ,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C is the gateway's to pass on
        )
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout_s):
                line = await self._process.stdout.readline()
        except TimeoutError:
            line = b""
        if not line:
            await self.stop()
            raise RuntimeError(f"{self._name} did not start")
        self._reader = asyncio.ensure_future(self._read(self._process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while await process.stdout.readline():
            pass
        code = await process.wait()
        logger.warning("%s ended with code %s", self._name, code)

    async def stop(self) -> None:
        """Ask it to end, then end it."""
        if self._reader is not None:
            self._reader.cancel()
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            self.kill()
            await process.wait()

    def kill(self) -> None:
        """End it now; synchronous."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
