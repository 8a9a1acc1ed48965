"""`POST /predict` and `POST /ingest`: the forecast alone, and teaching it by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from litestar import post
from litestar.handlers import HTTPRouteHandler

from gateway.api import auth
from gateway.api.jobs import messages_of
from gateway.api.plane import DataPlane
from gateway.api.schemas import IngestRequest, PredictRequest, forecast_body, positive
from gateway.api.web import AnyRequest, AnyResponse, answer, from_thread, raw_headers, read_json
from gateway.errors import InvalidRequest
from gateway.predict.process.inbox import Stored
from gateway.predict.process.predictor import Predictor
from gateway.predict.view import PromptView
from gateway.settings.schema import Tenant
from gateway.store.store import Store
from gateway.types import HistoryRow, Workload

MAX_TOKENS = 10_000_000


class _Asker:
    """Who waits for a row to be stored. Once he was told no, or left, it is not stored any more:
    a retry would make it two."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.waits = True

    def keep(self, row: HistoryRow, stored: Stored) -> bool:
        return self.waits and self._store.append_history(row, stored)


class Forecasts:
    """Handlers of /predict and /ingest."""

    def __init__(
        self,
        plane: DataPlane,
        predictor: Predictor,
        store: Store,
        wait_s: Callable[[], float],
    ) -> None:
        self._plane = plane
        self._predictor = predictor
        self._store = store
        self._wait_s = wait_s

    def handlers(self) -> list[HTTPRouteHandler]:
        @post("/predict", status_code=200)
        async def predict(request: AnyRequest) -> AnyResponse:
            tenant = self._tenant(request)
            asked = await read_json(request, PredictRequest, self._plane)
            workload = await self.best(self._view(tenant, asked))
            return answer(forecast_body(workload))

        @post("/ingest", status_code=200)
        async def ingest(request: AnyRequest) -> AnyResponse:
            tenant = self._tenant(request)
            asked = await read_json(request, IngestRequest, self._plane)
            await self._ingest(tenant, asked)
            return answer({"status": "stored"})

        return [predict, ingest]

    async def best(self, view: PromptView) -> Workload:
        """The best rung to be had within the wait; stage 0's where it takes longer."""
        first = self._predictor.forecast(view)
        loop = asyncio.get_running_loop()
        better: asyncio.Future[Workload] = loop.create_future()

        def home(workload: Workload) -> None:
            if not better.done():
                better.set_result(workload)

        def done(workload: Workload) -> None:
            loop.call_soon_threadsafe(home, workload)

        if not self._predictor.refine(view, done, lambda: not better.done()):
            return first
        try:
            async with asyncio.timeout(self._wait_s()):
                return await better
        except TimeoutError:
            return first

    async def _ingest(self, tenant: Tenant, asked: IngestRequest) -> None:
        for value, name in (
            (asked.output_tokens, "output_tokens"),
            (asked.prompt_tokens, "prompt_tokens"),
        ):
            if value is not None and not 0 <= value <= MAX_TOKENS:
                raise InvalidRequest(
                    f"Invalid value for '{name}': expected 0 to {MAX_TOKENS}, got {value}.",
                    param=name,
                    code="invalid_value",
                )
        view = self._view(
            tenant,
            PredictRequest(
                prompt=asked.prompt,
                messages=asked.messages,
                max_tokens=asked.max_tokens,
                model=asked.model,
                task_type=asked.task_type,
            ),
        )
        limit = asked.max_tokens
        # Answered once the row is stored, and learned only then: a refused one teaches nothing.
        asker = _Asker(self._store)
        try:
            await from_thread(
                lambda done: self._predictor.learn(
                    view,
                    output_tokens=asked.output_tokens,
                    prompt_tokens=asked.prompt_tokens,
                    censored=not asked.success
                    or (limit is not None and asked.output_tokens >= limit),
                    success=asked.success,
                    wall_s=time.time(),
                    done=done,
                    urgent=True,
                    keep=asker.keep,
                ),
                "The predictor takes no more results now.",
            )
        finally:
            asker.waits = False

    def _tenant(self, request: AnyRequest) -> Tenant:
        return self._plane.routing.tenants.authenticate(raw_headers(request))

    def _view(self, tenant: Tenant, asked: PredictRequest) -> PromptView:
        messages = messages_of(asked)
        positive(asked.max_tokens, "max_tokens", MAX_TOKENS)
        if asked.model is not None:
            auth.check_model(tenant, asked.model)
        return PromptView.of_chat(
            messages,
            tenant=tenant.name,
            model=asked.model or self._plane.routing.default_model(tenant),
            max_tokens=asked.max_tokens,
            task_type=asked.task_type,
        )
