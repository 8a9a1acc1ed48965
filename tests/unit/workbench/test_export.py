"""A local BERT folder becomes an encoder that says what the network says."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from gateway.errors import SettingsError
from gateway.predict.encoder import Encoder, exported_folder, find_encoder, load_encoder
from gateway.predict.manifest import ArtefactFolder
from gateway.shipped import shipped
from gateway.workbench.encoders.export import export
from tests.kit.tiny_bert import Shape, Weights, forward, write_bert, write_safetensors

MODELS = shipped("models")
TINY = Shape()
TEXTS = (
    "What is the sea?",
    "Write a list of the lakes, and name a sea.",
    "a",
    "the essay of the sea is what the lake is to the essay, and so on, and so on, " * 9,
    "字 字 字 字",
)


def made(tmp_path: Path, *, fp32: bool = True, **how: object) -> tuple[Encoder, Weights]:
    """A tiny BERT_IDS, exported and loaded as the gateway does; and its weights."""
    weights = write_bert(tmp_path / "tiny", **how)  # type: ignore[arg-type]
    found = export(tmp_path / "tiny", tmp_path / "out", "", MODELS, fp32=fp32)
    assert (found.folder, found.name) == (tmp_path / "out" / "tiny", "tiny")
    return load_encoder(find_encoder(ArtefactFolder(MODELS), tmp_path / "out", "tiny"), 64), weights


def cosines(
    encoder: Encoder, weights: Weights, shape: Shape = TINY, pooling: str = "mean_tokens"
) -> list[float]:
    """Cosines between the encoder's vectors and numpy's of the same tokens."""
    return [
        float(encoder.vector(text) @ forward(weights, shape, encoder.tokens(text), pooling))
        for text in TEXTS
    ]


@pytest.mark.parametrize("vocabulary", ["wordpiece", "unigram"])
def test_exported_encoder_is_the_network(tmp_path: Path, vocabulary: str) -> None:
    """In fp32 it agrees with a plain numpy forward pass; the twin, other weights, does not."""
    encoder, weights = made(tmp_path, vocabulary=vocabulary)
    assert min(cosines(encoder, weights)) >= 0.9999
    other = write_bert(tmp_path / "other", vocabulary=vocabulary, seed=1)
    assert max(cosines(encoder, other)) < 0.9


def test_exported_int8_encoder_is_nearly_the_network(tmp_path: Path) -> None:
    """Quantised, every vector is within cosine 0.99."""
    encoder, weights = made(tmp_path, fp32=False)
    assert min(cosines(encoder, weights)) >= 0.99
    data = (tmp_path / "out" / "tiny" / "encoder.onnx").read_bytes()
    assert b"DynamicQuantizeLinear" in data


@pytest.mark.parametrize(
    "shape", [Shape(24, 1, 2, 96, 16), Shape(64, 4, 8, 64, 128), Shape(32, 3, 1, 16, 9)]
)
def test_exported_encoder_may_have_any_sizes(tmp_path: Path, shape: Shape) -> None:
    """Widths, layers, heads and positions are the folder's; the cap is held to the positions."""
    encoder, weights = made(tmp_path, shape=shape)
    assert min(cosines(encoder, weights, shape)) >= 0.9999
    assert encoder.width == shape.width
    assert encoder.max_tokens == min(64, shape.positions)
    assert len(encoder.tokens(TEXTS[3])) == encoder.max_tokens
    encoder.resize(500)
    assert len(encoder.tokens(TEXTS[3] * 9)) == shape.positions


@pytest.mark.parametrize("pooling", ["cls_token", "max_tokens", "mean_sqrt_len_tokens", None])
def test_exported_encoder_pools_as_its_folder_says(tmp_path: Path, pooling: str | None) -> None:
    """The encoder pools by the first token, the maximum or the mean, and by the mean where none is
    named."""
    encoder, weights = made(tmp_path, pooling=pooling)
    assert min(cosines(encoder, weights, pooling=pooling or "mean_tokens")) >= 0.9999
    otherwise = "cls_token" if pooling == "max_tokens" else "max_tokens"
    assert min(cosines(encoder, weights, pooling=otherwise)) < 0.9999


@pytest.mark.parametrize(
    "how", [{"prefix": "bert."}, {"prefix": "0.auto_model.", "old_names": True}, {"kind": "BF16"}]
)
def test_exported_encoder_is_found_under_any_of_its_names(
    tmp_path: Path, how: dict[str, object]
) -> None:
    """Prefixed tensors, LayerNorm's old names and half precision make the same network."""
    encoder, weights = made(tmp_path, **how)
    assert min(cosines(encoder, weights)) >= 0.9999


def test_exported_encoder_knows_what_its_vocabulary_lacks(tmp_path: Path) -> None:
    """Texts of unknown words are foreign by this tokenizer's own mark, others are not."""
    for vocabulary in ("wordpiece", "unigram"):
        encoder, _ = made(tmp_path / vocabulary, vocabulary=vocabulary)
        assert encoder.encode("字 字 字").foreign
        assert not encoder.encode("what is the sea").foreign


