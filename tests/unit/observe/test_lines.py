"""Lines go out whole, or wait, or are counted as lost: never half, never blocking."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator

import pytest

from gateway.observe.lines import LineWriter, encode_line, utc

PIPE_BYTES = 4096 * 4


class Pipe:
    """A small pipe whose reader reads when reported to."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()
        fcntl.fcntl(self.write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.set_blocking(self.read_fd, False)

    def read(self) -> bytes:
        try:
            return os.read(self.read_fd, 10 * PIPE_BYTES)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        for fd in (self.read_fd, self.write_fd):
            try:
                os.close(fd)
            except OSError:
                pass


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def line(number: int, chars: int = 100) -> bytes:
    return encode_line("info", "x" * chars, {"n": number}, 0.0)


def read_all(pipe: Pipe, writer: LineWriter) -> list[dict[str, object]]:
    data = b""
    while True:
        out = writer.pump()
        more = pipe.read()
        data += more
        if out and not more:
            return [json.loads(one) for one in data.splitlines()]


def test_line_is_out_at_once(pipe: Pipe) -> None:
    """A line does not wait for the next while the reader reads."""
    LineWriter(pipe.write_fd).write(line(1))
    assert json.loads(pipe.read())["n"] == 1


def test_lines_wait_for_a_slow_reader_in_order(pipe: Pipe) -> None:
    """A full pipe does not block the writer; once it is read, all lines come, whole."""
    writer = LineWriter(pipe.write_fd)
    for number in range(1000):  # about 8 times what the pipe holds
        writer.write(line(number))
    assert [one["n"] for one in read_all(pipe, writer)] == list(range(1000))
    assert writer.lost == 0


def test_line_longer_than_the_pipe_comes_whole(pipe: Pipe) -> None:
    """A long line goes out in pieces, and no other line comes between them."""
    writer = LineWriter(pipe.write_fd)
    for number, chars in ((1, 10), (2, 5 * PIPE_BYTES), (3, 10)):
        writer.write(line(number, chars))
    assert [one["n"] for one in read_all(pipe, writer)] == [1, 2, 3]


def test_lines_beyond_the_backlog_are_counted_and_reported(pipe: Pipe) -> None:
    """Lines without room are lost; written and lost add up to all, and a line reports the loss."""
    writer = LineWriter(pipe.write_fd, backlog_bytes=10_000)
    for number in range(1000):
        writer.write(line(number))
    lines = read_all(pipe, writer)
    assert writer.lost > 0
    reported = [one for one in lines if one["msg"] == "log lines lost"]
    assert [one["lines"] for one in reported] == [writer.lost]
    numbers = [one["n"] for one in lines if "n" in one]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) + writer.lost == 1000


def test_line_without_a_reader_is_lost_not_raised(pipe: Pipe) -> None:
    """Writing without a reader raises nothing; the lines count as lost."""
    writer = LineWriter(pipe.write_fd)
    os.close(pipe.read_fd)
    for number in range(5):
        writer.write(line(number))
    assert writer.lost == 5


def test_line_to_a_full_non_blocking_descriptor_waits(pipe: Pipe) -> None:
    """A non-blocking descriptor is neither polled in a loop nor given half a line."""
    os.set_blocking(pipe.write_fd, False)
    writer = LineWriter(pipe.write_fd)
    for number in range(1000):
        writer.write(line(number))
    assert [one["n"] for one in read_all(pipe, writer)] == list(range(1000))


def test_pump_waits_no_longer_than_it_may(pipe: Pipe) -> None:
    """`pump` waits for at most `wait_s` and says by False that some is left."""
    writer = LineWriter(pipe.write_fd)
    for number in range(1000):
        writer.write(line(number))
    assert writer.pump(wait_s=0.01) is False


@pytest.mark.parametrize(
    ("wall_s", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000.25, "2023-11-14T22:13:20.250Z"),
        (1_700_000_000.9999, "2023-11-14T22:13:20.999Z"),
    ],
)
def test_time_is_rfc_3339_in_utc(wall_s: float, text: str) -> None:
    """A time is written in UTC to the millisecond, whatever the machine's zone."""
    assert utc(wall_s) == text


def test_line_writes_other_types_as_text() -> None:
    """Values that JSON does not have are written as text."""
    fields = {"error": ValueError("no"), "odd": {1: 2, (3,): object}, "bytes": b"\xff"}
    assert json.loads(encode_line("error", "m\nn", fields, 0.0))["error"] == "no"
    assert encode_line("error", "m\nn", fields, 0.0).count(b"\n") == 1
