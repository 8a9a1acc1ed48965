"""Vectors are made once for each text and encoder, and are the encoder's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from gateway.errors import SettingsError
from gateway.predict.artefacts import Artefacts
from gateway.settings.schema import Predict
from gateway.shipped import shipped
from gateway.workbench.encoders.export import export
from gateway.workbench.evaluate.vectors import (
    Prompt,
    RecordedEncoder,
    encoder_id,
    prompt_key,
    vectors_of,
)
from tests.kit.tiny_bert import write_bert

MODELS = shipped("models")
PROMPTS = [Prompt("A lamp in the harbour"), Prompt("Twelve kites"), Prompt("Twelve kites")]
WITH_SYSTEM = Prompt("Twelve kites", "Answer in one word.")
SETTINGS = Predict()


def test_vectors_are_the_encoders(tmp_path: Path) -> None:
    """A recorded vector is the serving encoder's for text and system prompt."""
    vectors = vectors_of([*PROMPTS, WITH_SYSTEM], MODELS, SETTINGS, tmp_path / "v.npz", 1)
    assert len(vectors) == 3
    encoder = Artefacts(MODELS, SETTINGS.embedding_model_name, 64).encoder
    assert encoder is not None
    recalled = RecordedEncoder(vectors, encoder.width, 64, encoder)
    for prompt in (*PROMPTS, WITH_SYSTEM):
        result, fresh = (
            each.encode(prompt.text, None, prompt.system) for each in (recalled, encoder)
        )
        assert np.allclose(result.vector, fresh.vector, atol=1e-6)
        assert result.code is not None
        assert np.allclose(result.code, fresh.code, atol=1e-5)
        assert result.unknown_share == fresh.unknown_share


def test_vectors_are_stored_for_the_next_run(tmp_path: Path) -> None:
    """A second run reads the vectors and times of the first, and adds new ones."""
    stored = tmp_path / "v.npz"
    first = vectors_of(PROMPTS, MODELS, SETTINGS, stored, 1)
    again = vectors_of([*PROMPTS, Prompt("A third text")], MODELS, SETTINGS, stored, 1)
    assert len(again) == 3
    key = prompt_key(PROMPTS[0])
    assert again[key].ms == pytest.approx(first[key].ms, rel=1e-5)
    assert np.array_equal(again[key].vector, first[key].vector)
    assert np.array_equal(again[key].code, first[key].code)


def test_vectors_of_another_encoder_are_not_taken(tmp_path: Path) -> None:
    """A file made under another token limit, or broken, is made anew."""
    stored = tmp_path / "v.npz"
    long = Prompt(" ".join(f"word{i}" for i in range(60)))
    wide = vectors_of([long], MODELS, SETTINGS, stored, 1)[prompt_key(long)].vector
    narrow = structs.replace(SETTINGS, max_encoder_tokens=16)
    cut = vectors_of([long], MODELS, narrow, stored, 1)[prompt_key(long)].vector
    assert not np.allclose(wide, cut, atol=1e-3)
    stored.write_bytes(stored.read_bytes()[:100])
    assert np.allclose(
        vectors_of([long], MODELS, SETTINGS, stored, 1)[prompt_key(long)].vector, wide
    )


def test_text_without_a_vector_is_an_error() -> None:
    """A replay never goes on without a vector, nor under another token limit."""
    recalled = RecordedEncoder({}, 384, 64)
    with pytest.raises(KeyError):
        recalled.vector("new")
    with pytest.raises(ValueError):
        recalled.resize(32)


def test_missing_encoder_is_an_error(tmp_path: Path) -> None:
    """A folder without models is an error of the command."""
    with pytest.raises(SettingsError):
        vectors_of(PROMPTS, tmp_path, SETTINGS, tmp_path / "v.npz", 1)


def test_vectors_are_of_the_encoder_the_settings_name(tmp_path: Path) -> None:
    """An exported encoder makes its own vectors and does not read those of the shipped one."""
    write_bert(tmp_path / "tiny")
    export(tmp_path / "tiny", tmp_path / "encoders", "", MODELS, fp32=True)
    other = structs.replace(SETTINGS, embedding_model_name="tiny", models_path=str(tmp_path))
    assert encoder_id(MODELS, other) != encoder_id(MODELS, SETTINGS)
    [result] = vectors_of([Prompt("the sea")], MODELS, other, tmp_path / "v.npz", 1).values()
    assert result.vector.shape == (32,)
    with pytest.raises(SettingsError, match="no artefact for the encoder 'nobody'"):
        encoder_id(MODELS, structs.replace(other, embedding_model_name="nobody"))
