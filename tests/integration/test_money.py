"""The cost of a request, through the front door: record, metrics, log, journal, /stats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gateway.predict.prices import load_prices
from gateway.shipped import shipped
from gateway.types import Usage
from tests.kit import steps
from tests.kit.gateway import GatewayProcess, account
from tests.kit.provider import ScriptedProvider

PRICED, UNPRICED = "gpt-5.4-mini", "kit-model"
USAGE = {
    "prompt_tokens": 1000,
    "completion_tokens": 200,
    "total_tokens": 1200,
    "prompt_tokens_details": {"cached_tokens": 400},
    "completion_tokens_details": {"reasoning_tokens": 50},
}


@pytest.fixture(scope="module")
def priced(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[GatewayProcess, ScriptedProvider]]:
    with (
        ScriptedProvider() as provider,
        GatewayProcess(
            tmp_path_factory.mktemp("money"),
            accounts=[account(provider, models=[PRICED, UNPRICED])],
            forked=True,
        ) as gateway,
    ):
        yield gateway, provider


Priced = tuple[GatewayProcess, ScriptedProvider]


def ask(priced: Priced, model: str, usage: dict[str, Any] = USAGE, **more: Any) -> str:
    """One request; its id."""
    gateway, provider = priced
    body = steps.completion("Hi.", (9, 3)) | {"usage": usage}
    provider.enqueue([steps.Respond(json=body)])
    asked = {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}
    url = gateway.url("/v1/chat/completions")
    answer = httpx.post(url, json=asked, headers=gateway.headers)
    assert answer.status_code == 200
    return str(answer.headers["x-request-id"])


def cost_stats(priced: Priced) -> dict[str, Any]:
    gateway, _ = priced
    stats = httpx.get(gateway.url("/stats"), headers=gateway.admin_headers).json()
    found: dict[str, Any] = stats["cost_usd"]
    return found


def counted(priced: Priced, name: str) -> dict[str, float]:
    page = httpx.get(priced[0].url("/metrics")).text
    lines = (line for line in page.splitlines() if line.startswith(name + "{"))
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_cost_of_a_request_is_the_same_everywhere(priced: Priced) -> None:
    """Cost has cached tokens at their own price: 600 × 0.25 + 400 × 0.025 + 200 × 2 millionths of a
    dollar; record, metrics, log, journal and /stats agree."""
    gateway, _ = priced
    httpx.post(gateway.url("/reset"), json={"scope": "stats"}, headers=gateway.admin_headers)
    usage = Usage(prompt_tokens=1000, output_tokens=200, cached_tokens=400, reasoning_tokens=50)
    expected = load_prices(shipped("config/prices.toml"))[PRICED].of(usage)
    assert expected == pytest.approx(560e-6)
    asked = ask(priced, PRICED)
    line = gateway.wait_log(lambda line: line.get("request_id") == asked)
    assert line["cost_usd"] == pytest.approx(expected)
    assert line["predicted_cost_usd"] > 0
    events = httpx.get(gateway.url("/events"), headers=gateway.admin_headers).json()["events"]
    [end] = [e for e in events if e["event"] == "finished" and e["job"] == asked]
    assert end["detail"]["cost_usd"] == pytest.approx(expected)
    told = cost_stats(priced)
    assert told["total"] == told["by_model"][PRICED] == told["by_tenant"]["kit"]
    assert told["total"] == pytest.approx(expected)
    labels = f'{{model="{PRICED}",tenant="kit"}}'
    actual = counted(priced, "sagesched_cost_usd_total")
    predicted = counted(priced, "sagesched_predicted_cost_usd_total")
    assert actual[f"sagesched_cost_usd_total{labels}"] == pytest.approx(expected)
    assert predicted[f"sagesched_predicted_cost_usd_total{labels}"] == pytest.approx(
        line["predicted_cost_usd"], abs=1e-9
    )


def test_cost_of_a_model_without_price_is_none(priced: Priced) -> None:
    """A request without a price has no cost: none in the log, no series, and a count of its own in
    /stats."""
    gateway, _ = priced
    before = cost_stats(priced)
    asked = ask(priced, UNPRICED)
    line = gateway.wait_log(lambda line: line.get("request_id") == asked)
    assert line["prompt_tokens"] == 1000
    assert "cost_usd" not in line
    assert "predicted_cost_usd" not in line
    after = cost_stats(priced)
    assert after == before | {"unpriced": before["unpriced"] + 1}
    assert not any(UNPRICED in name for name in counted(priced, "sagesched_cost_usd_total"))


def test_cost_is_counted_anew_after_a_reset(priced: Priced) -> None:
    """`/reset` with scope stats empties the sums of /stats; the metric never goes back."""
    gateway, _ = priced
    ask(priced, PRICED)
    metric = counted(priced, "sagesched_cost_usd_total")
    httpx.post(gateway.url("/reset"), json={"scope": "stats"}, headers=gateway.admin_headers)
    assert cost_stats(priced)["total"] == 0
    assert counted(priced, "sagesched_cost_usd_total") == metric
    ask(priced, PRICED)
    assert cost_stats(priced)["total"] == pytest.approx(560e-6)


def sent(priced: Priced, path: str, **body: Any) -> dict[str, Any]:
    """The log's line of one request of a priced model."""
    gateway, provider = priced
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    provider.enqueue([steps.Respond(json={"choices": [], "data": [], "usage": usage})])
    url = gateway.url(f"/v1/{path}")
    answer = httpx.post(url, json={"model": PRICED, **body}, headers=gateway.headers)
    assert answer.status_code == 200
    asked = answer.headers["x-request-id"]
    return gateway.wait_log(lambda line: line.get("request_id") == asked)


