"""Forecasts through the front door: a second forecast for jobs that wait, and learning from a
running answer."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.kit import steps
from tests.kit.gateway import GatewayProcess, account
from tests.kit.provider import ScriptedProvider
from tests.kit.steps import Stream, Wait

Start = Callable[..., GatewayProcess]
PROMPT = "Name the three largest lakes of Mongolia."


def ask(gateway: GatewayProcess, text: str, **more: Any) -> httpx.Response:
    body = {"model": "kit-model", "messages": [{"role": "user", "content": text}], **more}
    url = gateway.url("/v1/chat/completions")
    return httpx.post(url, json=body, headers=gateway.headers, timeout=30)


def predictor(gateway: GatewayProcess) -> dict[str, Any]:
    stats = httpx.get(gateway.url("/stats"), headers=gateway.admin_headers).json()
    shown: dict[str, Any] = stats["predictor"]
    return shown


def until_ready(gateway: GatewayProcess) -> None:
    while not predictor(gateway)["ready"]:
        pass


def reforecast(gateway: GatewayProcess) -> list[str]:
    """Jobs that got a second forecast, oldest first."""
    events = httpx.get(gateway.url("/events"), headers=gateway.admin_headers).json()["events"]
    return [event["job"] for event in events if event["event"] == "reforecast"]


def test_refinement_is_asked_for_only_by_jobs_that_wait(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """A job that starts at once gets no second forecast; a job that waits gets one. (The predictor
    answers in order: when the second job's forecast has come, the first job's would have, too.)"""
    one = account(provider, initial_concurrency=1, max_concurrency=1)
    gateway = start_gateway(accounts=[one], predict={"enabled": True})
    until_ready(gateway)
    provider.enqueue([Wait("go"), *steps.answer()], steps.answer())
    with ThreadPoolExecutor() as pool:
        first = pool.submit(ask, gateway, PROMPT)
        provider.wait_request(0)
        second = pool.submit(ask, gateway, "And of Peru?")
        while not reforecast(gateway):
            pass
        shown = predictor(gateway)
        provider.gate("go").mark()
        ran, waited = first.result(), second.result()
    assert (ran.status_code, waited.status_code) == (200, 200)
    assert reforecast(gateway) == [waited.headers["x-request-id"]]
    assert sum(shown["forecasts"].values()) == 3  # one each on the loop, one by the thread
    assert (shown["skipped_late"], shown["dropped_full"]) == (0, 0)


def test_answer_still_running_past_its_forecast_teaches(
    start_gateway: Start, provider: ScriptedProvider
) -> None:
    """While an answer far longer than its forecast still runs, similar requests are forecast
    longer."""
    gateway = start_gateway(provider, predict={"enabled": True})
    until_ready(gateway)

    def p90() -> int:
        body = {"prompt": PROMPT, "model": "kit-model"}
        answer = httpx.post(gateway.url("/predict"), json=body, headers=gateway.headers).json()
        value: int = answer["expected_output_tokens_p90"]
        return value

    before = p90()
    assert p90() == before  # nothing else moves it
    long = [steps.chunk({"content": "x"}) for _ in range(40 * before)]
    provider.enqueue([Stream(long), Wait("go"), *steps_end()])
    with ThreadPoolExecutor() as pool:
        running = pool.submit(ask, gateway, PROMPT, stream=True)
        while p90() <= before:
            pass
        assert not running.done()
        provider.gate("go").mark()
        assert running.result().status_code == 200


def steps_end() -> list[steps.Step]:
    """The end of a streamed answer."""
    return [Stream([steps.chunk({}, "stop")], done=True)]
