"""The demo provider seen by the official client, and by clients that misbehave."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from gateway.demo.provider import DemoProvider, app
from gateway.settings.schema import Demo

pytestmark = pytest.mark.anyio

FAST = {"base_latency_s": 0.0, "token_latency_s": 0.0}
HELLO = [{"role": "user", "content": "Hello!"}]
ESSAY = [{"role": "user", "content": "Write an essay about volcanoes"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Bern", "Oslo"]}, "days": {"type": "integer"}},
        },
    },
}


def demo(keys: list[str] | None = None, **settings: Any) -> DemoProvider:
    return app(Demo(**{**FAST, **settings}), keys)


def http(provider: DemoProvider, key: str = "k") -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(provider),
        base_url="http://demo",
        headers={"authorization": f"Bearer {key}"},
    )


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with http(demo()) as opened:
        yield opened


async def chat(client: httpx.AsyncClient, **body: Any) -> Any:
    body = {"model": "m", "messages": HELLO, **body}
    return (await client.post("/v1/chat/completions", json=body)).json()


async def events(client: httpx.AsyncClient, path: str, **body: Any) -> list[Any]:
    answer = await client.post(path, json={"model": "m", "stream": True, **body})
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def test_chat_answers_with_its_usage(client: httpx.AsyncClient) -> None:
    """A plain answer has text, finish_reason stop, usage, and OpenAI's headers."""
    body = {"model": "m", "messages": HELLO}
    answer = await client.post("/v1/chat/completions", json=body)
    tree = answer.json()
    assert tree["choices"][0]["finish_reason"] == "stop"
    assert tree["choices"][0]["message"]["content"]
    usage = tree["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert answer.headers["x-request-id"].startswith("req_")
    assert int(answer.headers["openai-processing-ms"]) >= 0


async def test_chat_stream_carries_the_same_text_as_the_whole(client: httpx.AsyncClient) -> None:
    """With a seed, streamed and whole answers are equal; usage stands where it was asked."""
    whole = await chat(client, seed=7, messages=ESSAY, n=2)
    options = {"include_usage": True}
    got = await events(
        client, "/v1/chat/completions", seed=7, messages=ESSAY, n=2, stream_options=options
    )
    assert got[-1] == "[DONE]"
    assert got[-2]["choices"] == []
    assert got[-2]["usage"] == whole["usage"]
    assert all(e["usage"] is None for e in got[:-2])
    for index in (0, 1):
        mine = [e["choices"][0] for e in got[:-2] if e["choices"][0]["index"] == index]
        text = "".join(c["delta"].get("content") or "" for c in mine)
        assert text == whole["choices"][index]["message"]["content"]
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == ["stop"]
    assert whole["choices"][0]["message"] != whole["choices"][1]["message"]


async def test_chat_stream_has_no_usage_unless_requested(client: httpx.AsyncClient) -> None:
    """Without include_usage there is no usage member at all."""
    got = await events(client, "/v1/chat/completions", messages=HELLO)
    assert not any("usage" in e for e in got[:-1])


@pytest.mark.parametrize(
    ("fixed", "same"), [({"seed": 4}, True), ({"temperature": 0}, True), ({}, False)]
)
async def test_chat_repeats_where_the_request_fixes_chance(
    client: httpx.AsyncClient, fixed: dict[str, Any], same: bool
) -> None:
    """A seed or temperature 0 gives the same answer again, otherwise it varies."""
    first, second = [await chat(client, messages=ESSAY, **fixed) for _ in "ab"]
    assert (first["choices"] == second["choices"]) is same


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_chat_honours_the_token_limit(client: httpx.AsyncClient, field: str) -> None:
    """An answer beyond the limit is cut with finish_reason length; one that fits has stop."""
    cut = await chat(client, messages=ESSAY, **{field: 5})
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["usage"]["completion_tokens"] == 5
    fits = await chat(client, messages=HELLO, **{field: 1000})
    assert fits["choices"][0]["finish_reason"] == "stop"


async def test_chat_ends_before_a_stop_sequence(client: httpx.AsyncClient) -> None:
    """The text ends right before the stop sequence, also within a token."""
    text = (await chat(client, seed=1))["choices"][0]["message"]["content"]
    stop = text[4:7]
    got = (await chat(client, seed=1, stop=[stop]))["choices"][0]
    assert got["message"]["content"] == text[: text.index(stop)]
    assert got["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("more", "called"),
    [
        ({"tool_choice": "required"}, True),
        ({"tool_choice": {"type": "function", "function": {"name": "get_weather"}}}, True),
        ({"messages": [{"role": "user", "content": "what weather is it"}]}, True),
        ({"tool_choice": "none"}, False),
        ({}, False),
    ],
)
async def test_chat_calls_tools_when_forced_or_spoken_of(
    client: httpx.AsyncClient, more: dict[str, Any], called: bool
) -> None:
    """A tool call has arguments of the tool's schema; none and silence give text."""
    choice = (await chat(client, tools=[WEATHER], **more))["choices"][0]
    assert (choice["finish_reason"] == "tool_calls") is called
    if called:
        function = choice["message"]["tool_calls"][0]["function"]
        assert function["name"] == "get_weather"
        arguments = json.loads(function["arguments"])
        assert arguments["city"] in ("Bern", "Oslo")
        assert isinstance(arguments["days"], int)


async def test_chat_streams_a_tool_call_in_deltas(client: httpx.AsyncClient) -> None:
    """The first delta names the call, the others carry pieces of its arguments."""
    got = await events(
        client, "/v1/chat/completions", messages=HELLO, tools=[WEATHER], tool_choice="required"
    )
    deltas = [e["choices"][0]["delta"] for e in got[:-1]]
    calls = [d["tool_calls"][0] for d in deltas if d.get("tool_calls")]
    assert calls[0]["function"]["name"] == "get_weather"
    assert all("id" not in c for c in calls[1:])
    json.loads("".join(c["function"]["arguments"] for c in calls))


async def test_chat_answers_in_json_when_asked(client: httpx.AsyncClient) -> None:
    """response_format json_object and json_schema give JSON, the latter by its schema."""
    loose = await chat(client, response_format={"type": "json_object"})
    assert isinstance(json.loads(loose["choices"][0]["message"]["content"]), dict)
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}}
    held = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    strict = await chat(client, response_format=held)
    assert list(json.loads(strict["choices"][0]["message"]["content"])) == ["ok"]


