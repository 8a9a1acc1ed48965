"""The data plane: `/v1/*`, straight on the server's request cycle.

The way of a request: RequestInfo (request.py) → tenant (auth.py) → path (routing.py) → body
(body.py) → ParsedRequest (request.py) → route, class and deadline (routing.py, headers.py) →
`Job` and `Exchange`, which the relay runs. A GatewayError on the way is answered as a problem
(problems.py), and the engine's listeners get the record of every request, refused or not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import msgspec

from gateway.api.body import BodyMemory, BodyShare, ClientGone, read_body
from gateway.api.headers import (
    NO_DEADLINE,
    ClientDeadline,
    class_header,
    client_deadline,
    retry_count,
)
from gateway.api.problems import internal_error, write_problem
from gateway.api.request import ParsedRequest, RequestInfo, parse
from gateway.api.request_cycle import RequestCycle
from gateway.api.routing import RoutingTable, check_route, require_method
from gateway.engine.client_watch import Connection
from gateway.engine.engine import Engine
from gateway.engine.exchange import Exchange
from gateway.engine.relay import Relay
from gateway.errors import GatewayError, Stopping
from gateway.predict.process.predictor import Predictor
from gateway.predict.prompt_view import PromptView
from gateway.schedule.routes import Route
from gateway.settings.schema import Tenant
from gateway.types import QUANTILE_LEVELS, Job, JobClass, JobRecord, Outcome, Rung, Workload

logger = logging.getLogger("gateway.api")

NO_TEXT = Workload(
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
"""The forecast of a request that generates no text. Embeddings add the cost of their prompt."""


class DataPlane:
    """Application of `/v1/*`."""

    def __init__(
        self, routing: RoutingTable, engine: Engine, relay: Relay, predictor: Predictor
    ) -> None:
        self.routing = routing
        self._engine = engine
        self._relay = relay
        self._predictor = predictor
        self.memory = BodyMemory()
        self.learn: Callable[[PromptView, Job, JobRecord], None] | None = None

    def __repr__(self) -> str:
        return f"<DataPlane {len(self.routing.routes)} models, {self.memory.held} body bytes>"

    async def __call__(self, client: RequestCycle) -> None:
        info = RequestInfo(client.head, self._engine.clock())
        try:
            await self._serve(client, info)
        except GatewayError as error:
            self._refuse(info, error, client)
        except ClientGone:
            self._engine.ended(info.record(499, Outcome.CANCELLED, None, self._engine.clock()))
        except Exception:
            logger.exception("request failed", extra={"request_id": info.id})
            if not client.started:  # else it is answered and recorded
                self._refuse(info, internal_error(), client)

    async def _serve(self, client: RequestCycle, info: RequestInfo) -> None:
        routing, path = self.routing, info.path
        tenant = routing.tenants.authenticate(info.fields)
        info.tenant = tenant.name
        if path == "/models" or path.startswith("/models/"):
            require_method(info.method, "GET")
            _write_json(client, 200, routing.models(tenant, path), info.id)
            return
        check_route(routing.tenants, tenant, info.method, path)
        whole = client.whole_body()
        body = await read_body(info.fields, client.receive, routing.server, self.memory, whole)
        del whole
        share = BodyShare(self.memory, len(body))
        try:
            parsed = parse(self.routing, tenant, info, body)
            exchange = self._exchange(client, tenant, info, parsed, body)
            exchange.release = share.release
            del body
            await self.relay(exchange)
        finally:
            share.release()

    def _exchange(
        self,
        client: RequestCycle,
        tenant: Tenant,
        info: RequestInfo,
        parsed: ParsedRequest,
        body: bytes,
    ) -> Exchange:
        route = self.routing.route(tenant, parsed.model)
        info.model = parsed.model
        job = self.job(
            info.id,
            tenant,
            route,
            parsed,
            info.arrived_s,
            class_override=class_header(info.fields),
            deadline=client_deadline(info.fields, stream=parsed.stream),
            client_retries=retry_count(info.fields),
        )
        return Exchange(
            job=job,
            connection=client,
            route=info.route,
            method=info.method,
            path=info.path,
            query=client.head.query,
            headers=info.headers,
            body=body,
            stream=parsed.stream,
            wants_usage=parsed.wants_usage,
            stream_end=parsed.stream_end,
            view=parsed.view,
        )

    async def relay(self, exchange: Exchange) -> JobRecord:
        """Run one exchange and learn from its answer. Submitted jobs are run by this, too."""
        record = await self._relay.run(exchange)
        if self.learn is not None and exchange.view is not None:
            self.learn(exchange.view, exchange.job, record)
        return record

    def job(
        self,
        job_id: str,
        tenant: Tenant,
        route: Route,
        parsed: ParsedRequest,
        arrived_s: float,
        *,
        class_override: JobClass | None = None,
        deadline: ClientDeadline = NO_DEADLINE,
        client_retries: int = 0,
    ) -> Job:
        """A parsed request as the scheduler sees it, with its first forecast. `arrived_s` is by
        the engine's clock."""
        view = parsed.view
        return Job(
            id=job_id,
            tenant=tenant.name,
            model=parsed.model,
            pool=route.pool,
            accounts=route.accounts,
            workload=self._workload(parsed),
            generates=view is not None,
            arrived_s=arrived_s,
            n=parsed.n,
            max_tokens=parsed.max_tokens,
            class_override=class_override or tenant.job_class,
            deadline_s=None if deadline.within_s is None else arrived_s + deadline.within_s,
            deadline_first_byte=deadline.first_byte,
            client_retries=client_retries,
        )

    def _workload(self, parsed: ParsedRequest) -> Workload:
        if parsed.view is not None:
            return self._predictor.forecast(parsed.view)
        if parsed.prompt_tokens <= 1:
            return NO_TEXT
        return self._predictor.prompt_alone(NO_TEXT, parsed.model, parsed.prompt_tokens)

    def _refuse(self, info: RequestInfo, error: GatewayError, client: RequestCycle) -> None:
        write_problem(client, error, [(b"x-request-id", info.id.encode())])
        outcome = Outcome.CLIENT_ERROR if error.status < 500 else Outcome.FAILED
        if isinstance(error, Stopping):
            outcome = Outcome.SHUTDOWN
        self._engine.ended(info.record(error.status, outcome, error.code, self._engine.clock()))


def _write_json(client: Connection, status: int, value: Any, request_id: str) -> None:
    body = msgspec.json.encode(value)
    headers = [
        (b"content-type", b"application/json"),
        (b"x-request-id", request_id.encode()),
    ]
    client.start(status, headers)
    client.finish(body)
