"""The shipped encoder gives the reference network's vectors."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.predict.encoder import CLS, SEP, Encoder, pack, unpack
from gateway.shipped import shipped

AGREE = 0.99


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    models = shipped("models")
    return Encoder(models / "encoder.onnx", models / "tokenizer.json")


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.asarray((left * right).sum(axis=1) / norms)


def test_encoder_agrees_with_fp32_and_with_the_ready_int8(encoder: Encoder) -> None:
    """Cosine ≥ 0.99 with the fp32 graph and with another party's int8 file, line by line."""
    with np.load(shipped("models") / "encoder_reference.npz") as file:
        texts, fp32, ready = file["texts"], file["fp32"], file["ready"]
    vectors = np.array([encoder.vector(str(text)) for text in texts])
    assert len(texts) >= 20
    assert cosines(vectors, fp32.astype(np.float32)).min() >= AGREE
    assert cosines(vectors, ready.astype(np.float32)).min() >= AGREE


def test_encoder_disagrees_with_the_vectors_of_other_lines(encoder: Encoder) -> None:
    """The twin: the same comparison fails when the lines do not belong together."""
    with np.load(shipped("models") / "encoder_reference.npz") as file:
        texts, fp32 = file["texts"], file["fp32"].astype(np.float32)
    vectors = np.array([encoder.vector(str(text)) for text in texts])
    assert cosines(vectors, np.roll(fp32, 1, axis=0)).max() < AGREE


def test_encoder_vectors_are_unit_and_near_for_near_texts(encoder: Encoder) -> None:
    """Length 1; a paraphrase is nearer than another subject."""
    one, two, three = (
        encoder.vector(text)
        for text in (
            "How do I sort a list in Python?",
            "What is the way to sort a Python list?",
            "My grandmother's soup needs more salt.",
        )
    )
    assert np.linalg.norm(one) == pytest.approx(1.0, abs=1e-5)
    assert one @ two > 0.8 > 0.3 > one @ three


@pytest.mark.parametrize(
    "text", ["", "   ", "a", "\x00\x01", "\ud800\udfff", "😀" * 500, "字" * 5000, "x" * 100_000]
)
def test_encoder_takes_any_text(encoder: Encoder, text: str) -> None:
    """Any text gives a finite vector, within the cap of tokens."""
    ids = encoder.tokens(text)
    assert (ids[0], ids[-1]) == (CLS, SEP)
    assert len(ids) <= encoder.max_tokens
    assert np.isfinite(encoder.vector(text)).all()


def test_encoder_reads_head_and_tail_of_a_long_text(encoder: Encoder) -> None:
    """Of a text beyond the cap both ends are read."""
    middle = "filler " * 500
    ids = encoder.tokens("alpha " + middle + "omega")
    assert len(ids) == encoder.max_tokens
    assert ids[1] == encoder.tokens("alpha")[1]
    assert ids[-2] == encoder.tokens("omega")[1]


def test_encoder_answers_a_repeat_from_its_cache() -> None:
    """A key seen lately costs no run; the least lately used leaves first."""
    models = shipped("models")
    small = Encoder(models / "encoder.onnx", models / "tokenizer.json", cache_items=2)
    first = small.vector("one", b"1")
    small.vector("two", b"2")
    assert small.vector("not looked at", b"1") is first
    small.vector("three", b"3")  # b"2" leaves
    small.vector("two", b"2")
    assert (small.hits, small.misses) == (1, 4)


def test_pack_keeps_a_vector_within_half_precision() -> None:
    """Packed to float16 and back it is the same direction and a unit vector."""
    vector = np.random.default_rng(0).standard_normal(384).astype(np.float32)
    vector /= np.linalg.norm(vector)
    back = unpack(pack(vector), 384)
    assert back is not None
    assert float(back @ vector) > 0.99999
    assert np.linalg.norm(back) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("packed", [b"", b"123", b"\x00" * 768, b"\xff" * 768])
def test_unpack_refuses_what_is_no_unit_vector(packed: bytes) -> None:
    """A wrong length, zeros or NaN are no vector."""
    assert unpack(packed, 384) is None