async def test_completions_answer_every_prompt(client: httpx.AsyncClient) -> None:
    """Two prompts with two choices each get four answers of 16 tokens by default; a stream ends
    with [DONE]."""
    body = {"model": "m", "prompt": ["Explain tea", "Explain rain"], "n": 2}
    tree = (await client.post("/v1/completions", json=body)).json()
    assert [c["index"] for c in tree["choices"]] == [0, 1, 2, 3]
    assert tree["usage"]["completion_tokens"] == 64
    got = await events(client, "/v1/completions", prompt="Explain tea", max_tokens=3)
    assert [e["choices"][0]["finish_reason"] for e in got[:-1]] == [None] * 3 + ["length"]


async def test_responses_stream_in_numbered_events(client: httpx.AsyncClient) -> None:
    """In the Responses API deltas make the text, numbers rise by one, and the last event has the
    usage."""
    got = await events(client, "/v1/responses", input="briefly: tea", seed=3)
    assert [e["sequence_number"] for e in got] == list(range(len(got)))
    assert (got[0]["type"], got[-1]["type"]) == ("response.created", "response.completed")
    text = "".join(e["delta"] for e in got if e["type"] == "response.output_text.delta")
    final = got[-1]["response"]
    assert final["output"][0]["content"][0]["text"] == text
    assert final["usage"]["output_tokens"] > 0
    body = {"model": "m", "input": "briefly: tea", "seed": 3}
    whole = (await client.post("/v1/responses", json=body)).json()
    assert whole["output"][0]["content"][0]["text"] == text


