"""Frames between the gateway and the predictor's process."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.predict.process.backend import BackendGone
from gateway.predict.process.wire import Frames
from gateway.predict.process.worker import Desk

Ends = tuple[Frames, Frames, list[int]]


def ends() -> Ends:
    """Two sides, joined by pipes, and the descriptors."""
    (near_in, far_out), (far_in, near_out) = os.pipe(), os.pipe()
    fds = [near_in, far_out, far_in, near_out]
    return Frames(near_in, near_out), Frames(far_in, far_out), fds


@pytest.fixture
def both() -> Iterator[Ends]:
    made = ends()
    yield made
    for fd in made[2]:
        try:
            os.close(fd)
        except OSError:
            continue  # the test closed it


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=300_000), max_size=4))
def test_frames_arrive_as_they_were_sent(payloads: list[bytes]) -> None:
    """Of any size, pipes' own capacity and none included, in order."""
    near, far, fds = ends()
    try:
        sender = threading.Thread(target=lambda: [near.send(p, 10) for p in payloads])
        sender.start()
        assert [far.receive(10) for _ in payloads] == payloads
        sender.join()
    finally:
        for fd in fds:
            os.close(fd)


def test_frames_do_not_wait_for_ever(both: Ends) -> None:
    """Neither for bytes that do not come nor for room that is not made."""
    near, _, _ = both
    with pytest.raises(BackendGone, match="no answer in time"):
        near.receive(0.05)
    with pytest.raises(BackendGone, match="no answer in time"):
        near.send(b"x" * 1_000_000, 0.05)


def test_frames_say_when_the_other_side_has_closed(both: Ends) -> None:
    """In the middle of a frame, too."""
    near, far, fds = both
    far.send(b"whole", 1)
    os.write(fds[1], b"\x00\x00\x00\x09half")
    os.close(fds[1])
    assert near.receive(1) == b"whole"
    with pytest.raises(BackendGone, match="the other side has ended"):
        near.receive(1)
    os.close(fds[2])
    with pytest.raises(BackendGone, match="closed"):
        near.send(b"x", 1)


def test_frames_refuse_what_is_no_frame(both: Ends) -> None:
    """A length beyond reason is not waited for."""
    near, _, fds = both
    os.write(fds[1], b"\xff\xff\xff\xff")
    with pytest.raises(BackendGone, match="no frame"):
        near.receive(1)


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x80", b"\x81\xa4type\xa3Nix"])
def test_desk_answers_what_it_cannot_read(payload: bytes) -> None:
    """Garbage, or a question before anything is opened, gets an error and no end."""
    desk = Desk()
    assert desk.answer(payload).error
    assert desk.answer(b"\x81\xa4type\xa6Forget").error
