"""One JSON line for everything the process says, and no secret in any of them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.observe.lines import LineWriter
from gateway.observe.logs import JsonHandler, Logs, request_line
from gateway.observe.redact import Redactor
from gateway.settings.schema import Observe
from gateway.types import JobRecord, Outcome
from tests.unit.observe.records import record, workload

ROOT = Path(__file__).parents[3]
CANARIES = {"sk-canary1234567", "canary-admin-token", "canary-bearer-0042"}


class Sink:
    """A file that takes lines, and gives them back as objects."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[Sink]:
    sink = Sink(tmp_path / "log")
    yield sink
    os.close(sink.fd)


class Blind(Redactor):
    """A redactor that masks nothing."""

    def mask(self, text: str) -> str:
        return text


def canary_lines(sink: Sink, redactor: Redactor) -> str:
    """Lines of a logger of its own with canaries in every place they could stand."""
    logger = logging.Logger("test")
    logger.addHandler(JsonHandler(LineWriter(sink.fd), redactor))
    logger.info("key %s", "sk-canary1234567")
    logger.info("field", extra={"token": "canary-admin-token", "deep": {"a": ["sk-canary1234567"]}})
    try:
        try:
            raise ValueError("Authorization: Bearer canary-bearer-0042")
        except ValueError as error:
            raise RuntimeError("canary-admin-token") from error
    except RuntimeError:
        logger.exception("failed")
    return sink.path.read_text()


def test_log_shows_no_canary(sink: Sink) -> None:
    """Message, argument, field, nested field, exception and its cause are masked."""
    text = canary_lines(sink, Redactor(["canary-admin-token"]))
    assert len(sink.lines()) == 3
    assert [canary for canary in CANARIES if canary in text] == []


def test_log_without_the_filter_shows_them_all(sink: Sink) -> None:
    """The twin: the same lines without the redactor hold every canary."""
    text = canary_lines(sink, Blind())
    assert {canary for canary in CANARIES if canary in text} == CANARIES


def test_log_line_has_time_level_logger_message_and_fields(sink: Sink) -> None:
    """`extra` becomes fields; none of them can pose as the line's own."""
    logger = logging.Logger("sagesched.x")
    logger.addHandler(JsonHandler(LineWriter(sink.fd), Redactor()))
    logger.warning("n is %d", 3, extra={"path": Path("/a"), "level": "forged", "ts": 1})
    (line,) = sink.lines()
    assert line["ts"].endswith("Z")
    del line["ts"]
    assert line == {"level": "warning", "msg": "n is 3", "logger": "sagesched.x", "path": "/a"}


def test_log_line_that_cannot_be_made_is_counted(
    sink: Sink, capfd: pytest.CaptureFixture[str]
) -> None:
    """A broken format string costs its line; logging's own report would print the arguments."""
    handler = JsonHandler(LineWriter(sink.fd), Redactor())
    logger = logging.Logger("x")
    logger.addHandler(handler)
    logger.info("%d", "sk-canary1234567")
    assert handler.broken == 1
    assert sink.lines() == []
    assert "canary" not in "".join(capfd.readouterr())


def test_request_line_has_forecast_truth_and_times(sink: Sink) -> None:
    """An answered request's line has forecast, truth, times in ms, account, class, outcome."""
    logs = Logs(Observe(), fd=sink.fd)
    logs.ended(record())
    logs.flush()
    assert sink.lines() == [
        {
            "ts": "2023-11-14T22:13:20.250Z",
            "level": "info",
            "msg": "request",
            "request_id": "req-1",
            "route": "/v1/chat/completions",
            "tenant": "demo",
            "model": "m",
            "account": "a",
            "class": "interactive",
            "predicted_p50": 80.0,
            "predicted_p90": 200.0,
            "rung": "model_only",
            "reserve_tokens": 80.0,
            "actual": 90,
            "prompt_tokens": 100,
            "cached_tokens": 10,
            "reasoning_tokens": 5,
            "audio_prompt_tokens": 4,
            "audio_output_tokens": 2,
            "queue_ms": 12.0,
            "ttft_ms": 300.0,
            "upstream_ms": 1000.0,
            "total_ms": 1300.0,
            "attempts": 1,
            "status": 200,
            "outcome": "ok",
            "finish_reason": "stop",
            "stream": True,
            "bytes_out": 1000,
        }
    ]


def test_request_line_leaves_out_missing_values(sink: Sink) -> None:
    """A refused request has no account, forecast or usage, and its line no nulls."""
    logs = Logs(Observe(), fd=sink.fd)
    logs.ended(
        record(outcome=Outcome.REJECTED, status=429, account=None, attempts=0, workload=None,
               usage=None, ttft_s=None, upstream_s=None, job_class=None, error_code="queue_full")
    )  # fmt: skip
    logs.flush()
    (line,) = sink.lines()
    assert (line["level"], line["error_code"]) == ("warning", "queue_full")
    assert not {"account", "predicted_p50", "actual", "ttft_ms", "class"} & set(line)
    assert None not in line.values()


