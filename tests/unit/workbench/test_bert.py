"""A BERT folder is read as its network, or refused in a line that says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gateway.errors import SettingsError
from gateway.workbench.encoders.bert import WORDS, Bert, read_bert, read_tokenizer
from tests.kit.tiny_bert import Shape, write_bert, write_config, write_safetensors

TINY = Shape()


def read(folder: Path) -> Bert:
    bert = read_bert(folder)
    read_tokenizer(folder, len(bert.weights[WORDS]))
    return bert


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"prefix": "bert."},
        {"prefix": "0.auto_model.", "old_names": True},
        {"kind": "F16"},
        {"kind": "BF16"},
    ],
)
def test_weights_are_read_under_any_of_their_names(tmp_path: Path, how: dict[str, str]) -> None:
    """Prefixes, old names and half precision become bare names and float32, bit for bit."""
    written = write_bert(tmp_path, **how)  # type: ignore[arg-type]
    bert = read(tmp_path)
    for name, value in written.items():
        assert bert.weights[name].dtype == np.float32
        assert np.array_equal(bert.weights[name], value), name
    assert (bert.width, bert.heads, bert.positions) == (TINY.width, TINY.heads, TINY.positions)


@pytest.mark.parametrize(
    ("mode", "pooling"),
    [
        ("mean_tokens", "mean"),
        ("mean_sqrt_len_tokens", "mean"),
        ("cls_token", "cls"),
        ("max_tokens", "max"),
        (None, "mean"),
    ],
)
def test_pooling_is_read_from_the_folder(tmp_path: Path, mode: str | None, pooling: str) -> None:
    """Pooling is as sentence-transformers names it, and the mean where it names none."""
    write_bert(tmp_path, pooling=mode)
    assert read(tmp_path).pooling == pooling


@pytest.mark.parametrize(
    ("card", "licence"),
    [("---\nlanguage: en\nlicense: apache-2.0\n---\n# X\n", "apache-2.0"), ("# X\n", "")],
)
def test_licence_is_read_from_the_model_card(tmp_path: Path, card: str, licence: str) -> None:
    """The licence is that of README.md's front matter, and empty where there is none."""
    write_bert(tmp_path)
    assert read(tmp_path).licence == ""
    (tmp_path / "README.md").write_text(card)
    assert read(tmp_path).licence == licence


def test_tokenizer_is_read_without_its_own_length(tmp_path: Path) -> None:
    """The tokenizer's own truncation and padding are removed; the caller decides them."""
    write_bert(tmp_path)
    assert len(read_tokenizer(tmp_path, 1000).encode("a " * 50).ids) == 52
    assert len(read_tokenizer(tmp_path, 1000).encode("a").ids) == 3


def test_weights_in_another_format_are_named(tmp_path: Path) -> None:
    """A folder with a pytorch_model.bin is refused, with what to do about it."""
    write_bert(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(SettingsError, match=r"but a pytorch_model.bin: save it again as one"):
        read(tmp_path)


Spoil = Callable[[Path], object]


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def put(name: str, text: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return spoil


def without(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def config(**more: object) -> Spoil:
    return lambda folder: write_config(folder, TINY, **more)


def header(size: int, text: bytes) -> Spoil:
    data = size.to_bytes(8, "little") + text
    return lambda folder: (folder / "model.safetensors").write_bytes(data)


ONE = b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, %d]}}'

HUGE = b'{"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}}'

