"""Tenants see what is theirs; the operator's routes want the operator's token."""

from __future__ import annotations

import httpx
import pytest

from tests.integration.conftest import OTHER_KEY, Shared
from tests.kit.gateway import TENANT_KEY

MINE = {"authorization": f"Bearer {TENANT_KEY}"}
OTHERS = {"authorization": f"Bearer {OTHER_KEY}"}


def finished(shared: Shared, job: str) -> dict[str, object]:
    """The job's status once it has ended, which the log tells."""
    shared.gateway.wait_log(lambda x: x.get("msg") == "request" and x.get("request_id") == job)
    response = httpx.get(shared.gateway.url(f"/status/{job}"), headers=MINE)
    assert response.status_code == 200
    status: dict[str, object] = response.json()
    return status


def test_submitted_job_is_readable_by_its_tenant_alone(shared: Shared) -> None:
    """An unknown id and another tenant's give the same 404, word for word."""
    response = httpx.post(shared.gateway.url("/submit"), json={"prompt": "hi"}, headers=MINE)
    assert response.status_code == 200
    job = response.json()["request_id"]
    done = finished(shared, job)
    assert done["status"] == "done"
    result = done["result"]
    assert isinstance(result, dict)
    assert result["choices"][0]["message"]["content"]
    foreign = httpx.get(shared.gateway.url(f"/status/{job}"), headers=OTHERS)
    unknown = httpx.get(shared.gateway.url("/status/job_x"), headers=OTHERS)
    assert foreign.status_code == unknown.status_code == 404
    assert foreign.json()["error"]["message"].replace(job, "") == unknown.json()["error"][
        "message"
    ].replace("job_x", "")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/stats"),
        ("GET", "/_stats"),
        ("GET", "/events"),
        ("POST", "/tick"),
        ("POST", "/reset"),
        ("POST", "/admin/config"),
    ],
)
def test_operator_route_wants_the_admin_token(shared: Shared, method: str, path: str) -> None:
    """An operator's route answers 401 without the token and with a tenant's key, and not with the
    token."""
    for headers in ({}, MINE):
        response = httpx.request(method, shared.gateway.url(path), headers=headers, json={})
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_admin_token"
    response = httpx.request(
        method, shared.gateway.url(path), headers=shared.gateway.admin_headers, json={}
    )
    assert response.status_code in (200, 400)


def test_models_lists_what_the_caller_may_use(shared: Shared) -> None:
    """GET /v1/models lists the caller's models in OpenAI's form, GET /models with profiles."""
    listed = httpx.get(shared.gateway.url("/v1/models"), headers=MINE).json()
    assert [m["id"] for m in listed["data"]] == ["kit-model"]
    profiles = httpx.get(shared.gateway.url("/models"), headers=MINE).json()["models"]
    assert profiles[0]["id"] == "kit-model"
    assert httpx.get(shared.gateway.url("/v1/models")).status_code == 401


def test_events_tell_a_request_from_submitted_to_finished(shared: Shared) -> None:
    """The journal has one request's events in order, from submitted to finished, and no prompt."""
    headers = {**MINE, "content-type": "application/json"}
    content = '{"model":"kit-model","messages":[{"role":"user","content":"secret-prompt"}]}'
    response = httpx.post(
        shared.gateway.url("/v1/chat/completions"), content=content, headers=headers
    )
    job = response.headers["x-request-id"]
    events = httpx.get(shared.gateway.url("/events?n=1000"), headers=shared.gateway.admin_headers)
    mine = [e["event"] for e in events.json()["events"] if e.get("job") == job]
    assert [e for e in mine if e != "reforecast"] == ["submitted", "dispatched", "finished"]
    assert "secret-prompt" not in events.text
    assert "secret-prompt" not in "\n".join(shared.gateway.output)


def test_tick_is_harmless(shared: Shared) -> None:
    """A round by hand starts nothing, since rounds run by themselves."""
    response = httpx.post(shared.gateway.url("/tick"), headers=shared.gateway.admin_headers)
    assert response.json() == {"started": 0}


def test_reset_wants_a_known_scope(shared: Shared) -> None:
    """An unknown scope is refused; stats are counted anew."""
    url, admin = shared.gateway.url("/reset"), shared.gateway.admin_headers
    assert httpx.post(url, json={"scope": "everything"}, headers=admin).status_code == 400
    assert httpx.post(url, json={"scope": "stats"}, headers=admin).status_code == 200
    stats = httpx.get(shared.gateway.url("/stats"), headers=admin).json()
    assert stats["submitted"] == 0
