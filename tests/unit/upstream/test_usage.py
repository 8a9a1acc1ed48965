"""The usage that the meter reads from a stream, and the parts it removes from one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.predict.prices import Price
from gateway.types import CUT_FINISH_REASONS, Usage
from gateway.upstream.stream_meter import StreamMeter
from gateway.upstream.usage import MAX_TOKENS, answer_usage

COUNTS = {"prompt_tokens": 7, "completion_tokens": 3}
DONE = b"data: [DONE]\n\n"


def event(value: Any, *, name: str = "") -> bytes:
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def chunk(content: str | None = None, **more: Any) -> dict[str, Any]:
    """A chat chunk as OpenAI writes it."""
    delta = {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": more.pop("finish_reason", None)}
    return {"id": "c", "object": "chat.completion.chunk", "choices": [choice], **more}


def usage_chunk(**more: Any) -> dict[str, Any]:
    return {"id": "c", "object": "chat.completion.chunk", "choices": [], "usage": COUNTS, **more}


def metered(*events: bytes, hide: bool = False) -> tuple[StreamMeter, bytes]:
    meter = StreamMeter(hide_usage=hide)
    out = b"".join([meter.feed(event) for event in events])
    return meter, out + meter.rest()


# -- whole answers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "usage", "finish"),
    [
        ({"choices": [{"finish_reason": "stop"}], "usage": COUNTS}, Usage(7, 3), "stop"),
        ({"choices": [{"text": "x", "finish_reason": "length"}]}, None, "length"),
        ({"data": [], "usage": {"prompt_tokens": 4, "total_tokens": 4}}, Usage(4, 0), None),
        (
            {"status": "completed", "usage": {"input_tokens": 5, "output_tokens": 6}},
            Usage(5, 6),
            "completed",
        ),
        ({"usage": None}, None, None),
        ({"usage": {}}, None, None),
        ({}, None, None),
    ],
)
def test_answer_usage_reads_every_route(
    body: dict[str, Any], usage: Usage | None, finish: str | None
) -> None:
    """Chat, completions, embeddings and responses name their counts differently."""
    assert answer_usage(json.dumps(body).encode()) == (usage, finish)


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": [{"finish_reason": "length"}]},
        {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
    ],
)
def test_answer_usage_gives_a_cut_answer_a_cut_finish_reason(answer: dict[str, Any]) -> None:
    """The finish reason read of each dialect's cut answer is one of CUT_FINISH_REASONS."""
    assert answer_usage(json.dumps(answer).encode())[1] in CUT_FINISH_REASONS