def test_request_line_holds_no_secret(sink: Sink) -> None:
    """A provider's error code that echoes a key is masked; without the redactor it shows."""
    leaky = record(error_code="sk-canary1234567", workload=workload())
    logs = Logs(Observe(), ["demo-secret"], fd=sink.fd)
    logs.ended(leaky)
    logs.flush()
    assert "canary" not in sink.path.read_text()
    assert "canary" in str(request_line(leaky, logging.INFO, Blind().mask_word))


def test_log_writes_due_request_lines_before_its_own_and_at_the_end(sink: Sink) -> None:
    """Requests whose lines are due have them before the next line of the thread that made the
    log, not before another thread's, and at the end."""
    logs, due = Logs(Observe(), fd=sink.fd), [record(id="one")]

    def catch_up() -> None:
        while due:
            logs.ended(due.pop())

    logs.follow(catch_up)
    logger = logging.Logger("test")
    logger.addHandler(logs._handler)
    other = threading.Thread(target=logger.info, args=("another thread's",))
    other.start()
    other.join()
    logger.info("own")
    due.append(record(id="two"))
    logs.flush()
    told = [line.get("request_id", line["msg"]) for line in sink.lines()]
    assert told == ["another thread's", "one", "own", "two"]


TEXTS = {f.name for f in msgspec.structs.fields(JobRecord) if f.type in (str, str | None)}


@pytest.mark.parametrize("name", sorted(TEXTS - {"id", "route"}))
def test_request_line_masks_every_text_but_those_made_here(name: str) -> None:
    """A key in any text of a record is masked; the id is drawn by the gateway, and the route one
    of its own list. Without the redactor the key shows."""
    leaky = record(**{name: "a sk-canary1234567 b"})
    assert "canary" in str(request_line(leaky, logging.INFO, Blind().mask_word))
    assert "canary" not in str(request_line(leaky, logging.INFO, Redactor().mask_word))


@given(st.floats(0.0, 1e6))
def test_request_line_rounds_to_the_nearest(seconds: float) -> None:
    """Times are rounded to a hundredth of a millisecond, as `round` does but for ties."""
    line = request_line(record(total_s=seconds), logging.INFO, str)
    assert line.total_ms == pytest.approx(seconds * 1000, abs=0.00501, rel=1e-12)
    assert line.total_ms == round(line.total_ms, 2)


@pytest.mark.parametrize(
    ("settings", "outcomes"),
    [
        (Observe(), ["ok", "failed", "evicted"]),
        (Observe(log_level="warning"), ["failed", "evicted"]),
        (Observe(log_level="error"), ["failed"]),
        (Observe(access_log=False), []),
    ],
)
def test_request_line_follows_the_level(sink: Sink, settings: Observe, outcomes: list[str]) -> None:
    """Success is info, a failure that the client sees a warning, a fault of ours an error."""
    logs = Logs(Observe(), fd=sink.fd)
    logs.apply(settings)
    for outcome in (Outcome.OK, Outcome.FAILED, Outcome.EVICTED):
        logs.ended(record(outcome=outcome))
        logs.flush()
    assert [line["outcome"] for line in sink.lines()] == outcomes


def test_log_takes_new_secrets(sink: Sink) -> None:
    """After a reload the new account's key is masked too, and so is the one before."""
    logs = Logs(Observe(), ["old-secret"], fd=sink.fd)
    logs.ended(record(error_code="new-secret"))
    logs.flush()
    assert "new-secret" in sink.path.read_text()
    logs.apply(Observe(), ["new-secret"])
    logs.ended(record(error_code="new-secret old-secret"))
    logs.flush()
    assert sink.lines()[1]["error_code"] == "*** ***"


PROCESS = """
import asyncio, logging, sys, threading, warnings
from gateway.observe.logs import Logs
from gateway.settings.schema import Observe

logs = Logs(Observe(), ["canary-admin-token"])
logs.configure()
import uvicorn
uvicorn.Config(app=None, log_config=None, log_level=None).configure_logging()
logging.getLogger("uvicorn.error").info("Uvicorn running %s", "canary-admin-token")
logging.getLogger("uvicorn.access").info("GET /?key=canary-admin-token")
logging.getLogger("httpx").info("HTTP Request: canary-admin-token")
warnings.warn("canary-admin-token is old")

async def main():
    async def lost():
        raise ValueError("canary-admin-token")
    task = asyncio.create_task(lost())
    await asyncio.wait([task])
    del task
    asyncio.get_running_loop().call_exception_handler({"message": "sk-canary1234567"})

asyncio.run(main())
thread = threading.Thread(target=lambda: int("canary-admin-token"))
thread.start()
thread.join()
logs.flush()
raise RuntimeError("Bearer canary-bearer-0042")
"""


def test_process_logs_json_lines_without_a_secret() -> None:
    """Lines of uvicorn, asyncio, warnings and uncaught exceptions are all JSON and masked."""
    done = subprocess.run(
        [sys.executable, "-c", PROCESS], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.stderr == ""
    assert done.returncode == 1
    assert [line["logger"] for line in lines] == [
        "uvicorn.error", "py.warnings", "asyncio", "asyncio", "sagesched", "sagesched",
    ]  # fmt: skip
    assert {line["level"] for line in lines[-2:]} == {"critical"}
    assert "int(" in lines[-2]["exc"]
    assert "canary-" not in done.stdout
    assert "sk-canary" not in done.stdout
