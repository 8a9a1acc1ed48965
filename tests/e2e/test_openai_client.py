"""The official client against the real process and the built-in demo provider."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from openai import OpenAI

from tests.kit.gateway import ROOT, GatewayProcess

MODEL = "gpt-5.4-mini"
HELLO = [{"role": "user", "content": "Hello!"}]


def free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """The shipped gateway.toml, but for its ports and store."""
    directory = tmp_path_factory.mktemp("shipped")
    demo = free_port()
    text = (ROOT / "gateway.toml").read_text()
    text = text.replace("4010", str(demo)).replace("port = 3000 ", "port = 0 ")
    text = text.replace("base_latency_s = 0.15", "base_latency_s = 0.01")
    text = text.replace("token_latency_s = 0.01", "token_latency_s = 0.001")
    process = GatewayProcess(directory, accounts=[])
    process.write(text)
    with process:
        yield process


@pytest.fixture
def client(gateway: GatewayProcess) -> OpenAI:
    return OpenAI(base_url=gateway.base_url, api_key="anything", max_retries=0)


def test_completion_as_in_the_readme(client: OpenAI) -> None:
    """A client changes nothing but its base_url."""
    answer = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.choices[0].message.content
    assert answer.usage
    assert answer.usage.completion_tokens > 0


def test_stream_yields_content_and_no_usage_unasked(client: OpenAI) -> None:
    """Chunks have choices, the last one a finish reason, and none has usage."""
    chunks = list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True))
    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)
    assert "".join(c.choices[0].delta.content or "" for c in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_stream_yields_usage_when_asked(client: OpenAI) -> None:
    """The last chunk, and only that one, has the usage."""
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    usages = [chunk.usage for chunk in stream]
    assert usages[-1] is not None
    assert usages[-1].completion_tokens > 0
    assert usages[:-1] == [None] * (len(usages) - 1)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("stream", [False, True])
def test_token_limit_is_honoured(client: OpenAI, name: str, stream: bool) -> None:
    """Both names of the limit cut the answer."""
    essay = [{"role": "user", "content": "Write a long essay about the sea."}]
    if stream:
        chunks = client.chat.completions.create(
            model=MODEL, messages=essay, stream=True, **{name: 7}
        )
        assert [c.choices[0].finish_reason for c in chunks][-1] == "length"
        return
    answer = client.chat.completions.create(model=MODEL, messages=essay, **{name: 7})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage
    assert answer.usage.completion_tokens == 7


def test_several_choices_come_back(client: OpenAI) -> None:
    """n choices come back, and streamed ones have their index."""
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, n=3)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    chunks = client.chat.completions.create(model=MODEL, messages=HELLO, n=2, stream=True)
    assert {c.choices[0].index for c in chunks} == {0, 1}


@pytest.mark.parametrize("stream", [False, True])
def test_tool_call(client: OpenAI, stream: bool) -> None:
    """A forced tool call arrives with its name and JSON arguments."""
    tool = {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    ask = {"model": MODEL, "messages": HELLO, "tools": [tool], "tool_choice": "required"}
    if stream:
        deltas = [c.choices[0].delta for c in client.chat.completions.create(**ask, stream=True)]
        calls = [call for d in deltas for call in d.tool_calls or []]
        assert calls[0].function.name == "weather"
        return
    call = client.chat.completions.create(**ask).choices[0].message.tool_calls[0]
    assert call.function.name == "weather"


def test_models_are_listed(client: OpenAI) -> None:
    """client.models.list() names the models that the caller may use."""
    assert [m.id for m in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_other_routes_are_relayed(client: OpenAI) -> None:
    """Embeddings, legacy completions and responses are relayed in the same way."""
    assert client.embeddings.create(model=MODEL, input="x").data[0].embedding
    assert client.completions.create(model=MODEL, prompt="Hello").choices[0].text
    assert client.responses.create(model=MODEL, input="Hello").output_text


def test_errors_are_the_clients_exceptions(client: OpenAI, gateway: GatewayProcess) -> None:
    """Each refusal raises the client's own exception for it."""
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as missing:
        create(model="gpt-nobody", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as empty:
        create(model=MODEL, messages=[])
    assert empty.value.param == "messages"
    with pytest.raises(openai.BadRequestError):
        create(model=MODEL, messages=HELLO, max_tokens=0)
    with pytest.raises(openai.NotFoundError):
        client.get("/no/such/route", cast_to=object)


def test_metrics_show_the_request(client: OpenAI, gateway: GatewayProcess) -> None:
    """/metrics has the request's class, account, forecast and outcome."""
    client.chat.completions.create(model=MODEL, messages=HELLO)
    text = httpx.get(gateway.url("/metrics")).text
    line = next(
        x
        for x in text.splitlines()
        if x.startswith("sagesched_requests_total{")
        and 'route="/v1/chat/completions"' in x
        and 'outcome="ok"' in x
    )
    assert f'model="{MODEL}"' in line
    assert 'account="demo-' in line
    assert 'class="' in line
    assert "sagesched_forecast_rung_total{" in text


def test_predict_learns_from_an_answer(client: OpenAI, gateway: GatewayProcess) -> None:
    """A prompt that was answered moves its own forecast towards that answer."""
    prompt = "Describe the inside of a clockwork whale in loving detail."
    url = gateway.url("/predict")
    before = httpx.post(url, json={"prompt": prompt}).json()
    assert before["fallback_level"] in ("model_only", "global_neighbors", "tenant_neighbors")
    lengths = []
    for _ in range(5):
        answer = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": prompt}]
        )
        assert answer.usage
        lengths.append(answer.usage.completion_tokens)
    while True:  # learning comes behind the answer; each /predict waits for its turn
        after = httpx.post(url, json={"prompt": prompt}).json()
        if after["fallback_level"] == "tenant_neighbors":
            break
    middle = sorted(lengths)[2]
    error = abs(after["expected_output_tokens_p50"] - middle)
    assert error <= abs(before["expected_output_tokens_p50"] - middle) or error < 0.5 * middle