PROMPT = "Write a short poem about the sea at night, and of the ships on it."


@pytest.mark.parametrize(
    ("body", "times"),
    [
        ({"prompt": [PROMPT]}, 1),
        ({"prompt": [PROMPT] * 8}, 8),
        ({"prompt": [PROMPT] * 3, "n": 2}, 6),
        ({"prompt": [PROMPT] * 2, "best_of": 5}, 10),
    ],
)
def test_predicted_cost_of_a_batch_is_that_of_all_its_answers(
    priced: Priced, body: dict[str, Any], times: int
) -> None:
    """Reserve and predicted cost count each answer (n or best_of for every prompt), and each prompt
    once."""
    one = sent(priced, "completions", prompt=PROMPT)
    many = sent(priced, "completions", **body)
    assert many["predicted_p50"] == one["predicted_p50"], "of one answer"
    assert many["reserve_tokens"] == pytest.approx(times * one["reserve_tokens"])
    price, prompts = load_prices(shipped("config/prices.toml"))[PRICED], len(body["prompt"])
    prompt_usd = one["predicted_cost_usd"] - price.usd(0, one["reserve_tokens"])
    assert prompt_usd > 0
    expected = prompts * prompt_usd + price.usd(0, many["reserve_tokens"])
    assert many["predicted_cost_usd"] == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("given", ["texts", "ids"])
def test_predicted_cost_of_embeddings_is_that_of_all_their_inputs(
    priced: Priced, given: str
) -> None:
    """Embeddings generate nothing: their predicted cost is every input's tokens at the prompt's
    price."""
    inputs: list[Any] = [PROMPT] * 50 if given == "texts" else [list(range(20))] * 50
    one = sent(priced, "embeddings", input=inputs[0])
    many = sent(priced, "embeddings", input=inputs)
    assert many["predicted_cost_usd"] == pytest.approx(50 * one["predicted_cost_usd"], rel=0.05)
    price = load_prices(shipped("config/prices.toml"))[PRICED]
    tokens = 50 * (len(PROMPT) / 4 if given == "texts" else 20)
    assert many["predicted_cost_usd"] == pytest.approx(price.usd(tokens, 0), rel=0.05)