def test_answer_usage_reads_cached_and_reasoning_tokens() -> None:
    """Cached and reasoning tokens, which have prices of their own, are read under both families of
    names."""
    old = {
        **COUNTS,
        "prompt_tokens_details": {"cached_tokens": 5, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    new = {
        "input_tokens": 7,
        "output_tokens": 3,
        "input_tokens_details": {"cached_tokens": 5},
        "output_tokens_details": {"reasoning_tokens": 2},
    }
    for counts in (old, new):
        usage, _ = answer_usage(json.dumps({"usage": counts}).encode())
        assert usage == Usage(7, 3, cached_tokens=5, reasoning_tokens=2)


SPOKEN = {"cached_tokens": 1, "audio_tokens": 4}
SAID = {"reasoning_tokens": 1, "audio_tokens": 2}


@pytest.mark.parametrize(
    "counts",
    [
        {**COUNTS, "prompt_tokens_details": SPOKEN, "completion_tokens_details": SAID},
        {
            "input_tokens": 7,
            "output_tokens": 3,
            "input_tokens_details": SPOKEN,
            "output_tokens_details": SAID,
        },
        {
            "type": "tokens",
            "input_tokens": 7,
            "output_tokens": 3,
            "input_token_details": SPOKEN,
            "output_token_details": SAID,
        },
    ],
    ids=["chat", "responses", "transcriptions"],
)
def test_answer_usage_reads_audio_tokens(counts: dict[str, Any]) -> None:
    """Audio tokens in and out are read under each route's names, in whole and streamed answers."""
    spoken = Usage(
        7, 3, cached_tokens=1, reasoning_tokens=1, audio_prompt_tokens=4, audio_output_tokens=2
    )
    assert answer_usage(json.dumps({"usage": counts}).encode())[0] == spoken
    assert metered(event({"choices": [], "usage": counts}))[0].usage == spoken


def test_answer_usage_prices_audio_tokens() -> None:
    """Audio tokens read from an answer cost audio prices where the model has them."""
    body = {"usage": {**COUNTS, "prompt_tokens_details": SPOKEN, "completion_tokens_details": SAID}}
    usage, _ = answer_usage(json.dumps(body).encode())
    assert usage is not None
    plain = Price(prompt=2.0, output=8.0)
    with_audio = Price(prompt=2.0, output=8.0, audio_prompt=40.0, audio_output=80.0)
    assert plain.of(usage) == pytest.approx((7 * 2 + 3 * 8) / 1e6)
    assert with_audio.of(usage) == pytest.approx((3 * 2 + 4 * 40 + 1 * 8 + 2 * 80) / 1e6)


def test_answer_usage_bounds_what_a_provider_claims() -> None:
    """Negative counts are none; immense ones would not fit a 64-bit column."""
    body = b'{"usage": {"prompt_tokens": -4, "completion_tokens": 100000000000000000000000}}'
    assert answer_usage(body)[0] == Usage(0, MAX_TOKENS)


def test_answer_usage_reads_past_an_odd_member() -> None:
    """One member of the wrong type does not cost the usage."""
    body = {"status": 200, "usage": COUNTS, "choices": [{"finish_reason": 5}]}
    assert answer_usage(json.dumps(body).encode()) == (Usage(7, 3), None)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'"x"', b"null", b"[" * 100_000, b"\xff"])
def test_answer_usage_of_anything_else_is_unknown(body: bytes) -> None:
    """An answer that is no JSON object has no usage, and raises nothing."""
    assert answer_usage(body) == (None, None)


# -- streams: what is read -----------------------------------------------------------------


def test_meter_reads_the_final_chunk_without_choices() -> None:
    """OpenAI's include_usage: the counts come last, before [DONE]."""
    meter, _ = metered(
        event(chunk("a")), event(chunk(finish_reason="stop")), event(usage_chunk()), DONE
    )
    assert (meter.usage, meter.finish_reason, meter.done) == (Usage(7, 3), "stop", True)


def test_meter_reads_usage_on_a_chunk_with_choices() -> None:
    """Some providers put the counts on the last chunk that has choices."""
    meter, _ = metered(event(chunk(finish_reason="stop", usage=COUNTS)), DONE)
    assert meter.usage == Usage(7, 3)


def test_meter_takes_the_last_usage_that_counts() -> None:
    """Usage that comes twice is no sum; a later one of zeros does not undo it."""
    first, last = {"prompt_tokens": 7, "completion_tokens": 1}, COUNTS
    zeros = {"prompt_tokens": 0, "completion_tokens": 0}
    meter, _ = metered(*(event(chunk("x", usage=u)) for u in (zeros, first, last, zeros, None)))
    assert meter.usage == Usage(7, 3)


def test_meter_without_usage_counts_events() -> None:
    """Usage that never comes is estimated by the events that carried content."""
    meter, _ = metered(b": ping\n\n", *[event(chunk("x"))] * 5, b": ping\n\n", DONE)
    assert meter.usage is None
    assert meter.estimated(11) == Usage(11, 5, estimated=True)


def test_meter_counts_completions_and_responses_events() -> None:
    """Content has other names on the other routes."""
    meter, _ = metered(
        event({"choices": [{"text": "x"}]}),
        event({"type": "response.output_text.delta", "delta": "y"}, name="response.delta"),
    )
    assert meter.content_events == 2


