"""`sagesched serve`: the life of one gateway process; and `sagesched check`.

start    settings, log, socket, store; then on the loop the demo provider, the gateway, signals
serve    until SIGTERM or SIGINT; SIGHUP reloads the settings
drain    new requests get 503, what waits and runs finishes; a second signal ends all at once
stop     the HTTP server, the gateway, the demo provider, the store, in this order
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from gateway import __version__
from gateway.api.protocol import protocol_for
from gateway.app import Gateway, fresh_core, targets
from gateway.demo.child import DEMO_KEYS, DemoChild, first_steps
from gateway.engine.failsafe import Build
from gateway.errors import SettingsError
from gateway.observe.logs import Logs
from gateway.settings import load
from gateway.settings.live import LiveSettings
from gateway.settings.schema import Settings
from gateway.store.store import Store

logger = logging.getLogger("gateway")
ADMIN_ENV = "SAGESCHED_ADMIN_TOKEN"
SWITCH_S = 0.0005  # so soon the store's thread hands the interpreter back


def serve(args: argparse.Namespace, core: Build = fresh_core) -> int:
    """Run a gateway until a signal ends it; the exit code. `core` makes its scheduler."""
    path = Path(args.config)
    loaded = load.read_settings(path)
    settings = loaded.settings
    made_token = _fill_demo_secrets(settings)
    logs = Logs(settings.observe, load.secrets(settings).values())
    logs.configure()
    _warn_of_ignored(loaded)
    try:
        listener = _bind(settings)
    except OSError as error:
        where = f"{settings.server.host}:{settings.server.port}"
        print(f"sagesched: cannot listen on {where}: {error.strerror}", file=sys.stderr)
        return 1
    store = Store(Path(settings.store.path), settings.store)
    store.start()
    sys.setswitchinterval(SWITCH_S)
    process = ServingProcess(LiveSettings(path, settings=settings), store, logs, core)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(process.run(listener, made_token))
    finally:
        store.stop(1.0)
        logs.flush()


class ServingProcess:
    """The part of the process's life on the event loop: `run`, and its reaction to signals."""

    gateway: Gateway
    server: HttpServer

    def __init__(self, live: LiveSettings, store: Store, logs: Logs, core: Build) -> None:
        self.live = live
        self.store = store
        self.logs = logs
        self.core = core
        self.demo: DemoChild | None = None
        self._draining: asyncio.Task[None] | None = None

    async def run(self, listener: socket.socket, made_token: bool) -> int:
        """Start, serve until a signal, stop; the exit code."""
        self.demo = await _start_demo(self.live)
        try:
            self.gateway = Gateway(self.live, self.store, self.logs, core=self.core)
            self.server = _http_server(self.gateway)
            self.gateway.start()
            _freeze_startup_objects()
            self._handle_signals()
            serving = asyncio.ensure_future(self.server.serve(sockets=[listener]))
            listener.listen(2048)
            self._announce(listener, made_token)
            try:
                await serving
            finally:
                await self.gateway.stop()
            logger.info("stopped")
            return 0
        finally:
            if self.demo is not None:
                await self.demo.stop()

    def _announce(self, listener: socket.socket, made_token: bool) -> None:
        host, port = listener.getsockname()[:2]
        logger.info("listening", extra={"host": host, "port": port, "version": __version__})
        if self.demo is not None:
            token = os.environ[ADMIN_ENV] if made_token else None
            print(first_steps(port, ADMIN_ENV, token), file=sys.stderr, flush=True)

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number)
        loop.add_signal_handler(signal.SIGHUP, self.gateway.reload)

    def _end(self, number: int) -> None:
        """Drain at the first signal, end at once at the second."""
        if self._draining is None:
            logger.info("draining", extra={"signal": signal.Signals(number).name})
            self._draining = asyncio.ensure_future(self._drain())
            return
        logger.warning("ended at once by a second signal")
        if self.demo is not None:
            self.demo.kill()
        self.store.stop(1.0)
        os._exit(128 + number)

    async def _drain(self) -> None:
        try:
            await self.gateway.drain()
        except Exception:
            logger.exception("the drain failed; the process ends all the same")
        self.server.should_exit = True


class HttpServer(uvicorn.Server):
    """uvicorn's server without its signal handlers: a drain comes before its shutdown."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _http_server(gateway: Gateway) -> HttpServer:
    return HttpServer(
        uvicorn.Config(
            gateway.serve,  # what our protocol calls; uvicorn itself never does
            interface="asgi3",
            http=protocol_for(gateway.connections),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            date_header=False,
            timeout_graceful_shutdown=2,
        )
    )


def _freeze_startup_objects() -> None:
    """Keep the collector from walking what was made at start-up and lives as long as the
    process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _bind(settings: Settings) -> socket.socket:
    host = settings.server.host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, settings.server.port))
    listener.setblocking(False)
    return listener


def _warn_of_ignored(loaded: load.Loaded) -> None:
    for name, reason in load.IGNORED_ENVIRONMENT.items():
        if os.environ.get(name):
            logger.warning("%s is set and ignored: %s", name, reason)
    for sentence in loaded.ignored:
        logger.warning(sentence)


def _fill_demo_secrets(settings: Settings) -> bool:
    """Make the secrets that are missing where the demo provider is on, since nobody has keys for
    it. True when the admin token is one of them."""
    if not settings.demo.enabled:
        return False
    for name in DEMO_KEYS:
        os.environ[name] = os.environ.get(name) or "demo-" + secrets.token_urlsafe(24)
    if settings.admin.token == f"env:{ADMIN_ENV}" and not os.environ.get(ADMIN_ENV):
        os.environ[ADMIN_ENV] = secrets.token_urlsafe(24)
        return True
    return False


async def _start_demo(live: LiveSettings) -> DemoChild | None:
    demo = live.current.demo
    if not demo.enabled:
        return None
    child = DemoChild(live.path)
    try:
        await child.start()
    except RuntimeError as error:
        raise SettingsError(f"{error}: is the port {demo.port} ([demo] port) taken?") from None
    return child


def check(args: argparse.Namespace) -> int:
    """Validate the settings and resolve their secrets without starting; the exit code."""
    loaded = load.read_settings(Path(args.config))
    settings = loaded.settings
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
