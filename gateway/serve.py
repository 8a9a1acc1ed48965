"""`sagesched serve`: start, signals, drain, and what a newcomer reads."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import secrets
import shlex
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from gateway import __version__
from gateway.api.protocol import protocol_for
from gateway.app import Gateway, fresh_core, targets
from gateway.engine.failsafe import Build
from gateway.errors import SettingsError
from gateway.observe.logs import Logs
from gateway.settings import load
from gateway.settings.live import LiveSettings
from gateway.settings.schema import Settings
from gateway.shipped import own_command, own_environ
from gateway.store.store import Store

logger = logging.getLogger("gateway")
DEMO_KEYS = ("DEMO_API_KEY", "DEMO_API_KEY_B")
CHILD_STOP_S = 3.0
ADMIN_ENV = "SAGESCHED_ADMIN_TOKEN"


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: a drain comes before its shutdown."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(args: argparse.Namespace, core: Build = fresh_core) -> int:
    """Runs a gateway until a signal ends it; the exit code. `core` makes its scheduler."""
    path = Path(args.config)
    loaded = load.read_settings(path)
    settings = loaded.settings
    made_token = _fill_demo_secrets(settings)
    logs = Logs(settings.observe, load.secrets(settings).values())
    logs.configure()
    for name, why in load.IGNORED_ENVIRONMENT.items():
        if os.environ.get(name):
            logger.warning("%s is set and ignored: %s", name, why)
    for sentence in loaded.ignored:
        logger.warning(sentence)
    try:
        sock = _bind(settings)
    except OSError as error:
        where = f"{settings.server.host}:{settings.server.port}"
        print(f"sagesched: cannot listen on {where}: {error.strerror}", file=sys.stderr)
        return 1
    store = Store(Path(settings.store.path), settings.store)
    store.start()
    # So that the store's and the predictor's threads hand the interpreter back within half a
    # millisecond.
    sys.setswitchinterval(0.0005)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(
                _serve(LiveSettings(path, settings=settings), store, sock, made_token, logs, core)
            )
    finally:
        store.stop(1.0)
        logs.flush()


async def _serve(
    live: LiveSettings,
    store: Store,
    sock: socket.socket,
    made_token: bool,
    logs: Logs,
    core: Build,
) -> int:
    settings = live.current
    demo = await _start_demo(settings)
    try:
        return await _run(Gateway(live, store, logs, core=core), store, sock, made_token, demo)
    finally:
        if demo is not None:
            await demo.stop()


async def _run(
    gateway: Gateway, store: Store, sock: socket.socket, made_token: bool, demo: ChildProcess | None
) -> int:
    settings = gateway.live.current
    server = Server(
        uvicorn.Config(
            gateway.app,
            http=protocol_for(gateway.buffers),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            date_header=False,
            timeout_keep_alive=round(settings.server.keepalive_s),
            timeout_graceful_shutdown=2,
        )
    )
    gateway.start()
    # What start-up made lives as long as the process: keep the collector from walking it.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    stopping = _Stop(gateway, server, store, demo)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.signalled, number)
    loop.add_signal_handler(signal.SIGHUP, gateway.reload)
    host, port = sock.getsockname()[:2]
    serving = asyncio.ensure_future(server.serve(sockets=[sock]))
    sock.listen(2048)
    logger.info("listening", extra={"host": host, "port": port, "version": __version__})
    if settings.demo.enabled:
        print(_what_next(settings, port, made_token), file=sys.stderr, flush=True)
    try:
        await serving
    finally:
        await gateway.stop()
    logger.info("stopped")
    return 0


class ChildProcess:
    """A process that lives as long as the gateway: the demo provider.

    Its standard input is a pipe that it watches: closed, it ends, so it does not outlive a
    gateway that was killed.
    """

    def __init__(self, name: str, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._name = name
        self._command = command
        self._environ = dict(environ)
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def start(self, timeout_s: float = 20.0) -> None:
        """Spawn it and wait for its first line. Raises RuntimeError."""
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
        """Ask it to end; after `CHILD_STOP_S` end it."""
        if self._reader is not None:
            self._reader.cancel()
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(CHILD_STOP_S):
                await process.wait()
        except TimeoutError:
            self.kill()
            await process.wait()

    def kill(self) -> None:
        """End it now; synchronous."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()


class _Stop:
    """SIGTERM drains; a second one ends at once."""

    def __init__(
        self, gateway: Gateway, server: Server, store: Store, demo: ChildProcess | None
    ) -> None:
        self._gateway = gateway
        self._server = server
        self._store = store
        self._demo = demo
        self._draining: asyncio.Task[None] | None = None

    def signalled(self, number: int) -> None:
        if self._draining is None:
            logger.info("draining", extra={"signal": signal.Signals(number).name})
            self._draining = asyncio.ensure_future(self._drain())
            return
        logger.warning("ended at once by a second signal")
        if self._demo is not None:
            self._demo.kill()
        self._store.stop(1.0)
        os._exit(128 + number)

    async def _drain(self) -> None:
        await self._gateway.drain()
        self._server.should_exit = True


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _bind(settings: Settings) -> socket.socket:
    host = settings.server.host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, settings.server.port))
    sock.setblocking(False)
    return sock


def _fill_demo_secrets(settings: Settings) -> bool:
    """With the demo provider nobody has keys: make those that are missing. True when the
    admin token is one of them."""
    if not settings.demo.enabled:
        return False
    for name in DEMO_KEYS:
        os.environ[name] = os.environ.get(name) or "demo-" + secrets.token_urlsafe(24)
    if settings.admin.token == f"env:{ADMIN_ENV}" and not os.environ.get(ADMIN_ENV):
        os.environ[ADMIN_ENV] = secrets.token_urlsafe(24)
        return True
    return False


async def _start_demo(settings: Settings) -> ChildProcess | None:
    demo = settings.demo
    if not demo.enabled:
        return None
    command = [
        *own_command("demo-provider"),
        *("--host", demo.host, "--port", str(demo.port)),
        *("--base-latency", str(demo.base_latency_s)),
        *("--token-latency", str(demo.token_latency_s)),
        *("--congestion-knee", str(demo.congestion_knee)),
        *("--congestion-exponent", str(demo.congestion_exponent)),
        *("--noise", str(demo.noise)),
        *("--rpm", str(demo.rpm)),
        *("--max-concurrency", str(demo.max_concurrency)),
        *("--error-rate", str(demo.error_rate)),
        *("--seed", str(demo.seed)),
        *("--keys", ",".join(DEMO_KEYS)),
        "--end-with-stdin",
    ]
    child = ChildProcess("the demo provider", command, own_environ())
    try:
        await child.start()
    except RuntimeError as error:
        raise SettingsError(f"{error}: is the port {demo.port} ([demo] port) taken?") from None
    return child


def _what_next(settings: Settings, port: int, made_token: bool) -> str:
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
    if made_token:
        lines += [
            "The admin token made for this run:",
            f"  export {ADMIN_ENV}={os.environ[ADMIN_ENV]}",
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


def check(args: argparse.Namespace) -> int:
    loaded = load.read_settings(Path(args.config))
    settings = loaded.settings
    if settings.demo.enabled:
        _fill_demo_secrets(settings)
    targets(settings, load.secrets(settings))
    models = {m for a in settings.accounts for m in a.model_map}
    for sentence in loaded.ignored:
        print(f"{args.config}: {sentence}", file=sys.stderr)
    print(
        f"{args.config}: ok: {len(settings.accounts)} accounts, {len(models)} models, "
        f"{len(settings.tenants)} tenants"
    )
    return 0
