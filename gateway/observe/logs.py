"""The log: JSON lines to standard output, one a request and one for each other message.

Every line of the process goes this way: ours, uvicorn's, asyncio's, warnings and uncaught
exceptions. Each passes the redactor last, after encoding. Of a request's line only the texts
that the gateway does not make itself pass it, each by itself and before the encoding.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from msgspec import Struct

from gateway.observe.lines import LineWriter, encode_line, utc
from gateway.observe.redact import Redactor
from gateway.settings.schema import Observe
from gateway.types import JobRecord, Outcome

MAX_TEXT_CHARS = 16_384  # of a message or a traceback

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_RESERVED = frozenset({"ts", "level", "logger", "msg", "exc"})

_LEVELS = dict.fromkeys(Outcome, logging.WARNING) | {
    Outcome.OK: logging.INFO,
    Outcome.CLIENT_ERROR: logging.INFO,
    Outcome.CANCELLED: logging.INFO,
    Outcome.SHUTDOWN: logging.INFO,
    Outcome.FAILED: logging.ERROR,
}

_encode = msgspec.json.Encoder().encode


class RequestLine(Struct, rename={"job_class": "class"}, omit_defaults=True):
    """One request in the log. Times in milliseconds, which people read more easily."""

    ts: str
    level: str
    msg: str
    request_id: str
    route: str
    tenant: str
    model: str
    outcome: str
    status: int
    stream: bool
    attempts: int
    queue_ms: float
    total_ms: float
    bytes_out: int
    account: str | None = None
    job_class: str | None = None
    predicted_p50: float | None = None
    predicted_p90: float | None = None
    rung: str | None = None
    reserve_tokens: float | None = None
    actual: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None  # these four only where there are some
    reasoning_tokens: int | None = None
    audio_prompt_tokens: int | None = None
    audio_output_tokens: int | None = None
    estimated: bool | None = None
    cost_usd: float | None = None
    predicted_cost_usd: float | None = None  # p50
    ttft_ms: float | None = None
    upstream_ms: float | None = None
    finish_reason: str | None = None
    error_code: str | None = None


class JsonHandler(logging.Handler):
    """Every log record as one redacted JSON line."""

    def __init__(self, writer: LineWriter, redactor: Redactor) -> None:
        super().__init__()
        self.writer = writer
        self.redactor = redactor
        self.catch_up: Callable[[], None] = lambda: None  # has the lines written that are due
        self._thread = threading.get_ident()  # the one that may call it
        self.broken = 0  # records that could not be made a line

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's line, after those that are due; count it as broken where it cannot
        be made one."""
        if record.thread == self._thread:
            self.catch_up()
        try:
            line = self.line(record)
        except Exception:  # logging's own handling prints the record, unredacted
            self.broken += 1
            return
        self.writer.write(line)

    def line(self, record: logging.LogRecord) -> bytes:
        """The record as a redacted JSON line."""
        fields: dict[str, Any] = {"logger": record.name}
        for key, value in vars(record).items():
            if key not in _OWN and key not in _RESERVED and key != "color_message":
                fields[key] = value
        if record.exc_info and record.exc_info[0] is not None:
            fields["exc"] = _tail("".join(traceback.format_exception(*record.exc_info)))
        elif record.exc_text:
            fields["exc"] = _tail(record.exc_text)
        level = record.levelname.lower()
        message = record.getMessage()[:MAX_TEXT_CHARS]
        return self.redacted(encode_line(level, message, fields, record.created))

    def redacted(self, line: bytes) -> bytes:
        """The line with every key masked."""
        return self.redactor.mask(line.decode()).encode()

    def hold(self, line: bytes) -> None:
        """Write a redacted line made elsewhere, under the same lock; it may wait for the next
        `pump`."""
        with self._guard:
            self.writer.hold(line)

    def flush(self) -> None:
        """Wait at most 1 s for the reader to take the rest."""
        with self._guard:
            self.writer.pump(wait_s=1.0)

    @property
    def _guard(self) -> threading.RLock:
        lock = self.lock
        assert lock is not None  # logging.Handler makes it
        return lock


def _tail(text: str) -> str:
    """The end of a long text: of a traceback, the part that names the error."""
    return text if len(text) <= MAX_TEXT_CHARS else "…" + text[-MAX_TEXT_CHARS:]


