"""Accounts as targets of requests, and their refusals as verdicts."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.errors import SettingsError
from gateway.settings.schema import Account
from gateway.types import Outcome, Verdict
from gateway.upstream.providers import (
    MAX_HEADS,
    MAX_RETRY_AFTER_S,
    RETURNED,
    Failure,
    Target,
    classify,
    head_for,
    retry_after,
    stream_error_status,
    target,
)
from gateway.upstream.request_head import Origin

QUICK = hypothesis_settings(max_examples=100, deadline=None, database=None)
KEY = "prov-7c1e5f0a9b"


def account(**fields: Any) -> Account:
    given = {"name": "a", "base_url": "https://h.example/v1", "api_key": "env:K", "models": ["m"]}
    return msgspec.convert({**given, **fields}, Account)


def to(**fields: Any) -> Target:
    return target(account(**fields), KEY)


def refusal(status: int, error: Any = None, *, headers: Any = ()) -> Failure:
    body = b"" if error is None else json.dumps({"error": error}).encode()
    return classify(status, headers, body, to(), 0.0)


def passed_on(failure: Failure) -> dict[str, Any]:
    assert failure.body is not None
    value: dict[str, Any] = json.loads(failure.body)
    assert set(value) == {"error"}
    assert set(value["error"]) == {"message", "type", "param", "code"}
    inner: dict[str, Any] = value["error"]
    return inner


# -- classify: what a refusal teaches --------------------------------------------------------

DEAD, OVER, RATE = Verdict.DEAD_KEY, Verdict.OVERLOADED, Verdict.RATE_LIMITED
LATE, FAULT, NONE = Verdict.TIMEOUT, Verdict.SERVER_ERROR, Verdict.IGNORED


@pytest.mark.parametrize(
    ("status", "code", "verdict", "outcome", "retryable"),
    [
        (400, None, NONE, Outcome.CLIENT_ERROR, False),
        (400, "context_length_exceeded", NONE, Outcome.CLIENT_ERROR, False),
        (400, "invalid_api_key", DEAD, Outcome.UPSTREAM_ERROR, True),
        (401, None, DEAD, Outcome.UPSTREAM_ERROR, True),
        (402, None, DEAD, Outcome.UPSTREAM_ERROR, True),
        (403, None, NONE, Outcome.CLIENT_ERROR, True),
        (403, "account_deactivated", DEAD, Outcome.UPSTREAM_ERROR, True),
        (404, "model_not_found", NONE, Outcome.CLIENT_ERROR, True),
        (408, None, LATE, Outcome.UPSTREAM_TIMEOUT, True),
        (409, None, NONE, Outcome.CLIENT_ERROR, False),
        (413, None, NONE, Outcome.CLIENT_ERROR, False),
        (422, None, NONE, Outcome.CLIENT_ERROR, False),
        (429, None, RATE, Outcome.RATE_LIMITED, True),
        (429, "rate_limit_exceeded", RATE, Outcome.RATE_LIMITED, True),
        (429, "slow_down", RATE, Outcome.RATE_LIMITED, True),
        (429, 429, RATE, Outcome.RATE_LIMITED, True),
        (429, "insufficient_quota", DEAD, Outcome.UPSTREAM_ERROR, True),
        (429, "credit_balance_exhausted", DEAD, Outcome.UPSTREAM_ERROR, True),
        (429, "server_is_overloaded", OVER, Outcome.UPSTREAM_ERROR, True),
        (500, None, FAULT, Outcome.UPSTREAM_ERROR, True),
        (500, "rate_limit_exceeded", RATE, Outcome.RATE_LIMITED, True),
        (502, None, FAULT, Outcome.UPSTREAM_ERROR, True),
        (503, None, OVER, Outcome.UPSTREAM_ERROR, True),
        (504, None, LATE, Outcome.UPSTREAM_TIMEOUT, True),
        (529, None, OVER, Outcome.UPSTREAM_ERROR, True),
        (599, None, FAULT, Outcome.UPSTREAM_ERROR, True),
    ],
)
def test_classify_goes_by_code_before_status(
    status: int, code: str | int | None, verdict: Verdict, outcome: Outcome, retryable: bool
) -> None:
    """An exhausted quota is a dead key whatever its status; a client's error teaches nothing."""
    failure = refusal(status, {"message": "no", "code": code})
    assert (failure.verdict, failure.outcome, failure.retryable) == (verdict, outcome, retryable)
    assert failure.code == (str(code) if code is not None else f"http_{status}")