def test_export_says_in_the_manifest_what_it_made(tmp_path: Path) -> None:
    """The manifest has each file's hash, origin, licence and command, and no path."""
    write_bert(tmp_path / "tiny")
    (tmp_path / "tiny" / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# Tiny\n")
    export(tmp_path / "tiny", tmp_path / "out", "own.name-1", MODELS)
    folder = tmp_path / "out" / "own.name-1"
    text = (folder / "manifest.toml").read_text()
    tables = tomllib.loads(text)
    assert set(tables) == {"encoder", "tokenizer"}
    for table in tables.values():
        data = (folder / table["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == table["sha256"]
        assert table["licence"] == "mit"
        assert table["command"] == "sagesched models export tiny --name own.name-1"
    weights = (tmp_path / "tiny" / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() in tables["encoder"]["origin"]
    assert tables["encoder"]["cosine_min"] >= 0.98
    assert 0.8 < tables["encoder"]["cosine_strangers"] < 1.0
    assert tables["encoder"]["similarity_scale"] > 2.0
    assert str(tmp_path) not in text
    assert {path.name for path in folder.iterdir()} == {
        *("encoder.onnx", "tokenizer.json", "manifest.toml")
    }


@pytest.mark.parametrize("what", ["config.json", "model.safetensors", "tokenizer.json"])
def test_export_leaves_nothing_behind_where_the_folder_is_broken(tmp_path: Path, what: str) -> None:
    """After an error not even the folder for encoders is there; a complete folder then goes
    through."""
    write_bert(tmp_path / "tiny")
    stored = (tmp_path / "tiny" / what).read_bytes()
    (tmp_path / "tiny" / what).write_bytes(stored[: len(stored) // 2])
    with pytest.raises(SettingsError, match=what):
        export(tmp_path / "tiny", tmp_path / "out", "", MODELS, fp32=True)
    assert not (tmp_path / "out").exists()
    (tmp_path / "tiny" / what).write_bytes(stored)
    assert export(tmp_path / "tiny", tmp_path / "out", "", MODELS, fp32=True).folder.is_dir()


def test_export_refuses_int8_that_is_far_from_the_network(tmp_path: Path) -> None:
    """Channels a thousand times apart do not survive 8 bits: only --fp32 writes them."""
    weights = write_bert(tmp_path / "tiny")
    draw = np.random.default_rng(1)
    for name, value in weights.items():
        if name.endswith("dense.weight"):
            value *= np.exp(3 * draw.standard_normal((1, value.shape[1]))).astype(np.float32)
    write_safetensors(tmp_path / "tiny" / "model.safetensors", weights)
    with pytest.raises(SettingsError, match="int8 and fp32 vectors agree by no more than"):
        export(tmp_path / "tiny", tmp_path / "out", "", MODELS)
    assert list((tmp_path / "out").iterdir()) == []
    assert export(tmp_path / "tiny", tmp_path / "out", "", MODELS, fp32=True).cosine_min >= 0.9999


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "a b", "x" * 65])
def test_export_refuses_names_with_a_path(tmp_path: Path, name: str) -> None:
    """A name must not lead to another folder."""
    write_bert(tmp_path / "tiny")
    with pytest.raises(SettingsError, match="cannot be a name"):
        export(tmp_path / "tiny", tmp_path / "out", name, MODELS)


def test_export_never_overwrites(tmp_path: Path) -> None:
    """The shipped encoder's name and a name in use are refused."""
    write_bert(tmp_path / "tiny")
    with pytest.raises(SettingsError, match="is the shipped encoder"):
        export(tmp_path / "tiny", tmp_path / "out", "minilm-l6-length-1", MODELS, fp32=True)
    export(tmp_path / "tiny", tmp_path / "out", "", MODELS, fp32=True)
    before = {p: p.read_bytes() for p in (tmp_path / "out" / "tiny").iterdir()}
    write_bert(tmp_path / "again" / "tiny", seed=1)
    with pytest.raises(SettingsError, match=r"out/tiny: exists"):
        export(tmp_path / "again" / "tiny", tmp_path / "out", "", MODELS, fp32=True)
    assert {p: p.read_bytes() for p in (tmp_path / "out" / "tiny").iterdir()} == before
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["tiny"]


def test_export_into_a_place_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    """A file in the place of the folder is an error of one line with its name."""
    write_bert(tmp_path / "tiny")
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"file.*: Not a directory"):
        export(tmp_path / "tiny", tmp_path / "file" / "out", "", MODELS, fp32=True)


COMMAND = (sys.executable, "-m", "gateway", "models", "export")


def test_command_exports_where_the_settings_look(tmp_path: Path) -> None:
    """Without --out it goes under models_path, and the last line says how to use it."""
    write_bert(tmp_path / "tiny")
    done = run(tmp_path, "tiny", "--name", "mine")
    assert done.returncode == 0, done.stderr
    assert "EMBEDDING_MODEL_NAME=mine" in done.stdout
    found = find_encoder(ArtefactFolder(MODELS), exported_folder(tmp_path / "var/models"), "mine")
    assert load_encoder(found, 64).width == 32


def test_command_without_the_onnx_library_says_what_to_install(tmp_path: Path) -> None:
    """The exit code is 2, with one line that has the extra's name."""
    write_bert(tmp_path / "tiny")
    (tmp_path / "shadow").mkdir()
    lacks = "raise ModuleNotFoundError(\"No module named 'onnx'\", name='onnx')"
    (tmp_path / "shadow" / "onnx.py").write_text(lacks)
    done = run(tmp_path, "tiny", path=str(tmp_path / "shadow"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "pip install onnx" in done.stderr


def test_command_exits_with_2_on_a_folder_of_another_kind(tmp_path: Path) -> None:
    """A folder of another kind is one line on standard error."""
    done = run(tmp_path, "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "sagesched: nowhere: is no folder\n"


def run(directory: Path, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).resolve().parents[3])
    paths = [path, root, os.environ.get("PYTHONPATH", "")]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    return subprocess.run(
        [*COMMAND, *arguments], cwd=directory, env=environ, capture_output=True, text=True
    )
