"""The split of conversations into rows that fit and rows that judge."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.shipped import shipped
from gateway.workbench.split import (
    KEY_BYTES,
    groups,
    is_fit,
    last_user_text,
    normalise,
    pack,
    row_keys,
    split,
    unpack,
    was_fitted,
)


def row(conversation: str, prompt: str) -> dict[str, Any]:
    return {"conversation_id": conversation, "messages": [{"role": "user", "content": prompt}]}


def chain(count: int) -> list[dict[str, Any]]:
    """Rows linked each to the next: by prompt, by conversation, by prompt …"""
    return [row(f"c{(i + 1) // 2}", f"p{i // 2}") for i in range(count)]


def test_split_keeps_a_conversation_on_one_side() -> None:
    """Rows of one conversation fall on one side, whatever they ask."""
    for c in range(50):
        sides = split([row(f"conversation {c}", f"prompt {i}") for i in range(10)])
        assert len(set(sides)) == 1


def test_split_keeps_a_prompt_on_one_side() -> None:
    """The same prompt, up to case and white space, falls on one side in all conversations."""
    for p in range(50):
        texts = [f"Prompt {p} please", f"  prompt\t{p}  PLEASE\n"]
        sides = split([row(f"c{p}-{i}", text) for i, text in enumerate(texts)])
        assert len(set(sides)) == 1


def test_split_follows_chains_of_rows() -> None:
    """Two rows that share nothing but are linked through others fall on one side."""
    rows = chain(200)
    assert not set(row_keys(rows[0])) & set(row_keys(rows[-1]))
    assert len(set(groups(row_keys(r) for r in rows))) == 1
    assert len(set(split(rows))) == 1


def test_split_separates_rows_that_share_nothing() -> None:
    """Unlinked rows are drawn one by one, about four of five to the fit side."""
    rows = [row(f"c{i}", f"p{i}") for i in range(5000)]
    sides = split(rows)
    assert 0.77 < sum(sides) / len(sides) < 0.83


def test_split_does_not_depend_on_the_order_of_rows() -> None:
    """A row's side is a matter of its group, not of its place."""
    rows = chain(9) + [row(f"x{i}", f"y{i}") for i in range(40)]
    assert split(rows[::-1])[::-1] == split(rows)


def test_split_share_bounds() -> None:
    """Share 0 fits nothing, share 1 everything."""
    keys = [bytes([i]) * KEY_BYTES for i in range(100)]
    assert not any(is_fit(key, 0.0) for key in keys)
    assert all(is_fit(key, 1.0) for key in keys)


def test_row_without_a_prompt_goes_by_its_conversation() -> None:
    """Empty prompts do not tie conversations together."""
    rows = [row("a", "  "), row("b", "")]
    assert [len(row_keys(r)) for r in rows] == [1, 1]
    assert len(set(groups(row_keys(r) for r in rows))) == 2


def test_last_user_text_is_the_last_of_the_user() -> None:
    """Later answers and tool results are not the prompt."""
    messages = [
        {"role": "user", "content": "first"},
        {"role": "user", "content": "second"},
        {"role": "assistant", "content": "answer"},
    ]
    assert last_user_text({"messages": messages}) == "second"
    assert normalise(" A\n b ") == "a b"


def test_pack_holds_keys_and_no_text() -> None:
    """Packed keys come back whole, and tell fitted rows from others."""
    rows = [row(f"c{i}", f"secret prompt {i}") for i in range(20)]
    block = pack(rows[:10])
    assert b"secret" not in block
    fitted = unpack(block)
    assert all(was_fitted(row_keys(r), fitted) for r in rows[:10])
    assert not any(was_fitted(row_keys(r), fitted) for r in rows[10:])
    assert was_fitted(row_keys(row("another", "Secret  prompt 3")), fitted)


def test_unpack_refuses_a_cut_list() -> None:
    """A list of keys that is cut short is an error, not a shorter list."""
    with pytest.raises(ValueError, match="cut short"):
        unpack(b"123456789")


def test_shipped_fit_keys_lie_on_the_fit_side_in_number() -> None:
    """The shipped list is well-formed: sorted, distinct, as many keys as 12,000 rows have."""
    block = (shipped("models") / "fit_keys.bin").read_bytes()
    keys = [block[i : i + KEY_BYTES] for i in range(0, len(block), KEY_BYTES)]
    assert keys == sorted(set(keys))
    assert len(unpack(block)) > 10_000


def test_split_held_rows_were_never_fitted() -> None:
    """No row that judges shares a conversation or a prompt with a row that fits."""
    rows = [row(f"c{i % 700}", f"p{i % 450}") for i in range(0, 3000, 7)]
    rows += [row(f"d{i}", f"q{i // 3}") for i in range(900)]
    sides = split(rows)
    fitted = unpack(pack(r for r, fit in zip(rows, sides, strict=True) if fit))
    held = [r for r, fit in zip(rows, sides, strict=True) if not fit]
    assert held
    assert not any(was_fitted(row_keys(r), fitted) for r in held)


def test_split_by_row_would_leak() -> None:
    """The twin: drawing rows one by one, without groups, is seen to leak."""
    rows = [row(f"d{i}", f"q{i // 3}") for i in range(900)]
    sides = [is_fit(row_keys(r)[0]) for r in rows]
    fitted = unpack(pack(r for r, fit in zip(rows, sides, strict=True) if fit))
    assert any(
        was_fitted(row_keys(r), fitted) for r, fit in zip(rows, sides, strict=True) if not fit
    )
