"""The shipped encoder gives the reference network's vectors; scales of similarity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gateway.predict.encoder import (
    CLS,
    LEAST_SCALE,
    MOST_SCALE,
    PAIRS_QUANTILE,
    SEP,
    Encoder,
    Floats,
    pack,
    similarity_scale,
    unpack,
    unrelated_similarity,
)
from gateway.shipped import shipped
from tests.unit.predict.plain import without_code

AGREE = 0.99


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    models = shipped("models")
    return Encoder(models / "encoder.onnx", models / "tokenizer.json")


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.asarray((left * right).sum(axis=1) / norms)


def test_encoder_agrees_with_fp32(encoder: Encoder) -> None:
    """Line by line the cosine with the fp32 graph is at least 0.99, and codes point the
    same way."""
    with np.load(shipped("models") / "encoder_reference.npz") as file:
        texts, fp32, codes = file["texts"], file["fp32"], file["code"].astype(np.float32)
    encoded = [encoder.encode(str(text)) for text in texts]
    assert len(texts) >= 20
    assert (
        cosines(np.array([one.vector for one in encoded]), fp32.astype(np.float32)).min() >= AGREE
    )
    own = np.array([one.code for one in encoded])
    assert own.shape == codes.shape
    assert np.corrcoef(own.ravel(), codes.ravel())[0, 1] > AGREE
    assert np.corrcoef(own.ravel(), np.roll(codes, 1, axis=0).ravel())[0, 1] < AGREE


def test_encoder_disagrees_with_the_vectors_of_other_lines(encoder: Encoder) -> None:
    """The twin: the same comparison fails where the lines do not belong together."""
    with np.load(shipped("models") / "encoder_reference.npz") as file:
        texts, fp32 = file["texts"], file["fp32"].astype(np.float32)
    vectors = np.array([encoder.vector(str(text)) for text in texts])
    assert cosines(vectors, np.roll(fp32, 1, axis=0)).max() < AGREE


def test_encoder_vectors_are_unit_and_near_for_near_texts(encoder: Encoder) -> None:
    """Vectors have length 1, and a paraphrase is nearer than another subject."""
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
    """Both ends of a text beyond the cap change its vector."""
    middle = "filler " * 500
    ids = encoder.tokens("alpha " + middle + "omega")
    assert len(ids) == encoder.max_tokens
    assert ids[1] == encoder.tokens("alpha")[1]
    assert ids[-2] == encoder.tokens("omega")[1]


def test_encoder_reads_the_head_of_the_system_prompt_first(encoder: Encoder) -> None:
    """Tokens are [CLS] system [SEP] text [SEP] with at most 24 of the system prompt, which changes
    the code."""
    ids = encoder.tokens("how are you", "answer in one word " * 50)
    first = ids.index(SEP)
    assert (first, ids[-1], len(ids) <= encoder.max_tokens) == (25, SEP, True)
    assert ids[first + 1 : -1] == encoder.tokens("how are you")[1:-1]
    assert encoder.tokens("how are you", "  ") == encoder.tokens("how are you")
    plain, instructed = (
        encoder.encode("how are you"),
        encoder.encode("how are you", None, "One word only."),
    )
    assert plain.code is not None
    assert instructed.code is not None
    assert not np.allclose(plain.code, instructed.code, atol=0.05)


def test_encoder_counts_unknown_tokens_of_the_text_alone(encoder: Encoder) -> None:
    """A text of unknown emojis is foreign, whatever the system prompt before it."""
    system = "You are a helpful assistant that answers questions in English."
    assert encoder.encode("\U0001f9ff \U0001fa90 " * 20, None, system).foreign
    assert not encoder.encode("What is the sea?", None, system).foreign


def test_encoder_without_a_code_is_given_no_system_prompt(tmp_path: Path) -> None:
    """A plain sentence encoder, with one output, reads the text alone."""
    plain = Encoder(without_code(tmp_path / "e.onnx"), shipped("models") / "tokenizer.json")
    assert plain.tokens("hello", "a system prompt") == plain.tokens("hello")
    reading = plain.encode("hello", None, "a system prompt")
    assert reading.code is None
    assert reading.vector.shape == (plain.width,)


def test_encoder_answers_a_repeat_from_its_cache() -> None:
    """A key seen lately is answered from the cache, and the least lately used one leaves first."""
    models = shipped("models")
    small = Encoder(models / "encoder.onnx", models / "tokenizer.json", cache_items=2)
    first = small.vector("one", b"1")
    small.vector("two", b"2")
    assert small.vector("not looked at", b"1") is first
    small.vector("three", b"3")  # b"2" leaves
    assert small.vector("not looked at", b"1") is first
    assert small.vector("two again", b"2") @ small.vector("two again") > 0.999


def test_pack_keeps_a_vector_within_half_precision() -> None:
    """A vector packed to float16 and back has the same direction and length 1."""
    vector = np.random.default_rng(0).standard_normal(384).astype(np.float32)
    vector /= np.linalg.norm(vector)
    back = unpack(pack(vector), 384)
    assert back is not None
    assert float(back @ vector) > 0.99999
    assert np.linalg.norm(back) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("packed", [b"", b"123", b"\x00" * 768, b"\xff" * 768])
def test_unpack_refuses_what_is_no_unit_vector(packed: bytes) -> None:
    """A wrong length, zeros and NaN give no vector."""
    assert unpack(packed, 384) is None


def related(offset: float, rows: int = 60, width: int = 48) -> Floats:
    """Unit vectors with a part in common: the larger it is, the nearer they all lie."""
    draw = np.random.default_rng(3).standard_normal((rows, width)).astype(np.float32)
    draw[:, 0] += offset
    return np.asarray(draw / np.linalg.norm(draw, axis=1, keepdims=True), np.float32)


def test_unrelated_similarity_is_of_pairs_of_different_lines() -> None:
    """The quantile is taken over the pairs of different lines; a line with itself is no pair."""
    vectors = np.eye(4, dtype=np.float32)
    assert unrelated_similarity(vectors) == 0.0
    vectors[1] = vectors[0]
    assert 0.0 < unrelated_similarity(vectors) <= 1.0


@pytest.mark.parametrize("offset", [0.0, 6.0, 15.0])
def test_scale_brings_unrelated_lines_to_where_ours_lie(offset: float) -> None:
    """The scaled similarities of any encoder have the shipped one's quantile."""
    shipped, own = related(1.0), related(offset)
    factor = similarity_scale(own, shipped)
    above = np.triu_indices(len(own), 1)
    found = 1.0 - factor * (1.0 - (own @ own.T)[above])
    assert np.quantile(found, PAIRS_QUANTILE) == pytest.approx(
        unrelated_similarity(shipped), abs=0.01
    )
    assert (factor > 1.0) == (unrelated_similarity(own) > unrelated_similarity(shipped))


def test_scale_of_the_shipped_encoder_is_one() -> None:
    """The shipped encoder's lines against themselves give the factor 1."""
    assert similarity_scale(related(2.0), related(2.0)) == 1.0


def test_scale_is_bounded() -> None:
    """An encoder with one vector for all texts gets the largest factor."""
    same = np.tile(related(0.0)[:1], (60, 1))
    assert similarity_scale(same, related(0.0)) == MOST_SCALE
    assert similarity_scale(related(0.0), same) == LEAST_SCALE
