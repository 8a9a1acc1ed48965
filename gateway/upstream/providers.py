"""Accounts ready to be called, and the judgement of their refusals (429 and all others).

`classify` judges a refusal by `error.code` before its status (OpenAI's error codes): an exhausted
quota is a dead key whatever its status, `slow_down` cuts the limit, and an error of the client
says nothing about the account.
"""

from __future__ import annotations

import datetime
import email.utils
import re
from collections.abc import Iterable
from typing import Any

import httpx
import msgspec
from msgspec import Struct

from gateway.errors import SettingsError
from gateway.settings.schema import Account
from gateway.types import Outcome, Verdict
from gateway.upstream.request_head import Origin, first_lines, last_lines

Headers = list[tuple[bytes, bytes]]

_DEAD_CODES = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "account_deactivated",
        "credit_balance_exhausted",
        "invalid_api_key",
    }
)
_OVERLOAD_CODES = frozenset({"server_is_overloaded", "overloaded", "overloaded_error"})
_RATE_CODES = frozenset({"rate_limit_exceeded", "slow_down", "tokens", "requests"})
# A digit, a star or great length distinguishes a key from a word ("API key provided").
_KEY_LIKE = re.compile(
    r"\b(?:(?:sk|pk|rk|key)[-_]|AIza|Bearer )"
    r"(?:(?=[\w.*~+/=-]*[0-9*])[\w.*~+/=-]{6,}|[\w.*~+/=-]{24,})"
)
_WAITS = (b"retry-after-ms", b"retry-after")
MAX_RETRY_AFTER_S = 86_400.0

# Client headers that are forwarded to the provider. All others are dropped: credentials, cookies,
# addresses, and headers that choose who pays.
_FORWARDED = frozenset(
    {b"accept", b"content-type", b"content-encoding", b"openai-beta", b"accept-language"}
)
# Provider headers that are returned to the client. Rate limits are not: they are the account's.
RETURNED = frozenset(
    {
        b"content-type",
        b"content-encoding",
        b"content-disposition",
        b"content-range",
        b"openai-processing-ms",
        b"openai-version",
        b"openai-model",
    }
)

MAX_HEADS = 64


class Target(Struct, frozen=True):
    """An account ready to be called: its settings and its key, resolved."""

    account: Account
    key: str
    origin: Origin
    path: bytes  # of its base URL, without a slash at the end
    headers: tuple[tuple[bytes, bytes], ...]
    models: dict[str, str]  # the client's name → the provider's
    heads: dict[tuple[str, str], bytes] = {}  # first lines by method and path; filled on first use

    def __repr__(self) -> str:
        return f"Target({self.account.name!r})"


def target(account: Account, key: str) -> Target:
    """The account, ready to be called; `key` is the secret itself.

    Raises SettingsError where no request can be made of them.
    """
    try:
        url = httpx.URL(account.base_url.rstrip("/"))
        made = Target(
            account=account,
            key=key,
            origin=Origin.of(url),
            path=url.raw_path.rstrip(b"/"),
            headers=(
                (b"authorization", b"Bearer " + key.encode("ascii")),
                (b"user-agent", b"sagesched-gateway"),
                # Uncompressed, so that usage can be read on the way.
                (b"accept-encoding", b"identity"),
            ),
            models=account.model_map,
        )
        first_lines(made.origin, "POST", made.path + b"/", made.headers)
    except (httpx.InvalidURL, ValueError):
        where = f"accounts ({account.name})"
        raise SettingsError(f"{where}: no request can be made of base_url and api_key") from None
    return made


def head_for(
    to: Target,
    method: str,
    path: str,
    query: bytes,
    client_headers: Iterable[tuple[bytes, bytes]],
    length: int,
) -> bytes:
    """The head of the provider's request: with the account's own headers and the client's forwarded
    ones. `path` is the client's path below /v1 such as `/chat/completions`."""
    first = None if query else to.heads.get((method, path))
    if first is None:
        whole = to.path + path.encode("ascii") + (b"?" + query if query else b"")
        first = first_lines(to.origin, method, whole, to.headers)
        if not query and len(to.heads) < MAX_HEADS:
            to.heads[method, path] = first
    forwarded = [header for header in client_headers if header[0] in _FORWARDED]
    return first + last_lines(method, forwarded, length)


_json = msgspec.json.Encoder()


class Failure(Struct, frozen=True):
    """Error of one attempt."""

    verdict: Verdict  # for the account
    outcome: Outcome  # of the job, if no other attempt follows
    retryable: bool  # another attempt may succeed
    status: int  # for the client, if no other attempt follows
    code: str
    message: str
    body: bytes | None = None  # the provider's error, cleaned; None if it must not be passed on
    retry_after_s: float | None = None