SPOILT: list[tuple[Spoil, str]] = [
    (without("config.json"), "config.json: cannot be read: No such file"),
    (without("model.safetensors"), "there is no model.safetensors"),
    (without("tokenizer.json"), "there is no tokenizer.json"),
    (put("config.json", "{"), "config.json: is no JSON"),
    (put("config.json", "[]"), "config.json: expected a JSON object"),
    (put("config.json", '{"model_type": "bert"}'), "missing required field `hidden_size`"),
    (config(model_type="roberta"), "model_type is 'roberta'; only encoders of type 'bert'"),
    (config(model_type="gpt2"), "model_type is 'gpt2'"),
    (config(is_decoder=True), "it is a decoder"),
    (config(hidden_act="relu"), "hidden_act is 'relu'"),
    (config(position_embedding_type="relative_key"), "its positions are relative"),
    (config(num_attention_heads=5), "5 heads do not divide 32"),
    (config(num_attention_heads=0), "sizes must be at least 1"),
    (config(max_position_embeddings=7), "it reads fewer than 8 tokens"),
    (config(num_hidden_layers=3), "no encoder.layer.2.attention.self.query.weight"),
    (config(num_hidden_layers=1), "has more layers than config.json's 1"),
    (config(intermediate_size=64), "intermediate.dense.weight is [48, 32], by config.json [64,"),
    (lambda f: cut(f / "model.safetensors", 4), "is no safetensors file"),
    (lambda f: cut(f / "model.safetensors", 0), "model.safetensors: cannot be read"),
    (lambda f: cut(f / "model.safetensors", 20_000), "is cut short"),
    (header(2**62, b"{}"), "is no safetensors file: its header is cut short"),
    (header(2, b"{]"), "is no safetensors file"),
    (header(len(ONE) - 1, ONE % 8 + bytes(8)), "is not of a BERT-type encoder"),
    (header(len(ONE) - 1, ONE % 9 + bytes(9)), "its place and its shape do not agree"),
    (header(len(HUGE), HUGE), "its place and its shape do not agree"),
    (put("tokenizer.json", "{}"), "tokenizer.json: "),
    (put("1_Pooling/config.json", '{"pooling_mode_lasttoken": true}'), "pooling must be one of"),
    (put("1_Pooling/config.json", "{}"), "it is none"),
    (put("modules.json", '[{"type": "sentence_transformers.models.Dense"}]'), "module 'Dense'"),
    (put("modules.json", "{}"), "modules.json: "),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT)
def test_reading_refuses_what_cannot_be_computed(
    tmp_path: Path, spoil: Spoil, message: str
) -> None:
    """A network that the graph cannot compute is refused in one line with the reason."""
    write_bert(tmp_path / "tiny")
    spoil(tmp_path / "tiny")
    with pytest.raises(SettingsError) as caught:
        read(tmp_path / "tiny")
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_reading_refuses_numbers_that_are_none(tmp_path: Path) -> None:
    """A checkpoint with NaN in it is refused, with the tensor's name."""
    write_bert(tmp_path / "tiny")
    path = tmp_path / "tiny" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\xc0\x7f")
    with pytest.raises(SettingsError, match=r"pooler\.dense.bias holds values that are no numbers"):
        read(tmp_path / "tiny")


@pytest.mark.parametrize("name", ["word", "token_type"])
def test_reading_refuses_tables_without_rows(tmp_path: Path, name: str) -> None:
    """Empty tables, and a number in a table's place, are refused."""
    weights = write_bert(tmp_path / "tiny")
    for value in (np.zeros((0, 32), np.float32), np.float32(1)):
        weights[f"embeddings.{name}_embeddings.weight"] = np.asarray(value)
        write_safetensors(tmp_path / "tiny" / "model.safetensors", weights)
        with pytest.raises(SettingsError, match=r"by config.json \[1, 32\]"):
            read(tmp_path / "tiny")


def test_reading_refuses_a_tokenizer_of_more_words_than_the_model(tmp_path: Path) -> None:
    """A tokenizer with an id beyond the word table is refused: it would fail at a prompt with that
    id."""
    write_bert(tmp_path / "tiny")
    write_bert(tmp_path / "large", vocabulary="unigram")
    large = (tmp_path / "tiny" / "tokenizer.json").read_text()
    (tmp_path / "large" / "tokenizer.json").write_text(large)
    with pytest.raises(SettingsError, match=r"has token \d+, the model only \d+ words"):
        read(tmp_path / "large")
