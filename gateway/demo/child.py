"""The demo provider as a child process of the gateway, and the first commands to try with it.

The child reads the gateway's own settings file. Its standard input is a pipe from the gateway:
when that closes, the child ends, so it does not outlive a gateway that was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
import sys
from pathlib import Path

from gateway import __version__
from gateway.shipped import own_command, own_environ

logger = logging.getLogger("gateway.demo")
DEMO_KEYS = ("DEMO_API_KEY", "DEMO_API_KEY_B")
"""Environment variables whose values the child accepts as API keys."""
START_S = 20.0
STOP_S = 3.0


class DemoChild:
    """One process of the demo provider, with the `[demo]` table of `config`."""

    def __init__(self, config: Path) -> None:
        self._config = config
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Spawns the process and waits for its first line. Raises RuntimeError."""
        command = own_command("demo-provider", "--config", str(self._config))
        self._process = await asyncio.create_subprocess_exec(
            *(*command, "--keys", ",".join(DEMO_KEYS), "--end-with-stdin"),
            env=own_environ(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C is the gateway's to pass on
        )
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(START_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            line = b""
        if not line:
            await self.stop()
            raise RuntimeError("the demo provider did not start")
        self._reader = asyncio.ensure_future(self._read(self._process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while await process.stdout.readline():
            pass
        code = await process.wait()
        logger.warning("the demo provider ended with code %s", code)

    async def stop(self) -> None:
        """Asks the process to end and kills it after `STOP_S`."""
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
        """Kills the process; synchronous."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()


def first_steps(port: int, admin_name: str, admin_token: str | None) -> str:
    """Commands to try against a gateway on `port`, for a terminal.

    Args:
        admin_name: the environment variable of the admin token.
        admin_token: its value where it was made for this run; None where the operator has it.
    """
    url = f"http://127.0.0.1:{port}"
    frozen = getattr(sys, "frozen", False)
    script = Path(sys.executable).with_name("sagesched")
    module = f"{shlex.quote(sys.executable)} -m gateway"
    me = "sagesched" if frozen else shlex.quote(str(script)) if script.exists() else module
    at = "" if port == 3000 else f" --url {url}"
    lines = [
        "",
        f"SageSched Gateway {__version__} on {url}/v1, two accounts on the built-in demo provider.",
    ]
    if admin_token is not None:
        lines += [
            "The admin token made for this run:",
            f"  export {admin_name}={admin_token}",
        ]
    lines += [
        "Try, in another terminal:",
        f'  {me} ask{at} "Hello!"',
        f'  {me} ask{at} --stream "Write a short story about a lighthouse"',
        f'  {me} predict{at} "Write a short story about a lighthouse"',
        f"  {me} get{at} /metrics",
        f"  {me} get{at} /stats",
        f"Any OpenAI client works: base_url={url}/v1, any API key. Ctrl-C ends it.",
        "",
    ]
    return "\n".join(lines)