def retry_after(headers: Iterable[tuple[bytes, bytes]], wall_s: float) -> float | None:
    """Seconds from `retry-after-ms` or `Retry-After` (RFC 9110 §10.2.3: seconds or a date).

    Between 0 and a day; None where both are absent or unreadable. `wall_s` is the Unix time.
    """
    found = {k.lower(): v.decode("latin-1").strip() for k, v in headers if k.lower() in _WAITS}
    wait = _number(found.get(b"retry-after-ms"), 1000)
    if wait is None:
        text = found.get(b"retry-after")
        wait = _number(text, 1)
        if wait is None and text is not None:
            wait = _seconds_until(text, wall_s)
    return None if wait is None else min(max(wait, 0.0), MAX_RETRY_AFTER_S)


def _number(text: str | None, per_second: int) -> float | None:
    if text is None or not re.fullmatch(r"-?[0-9]{1,300}(\.[0-9]{1,20})?", text):
        return None
    return float(text) / per_second


def _seconds_until(date: str, wall_s: float) -> float | None:
    try:
        when = email.utils.parsedate_to_datetime(date)
        if when.tzinfo is None:  # dates in HTTP are GMT, even if they do not say so
            when = when.replace(tzinfo=datetime.UTC)
        return when.timestamp() - wall_s
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def classify(
    status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes, to: Target, wall_s: float
) -> Failure:
    """The failure that a refusal means.

    `status` is ≥ 400; for an error inside a 200 stream it is `stream_error_status`.
    """
    error = _error_object(body)
    code, kind = _word(error.get("code")), _word(error.get("type"))
    wait = retry_after(headers, wall_s)
    clean = _clean(error, status, to.key)

    def failure(verdict: Verdict, outcome: Outcome, retry: bool, final: int | None) -> Failure:
        # final None: the provider's own error goes to the client.
        return Failure(
            verdict=verdict,
            outcome=outcome,
            retryable=retry,
            status=final or (status if status <= 599 else 502),
            code=code or kind or f"http_{status}",
            message=f"the provider answered {status}",
            body=None if final else clean,
            retry_after_s=wait,
        )

    if code in _DEAD_CODES or kind in _DEAD_CODES or status in (401, 402):
        # The account's fault: a 401 to the client would look like the client's own.
        return failure(Verdict.DEAD_KEY, Outcome.UPSTREAM_ERROR, True, 502)
    if code in _OVERLOAD_CODES or kind in _OVERLOAD_CODES or status in (503, 529):
        return failure(Verdict.OVERLOADED, Outcome.UPSTREAM_ERROR, True, None)
    if status == 429 or code in _RATE_CODES:
        return failure(Verdict.RATE_LIMITED, Outcome.RATE_LIMITED, True, None)
    if status in (408, 504):
        return failure(Verdict.TIMEOUT, Outcome.UPSTREAM_TIMEOUT, True, None)
    if status >= 500:
        return failure(Verdict.SERVER_ERROR, Outcome.UPSTREAM_ERROR, True, None)
    # 403 and 404 may concern one account alone (a region, a missing deployment).
    return failure(Verdict.IGNORED, Outcome.CLIENT_ERROR, status in (403, 404), None)


def stream_error_status(error: dict[str, Any]) -> int:
    """The status that an error inside a 200 stream means (vLLM, SGLang put it in `code`)."""
    for value in (error.get("status"), error.get("code")):
        if isinstance(value, int) and 400 <= value <= 599:
            return value
        if isinstance(value, str) and re.fullmatch(r"[45]\d\d", value):
            return int(value)
    kind = f"{error.get('type') or ''} {error.get('code') or ''}"
    if "invalid_request" in kind or "BadRequest" in kind or "context_length" in kind:
        return 400
    return 429 if "rate_limit" in kind else 500


def _error_object(body: bytes) -> dict[str, Any]:
    """The error object of an answer; Gemini wraps it in an array. {} where there is none."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        return {}
    inner = value.get("error") or value
    if isinstance(inner, dict):
        return inner
    return {"message": inner} if isinstance(inner, str) else {}


def _word(value: Any) -> str:
    """A code or type as text of bounded length; "" for other values."""
    return str(value)[:100] if isinstance(value, str | int) else ""


def _clean(error: dict[str, Any], status: int, key: str) -> bytes:
    """The provider's error in OpenAI's form, without anything that looks like a key."""

    def scrubbed(text: str) -> str:
        return _KEY_LIKE.sub("[key]", text.replace(key, "[key]") if key else text)

    text = error.get("message") or error.get("detail") or f"the provider answered {status}"
    message = text if isinstance(text, str) else _json.encode(text).decode()
    kind, code, param = _word(error.get("type")), error.get("code"), error.get("param")
    return _json.encode(
        {
            "error": {
                "message": scrubbed(message)[:4000],
                "type": scrubbed(kind)
                or ("invalid_request_error" if status < 500 else "server_error"),
                "param": scrubbed(param)[:200] if isinstance(param, str) else None,
                "code": scrubbed(_word(code)) if code is not None else None,
            }
        }
    )