@pytest.mark.parametrize("status", ["completed", "incomplete", "failed", "cancelled"])
def test_meter_ends_at_a_terminal_response(status: str) -> None:
    """The responses API has no [DONE]: its last event has the status, usage inside."""
    counts = {"input_tokens": 7, "output_tokens": 3}
    meter, _ = metered(
        event({"type": "response.created", "response": {"status": "in_progress", "usage": None}}),
    )
    assert not meter.done
    meter.feed(event({"type": "x", "response": {"status": status, "usage": counts}}))
    assert (meter.done, meter.finish_reason, meter.usage) == (True, status, Usage(7, 3))
    bare, _ = metered(event({"type": "x", "response": {"status": status}}))
    assert (bare.done, bare.usage) == (True, None)


@pytest.mark.parametrize(
    "done", [b"data: [DONE]\n\n", b"data:[DONE]\r\n\r\n", b"data: [DONE] \n\n"]
)
def test_meter_knows_the_ways_to_write_done(done: bytes) -> None:
    """Space, line ends and trailing blanks vary; SDKs accept what begins with [DONE]."""
    meter, out = metered(done)
    assert (meter.done, out) == (True, done)


def test_meter_takes_done_without_a_blank_line() -> None:
    """A provider may close right after its last line."""
    meter = StreamMeter(hide_usage=True)
    assert meter.feed(b"data: [DONE]") == b""
    assert not meter.done
    assert (meter.rest(), meter.done) == (b"data: [DONE]", True)


@pytest.mark.parametrize(
    "text", ["[DONE]", "data: [DONE]\n\n", '"usage":{"completion_tokens":9}', '"error":{"x":1}']
)
def test_meter_is_not_fooled_by_content(text: str) -> None:
    """Content that looks like the protocol is counted as content."""
    said = event(chunk(text))
    meter, out = metered(said, hide=True)
    assert (meter.done, meter.usage, meter.error, out) == (False, None, None, said)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({"error": {"message": "no", "code": "x"}}, {"message": "no", "code": "x"}),
        ({"error": "no"}, {"message": "no"}),
        ({"error": {"message": "no"}, "status": 500}, {"message": "no"}),
        ({"error": {"message": "no"}, "choices": "odd"}, {"message": "no"}),
        (
            {"type": "error", "code": "c", "message": "no", "param": None},
            {"type": "error", "code": "c", "message": "no", "param": None},
        ),
        (
            {"response": {"status": "failed", "error": {"code": "c", "message": "no"}}},
            {"code": "c", "message": "no"},
        ),
    ],
)
def test_meter_remembers_an_error_event(value: Any, error: dict[str, Any]) -> None:
    """An error inside a 200 stream is the provider's failure, and passes on unchanged."""
    meter, out = metered(event(value), hide=True)
    assert (meter.error, out) == (error, event(value))


@pytest.mark.parametrize("value", [{"error": None}, {"error": {}}, {"error": ""}, chunk("x")])
def test_meter_takes_an_empty_error_for_none(value: Any) -> None:
    """Some servers write `"error": null` on every chunk."""
    assert metered(event(value))[0].error is None


# -- streams: what is taken out ------------------------------------------------------------


def test_meter_hides_the_usage_chunk_alone() -> None:
    """The client that did not ask gets the stream it would have got without asking."""
    kept = [event(chunk("a")), b": ping\n\n", event(chunk(finish_reason="stop")), DONE]
    meter, out = metered(*kept[:3], event(usage_chunk(service_tier="default")), DONE, hide=True)
    assert out == b"".join(kept)
    assert meter.usage == Usage(7, 3)


def test_meter_that_does_not_hide_passes_the_usage_chunk() -> None:
    """The twin: the same stream keeps its usage where the client asked for it."""
    sent = [event(chunk("a", usage=None)), event(usage_chunk()), DONE]
    assert metered(*sent)[1] == b"".join(sent)