async def test_responses_cut_short_are_incomplete(client: httpx.AsyncClient) -> None:
    """An answer cut by max_output_tokens ends with response.incomplete and the reason."""
    got = await events(
        client, "/v1/responses", input="Write an essay about tea", max_output_tokens=16
    )
    assert got[-1]["type"] == "response.incomplete"
    assert got[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_embeddings_are_unit_vectors_by_shared_words(
    client: httpx.AsyncClient,
) -> None:
    """Embeddings are deterministic, of length 1, and nearer for texts that share words."""
    texts = ["red apple pie", "green apple pie", "fast grey train"]
    body = {"model": "m", "input": texts, "dimensions": 64}
    data = (await client.post("/v1/embeddings", json=body)).json()["data"]
    a, b, c = (item["embedding"] for item in data)

    def dot(x: list[float], y: list[float]) -> float:
        return sum(p * q for p, q in zip(x, y, strict=True))

    assert dot(a, a) == pytest.approx(1)
    assert dot(a, b) > dot(a, c)
    assert (await client.post("/v1/embeddings", json=body)).json()["data"] == data


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "param"),
    [
        ("POST", "/v1/chat/completions", b"{", 400, None),
        ("POST", "/v1/chat/completions", b'{"model":"m"}', 400, "messages"),
        ("POST", "/v1/chat/completions", b'{"model":"m","messages":[]}', 400, "messages"),
        (
            "POST",
            "/v1/chat/completions",
            b'{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":0}',
            400,
            "max_tokens",
        ),
        ("POST", "/v1/completions", b'{"model":"m","prompt":[{}]}', 400, "prompt"),
        ("POST", "/v1/embeddings", b'{"model":"m","input":[]}', 400, "input"),
        ("GET", "/v1/chat/completions", b"", 405, None),
        ("POST", "/v1/models", b"", 405, None),
        ("GET", "/v1/models/none", b"", 404, "model"),
        ("POST", "/v1/nothing", b"", 404, None),
    ],
)
async def test_errors_are_openais(
    client: httpx.AsyncClient, method: str, path: str, body: bytes, status: int, param: str | None
) -> None:
    """A faulty request gets OpenAI's status, body and param."""
    answer = await client.request(method, path, content=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


async def test_a_prompt_beyond_the_context_is_refused(client: httpx.AsyncClient) -> None:
    """A prompt beyond the context gets context_length_exceeded, as from a real provider."""
    tree = await chat(client, messages=[{"role": "user", "content": "x" * 600_000}])
    assert tree["error"]["code"] == "context_length_exceeded"


async def test_unknown_keys_are_refused_where_keys_are_given() -> None:
    """A key that is not on the list gets 401; without a list every key is accepted."""
    closed = demo(["good"])
    for key, status in (("bad", 401), ("", 401), ("good", 200)):
        async with http(closed, key) as client:
            assert (await client.get("/v1/models")).status_code == status
    async with http(demo(), "anything") as client:
        assert (await client.get("/v1/models")).status_code == 200


async def test_rate_limit_is_per_key_with_a_retry_after() -> None:
    """The request beyond rpm is a 429 of OpenAI's shape; another key is served."""
    provider = demo(rpm=1)
    body = {"model": "m", "messages": HELLO}
    async with http(provider, "a") as client:
        first = await client.post("/v1/chat/completions", json=body)
        second = await client.post("/v1/chat/completions", json=body)
    async with http(provider, "b") as client:
        other = await client.post("/v1/chat/completions", json=body)
    assert [first.status_code, second.status_code, other.status_code] == [200, 429, 200]
    assert second.json()["error"]["type"] == "requests"
    assert second.json()["error"]["code"] == "rate_limit_exceeded"
    assert 0 < int(second.headers["retry-after-ms"]) <= 60_000
    assert 1 <= int(second.headers["retry-after"]) <= 60
    assert first.headers["x-ratelimit-remaining-requests"] == "0"


async def test_error_rate_one_fails_every_request() -> None:
    """Faults are 500 or 503 with an error body."""
    async with http(demo(error_rate=1.0)) as client:
        answer = await client.post("/v1/chat/completions", json={})
    assert answer.status_code in (500, 503)
    assert answer.json()["error"]["type"] == "server_error"


async def ask_and_leave(provider: DemoProvider, *, stream: bool, leave: asyncio.Event) -> None:
    """One request over bare ASGI whose client is gone once `leave` is set."""
    body = json.dumps({"model": "m", "messages": ESSAY, "stream": stream}).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await leave.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message.get("body"):  # leave once there is something to leave from
            leave.set()

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    await provider(scope, receive, send)


@pytest.mark.parametrize("stream", [True, False])
async def test_generation_stops_when_the_client_leaves(stream: bool) -> None:
    """An answer of minutes ends at once, and its stream no longer counts."""
    provider = demo(token_latency_s=1.0)
    leave = asyncio.Event()
    if not stream:
        asyncio.get_running_loop().call_later(0.02, leave.set)
    async with asyncio.timeout(2):
        await ask_and_leave(provider, stream=stream, leave=leave)
    assert (provider.left, provider.served, provider.congestion.active) == (1, 0, 0)


async def test_generation_goes_on_while_the_client_stays() -> None:
    """The twin: the stream of a client that stays goes on."""
    provider = demo(token_latency_s=1.0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await ask_and_leave(provider, stream=False, leave=asyncio.Event())
    assert provider.left == 0


async def test_time_taken_follows_base_and_tokens() -> None:
    """Five tokens at 20 ms after 50 ms take about 150 ms, streamed or not."""
    loop = asyncio.get_running_loop()
    provider = demo(base_latency_s=0.05, token_latency_s=0.02, noise=0.0)
    async with http(provider) as slow:
        for stream in (False, True):
            before = loop.time()
            body = {"model": "m", "messages": ESSAY, "max_tokens": 5, "stream": stream}
            await slow.post("/v1/chat/completions", json=body)
            assert 0.14 <= loop.time() - before < 0.6


def test_process_listens_and_ends_on_sigterm() -> None:
    """run() says where it listens, answers there, and returns on SIGTERM."""
    code = (
        "from gateway.demo import provider as demo; from gateway.settings.schema import Demo;"
        "demo.run(Demo(port=0, base_latency_s=0.0, token_latency_s=0.0)); print('returned')"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as p:
        assert p.stdout is not None
        line = json.loads(p.stdout.readline())
        assert line["msg"] == "listening"
        url = f"http://{line['host']}:{line['port']}"
        body = {"model": "m", "messages": HELLO}
        try:
            assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 200
            assert httpx.get(f"{url}/demo/state").json()["served"] == 1
        finally:
            p.send_signal(signal.SIGTERM)
        assert p.stdout.read() == "returned\n"
        assert p.wait(5) == 0
