"""Submitted jobs: durable before their id is given, kept over restarts, gone after their TTL."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.kit import steps
from tests.kit.gateway import TENANT_KEY, GatewayProcess, account, tenant
from tests.kit.provider import ScriptedProvider
from tests.kit.steps import Hang, Wait

KEY = {"authorization": f"Bearer {TENANT_KEY}"}
Start = Callable[..., GatewayProcess]


def submit(gateway: GatewayProcess, **more: Any) -> str:
    response = httpx.post(gateway.url("/submit"), json={"prompt": "hi", **more}, headers=KEY)
    assert response.status_code == 200, response.text
    job: str = response.json()["request_id"]
    return job


def status(gateway: GatewayProcess, job: str) -> httpx.Response:
    return httpx.get(gateway.url(f"/status/{job}"), headers=KEY)


def ended(gateway: GatewayProcess, job: str) -> dict[str, Any]:
    gateway.wait_log(lambda x: x.get("msg") == "request" and x.get("request_id") == job)
    body: dict[str, Any] = status(gateway, job).json()
    return body


def test_job_goes_from_queued_over_running_to_done(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """Each state is seen while it holds; the result is the provider's answer."""
    provider.enqueue([Wait("go"), *steps.answer("first")], steps.answer("second"))
    one = account(provider, initial_concurrency=1, max_concurrency=1)
    gateway = start_gateway(accounts=[one])
    first, second = submit(gateway), submit(gateway, max_tokens=5)
    provider.wait_request(0)
    assert status(gateway, first).json()["status"] == "running"
    assert status(gateway, second).json()["status"] == "queued"
    provider.gate("go").mark()
    done = ended(gateway, second)
    assert done["status"] == "done"
    assert done["result"]["choices"][0]["message"]["content"] == "second"
    assert provider.exchanges[1].request.wants("max_tokens") == 5
    assert status(gateway, first).json()["result"]["choices"][0]["message"]["content"] == "first"


def cancel(gateway: GatewayProcess, job: str, key: str = TENANT_KEY) -> httpx.Response:
    return httpx.delete(gateway.url(f"/status/{job}"), headers={"authorization": f"Bearer {key}"})


def test_status_tells_place_and_forecast(start_gateway: Start, provider: ScriptedProvider) -> None:
    """The status of a waiting job has its place in the queue; every status has the forecast."""
    provider.enqueue([Wait("go"), *steps.answer()])
    gateway = start_gateway(accounts=[account(provider, initial_concurrency=1, max_concurrency=1)])
    running = submit(gateway)
    provider.wait_request(0)
    waiting = [submit(gateway) for _ in range(3)]
    told = [status(gateway, job).json() for job in waiting]
    assert sorted(t["queue"]["position"] for t in told) == [1, 2, 3]
    assert all(t["queue"]["waiting"] == 3 for t in told)
    assert all(t["queue"]["waited_s"] >= 0 for t in told)
    assert all(t["forecast"]["expected_output_tokens_p50"] > 0 for t in told)
    first = status(gateway, running).json()
    assert "queue" not in first
    assert first["forecast"]["fallback_level"] == "heuristic"
    provider.gate("go").mark()
    done = ended(gateway, waiting[2])
    assert "queue" not in done
    assert done["forecast"]["expected_output_tokens_p50"] > 0


