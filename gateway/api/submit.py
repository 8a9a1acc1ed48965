"""Handlers of `POST /submit`, `GET /status/{id}` and `DELETE /status/{id}`."""

from __future__ import annotations

from litestar import delete, get, post
from litestar.handlers import HTTPRouteHandler

from gateway.api.jobs import Jobs
from gateway.api.plane import DataPlane
from gateway.api.schemas import PredictRequest
from gateway.api.web import AnyRequest, AnyResponse, answer, raw_headers, read_json


def submit_handlers(jobs: Jobs, plane: DataPlane) -> list[HTTPRouteHandler]:
    """The three routes, bound."""

    @post("/submit", status_code=200)
    async def submit(request: AnyRequest) -> AnyResponse:
        tenant = plane.routing.tenants.authenticate(raw_headers(request))
        asked = await read_json(request, PredictRequest, plane)
        job_id = await jobs.submit(tenant, asked)
        return answer({"request_id": job_id, "status": "queued"})

    @get("/status/{job_id:str}")
    async def status(request: AnyRequest, job_id: str) -> AnyResponse:
        tenant = plane.routing.tenants.authenticate(raw_headers(request))
        return answer(await jobs.status(tenant, job_id))

    @delete("/status/{job_id:str}", status_code=200)
    async def cancel(request: AnyRequest, job_id: str) -> AnyResponse:
        tenant = plane.routing.tenants.authenticate(raw_headers(request))
        return answer(await jobs.cancel(tenant, job_id))

    return [submit, status, cancel]
