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
from gateway.predict.stage0 import CacheKey
from gateway.settings.schema import Predict
from gateway.types import HistoryRow, Workload

HEAD_BYTES = 4
MAX_BYTES = 1 << 30


class ChildGone(Exception):
    """The child has ended or does not answer; what it knew is lost."""


class NotStored(Exception):
    """The store did not take a row; its text is SQLite's."""


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
    store: str = ""  # file of the history; "": rows are not kept


class ChildStatus(Struct, frozen=True):
    """State of the child's models after a question."""

    encoder: str = ""
    rows: int = 0  # of the index
    cpu_s: float = 0.0  # that the child has used
    priority: str = ""  # of its work; "" before it begins
    drifts: int = 0  # sources whose lengths were seen to change
    problems: tuple[str, ...] = ()
    restored: bool = True  # False: the calibration of its setup could not be used


class OpenModels(Struct, frozen=True, tag=True):
    """Load the models. The first question."""

    setup: ChildSetup


class MakeForecasts(Struct, frozen=True, tag=True):
    """Make forecasts; answered with `workloads`, one for each."""

    views: list[PromptView]


class TakeLessons(Struct, frozen=True, tag=True):
    """Take lessons in, to be learned between questions; answered at once with `report`, of what
    was learned since the last one."""

    lessons: list[Lesson]
    cpu_share: float  # of a core, for learning from now on


class StoreLessons(Struct, frozen=True, tag=True):
    """Store the rows of lessons, and learn those that are stored; answered with `report`, in which
    each of these numbers will stand, in this answer or a later one."""

    lessons: dict[int, Lesson]


class FinishLessons(Struct, frozen=True, tag=True):
    """Learn and store all that was taken in; answered with `report`."""


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


class TellMore(Struct, frozen=True, tag=True):
    """Hand over the next piece of the calibration that changed."""


Question = (
    OpenModels
    | MakeForecasts
    | TakeLessons
    | StoreLessons
    | FinishLessons
    | FillIndex
    | ChangeSettings
    | UseVersion
    | ForgetLearned
    | TellMore
)


class Repeat(Struct, frozen=True):
    """The forecast of a prompt that came again, for the cache of stage 0."""

    key: CacheKey
    workload: Workload


class LearningReport(Struct, omit_defaults=True):
    """Account of learning since the last report."""

    learned: int = 0
    sampled_out: int = 0  # there was no time for more than their counts
    failed: int = 0
    fault: str = ""  # the traceback of one that failed
    repeats: list[Repeat] = []
    rows: int = 0  # stored
    lost_rows: int = 0
    store_fault: str = ""  # of the last attempt to store
    stored: dict[int, str] = {}  # numbers of `StoreLessons`, and why one is not stored
    drafts_failed: dict[int, str] = {}  # numbers whose row could not be made, and the traceback
    waiting: int = 0  # lessons taken in and not learned yet
    owing: bool = False  # there is, or will be, more to report


class ChildAnswer(Struct, frozen=True, omit_defaults=True):
    """Answer to any question; members that the question does not call for are left out."""

    status: ChildStatus = ChildStatus()
    changes: Changes | None = None  # of the calibration; None: nothing moved
    more: bool = False  # there are more changes: to be asked for before anything else
    workloads: list[Workload | str] = []  # a string: the traceback of one that failed
    report: LearningReport | None = None
    bad: int = 0  # rows that could not be read
    error: str | None = None  # a traceback


PIECE = 200  # entries of each table in one answer: reading them is the event loop's work


def in_pieces(changes: Changes) -> list[Changes]:
    """The same changes in several messages, to be applied in order; at least one."""
    tables = [list(t.items()) for t in (changes.models, changes.templates, changes.levels)]
    longest = max(map(len, tables))
    found = []
    for at in range(0, max(longest, 1), PIECE):
        models, templates, levels = (dict(table[at : at + PIECE]) for table in tables)
        whole = changes.complete and at == 0  # the first drops what was there
        found.append(Changes(models, templates, levels, complete=whole))  # type: ignore[arg-type]
    return found


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