def test_cancelled_job_ends_at_the_provider_and_stays_cancelled(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """Cancelling a running job closes the provider's connection; a waiting one is never sent. Both
    have failed as `cancelled` for good: a crash right after the answer does not run them again."""
    provider.enqueue([Hang()])
    gateway = start_gateway(accounts=[account(provider, initial_concurrency=1, max_concurrency=1)])
    running = submit(gateway)
    exchange = provider.wait_request(0)
    waiting, last = submit(gateway), submit(gateway)
    assert cancel(gateway, waiting).json()["error"]["code"] == "cancelled"
    assert cancel(gateway, running).json()["status"] == "failed"
    exchange.peer_closed.wait(1.0)
    assert ended(gateway, last)["status"] == "done"
    assert len(provider.exchanges) == 2
    again(gateway)
    for job in (running, waiting):
        told = status(gateway, job).json()
        assert (told["status"], told["error"]["code"]) == ("failed", "cancelled")
        assert cancel(gateway, job).status_code == 200  # again: nothing changes


def test_cancelling_a_job_that_is_ended_or_foreign_is_refused(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """Cancelling an ended job gives 409; an unknown job and another tenant's give the same 404."""
    other = "kit-other-key"
    gateway = start_gateway(
        accounts=[account(provider)], tenants=[tenant(), tenant("other", other)]
    )
    job = submit(gateway)
    ended(gateway, job)
    refused = cancel(gateway, job)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "job_ended")
    assert status(gateway, job).json()["status"] == "done"
    foreign, unknown = cancel(gateway, job, other), cancel(gateway, "job_nothing")
    assert foreign.status_code == unknown.status_code == 404
    assert cancel(gateway, job, "wrong").status_code == 401


def test_failed_job_tells_the_error(start_gateway: Start, provider: ScriptedProvider) -> None:
    """A job that the provider refused has failed, with the provider's message."""
    provider.error(400, code="context_length_exceeded", message="too long")
    gateway = start_gateway(provider)
    failed = ended(gateway, submit(gateway))
    assert failed["status"] == "failed"
    assert failed["error"]["code"] == "context_length_exceeded"


def test_job_whose_answer_cannot_be_stored_says_so(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """An answer beyond 16 MiB fails its job, with a code of its own."""
    provider.answer("x" * (17 * 2**20))
    gateway = start_gateway(provider)
    failed = ended(gateway, submit(gateway))
    assert (failed["status"], failed["error"]["code"]) == ("failed", "result_too_large")


@pytest.mark.parametrize("body", [{}, {"prompt": "a", "messages": []}, {"prompt": "a", "x": 1}])
def test_bad_submission_is_refused(shared: Any, body: dict[str, Any]) -> None:
    """A submission without a prompt or messages, with both, or with an unknown member is a 400."""
    response = httpx.post(shared.gateway.url("/submit"), json=body, headers=KEY)
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def again(gateway: GatewayProcess) -> None:
    """Kill the process as a crash would, and start it again on the same store."""
    gateway.signal(signal.SIGKILL)
    gateway.wait_exit()
    gateway.start()


def test_crash_keeps_results_resumes_queued_and_fails_running_jobs(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """After kill -9 a finished job stays readable, a queued one runs, a running one has failed as
    interrupted, and a retry_safe one runs again."""
    provider.enqueue(steps.answer("kept"), [Hang()], [Hang()])
    one = account(provider, initial_concurrency=2, max_concurrency=2)
    gateway = start_gateway(accounts=[one])
    kept = submit(gateway)
    ended(gateway, kept)
    running, safe = submit(gateway), submit(gateway, retry_safe=True)
    provider.wait_request(2)
    queued = submit(gateway)
    # The last submission's commit came after the states of the two before it.
    again(gateway)
    assert status(gateway, kept).json()["result"]["choices"][0]["message"]["content"] == "kept"
    interrupted = status(gateway, running).json()
    assert (interrupted["status"], interrupted["error"]["code"]) == ("failed", "interrupted")
    assert ended(gateway, safe)["status"] == "done"
    assert ended(gateway, queued)["status"] == "done"


def drained(gateway: GatewayProcess) -> None:
    """SIGTERM, and wait until it says that it drains."""
    gateway.signal(signal.SIGTERM)
    gateway.wait_log(lambda x: x.get("msg") == "draining")


def test_drain_leaves_queued_jobs_to_the_next_process(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """During a drain running jobs finish, and queued ones do not start in their place; the next
    process runs them, once."""
    provider.enqueue([Wait("go"), *steps.answer("finished")])
    gateway = start_gateway(accounts=[account(provider, initial_concurrency=1, max_concurrency=1)])
    running = submit(gateway)
    provider.wait_request(0)
    queued = [submit(gateway) for _ in range(3)]
    drained(gateway)
    provider.gate("go").mark()
    assert gateway.wait_exit() == 0
    assert len(provider.exchanges) == 1
    gateway.start()
    done = status(gateway, running).json()
    assert done["result"]["choices"][0]["message"]["content"] == "finished"
    assert [ended(gateway, job)["status"] for job in queued] == ["done"] * 3
    assert len(provider.exchanges) == 4


def test_drain_that_runs_out_of_time_leaves_retry_safe_jobs_to_the_next_process(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """Of jobs that a drain cuts off, a retry_safe one runs again; any other has failed as
    interrupted."""
    provider.enqueue([Hang()], [Hang()])
    one = account(provider, initial_concurrency=2, max_concurrency=2)
    gateway = start_gateway(accounts=[one], server={"drain_timeout_s": 0.3})
    running, safe = submit(gateway), submit(gateway, retry_safe=True)
    provider.wait_request(1)
    queued = submit(gateway)
    drained(gateway)
    assert gateway.wait_exit() == 0
    assert len(provider.exchanges) == 2
    gateway.start()
    interrupted = status(gateway, running).json()
    assert (interrupted["status"], interrupted["error"]["code"]) == ("failed", "interrupted")
    assert ended(gateway, safe)["status"] == "done"
    assert ended(gateway, queued)["status"] == "done"
    assert len(provider.exchanges) == 4


def test_result_is_gone_after_its_ttl(
    start_gateway: Start, provider: ScriptedProvider, tmp_path: Path
) -> None:
    """After job_ttl_s the owner of a result gets 410, not 404."""
    gateway = start_gateway(accounts=[account(provider)], store={"job_ttl_s": 0.2})
    job = submit(gateway)
    ended(gateway, job)
    while (response := status(gateway, job)).status_code == 200:
        pass
    assert response.status_code == 410
    assert response.json()["error"]["code"] == "gone"