class Logs:
    """The process's log: `configure` it once, `apply` new settings. Writes a line per request."""

    def __init__(self, settings: Observe, secrets: Iterable[str] = (), *, fd: int = 1) -> None:
        self._secrets = set(secrets)
        self._handler = JsonHandler(LineWriter(fd), Redactor(self._secrets))
        self._settings = settings
        self._level = logging.INFO
        self.apply(settings)

    @property
    def lost(self) -> int:
        """Number of lines that were never written."""
        return self._handler.writer.lost + self._handler.broken

    def masked(self, text: str) -> str:
        """A short text with every key masked, as in a line."""
        return self._handler.redactor.mask_word(text)

    def configure(self) -> None:
        """Take over all logging of the process: root, uvicorn, asyncio, warnings, crashes.

        uvicorn must be started with `log_config=None`, or it installs its own again.
        """
        root = logging.getLogger()
        root.handlers[:] = [self._handler]
        for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi", "asyncio", "litestar"):
            logger = logging.getLogger(name)
            logger.handlers.clear()
            logger.propagate = True
            logger.setLevel(logging.NOTSET)
        access = logging.getLogger("uvicorn.access")  # a request has its line already
        access.handlers.clear()
        access.propagate = False
        logging.captureWarnings(True)
        sys.excepthook = _uncaught
        threading.excepthook = lambda args: _uncaught(
            args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback
        )
        self._set_level()

    def apply(self, settings: Observe, secrets: Iterable[str] | None = None) -> None:
        """Put a new level and access log in force. `secrets` are masked as well as those before,
        which may still be valid; None: there are no others."""
        self._settings = settings
        if secrets is not None:
            self._secrets.update(secrets)
            self._handler.redactor = Redactor(self._secrets)
        self._level = getattr(logging, settings.log_level.upper())
        if self._handler in logging.getLogger().handlers:
            self._set_level()

    def _set_level(self) -> None:
        logging.getLogger().setLevel(self._level)
        # At INFO they log each connection.
        for name in ("httpx", "httpcore", "asyncio", "faiss"):
            logging.getLogger(name).setLevel(max(self._level, logging.WARNING))

    def ended(self, record: JobRecord) -> None:
        """Write the request's line, where the access log is on and the level lets it."""
        level = _LEVELS[record.outcome]
        if self._settings.access_log and level >= self._level:
            line = request_line(record, level, self.masked)
            self._handler.hold(_encode(line) + b"\n")

    def follow(self, catch_up: Callable[[], None]) -> None:
        """Call `catch_up` before each other line that this thread logs, and at the end: it is to
        call `ended` with the requests whose lines are due, so that lines stay in order."""
        self._handler.catch_up = catch_up

    def pump(self) -> None:
        """Write the lines that waited for a slow reader. To be called now and then."""
        with self._handler._guard:
            self._handler.writer.pump()

    def flush(self) -> None:
        """Wait at most 1 s for the reader to take the rest, at the end of the process."""
        self._handler.catch_up()
        self._handler.flush()


def request_line(record: JobRecord, level: int, masked: Callable[[str], str]) -> RequestLine:
    """The record's line: no prompt, no key, no answer text, since JobRecord has none. `masked`
    is for names, which come from the settings, and for the provider's words."""
    forecast, usage = record.workload, record.usage
    finish, code = record.finish_reason, record.error_code
    return RequestLine(
        ts=utc(record.wall_s),
        level=logging.getLevelName(level).lower(),
        msg="request",
        request_id=record.id,
        route=record.route,
        tenant=masked(record.tenant),
        model=masked(record.model),
        outcome=record.outcome,
        status=record.status,
        stream=record.stream,
        attempts=record.attempts,
        queue_ms=_ms(record.queue_s),
        total_ms=_ms(record.total_s),
        bytes_out=record.bytes_out,
        account=None if record.account is None else masked(record.account),
        job_class=record.job_class,
        predicted_p50=None if forecast is None else _rounded(forecast.p50, 10),
        predicted_p90=None if forecast is None else _rounded(forecast.p90, 10),
        rung=None if forecast is None else forecast.rung,
        reserve_tokens=record.reserve_tokens or None,
        actual=None if usage is None else usage.output_tokens,
        prompt_tokens=None if usage is None else usage.prompt_tokens,
        cached_tokens=None if usage is None else usage.cached_tokens or None,
        reasoning_tokens=None if usage is None else usage.reasoning_tokens or None,
        audio_prompt_tokens=None if usage is None else usage.audio_prompt_tokens or None,
        audio_output_tokens=None if usage is None else usage.audio_output_tokens or None,
        estimated=True if usage is not None and usage.estimated else None,
        cost_usd=_money(record.cost_usd),
        predicted_cost_usd=None if forecast is None else _money(forecast.cost_usd_p50),
        ttft_ms=None if record.ttft_s is None else _ms(record.ttft_s),
        upstream_ms=None if record.upstream_s is None else _ms(record.upstream_s),
        finish_reason=None if finish is None else masked(finish),
        error_code=None if code is None else masked(code),
    )


def _money(usd: float | None) -> float | None:
    return None if usd is None else _rounded(usd, 10**9)  # of one cheap token a thousandth


def _ms(seconds: float) -> float:
    return _rounded(seconds * 1000, 100)


def _rounded(value: float, parts: int) -> float:
    """`value`, 0 or more, to the nearest part of 1 / `parts`; `round` takes five times as long."""
    return int(value * parts + 0.5) / parts


def _uncaught(
    kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logging.getLogger("sagesched").critical("uncaught exception", exc_info=(kind, error, trace))
