"""Routes of the operator behind the admin token, and the open ones: health, metrics, models."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Literal

from litestar import Response, get, post, route
from litestar.handlers import HTTPRouteHandler
from msgspec import Struct

from gateway import __version__
from gateway.api.auth import AdminToken
from gateway.api.control import from_thread, json_response, read_json, request_fields
from gateway.api.plane import DataPlane
from gateway.api.problems import HttpRequest, HttpResponse
from gateway.engine.engine import Engine
from gateway.errors import InvalidRequest, SettingsError
from gateway.observe.journal import Journal
from gateway.observe.metrics import Metrics
from gateway.observe.spend import Spend
from gateway.predict.process.predictor import Predictor
from gateway.settings.live import LiveSettings
from gateway.snapshots import Snapshots
from gateway.store.store import Store

logger = logging.getLogger("gateway.api")


class ResetRequest(Struct, forbid_unknown_fields=True):
    """The body of POST /reset."""

    scope: Literal["stats", "learned", "waiting", "all"]
    history: bool = False  # also empty the stored history; only with learned or all


class AdminRoutes:
    """Handlers of the operator's routes and of the open ones.

    Args:
        token: the admin token in force.
        snapshots: takes the state of every room at this moment.
    """

    def __init__(
        self,
        *,
        token: Callable[[], AdminToken],
        live: LiveSettings,
        plane: DataPlane,
        engine: Engine,
        predictor: Predictor,
        store: Store,
        metrics: Metrics,
        journal: Journal,
        spend: Spend,
        snapshots: Callable[[], Snapshots],
    ) -> None:
        self._token = token
        self._live = live
        self._plane = plane
        self._engine = engine
        self._predictor = predictor
        self._store = store
        self._metrics = metrics
        self._journal = journal
        self._spend = spend
        self._snapshots = snapshots
        self._started_s = time.monotonic()
        self._since = engine.snapshot()  # /stats counts from here; /metrics never goes back

    def _check(self, request: HttpRequest) -> None:
        self._token().check(request_fields(request))

    def handlers(self) -> list[HTTPRouteHandler]:
        """All routes, bound to this object."""
        return [*self._open(), *self._reading(), *self._acting()]

    def _open(self) -> list[HTTPRouteHandler]:
        @route(["/health", "/healthz", "/readyz"], http_method=["GET", "HEAD"])
        async def health(request: HttpRequest) -> HttpResponse:
            taken = self._snapshots()
            alive = request.scope["path"] == "/healthz"  # liveness: the loop answered
            body = health_report(taken, time.monotonic() - self._started_s)
            return json_response(body, 200 if taken.ready or alive else 503)

        @get("/metrics")
        async def metrics(request: HttpRequest) -> Response[bytes]:
            # Taken on the loop, rendered off it: a scrape takes milliseconds.
            taken = self._metrics.take()
            accept = request.headers.get("accept", "")
            body, kind = await asyncio.to_thread(self._metrics.render, accept, taken)
            return Response(body, media_type=kind)

        @get("/models")
        async def models(request: HttpRequest) -> HttpResponse:
            tenant = self._plane.routing.tenants.authenticate(request_fields(request))
            profiles = [
                {
                    "id": model,
                    "pool": route.pool,
                    "accounts": list(route.accounts),
                    **self._predictor.profile(model),
                }
                for model, route in self._plane.routing.routes.items()
                if not tenant.models or model in tenant.models
            ]
            return json_response({"models": profiles})

        return [health, metrics, models]

    def _reading(self) -> list[HTTPRouteHandler]:
        @get("/stats")
        async def stats(request: HttpRequest) -> HttpResponse:
            self._check(request)
            snapshot = self._engine.snapshot()
            return json_response(
                {
                    "pools": snapshot.pools,
                    "submitted": snapshot.submitted - self._since.submitted,
                    "dispatched": snapshot.dispatched - self._since.dispatched,
                    "ended": {
                        outcome: count - self._since.ended.get(outcome, 0)
                        for outcome, count in snapshot.ended.items()
                    },
                    "draining": snapshot.draining,
                    "cost_usd": self._spend.report(),
                    "predictor": self._predictor.snapshot(),
                    "store": self._store.snapshot(),
                    "settings": self._live.state,
                }
            )

        @get("/_stats")
        async def accounts(request: HttpRequest) -> HttpResponse:
            self._check(request)
            return json_response({"accounts": self._engine.snapshot().accounts})

        @get("/events")
        async def events(request: HttpRequest) -> HttpResponse:
            self._check(request)
            count = _number(request, "n", 100, 1, 100_000)
            since = _number(request, "since", -1, 0, 2**62)
            tail = self._journal.tail(count, None if since < 0 else since)
            return await asyncio.to_thread(lambda: json_response(tail()))

        return [stats, accounts, events]

    def _acting(self) -> list[HTTPRouteHandler]:
        @post("/tick", status_code=200)
        async def tick(request: HttpRequest) -> HttpResponse:
            self._check(request)
            return json_response({"started": self._engine.tick()})

        @post("/reset", status_code=200)
        async def reset(request: HttpRequest) -> HttpResponse:
            self._check(request)
            wanted = await read_json(request, ResetRequest, self._plane)
            return json_response(await self._reset(wanted))

        @post("/admin/config", status_code=200)
        async def config(request: HttpRequest) -> HttpResponse:
            self._check(request)
            patch = await read_json(request, dict[str, Any], self._plane)
            try:
                result = self._live.patch(patch)
            except SettingsError as error:
                logger.error("admin patch refused: %s", error.message)
                self._journal.reloaded(self._live.state.generation, error.message)
                raise InvalidRequest(error.message, code="invalid_settings") from None
            status = "applied" if result.changed else "unchanged"
            generation = self._live.state.generation
            logger.info(f"admin patch {status}", extra={"generation": generation})
            self._journal.reloaded(generation, changed=result.changed)
            return json_response(
                {
                    "status": status,
                    "generation": generation,
                    "needs_restart": result.needs_restart,
                    "ignored": result.ignored,
                    "overridden_by_environment": self._live.pinned(patch),
                }
            )

        return [tick, reset, config]

    async def _reset(self, request: ResetRequest) -> dict[str, Any]:
        scope = request.scope
        if request.history and scope not in ("learned", "all"):
            raise InvalidRequest("'history' goes with scope learned or all.", param="history")
        done: dict[str, Any] = {"scope": scope}
        if scope in ("stats", "all"):
            self._journal.clear()
            self._journal.reset(scope)
            self._since = self._engine.snapshot()
            self._spend.clear()
        if scope in ("waiting", "all"):
            done["refused"] = self._engine.drop_waiting()
        if scope in ("learned", "all"):
            self._predictor.reset_learned()
        if request.history:
            await from_thread(lambda d: self._store.clear_history(d), "The history store is busy.")
            done["history"] = "cleared"
        return done


def _number(request: HttpRequest, name: str, default: int, least: int, most: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise InvalidRequest(
            f"Invalid value for '{name}': expected {least} to {most}.",
            param=name,
            code="invalid_value",
        )
    return value


def health_report(taken: Snapshots, uptime_s: float) -> dict[str, Any]:
    """Body of `/health`: readiness and the parts it rests on."""
    predictor, store, process = taken.predictor, taken.store, taken.process
    draining = taken.scheduler.draining
    return {
        "status": "draining" if draining else "ok" if taken.ready else "no_account",
        "version": __version__,
        "uptime_s": round(uptime_s, 1),
        "accounts": {"usable": taken.usable_accounts, "all": len(taken.scheduler.accounts)},
        "predictor": "off" if predictor is None else predictor.state,
        "store": "ok" if store is None or store.ok else "failing",
        "settings": {
            "generation": process.config_generation,
            "last_reload_ok": process.config_reload_ok,
        },
    }