def test_meter_hides_the_usage_member_alone() -> None:
    """Every other member keeps its bytes: number formats, escapes, order, unknown ones."""
    sent = b'{"id":"\\u0063","x":1.50,"choices":[{"delta":{"content":"\\u00e9 \\/"}}]%s,"z":[1, 2]}'
    given = b"data: " + sent % b',"usage":null' + b"\n\n"
    assert metered(given, hide=True)[1] == b"data: " + sent % b"" + b"\n\n"


def test_meter_hides_usage_beside_a_finish_reason() -> None:
    """A chunk with choices stays, and only its usage goes."""
    meter, out = metered(event(chunk(finish_reason="stop", usage=COUNTS)), hide=True)
    assert out == event(chunk(finish_reason="stop"))
    assert meter.usage == Usage(7, 3)


@pytest.mark.parametrize("usage", [{"usage": None}, {"usage": COUNTS}, {}])
def test_meter_keeps_the_prompt_filter_results(usage: dict[str, Any]) -> None:
    """Azure's first chunk has no choices either, and says what its filter found."""
    first = {"choices": [], "id": "", "prompt_filter_results": [{"prompt_index": 0}]}
    assert metered(event({**first, **usage}), hide=True)[1] == event(first)


@pytest.mark.parametrize("choices", [b"[]", b"[ ]", b"null"])
def test_meter_hides_the_usage_chunk_however_empty_its_choices(choices: bytes) -> None:
    """Parsers index choices[0]: a chunk without any must not reach one that did not ask."""
    sent = b'data: {"choices": ' + choices + b', "error": null, "usage": {"prompt_tokens": 1}}\n\n'
    meter, out = metered(sent, hide=True)
    assert (out, meter.usage) == (b"", Usage(1, 0))


def test_meter_keeps_a_chunk_without_choices_that_has_no_usage() -> None:
    """A chunk with `"usage": null` is no usage chunk, though it has no choices."""
    sent = {"id": "c", "choices": []}
    assert metered(event({**sent, "usage": None}), hide=True)[1] == event(sent)


def test_meter_keeps_the_other_lines_of_an_event() -> None:
    """Event names and ids survive the edit of the data."""
    sent = (
        b"event: m\r\nid: 4\r\ndata: " + json.dumps(chunk("x", usage=None)).encode() + b"\r\n\r\n"
    )
    out = metered(sent, hide=True)[1]
    assert out.startswith(b"event: m\r\nid: 4\r\ndata: {")
    assert out.endswith(b"}\r\n\r\n")
    assert b'"usage"' not in out


def test_meter_leaves_the_usage_inside_a_response() -> None:
    """The responses API always tells its usage; it is no member of the event itself."""
    sent = event({"response": {"status": "completed", "usage": {"input_tokens": 1}}})
    assert metered(sent, hide=True)[1] == sent


def test_meter_passes_an_error_beside_usage() -> None:
    """An error is never hidden along with the usage."""
    meter, out = metered(event(usage_chunk(error={"message": "no"})), hide=True)
    assert json.loads(out[6:])["error"] == {"message": "no"}
    assert meter.error == {"message": "no"}


def test_meter_passes_long_events_unread() -> None:
    """An event too long to hold is relayed in pieces; the stream goes on being read."""
    meter = StreamMeter(hide_usage=True, max_event_bytes=1000)
    long = event(chunk("x" * 5000, usage=COUNTS))
    out = b"".join(meter.feed(long[i : i + 700]) for i in range(0, len(long), 700))
    assert (out, meter.usage) == (long, None)
    assert meter.feed(event(usage_chunk())) == b""
    assert meter.usage == Usage(7, 3)


def test_meter_counts_output_on_the_way() -> None:
    """Events that carry content, or the provider's own running count where it is higher."""
    meter, _ = metered(event(chunk("a")), event(chunk("b")))
    assert meter.output_tokens == 2
    meter.feed(event(chunk("c", usage={"prompt_tokens": 7, "completion_tokens": 40})))
    assert meter.output_tokens == 40
    meter.feed(event(chunk("d", usage={"prompt_tokens": 7, "completion_tokens": 1})))
    assert meter.output_tokens == 4
