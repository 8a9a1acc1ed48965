"""Messages between the predictor and its child process, and their frames.

MessagePack, each message with its length before it, over one socket: a question, its answer,
then the next question. Nothing of it leaves the machine or outlives the two processes, so the
messages have no versions.
"""

from __future__ import annotations

from typing import BinaryIO

import msgspec
from msgspec import Struct

from gateway.predict.calibrate import Changes
from gateway.predict.lesson import Lesson
from gateway.predict.prices import Price
from gateway.predict.prompt_view import PromptView
from gateway.settings.schema import Predict
from gateway.types import HistoryRow, Workload

HEAD_BYTES = 4
MAX_BYTES = 1 << 30


class ChildGone(Exception):
    """The child has ended or does not answer; what it knew is lost."""


class ChildError(Exception):
    """A question that the child failed to answer; it goes on with the next one. The text is a
    traceback without any prompt."""


class ChildSetup(Struct, frozen=True):
    """Everything that the child's models start with, except the history."""

    settings: Predict
    folder: str  # models/
    key: bytes  # of the prompt hash
    prices: dict[str, Price]
    private: frozenset[str]  # tenants with `share_history = false`
    version: str = ""  # folder of the refit in force; "": as shipped
    calibration: bytes | None = None  # from `Calibration.dump`


class ChildStatus(Struct, frozen=True):
    """State of the child's models after a question."""

    encoder: str = ""
    rows: int = 0  # of the index
    drifts: int = 0  # sources whose lengths were seen to change
    problems: tuple[str, ...] = ()
    restored: bool = True  # False: the calibration of its setup could not be used


class OpenModels(Struct, frozen=True, tag=True):
    """Load the models. The first question."""

    setup: ChildSetup


class MakeForecast(Struct, frozen=True, tag=True):
    """Make a forecast; answered with `workload`."""

    view: PromptView


class LearnLessons(Struct, frozen=True, tag=True):
    """Learn lessons; answered with `rows`, one for each."""

    lessons: list[Lesson]


class DraftRows(Struct, frozen=True, tag=True):
    """Make the history rows of lessons without learning them; answered with `rows`."""

    lessons: list[Lesson]


class FillIndex(Struct, frozen=True, tag=True):
    """Put stored rows into the index; answered with `bad`."""

    rows: list[HistoryRow]


class ChangeSettings(Struct, frozen=True, tag=True):
    """Take new settings."""

    settings: Predict
    private: frozenset[str]


class UseVersion(Struct, frozen=True, tag=True):
    """Take the models of a refit's folder; "": as shipped."""

    version: str


class ForgetLearned(Struct, frozen=True, tag=True):
    """Empty index and calibration."""


Question = (
    OpenModels
    | MakeForecast
    | LearnLessons
    | DraftRows
    | FillIndex
    | ChangeSettings
    | UseVersion
    | ForgetLearned
)


class ChildAnswer(Struct, frozen=True, omit_defaults=True):
    """Answer to any question; members that the question does not call for are left out."""

    status: ChildStatus = ChildStatus()
    changes: Changes | None = None  # of the calibration; None: nothing moved
    workload: Workload | None = None
    rows: list[HistoryRow | str] = []  # a string: the traceback of a lesson that failed
    bad: int = 0  # rows that could not be read
    error: str | None = None  # a traceback


message_encoder = msgspec.msgpack.Encoder()
question_decoder = msgspec.msgpack.Decoder(Question)
answer_decoder = msgspec.msgpack.Decoder(ChildAnswer)


def encoded(question: Question) -> bytes:
    """The question as MessagePack; lone surrogates, which are no Unicode, become "?"."""
    try:
        return message_encoder.encode(question)
    except UnicodeEncodeError:
        return message_encoder.encode(_clean(question))


def _clean(value: object) -> object:
    """The same value with every text valid."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, tuple):
        return tuple(map(_clean, value))
    if isinstance(value, list):
        return list(map(_clean, value))
    if isinstance(value, Struct):
        fields = value.__struct_fields__
        return msgspec.structs.replace(
            value, **{name: _clean(getattr(value, name)) for name in fields}
        )
    return value


def framed(payload: bytes) -> bytes:
    """The payload with its length before it."""
    return len(payload).to_bytes(HEAD_BYTES, "big") + payload


def payload_size(head: bytes) -> int:
    """Length of the payload behind a frame's head. Raises ChildGone where it is no frame's."""
    size = int.from_bytes(head, "big")
    if size > MAX_BYTES:
        raise ChildGone("what came is no frame")
    return size


def read_frame(stream: BinaryIO) -> bytes | None:
    """Wait for one frame on a blocking stream; its payload, or None where the stream ends."""
    head = stream.read(HEAD_BYTES)
    if len(head) < HEAD_BYTES:
        return None
    size = payload_size(head)
    payload = stream.read(size)
    return payload if len(payload) == size else None
