"""The composition root: settings become objects, objects serve requests.

The only file that may import every room. A `Gateway` is built on the running loop, started
once and stopped once. A reload first builds all that can fail, then swaps.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from litestar import Litestar

from gateway.api.admin import AdminRoutes
from gateway.api.auth import AdminToken, Tenants
from gateway.api.client_connections import ClientConnections
from gateway.api.control import ForecastRoutes
from gateway.api.jobs import SubmittedJobs
from gateway.api.plane import DataPlane
from gateway.api.problems import problem_response, write_problem
from gateway.api.request_cycle import RequestCycle
from gateway.api.routing import RoutingTable
from gateway.balance.accounts import Accounts
from gateway.balance.saved_state import SavedState
from gateway.engine.engine import Engine
from gateway.engine.failsafe import Build
from gateway.engine.forecast_trust import ForecastTrust
from gateway.engine.relay import Relay
from gateway.engine.shadow import Shadow
from gateway.errors import SettingsError
from gateway.observe.journal import Journal
from gateway.observe.logs import Logs
from gateway.observe.metrics import LabelNames, Metrics
from gateway.observe.spend import Spend
from gateway.predict.prices import Price, load_prices
from gateway.predict.process.child_client import start_child
from gateway.predict.process.predictor import Predictor
from gateway.predict.process.teach_rule import lesson_of
from gateway.predict.prompt_view import PromptView
from gateway.predict.refit.due import Refits
from gateway.schedule import events
from gateway.schedule.routes import routes
from gateway.schedule.scheduler import Scheduler
from gateway.settings import load
from gateway.settings.effective import effective
from gateway.settings.live import Apply, LiveSettings
from gateway.settings.load import Secrets
from gateway.settings.schema import Settings
from gateway.shipped import own_command, own_environ, shipped
from gateway.snapshots import ProcessSnapshot, Snapshots
from gateway.store.store import Store
from gateway.types import HistoryRow, Job, JobRecord
from gateway.upstream.connection_pool import ConnectionPool
from gateway.upstream.http_client import UpstreamClient
from gateway.upstream.providers import Target, target

logger = logging.getLogger("gateway.app")
LAG_PERIOD_S = 0.1
SWEEP_PERIOD_S = 60.0
SAVE_PERIOD_S = 30.0
LAST_WORDS_S = 2.0


def targets(settings: Settings, secrets: Secrets) -> dict[str, Target]:
    """Every account with its key."""
    return {
        account.name: target(account, secrets.accounts[account.name])
        for account in settings.accounts
    }


def fresh_core(settings: Settings, old: Scheduler | None) -> Scheduler:
    """A scheduler with its accounts. `old` is one that failed: the limits and windows its accounts
    have learned are taken over where they can still be read."""
    accounts = Accounts(settings.accounts, settings.balance)
    if old is not None and isinstance(old.accounts, Accounts):
        try:
            accounts.restore(old.accounts.to_save(), 0.0)
            accounts.inherit(old.accounts)
        except Exception:
            logger.exception("what the accounts had learned is lost")
    fresh = Scheduler(settings, accounts, Random())
    if old is not None:
        fresh.trust = old.trust
    return fresh


class Repeated:
    """A call made every `period_s` seconds on the running loop. A call that raises is logged and
    does not end the series."""

    def __init__(self, period_s: float, call: Callable[[], None]) -> None:
        self._period_s = period_s
        self._call = call
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Make the first call now."""
        try:
            self._call()
        except Exception:
            logger.exception("%s failed", self._call.__name__)
        self._timer = asyncio.get_running_loop().call_later(self._period_s, self.start)

    def cancel(self) -> None:
        """End the series."""
        if self._timer is not None:
            self._timer.cancel()


