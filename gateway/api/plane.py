"""The data plane: `* /v1/*`, raw ASGI.

Decodes only the fields the gateway owns or forecasts by, keeps the body's bytes, and hands
a `Call` to the relay. What comes before that has files of its own, in the order of a request:
early.py (it has a name), routing.py (who asks, who serves), paths.py, body.py, asked.py,
headers.py and patience.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import msgspec

from gateway.api.body import BodyMemory, ClientGone, Hold, read_body
from gateway.api.early import Early
from gateway.api.headers import (
    NO_DEADLINE,
    ClientDeadline,
    class_header,
    client_deadline,
    retry_count,
)
from gateway.api.problems import internal, send_problem
from gateway.api.request import Asked, parse
from gateway.api.routing import RoutingTable, Scope, canonical_path, check_route, require_method
from gateway.engine.call import Call
from gateway.engine.engine import Engine, Permit
from gateway.engine.relay import Relay
from gateway.engine.reply import BrokenAnswer
from gateway.engine.scope import Receive, Send
from gateway.errors import GatewayError
from gateway.predict.process.predictor import Predictor
from gateway.predict.view import PromptView
from gateway.schedule.routes import Route
from gateway.settings.schema import Tenant
from gateway.types import QUANTILE_LEVELS, Job, JobClass, JobRecord, Outcome, Rung, Workload

logger = logging.getLogger("gateway.api")

LIGHT = Workload(
    prompt_tokens=1,
    p50=1.0,
    p90=1.0,
    grid=(1.0,) * len(QUANTILE_LEVELS),
    p_short=1.0,
    cost_p50=1.0,
    cost_p90=1.0,
    risk=0.0,
    confidence=1.0,
    rung=Rung.HEURISTIC,
)
"""The forecast of a request that generates no text; embeddings have their prompt's cost."""


class DataPlane:
    """ASGI application of `/v1/*`."""

    def __init__(
        self, routing: RoutingTable, engine: Engine, relay: Relay, predictor: Predictor
    ) -> None:
        self.routing = routing
        self._engine = engine
        self._relay = relay
        self._predictor = predictor
        self.memory = BodyMemory()
        self.learn: Callable[[PromptView, Job, JobRecord], None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        arrived_s = self._engine.clock()
        path = canonical_path(scope)
        early = Early(path, arrived_s)
        try:
            await self._serve(scope, receive, send, path, early)
        except GatewayError as error:
            await self._refuse(early, error, send)
        except ClientGone:
            self._engine.ended(early.record(499, Outcome.CANCELLED, None, self._engine.clock()))
        except BrokenAnswer:
            raise  # told and recorded; the server closes the connection
        except Exception:
            logger.exception("request failed", extra={"request_id": early.id})
            await self._refuse(early, internal(), send)

    async def _serve(
        self, scope: Scope, receive: Receive, send: Send, path: str, early: Early
    ) -> None:
        routing, method, headers = self.routing, scope["method"], scope["headers"]
        tenant = routing.tenants.authenticate(headers)
        early.tenant = tenant.name
        if path == "/models" or path.startswith("/models/"):
            require_method(method, "GET")
            await _send_json(send, 200, routing.models(tenant, path), early.id)
            return
        check_route(routing.tenants, tenant, method, path)
        body = await read_body(headers, receive, routing.server, self.memory)
        hold = Hold(self.memory, len(body))
        try:
            asked = parse(self.routing, tenant, method, path, headers, body)
            call = self._call(scope, tenant, path, body, asked, early)
            call.release = hold.release
            del body
            await self.relay(call, asked.view, receive, send)
        finally:
            hold.release()

    def _call(
        self, scope: Scope, tenant: Tenant, path: str, body: bytes, asked: Asked, early: Early
    ) -> Call:
        headers = scope["headers"]
        route = self.routing.route(tenant, asked.model)
        early.model = asked.model
        job = self.job(
            early.id,
            tenant,
            route,
            asked,
            early.arrived_s,
            class_override=class_header(headers),
            deadline=client_deadline(headers, stream=asked.stream),
            client_retries=retry_count(headers),
        )
        return Call(
            job=job,
            route=early.route,
            method=scope["method"],
            path=path,
            query=scope.get("query_string", b""),
            headers=headers,
            body=body,
            stream=asked.stream,
            wants_usage=asked.wants_usage,
            ending=asked.ending,
            connection=scope["state"].get("connection") if "state" in scope else None,
        )

    async def relay(
        self, call: Call, view: PromptView | None, receive: Receive, send: Send
    ) -> JobRecord:
        """Run one call and learn from it. Also the way of POST /submit."""
        if view is None:
            return await self._relay.run(call, receive, send)

        engine, job_id = self._engine, call.job.id  # not the call: it holds `outgrown`

        def refine(permit: Permit) -> None:
            if permit.account is not None or permit.settled:
                return  # it runs, or is refused: no better forecast would change that

            def home(workload: Workload) -> None:
                engine.loop.call_soon_threadsafe(engine.reforecast, job_id, workload)

            self._predictor.refine(view, home, lambda: engine.holds(job_id))

        def outgrown(tokens: int) -> None:
            self._predictor.observe(view, tokens)
            engine.outgrown(job_id, tokens)

        call.outgrown = outgrown
        record = await self._relay.run(call, receive, send, submitted=refine)
        if self.learn is not None:
            self.learn(view, call.job, record)
        return record

    # -- also for POST /submit ------------------------------------------------------------

    def job(
        self,
        job_id: str,
        tenant: Tenant,
        route: Route,
        asked: Asked,
        arrived_s: float,
        *,
        class_override: JobClass | None = None,
        deadline: ClientDeadline = NO_DEADLINE,
        client_retries: int = 0,
    ) -> Job:
        view = asked.view
        return Job(
            id=job_id,
            tenant=tenant.name,
            model=asked.model,
            pool=route.pool,
            accounts=route.accounts,
            workload=self._workload(asked),
            generates=view is not None,
            arrived_s=arrived_s,
            n=asked.n,
            max_tokens=asked.max_tokens,
            class_override=class_override or tenant.job_class,
            deadline_s=None if deadline.within_s is None else arrived_s + deadline.within_s,
            deadline_first_byte=deadline.first_byte,
            client_retries=client_retries,
        )

    def _workload(self, asked: Asked) -> Workload:
        if asked.view is not None:
            return self._predictor.forecast(asked.view)
        if asked.prompt_tokens <= 1:
            return LIGHT
        return self._predictor.prompt_alone(LIGHT, asked.model, asked.prompt_tokens)

    async def _refuse(self, early: Early, error: GatewayError, send: Send) -> None:
        outcome = Outcome.CLIENT_ERROR if error.status < 500 else Outcome.FAILED
        self._engine.ended(early.record(error.status, outcome, error.code, self._engine.clock()))
        await send_problem(send, error, [(b"x-request-id", early.id.encode())])


async def _send_json(send: Send, status: int, value: Any, request_id: str) -> None:
    body = msgspec.json.encode(value)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", request_id.encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