def test_classify_reads_the_type_where_there_is_no_code() -> None:
    """Some providers name the reason in `type` alone."""
    assert refusal(429, {"type": "insufficient_quota"}).verdict is Verdict.DEAD_KEY
    assert refusal(500, {"type": "overloaded_error"}).verdict is Verdict.OVERLOADED
    assert refusal(400, {"type": "invalid_request_error"}).code == "invalid_request_error"


def test_classify_hides_the_accounts_own_trouble() -> None:
    """A refused key is the operator's business: the client gets 502 without its text."""
    failure = refusal(401, {"message": "Incorrect API key", "code": "invalid_api_key"})
    assert (failure.status, failure.body) == (502, None)
    assert "key" not in failure.message


def test_classify_passes_the_clients_own_fault_on() -> None:
    """The twin: an error the client can mend reaches it in the provider's words."""
    failure = refusal(400, {"message": "Bad tool", "param": "tools", "code": "bad", "type": "t"})
    assert failure.status == 400
    assert passed_on(failure) == {
        "message": "Bad tool",
        "type": "t",
        "param": "tools",
        "code": "bad",
    }


def test_classify_passes_on_retry_after() -> None:
    """The provider's Retry-After is kept, for the account and for the client."""
    assert refusal(429, headers=[(b"Retry-After", b"7")]).retry_after_s == 7.0


def test_classify_keeps_the_status_within_http() -> None:
    """A status above 599 becomes 502, as servers refuse to write it."""
    assert refusal(999).status == 502
    assert refusal(599).status == 599


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (b"", "the provider answered 400", None),
        (b"<html>Bad</html>", "the provider answered 400", None),
        (b'{"error": {"mess', "the provider answered 400", None),
        (b"[]", "the provider answered 400", None),
        (b"7", "the provider answered 400", None),
        (b"\xff\xfe", "the provider answered 400", None),
        (b"[" * 100_000, "the provider answered 400", None),
        (b'{"error": null}', "the provider answered 400", None),
        (b'{"error": null, "message": "m"}', "m", None),
        (b'{"error": "m"}', "m", None),
        (b'{"detail": "m"}', "m", None),
        (b'{"detail": [{"loc": ["body"], "msg": "m"}]}', '[{"loc":["body"],"msg":"m"}]', None),
        (b'{"object": "error", "message": "m", "code": 40001}', "m", "40001"),
        (b'{"error": {"message": "m", "code": 400, "status": "BAD"}}', "m", "400"),
        (b'[{"error": {"message": "m", "code": 400}}]', "m", "400"),
        (b'{"error": {"message": {"a": 1}, "code": {"b": 2}}}', '{"a":1}', ""),
    ],
)
def test_classify_reads_errors_of_every_shape(body: bytes, message: str, code: str | None) -> None:
    """OpenAI's object, Gemini's array, FastAPI's detail, plain text and no JSON are all read."""
    error = passed_on(classify(400, [], body, to(), 0.0))
    assert (error["message"], error["code"]) == (message, code)


@pytest.mark.parametrize(
    "secret",
    [
        KEY,
        "sk-proj-abc123DEF456",
        "sk-ab**********89",
        "sk_live_4eC39HqLyjWD",
        "Bearer eyJhbGciOiJIUzI1",
        "AIzaSyA-1234567890abc",
        "key-" + "abcdefgh" * 4,
    ],
)
def test_classify_scrubs_what_looks_like_a_key(secret: str) -> None:
    """A key that a provider repeats reaches no client, in whatever member it stands."""
    error = passed_on(
        refusal(400, {"message": f"Bad: {secret}.", "code": f"c {secret}", "type": secret})
    )
    assert secret not in json.dumps(error)
    assert error["message"].startswith("Bad: [key]")


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: it has expired.",
        "Unknown key parameter in tools",
        "primary key constraint",
        "a risk-adjusted, task-specific key-value store",
        "Bearer authentication required",
    ],
)
def test_classify_leaves_words_that_are_no_key(text: str) -> None:
    """The twin: a sentence about keys stays readable."""
    assert passed_on(refusal(400, {"message": text}))["message"] == text