class Gateway:
    """All objects of one gateway. To be built on the running loop."""

    def __init__(
        self,
        live: LiveSettings,
        store: Store,
        logs: Logs,
        environ: Mapping[str, str] = os.environ,
        core: Build = fresh_core,
    ) -> None:
        settings = live.current
        prices = _prices()
        self.live = live
        self.store = store
        self.logs = logs
        self._environ = environ
        self._secrets = load.secrets(settings, environ)
        self._admin_token = AdminToken(self._secrets.admin)
        self.predictor = self._new_predictor(settings, prices)
        self.connections = ClientConnections(settings.server)
        self.journal = Journal(settings.observe.events, logs.masked)
        self.metrics = Metrics(self._snapshots, LabelNames.of(settings))
        self.spend = Spend()
        self._core = core
        self.engine = self._new_engine(settings)
        self.client = UpstreamClient(ConnectionPool())
        self.relay = self._new_relay(settings, prices)
        self.plane = DataPlane(_routing_table(settings), self.engine, self.relay, self.predictor)
        self.plane.learn = self._learn
        self.jobs = SubmittedJobs(
            *(self.plane, self.engine, store), lambda: self.live.current.store.job_ttl_s
        )
        self._trust = ForecastTrust(self._recalibrated)
        self._shadow: Shadow | None = None
        self._listen(settings)
        self._control_plane = self._litestar()
        self._repeated = (
            Repeated(LAG_PERIOD_S, self._measure_lag),
            Repeated(SWEEP_PERIOD_S, self._sweep),
            Repeated(SAVE_PERIOD_S, self._save_accounts),
        )
        live.on_change(self._prepare)

    def _new_predictor(self, settings: Settings, prices: Mapping[str, Price]) -> Predictor:
        store, config = self.store, str(self.live.path)
        return Predictor(
            settings.predict,
            shipped("models"),
            history=self._history,
            prices=prices,
            key=store.prompt_secret(),
            private=settings.private_tenants,
            state=store.get_state("calibration"),
            keep=lambda state: store.put_state("calibration", state),
            store=store.path,
            written=store.history_written,
            refits=Refits(
                Path(settings.predict.models_path), own_command("refit", "--config", config)
            ),
            connect=partial(start_child, own_command("predictor"), own_environ(self._environ)),
        )

    def _new_engine(self, settings: Settings) -> Engine:
        core = self._core(effective(settings), None)
        self._restore_accounts(core)
        engine = Engine(core, self._core)
        self.logs.follow(engine.listeners.flush)
        return engine

    def _new_relay(self, settings: Settings, prices: Mapping[str, Price]) -> Relay:
        return Relay(
            self.engine,
            self.client,
            targets(settings, self._secrets),
            settings.server,
            write_problem,
            predictor=self.predictor,
            prices=prices,
        )

    # -- life --------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the predictor, resume submitted jobs, start the timers."""
        self.predictor.start()
        tenants = {tenant.name: tenant for tenant in self.live.current.tenants}
        self.jobs.resume(self.store.load_unfinished(), tenants)
        self._lag_due_s = self.engine.clock()
        for repeated in self._repeated:
            repeated.start()

    async def drain(self) -> None:
        """Refuse new requests and let the others finish; after the time-out end them."""
        self.jobs.drain()
        running = self.relay.open
        self.journal.draining(running, self.engine.jobs - running)
        self.engine.drain()
        timeout_s = self.live.current.server.drain_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await self.engine.idle()
                await self.relay.idle()
        except TimeoutError:
            logger.warning("%d requests still ran after %g s", self.relay.open, timeout_s)
            self.relay.end_all()
            try:
                async with asyncio.timeout(LAST_WORDS_S):
                    await self.relay.idle()
            except TimeoutError:  # clients that do not even take the error event
                self.relay.abort_all()
                await self.relay.idle()

    async def stop(self) -> None:
        """Stop everything else once the HTTP server has ended: jobs, predictor, store,
        connections."""
        await self.jobs.stop()
        for repeated in self._repeated:
            repeated.cancel()
        self._save_accounts()
        if self._shadow is not None:
            self._shadow.close()
        self.engine.close()
        await self.predictor.stop(5.0)
        await asyncio.to_thread(self.store.stop, 10.0)
        await self.client.aclose()

    def reload(self) -> None:
        """Reload the settings (SIGHUP) and log the result. An invalid file changes nothing."""
        try:
            result = self.live.reload()
        except SettingsError as error:
            logger.error("settings not reloaded: %s", error.message)
            self.journal.reloaded(self.live.state.generation, error.message)
            return
        except Exception:
            logger.exception("settings not reloaded: a fault of the gateway")
            self.journal.reloaded(self.live.state.generation, "internal error")
            return
        self.journal.reloaded(self.live.state.generation, changed=result.changed)
        message = "settings reloaded" if result.changed else "settings unchanged"
        logger.info(message, extra={"generation": self.live.state.generation})
        if not result.changed:
            self._retry_refused_keys()
        for sentence in result.ignored:
            logger.warning(sentence)
        for key in result.needs_restart:
            logger.warning("%s changed: it needs a restart", key)

    def _retry_refused_keys(self) -> None:
        """Have accounts whose key was refused tried at once: a reload of equal settings may mean
        that the key was mended at the provider."""
        if any(account.state == "dead_key" for account in self.engine.snapshot().accounts):
            current = effective(self.live.current)
            self.engine.feed(events.SettingsChanged(settings=current))

    # -- what changes with the settings --------------------------------------------------------

    def _prepare(self, settings: Settings) -> Apply | None:
        """Build what new settings change. None where they and their secrets are in force."""
        before, secrets = self.live.current, load.secrets(settings, self._environ)
        if settings == before and secrets == self._secrets:
            return None
        new_targets = targets(settings, secrets)
        routing = _routing_table(settings)

        def apply() -> None:
            self.engine.listeners.flush()  # what has ended, by the settings it ended under
            self._secrets = secrets
            self._admin_token = AdminToken(secrets.admin)
            self.relay.targets = new_targets
            self.relay.server = self.connections.server = settings.server
            self.plane.routing = routing
            self.metrics.rename(LabelNames.of(settings))
            self.journal.resize(settings.observe.events)
            self.logs.apply(settings.observe, secrets.values())
            self.store.apply(settings.store)
            self.predictor.reconfigure(settings.predict, settings.private_tenants)
            # For a new secret alone, too: an account whose key was refused is tried with it.
            self.engine.feed(events.SettingsChanged(settings=effective(settings)))
            if settings != before:
                self._listen(settings)

        return apply

    def _restore_accounts(self, core: Scheduler) -> None:
        """Give the accounts the limits and windows that the last process stored."""
        saved = self.store.get_state("accounts")
        if saved is None or not isinstance(core.accounts, Accounts):
            return
        try:
            wall_s, state = msgspec.msgpack.decode(saved, type=tuple[float, SavedState])
            count = core.accounts.restore(state, time.time() - wall_s)
        except Exception as error:  # another version's, or damaged: learned again from zero
            logger.warning("what the accounts had learned cannot be read: %s", error)
            return
        logger.info("limits and windows restored", extra={"accounts": count})

    def _save_accounts(self) -> None:
        """Store the limits and windows the accounts have learned, for the next process."""
        accounts = self.engine.core.accounts
        if not isinstance(accounts, Accounts):
            return
        try:
            saved = msgspec.msgpack.encode((time.time(), accounts.to_save()))
            self.store.put_state("accounts", saved)
        except Exception:
            logger.exception("what the accounts have learned was not kept")

    def _listen(self, settings: Settings) -> None:
        """Set the engine's listeners, with a fresh shadow where the mode is "observe"."""
        if self._shadow is not None:
            self._shadow.close()
        observing = settings.schedule.mode == "observe" and not settings.schedule.bypass
        self._shadow = (
            Shadow(
                settings,
                lambda given: self._core(given, None),
                lambda: self.engine.snapshot().accounts,
                self.engine.clock,
                self.store.append_observed,
            )
            if observing
            else None
        )
        shadows = (self._shadow,) if self._shadow is not None else ()
        if self._shadow is not None:
            self._shadow.recalibrated(self._trust.value)
        # At once: what the next request goes by (trust, shadow) or its client may ask (jobs), and
        # the journal, which costs no more than putting it off.
        self.engine.listeners.replace(
            (self.journal, self.jobs, self._trust, *shadows),
            batched=(self.metrics.ended, self.spend.ended, self.logs.ended),
        )

    def _recalibrated(self, trust: float) -> None:
        self.engine.feed(events.Recalibrated(trust))
        if self._shadow is not None:
            self._shadow.recalibrated(trust)

    # -- learning ------------------------------------------------------------------------------

    def _history(self, encoder: str) -> Iterator[list[HistoryRow]]:
        """Pages of history for the index, no more rows than it holds."""
        return self.store.history_pages(self.live.current.predict.history_window_size, encoder)

    def _learn(self, view: PromptView, job: Job, record: JobRecord) -> None:
        """Learn the answer and have its row stored, some time later: a row lost by a crash or a
        full disk is in the running index and in no later one."""
        lesson = lesson_of(view, record)
        if lesson is not None:
            self.predictor.learn(lesson)

    # -- for people ----------------------------------------------------------------------------

    def _snapshots(self) -> Snapshots:
        reload = self.live.state
        return Snapshots(
            scheduler=self.engine.snapshot(),
            predictor=self.predictor.snapshot(),
            store=self.store.snapshot(),
            process=ProcessSnapshot(
                config_generation=reload.generation,
                config_reload_ok=reload.ok,
                config_reload_wall_s=reload.success_wall_s,
                body_bytes=self.plane.memory.held,
                buffer_bytes=self.connections.held(),
                open_streams=self.relay.open,
                connections=len(self.connections),
                journal_dropped=self.journal.dropped,
                log_lines_lost=self.logs.lost,
                listener_faults=self.engine.listeners.faults,
            ),
        )

    def _measure_lag(self) -> None:
        """Measure how late the loop runs this call, which is how late it runs everything."""
        now = self.engine.clock()
        self.metrics.lag(now - self._lag_due_s)
        self._lag_due_s = now + LAG_PERIOD_S
        if self._shadow is not None:
            self._shadow.tick()
        self.engine.listeners.flush()
        self.logs.pump()

    def _sweep(self) -> None:
        """Empty submitted jobs whose TTL is over, and start refits that are due."""
        self.store.expire_jobs(time.time())
        self.predictor.tick()

    # -- HTTP ----------------------------------------------------------------------------------

    def serve(self, client: RequestCycle) -> Awaitable[None]:
        """Serve one request: the application of the HTTP server. To be awaited."""
        path = client.head.path
        if path.startswith(b"/v1/") or path == b"/v1":
            return self.plane(client)
        control_plane: Any = self._control_plane  # an ASGI application; its types are Litestar's
        answer: Awaitable[None] = control_plane(client.head.scope(), client.receive, client.send)
        return answer

    def _litestar(self) -> Litestar:
        """The control plane as an ASGI application."""
        admin = AdminRoutes(
            token=lambda: self._admin_token,
            live=self.live,
            plane=self.plane,
            engine=self.engine,
            predictor=self.predictor,
            store=self.store,
            metrics=self.metrics,
            journal=self.journal,
            spend=self.spend,
            snapshots=self._snapshots,
        )
        forecasts = ForecastRoutes(
            self.plane,
            self.predictor,
            lambda: self.live.current.predict.predict_wait_s,
        )
        return Litestar(
            route_handlers=[
                *admin.handlers(),
                *forecasts.handlers(),
                *self.jobs.handlers(),
            ],
            openapi_config=None,
            exception_handlers={Exception: problem_response},
            request_max_body_size=None,  # bounded by read_body, which follows reloads
            logging_config=None,
        )


def _routing_table(settings: Settings) -> RoutingTable:
    return RoutingTable(
        Tenants(settings), routes(settings.accounts), settings.server, settings.predict.max_chars
    )


def _prices() -> dict[str, Price]:
    """The shipped prices by model; none, with a log line, where they cannot be read."""
    try:
        return dict(load_prices(shipped("config/prices.toml")))
    except Exception as error:
        logger.error("no prices: %s", error)
        return {}
