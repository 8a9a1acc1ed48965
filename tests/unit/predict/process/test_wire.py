"""Messages and frames between the gateway and the predictor's process."""

from __future__ import annotations

from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.predict.calibrate import Changes, Mirror
from gateway.predict.process.wire import (
    MAX_BYTES,
    PIECE,
    ChildGone,
    MakeForecasts,
    encoded,
    framed,
    in_pieces,
    payload_size,
    question_decoder,
    read_frame,
)
from gateway.predict.prompt_view import PromptView


@given(st.lists(st.binary(max_size=3000), max_size=4))
def test_frames_are_read_as_they_were_written(payloads: list[bytes]) -> None:
    """Frames of any size, 0 included, are read in order, and then the end."""
    stream = BytesIO(b"".join(map(framed, payloads)))
    assert [read_frame(stream) for _ in payloads] == payloads
    assert read_frame(stream) is None


@given(st.binary(min_size=1, max_size=300), st.data())
def test_frame_that_is_cut_is_the_end(payload: bytes, data: st.DataObject) -> None:
    """A stream that ends inside a frame, in its head or behind it, has no further frame."""
    frame = framed(payload)
    cut = data.draw(st.integers(0, len(frame) - 1))
    assert read_frame(BytesIO(frame[:cut])) is None


def test_frame_beyond_reason_is_refused() -> None:
    """A frame longer than any message is refused, not waited for."""
    assert payload_size(MAX_BYTES.to_bytes(4, "big")) == MAX_BYTES
    with pytest.raises(ChildGone, match="no frame"):
        payload_size((MAX_BYTES + 1).to_bytes(4, "big"))


TABLES = st.dictionaries(st.text(max_size=3), st.none() | st.just((1.0, 2.0)), max_size=30)


@given(TABLES, TABLES, st.booleans(), st.integers(0, 3 * PIECE))
def test_changes_in_pieces_are_the_same_changes(
    models: dict[str, tuple[float, ...] | None],
    templates: dict[str, tuple[float, ...] | None],
    complete: bool,
    many: int,
) -> None:
    """A copy that applies the pieces in order equals one that applies all at once; no piece has
    more than it may."""
    models |= {f"{number:05}": (float(number),) for number in range(many)}
    changes = Changes(models, templates, {}, complete=complete)
    pieces = in_pieces(changes)
    one, other = Mirror(), Mirror()
    before = Changes({"a": (3.0,), "b": (4.0,)}, {"a": (5.0,)}, {})
    for mirror, parts in ((one, [before, changes]), (other, [before, *pieces])):
        for part in parts:
            mirror.apply(part)
    assert one.table == other.table
    assert list(one.table.models) == list(other.table.models)
    assert all(len(piece.models) <= PIECE for piece in pieces)


def test_texts_that_are_not_unicode_are_sent() -> None:
    """A lone surrogate in any field becomes a question mark; all else stays as it is."""
    odd = PromptView.of_chat(
        [{"role": "user", "content": "\ud800 sea"}, {"role": "system", "content": "\udfff"}],
        tenant="a",
        model="m",
        tool_names=["\ud800"],
    )
    question = question_decoder.decode(encoded(MakeForecasts([odd])))
    assert isinstance(question, MakeForecasts)
    [view] = question.views
    assert (view.text, view.system, view.tenant) == ("? sea", "?", "a")
