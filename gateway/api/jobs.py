"""`POST /submit`, `GET` and `DELETE /status/{id}`: requests whose answer is fetched later.

1. A job is committed to the store before its id is returned.
2. It runs through the same scheduler and relay as every other request, in the class
   `background`.
3. Its result is kept until its TTL, over restarts.
4. After a restart queued jobs run. One that was running has failed as `interrupted`, since
   running it again might bill it twice, unless it was submitted as `retry_safe`.
5. An id is readable by its tenant alone; an unknown id and another tenant's look the same.
6. A cancelled job has failed as `cancelled`. Its cancellation is answered once it is committed,
   so no restart runs it again.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

import msgspec
from litestar import delete, get, post
from litestar.handlers import HTTPRouteHandler

from gateway.api.control import (
    PredictRequest,
    forecast_body,
    from_thread,
    json_response,
    messages_of,
    read_json,
    request_fields,
)
from gateway.api.plane import DataPlane
from gateway.api.problems import HttpRequest, HttpResponse
from gateway.api.request import ParsedRequest
from gateway.engine.engine import Engine
from gateway.engine.exchange import Exchange
from gateway.errors import Conflict, GatewayError, Gone, NotFound, Unavailable
from gateway.predict.prompt_view import PromptView
from gateway.settings.schema import Tenant
from gateway.store.rows import JobRow
from gateway.store.store import Store
from gateway.types import Job, JobClass, JobRecord, Listener, Outcome
from gateway.upstream.providers import Headers

logger = logging.getLogger("gateway.jobs")
MAX_RESULT_BYTES = 16 * 2**20
_FAULT = "The gateway failed to run this job."
_JSON: Headers = [(b"content-type", b"application/json")]


class ResultKeeper:
    """The client of a submitted job: keeps the answer, and stays until `leave` is called.

    `broken`: the answer was not finished. `too_large`: since it is larger than a result may be.
    """

    def __init__(self) -> None:
        self.status = 0
        self.broken = self.too_large = False
        self._left = False
        self._on_left: Callable[[], None] | None = None
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def body(self) -> bytes:
        return b"".join(self._parts)

    def leave(self) -> None:
        """Have the relay end the call."""
        self._left = True
        if self._on_left is not None:
            self._on_left()

    def when_left(self, callback: Callable[[], None] | None) -> None:
        self._on_left = callback
        if self._left and callback is not None:
            callback()

    def start(self, status: int, headers: Headers) -> None:
        self.status = status

    def write(self, chunk: bytes) -> bool:
        self._size += len(chunk)
        self.too_large = self._size > MAX_RESULT_BYTES
        if self.too_large:
            raise ValueError("the answer is larger than a stored result")
        self._parts.append(chunk)
        return True

    def finish(self, chunk: bytes = b"") -> None:
        self.write(chunk)

    async def drained(self) -> None:
        pass

    def break_off(self) -> None:
        self.broken = True

    abort = break_off


class SubmittedJobs(Listener):
    """Submitted jobs that wait or run. Ended ones live in the store.

    Args:
        ttl_s: seconds for which a result is kept after its job has ended.
    """

    def __init__(
        self, data_plane: DataPlane, engine: Engine, store: Store, ttl_s: Callable[[], float]
    ) -> None:
        self._plane = data_plane
        self._engine = engine
        self._store = store
        self._ttl_s = ttl_s
        self._active: dict[str, JobRow] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._clients: dict[str, ResultKeeper] = {}
        self.stopping = False
        self._leaving: set[str] = set()  # queued at the drain: they are not run any more

    def __repr__(self) -> str:
        return f"<SubmittedJobs {len(self._tasks)} running or queued>"

    def handlers(self) -> list[HTTPRouteHandler]:
        """The three routes, bound to this object."""

        @post("/submit", status_code=200)
        async def submit(request: HttpRequest) -> HttpResponse:
            tenant = self._tenant(request)
            wanted = await read_json(request, PredictRequest, self._plane)
            job_id = await self.submit(tenant, wanted)
            return json_response({"request_id": job_id, "status": "queued"})

        @get("/status/{job_id:str}")
        async def status(request: HttpRequest, job_id: str) -> HttpResponse:
            return json_response(await self.status(self._tenant(request), job_id))

        @delete("/status/{job_id:str}", status_code=200)
        async def cancel(request: HttpRequest, job_id: str) -> HttpResponse:
            return json_response(await self.cancel(self._tenant(request), job_id))

        return [submit, status, cancel]

    def _tenant(self, request: HttpRequest) -> Tenant:
        return self._plane.routing.tenants.authenticate(request_fields(request))

    def resume(self, unfinished: list[JobRow], tenants: dict[str, Tenant]) -> None:
        """Start the jobs that the last process left queued, and fail those that cannot run."""
        for row in unfinished:
            try:
                request = msgspec.json.decode(row.request, type=PredictRequest)
            except msgspec.MsgspecError:  # of another version, or damaged
                self._fail(row.id, "unreadable", "The stored request cannot be read.")
                continue
            tenant = tenants.get(row.tenant)
            if row.status == "running" and not request.retry_safe:
                self._fail(row.id, "interrupted", "The gateway stopped while this job ran.")
            elif tenant is None:
                self._fail(row.id, "tenant_removed", "The job's tenant is gone.")
            else:
                try:
                    self._start(row, tenant, request)
                except GatewayError as error:
                    self._fail(row.id, error.code or "rejected", error.message)

    async def submit(self, tenant: Tenant, request: PredictRequest) -> str:
        """Commit a job, start it and return its id. Raises InvalidRequest, ModelNotFound,
        Unavailable."""
        if self._engine.draining:
            raise Unavailable("The gateway is draining.", code="draining", retry_after_s=5.0)
        messages_of(request)
        self._plane.routing.route(tenant, self._model(tenant, request))
        row = JobRow(
            id="job_" + secrets.token_hex(12),
            tenant=tenant.name,
            status="queued",
            created_wall_s=time.time(),
            request=msgspec.json.encode(request),
        )
        await from_thread(
            lambda done: self._store.put_job(row, done), "The job store takes no more work now."
        )
        self._start(row, tenant, request)
        return row.id

    async def status(self, tenant: Tenant, job_id: str) -> dict[str, Any]:
        """The answer of GET /status/{id}. Raises NotFound, Gone."""
        return self._status_body(await self._find(tenant, job_id))

    async def cancel(self, tenant: Tenant, job_id: str) -> dict[str, Any]:
        """End a job that waits or runs, with its call to the provider, and return its status.
        Cancelling a cancelled job changes nothing. Raises NotFound, Gone, Unavailable, and
        Conflict where the job had ended otherwise."""
        row = await self._find(tenant, job_id)
        client, task = self._clients.get(job_id), self._tasks.get(job_id)
        if client is not None and task is not None:
            client.leave()
            await asyncio.wait([task])
            row = await self._stored(job_id) or row  # waits for the commit
        if row.ended_wall_s is None:
            raise Unavailable("The gateway is stopping.", code="draining", retry_after_s=5.0)
        if _code(row) != "cancelled":
            raise Conflict(f"The job has ended: it is {row.status}.", code="job_ended")
        return self._status_body(row)

    async def _find(self, tenant: Tenant, job_id: str) -> JobRow:
        row = self._active.get(job_id) or await self._stored(job_id)
        if row is None or row.tenant != tenant.name:
            raise NotFound(f"No job {job_id[:64]!r}.", code="job_not_found")
        over = row.ended_wall_s is not None and time.time() - row.ended_wall_s > self._ttl_s()
        if row.status == "gone" or over:  # the store removes rows some time after their TTL
            raise Gone(f"The result of {job_id} was kept until its TTL and is gone.")
        return row

    async def _stored(self, job_id: str) -> JobRow | None:
        row: JobRow | None = await from_thread(
            lambda done: self._store.get_job(job_id, done), "The job store is busy."
        )
        return row

    def drain(self) -> None:
        """Leave queued jobs to the next process; those that run may finish."""
        self.stopping = True
        for job_id, task in self._tasks.items():
            row = self._active.get(job_id)  # None: it has ended, and its task is about to end
            if row is not None and row.status == "queued":
                self._leaving.add(job_id)
                task.cancel()

    async def stop(self) -> None:
        """End the jobs that run, and leave the queued ones to the next process."""
        self.stopping = True
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())

    def _status_body(self, row: JobRow) -> dict[str, Any]:
        body = _row_body(row)
        if row.ended_wall_s is None and (forecast := self._engine.forecast(row.id)) is not None:
            body["forecast"] = forecast_body(forecast)
        if row.status == "queued" and (position := self._engine.queue_position(row.id)) is not None:
            body["queue"] = msgspec.to_builtins(position)
        return body

    # -- running -----------------------------------------------------------------------------

    def _model(self, tenant: Tenant, request: PredictRequest) -> str:
        return request.model or self._plane.routing.default_model(tenant)

    def _start(self, row: JobRow, tenant: Tenant, request: PredictRequest) -> None:
        client = ResultKeeper()
        exchange = self._exchange(row, tenant, request, client)
        self._active[row.id] = row
        self._clients[row.id] = client
        task = asyncio.ensure_future(self._run(row.id, exchange, client))
        self._tasks[row.id] = task
        task.add_done_callback(lambda _: self._forget(row.id))

    def _forget(self, job_id: str) -> None:
        del self._tasks[job_id], self._clients[job_id]

    def _exchange(
        self, row: JobRow, tenant: Tenant, request: PredictRequest, client: ResultKeeper
    ) -> Exchange:
        messages = messages_of(request)
        model = self._model(tenant, request)
        view = PromptView.of_chat(
            messages,
            tenant=tenant.name,
            model=model,
            max_tokens=request.max_tokens,
            task_type=request.task_type,
        )
        body: dict[str, Any] = {"model": model, "messages": messages}
        if request.max_tokens is not None:
            body["max_tokens"] = request.max_tokens
        parsed = ParsedRequest(model=model, max_tokens=request.max_tokens, view=view)
        route = self._plane.routing.route(tenant, model)
        job = self._plane.job(
            row.id,
            tenant,
            route,
            parsed,
            self._engine.clock(),
            class_override=JobClass.BACKGROUND,
        )
        return Exchange(
            job=job,
            connection=client,
            route="/submit",
            method="POST",
            path="/chat/completions",
            query=b"",
            headers=_JSON,
            body=msgspec.json.encode(body),
            view=view,
        )

    async def _run(self, job_id: str, exchange: Exchange, client: ResultKeeper) -> None:
        try:
            record = await self._plane.relay(exchange)
        except asyncio.CancelledError:
            self._interrupted(job_id, self._active[job_id].status == "running")
            raise
        except Exception:
            logger.exception("submitted job failed", extra={"request_id": job_id})
            self._fail(job_id, "internal_error", _FAULT)
        else:
            self._end(job_id, record, client)
        finally:
            if not self.stopping:
                self._active.pop(job_id, None)

    def _end(self, job_id: str, record: JobRecord, client: ResultKeeper) -> None:
        if record.outcome is Outcome.SHUTDOWN:
            self._interrupted(job_id, record.attempts > 0 and job_id not in self._leaving)
            return
        if record.outcome is Outcome.CANCELLED:  # only `cancel` makes its client leave
            self._fail(job_id, "cancelled", "The job was cancelled.")
            return
        if client.too_large:
            self._fail(job_id, "result_too_large", "The answer is larger than a stored result.")
        elif client.broken:
            self._fail(job_id, "internal_error", _FAULT)
        else:
            ok = record.outcome is Outcome.OK and client.status == 200
            self._finish(job_id, ok, client.body)

    def _interrupted(self, job_id: str, ran: bool) -> None:
        """Fail a job at a stop, unless it never ran or may run again: then it stays queued."""
        row = self._active[job_id]
        if ran and not msgspec.json.decode(row.request, type=PredictRequest).retry_safe:
            self._fail(job_id, "interrupted", "The gateway stopped while this job ran.")

    def _fail(self, job_id: str, code: str, message: str) -> None:
        error = GatewayError(message, code=code)
        self._finish(job_id, False, msgspec.json.encode(error.wire()))

    def _finish(self, job_id: str, ok: bool, body: bytes) -> None:
        """End a job. Its row stays in `_active` until it is committed, so that every reader
        finds it in one place or the other."""
        row = self._active.get(job_id)
        ended = time.time()
        if row is not None:
            self._active[job_id] = msgspec.structs.replace(
                row,
                status="done" if ok else "failed",
                ended_wall_s=ended,
                result=body if ok else None,
                error=None if ok else body,
            )
        accepted = self._store.update_job(
            job_id,
            "done" if ok else "failed",
            result=body if ok else None,
            error=None if ok else body,
            ended_wall_s=ended,
        )
        if not accepted:
            logger.error("the store took no result", extra={"request_id": job_id})

    # -- engine listener -------------------------------------------------------------------------

    def dispatched(self, job: Job, account: str, queue_s: float, attempt: int) -> None:
        """Mark a submitted job as running."""
        row = self._active.get(job.id)
        # A job that leaves is being cancelled: it may still be dispatched, but sends nothing.
        if row is None or row.status != "queued" or job.id in self._leaving:
            return
        now = time.time()
        forecast = self._engine.forecast(job.id) or job.workload
        body = msgspec.json.encode(forecast_body(forecast))
        self._active[job.id] = msgspec.structs.replace(
            row, status="running", started_wall_s=now, forecast=body
        )
        self._store.update_job(job.id, "running", started_wall_s=now, forecast=body)


def _code(row: JobRow) -> str | None:
    """The error code of a job that failed; None for any other job."""
    try:
        code = msgspec.json.decode(row.error or b"{}")["error"]["code"]
    except (msgspec.MsgspecError, KeyError, TypeError):
        return None
    return code if isinstance(code, str) else None


def _row_body(row: JobRow) -> dict[str, Any]:
    body: dict[str, Any] = {
        "request_id": row.id,
        "status": row.status,
        "created_at": row.created_wall_s,
        "started_at": row.started_wall_s,
        "ended_at": row.ended_wall_s,
    }
    if row.forecast is not None:
        body["forecast"] = msgspec.Raw(row.forecast)
    if row.result is not None:
        body["result"] = msgspec.Raw(row.result)
    if row.error is not None:
        try:
            body["error"] = msgspec.json.decode(row.error)["error"]
        except (msgspec.MsgspecError, KeyError, TypeError):
            body["error"] = {"message": "The provider's error could not be read."}
    return body