def test_ingest_teaches_the_next_predict(gateway: GatewayProcess) -> None:
    """/ingest answers after its commit, and the next /predict has the row."""
    prompt = "Translate the harbour master's ledger of 1831 into modern units."
    for _ in range(6):
        response = httpx.post(
            gateway.url("/ingest"),
            json={"prompt": prompt, "output_tokens": 1500, "prompt_tokens": 14, "success": True},
        )
        assert response.status_code == 200, response.text
    after = httpx.post(gateway.url("/predict"), json={"prompt": prompt}).json()
    assert after["fallback_level"] == "tenant_neighbors"
    assert 1000 < after["expected_output_tokens_p50"] < 2200
    assert after["size_bucket"] == "long"


def test_predict_answers_the_fixed_fields(gateway: GatewayProcess) -> None:
    """The answer has the seed system's fields, of their types."""
    body = httpx.post(
        gateway.url("/predict"), json={"prompt": "hi", "max_tokens": 50, "task_type": "chat"}
    ).json()
    assert body["size_bucket"] in ("short", "medium", "long")
    assert isinstance(body["expected_output_tokens_p50"], int)
    assert isinstance(body["expected_output_tokens_p90"], int)
    assert body["expected_output_tokens_p90"] <= 50
    assert isinstance(body["predicted_cost_p50"], float)
    assert 0 <= body["risk_score"] <= 1
    assert 0 <= body["confidence_score"] <= 1
    assert isinstance(body["fallback_level"], str)


def test_demo_provider_ends_with_the_gateway(tmp_path: Path) -> None:
    """A gateway that is killed ends its child, too."""
    demo = free_port()
    text = (ROOT / "gateway.toml").read_text()
    process = GatewayProcess(tmp_path, accounts=[], forked=True)
    process.write(text.replace("4010", str(demo)).replace("port = 3000 ", "port = 0 "))
    process.start()
    url = f"http://127.0.0.1:{demo}/health"
    with httpx.Client() as client:
        assert client.get(url).status_code == 200
        assert process.process is not None
        os.kill(process.process.pid, signal.SIGKILL)  # the gateway alone, not its group
        process.wait_exit()
        while True:
            try:
                client.get(url)
            except httpx.TransportError:
                break