def test_classify_bounds_what_it_passes_on() -> None:
    """Texts of a provider that end up in headers, logs and memory are bounded."""
    long = "x" * 100_000
    failure = refusal(400, dict.fromkeys(("message", "type", "code", "param"), long))
    assert len(failure.code) <= 100
    assert max(len(value) for value in passed_on(failure).values()) <= 4000


@QUICK
@given(status=st.integers(400, 999), body=st.binary(max_size=100))
@example(status=400, body=b'{"error": {"code": "\xff"}}')
def test_classify_never_raises(status: int, body: bytes) -> None:
    """No refusal raises, whatever its bytes."""
    assert classify(status, [], body, to(), 0.0).status <= 599


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"code": 429}, 429),
        ({"code": "503"}, 503),
        ({"status": 400, "code": "x"}, 400),
        ({"code": 200}, 500),
        ({"code": True}, 500),
        ({"code": "4290"}, 500),
        ({"type": "invalid_request_error"}, 400),
        ({"type": "BadRequestError", "code": None}, 400),
        ({"code": "context_length_exceeded"}, 400),
        ({"code": "rate_limit_exceeded"}, 429),
        ({"message": "no"}, 500),
        ({}, 500),
    ],
)
def test_stream_error_status_is_the_one_it_stands_for(error: dict[str, Any], status: int) -> None:
    """An error inside a 200 stream is classified like the refusal it stands for."""
    assert stream_error_status(error) == status


# -- retry_after -------------------------------------------------------------------------------

NOON = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ([], None),
        ([(b"retry-after", b"7")], 7.0),
        ([(b"Retry-After", b" 1.5 ")], 1.5),
        ([(b"retry-after", b"0")], 0.0),
        ([(b"retry-after-ms", b"250")], 0.25),
        ([(b"retry-after", b"7"), (b"retry-after-ms", b"250")], 0.25),
        ([(b"retry-after-ms", b"soon"), (b"retry-after", b"7")], 7.0),
        ([(b"retry-after", b"-5")], 0.0),
        ([(b"retry-after-ms", b"-5")], 0.0),
        ([(b"retry-after", b"9" * 30)], MAX_RETRY_AFTER_S),
        ([(b"retry-after-ms", b"9" * 300)], MAX_RETRY_AFTER_S),
        ([(b"retry-after", b"9" * 400)], None),
        ([(b"retry-after-ms", b"nan")], None),
        ([(b"retry-after-ms", b"inf")], None),
        ([(b"retry-after-ms", b"1_000")], None),
        ([(b"retry-after", b"")], None),
        ([(b"retry-after", b"later")], None),
        ([(b"retry-after", b"\xff")], None),
        ([(b"retry-after", b"Sun, 06 Nov 1994 08:50:07 GMT")], 30.0),
        ([(b"retry-after", b"Sun, 06 Nov 1994 08:50:07 -0000")], 30.0),
        ([(b"retry-after", b"Sun Nov  6 08:50:07 1994")], 30.0),
        ([(b"retry-after", b"Sunday, 06-Nov-94 08:50:07 GMT")], 30.0),
        ([(b"retry-after", b"Sun, 06 Nov 1994 09:50:07 +0100")], 30.0),
        ([(b"retry-after", b"Sun, 06 Nov 1994 08:49:00 GMT")], 0.0),
        ([(b"retry-after", b"Fri, 31 Dec 9999 23:59:59 GMT")], MAX_RETRY_AFTER_S),
        ([(b"retry-after", b"Sun, 99 Nov 1994 08:50:07 GMT")], None),
        ([(b"x-ratelimit-reset", b"7")], None),
    ],
)
def test_retry_after_reads_every_way_to_say_it(headers: Any, wait: float | None) -> None:
    """Milliseconds count before seconds, seconds before dates; unreadable values are ignored."""
    assert retry_after(headers, NOON) == wait


@QUICK
@given(name=st.sampled_from([b"retry-after", b"retry-after-ms"]), value=st.binary(max_size=40))
def test_retry_after_is_none_or_within_a_day(name: bytes, value: bytes) -> None:
    """Any value gives None or a time of at most a day."""
    wait = retry_after([(name, value)], NOON)
    assert wait is None or 0.0 <= wait <= MAX_RETRY_AFTER_S


# -- targets -----------------------------------------------------------------------------------


def request_line(at: Target, path: str, query: bytes = b"") -> bytes:
    return head_for(at, "GET", path, query, [], 0).split(b"\r\n")[0]


@pytest.mark.parametrize("base", ["https://h.example/v1", "https://h.example/v1/"])
def test_head_for_appends_the_path_to_the_base(base: str) -> None:
    """With or without a slash at the end; the query is the client's, byte for byte."""
    at = to(base_url=base)
    line = request_line(at, "/chat/completions")
    assert line == b"GET /v1/chat/completions HTTP/1.1"
    line = request_line(at, "/files/f%2Fx", b"a=%41&b=\xc3")
    assert line == b"GET /v1/files/f%2Fx?a=%41&b=\xc3 HTTP/1.1"


def test_head_for_works_without_a_path_in_the_base() -> None:
    """A base URL may be a bare host and port."""
    at = to(base_url="http://h:81")
    assert request_line(at, "/models") == b"GET /models HTTP/1.1"
    assert at.origin == Origin("http", "h", 81)


def test_head_for_never_leaves_the_host() -> None:
    """A client's path stays a path, however much it looks like a host."""
    head = head_for(to(), "GET", "//evil.example/x", b"@evil.example", [], 0)
    assert head.split(b"\r\n")[1] == b"host: h.example"


def test_head_for_remembers_a_bounded_number_of_heads() -> None:
    """The number of remembered heads is bounded, and none has a query."""
    at = to()
    for n in range(3 * MAX_HEADS):
        assert request_line(at, f"/files/{n}", b"q=1") == f"GET /v1/files/{n}?q=1 HTTP/1.1".encode()
        assert request_line(at, f"/files/{n}") == f"GET /v1/files/{n} HTTP/1.1".encode()
    assert len(at.heads) == MAX_HEADS


def test_head_for_tells_methods_and_accounts_apart() -> None:
    """A remembered head serves its own method, path and account alone."""
    one, other = to(), to(base_url="https://other.example/v1")
    for _ in range(2):
        assert head_for(one, "POST", "/x", b"", [], 3).endswith(b"\r\ncontent-length: 3\r\n\r\n")
        assert request_line(one, "/x") == b"GET /v1/x HTTP/1.1"
        assert b"host: other.example" in head_for(other, "GET", "/x", b"", [], 0)


@pytest.mark.parametrize("key", ["sk-\r\nx-admin: 1", "sk-\0", "sk-\u00fc"])
def test_target_refuses_what_no_request_can_be_made_of(key: str) -> None:
    """A key that would add a header is an error of the settings and does not wait for a request;
    the error names the account and not the key."""
    with pytest.raises(SettingsError, match=r"^accounts \(a\): no request") as caught:
        target(account(), key)
    assert key not in caught.value.message


def test_head_for_sends_what_is_harmless_alone() -> None:
    """Credentials, cookies, addresses and payers of the client are not forwarded."""
    harmless = [(b"content-type", b"application/json"), (b"accept", b"*/*"), (b"openai-beta", b"x")]
    held_back = [
        (name, b"client's")
        for name in (
            b"authorization",
            b"api-key",
            b"x-api-key",
            b"cookie",
            b"host",
            b"content-length",
            b"transfer-encoding",
            b"connection",
            b"accept-encoding",
            b"user-agent",
            b"forwarded",
            b"x-forwarded-for",
            b"openai-organization",
            b"openai-project",
            b"x-sagesched-class",
            b"x-stainless-retry-count",
        )
    ]
    head = head_for(to(), "POST", "/x", b"", [*held_back, *harmless], 1)
    lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")[1:]
    sent = [tuple(line.split(b": ", 1)) for line in lines]
    assert [value for _, value in sent if value == b"client's"] == []
    assert (b"authorization", b"Bearer " + KEY.encode()) in sent
    assert sent[-4:] == [*harmless, (b"content-length", b"1")]
    assert len({name for name, _ in sent}) == len(sent)


def test_returned_headers_keep_the_accounts_business() -> None:
    """Rate limits, cookies and ids of the provider's account are not returned."""
    private = {b"set-cookie", b"openai-organization", b"x-ratelimit-remaining-tokens", b"server"}
    assert not private & RETURNED
    assert b"content-type" in RETURNED


def test_target_does_not_show_its_key() -> None:
    """A target in a log line or a traceback names the account, never its key."""
    assert KEY not in repr(to())
    assert KEY in to().key
