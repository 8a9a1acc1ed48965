"""`sagesched models export`: a local BERT folder becomes an encoder to choose by name.

bert.py reads and checks the folder, bert_graph.py builds the graph, quantise.py makes it int8. Here
they are put together, in a folder of its own: written aside, loaded once as the gateway loads it,
compared with the fp32 network on our own lines, which also give its scale of similarity, and only
then renamed to its name. After an error nothing is left.

`onnx` writes the graph; it is an extra of the package (`export`), since the running gateway has no
use for it.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from gateway.errors import SettingsError
from gateway.predict.encoder import (
    SCALE_KEY,
    exported_folder,
    is_encoder_name,
    is_shipped_encoder,
    load_encoder,
    similarity_scale,
    unrelated_similarity,
)
from gateway.predict.manifest import ArtefactError, ArtefactFolder, record
from gateway.settings.schema import Predict
from gateway.shipped import shipped
from gateway.workbench.arguments import add_config, settings_of
from gateway.workbench.encoders.bert import WORDS, Bert, read_bert, read_tokenizer

AGREE = 0.98  # least cosine of int8 and fp32: a similarity moves by a hundredth or two
MOST_BYTES = 1_900_000_000  # of weights: a graph is one protobuf message, and those end at 2 GiB
NO_ONNX = "models export: the library `onnx` is missing: pip install onnx (the extra `export`)"


class Exported(Struct, frozen=True):
    """An encoder that was written."""

    name: str
    folder: Path
    width: int  # numbers of a vector
    megabytes: float  # of encoder.onnx
    cosine_min: float  # with the fp32 network, on our own lines
    cosine_mean: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `models export`."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = "make an encoder of a local BERT-type folder, to choose by EMBEDDING_MODEL_NAME"
    sub = commands.add_parser("export", help=text, description=text)
    text = "with config.json, model.safetensors, tokenizer.json"
    sub.add_argument("folder", type=Path, help=text)
    add_config(sub)
    sub.add_argument("--out", type=Path, metavar="DIR", help="default: <models_path>/encoders")
    sub.add_argument("--name", default="", help="default: the folder's")
    sub.add_argument("--fp32", action="store_true", help="keep the weights as they are: no int8")


def run(args: argparse.Namespace) -> int:
    """Make an encoder of a local folder, where the gateway of the settings finds it; 0."""
    settings = settings_of(args)
    predict = Predict() if settings is None else settings.predict
    home = exported_folder(predict.models_path)
    out = home if args.out is None else args.out
    made = export(args.folder, out, args.name, shipped("models"), fp32=args.fp32)
    print(
        f"{made.folder}: {made.megabytes} MB, {made.width} numbers a vector; cosine with fp32 at"
        f" least {made.cosine_min}, mean {made.cosine_mean}"
    )
    if out.resolve() != home.resolve():
        print(f"the gateway looks for it as {home / made.name}")
    print(f"to use it: EMBEDDING_MODEL_NAME={made.name}, and a restart")
    return 0


def export(source: Path, out: Path, name: str, models: Path, *, fp32: bool = False) -> Exported:
    """Make OUT/NAME of a folder with config.json, model.safetensors and tokenizer.json.

    Args:
        out: where exported encoders lie.
        name: to choose it by; "" takes the folder's own.
        models: the shipped artefacts' folder.
        fp32: leave the weights as they are: three to four times the size, some 1.4 times the time.

    Raises:
        SettingsError: the folder cannot be exported; nothing is left behind.
    """
    name = name or source.resolve().name
    _check_name(name, out, models)
    try:
        import_module("onnx")
    except ModuleNotFoundError:
        raise SettingsError(NO_ONNX) from None
    bert = read_bert(source)
    tokenizer = read_tokenizer(source, len(bert.weights[WORDS]))
    if sum(value.nbytes for value in bert.weights.values()) > MOST_BYTES:
        raise SettingsError(f"{source}: its weights are larger than {MOST_BYTES // 10**6} MB")
    try:
        with _aside(out, name) as folder:
            figures = _make(bert, tokenizer, source, name, folder, models, fp32=fp32)
            size = (folder / "encoder.onnx").stat().st_size
    except OSError as error:
        where = error.filename or out
        raise SettingsError(f"{where}: {error.strerror or error}") from None
    except ArtefactError as error:
        raise SettingsError(f"models export: {error}") from None
    agreement = figures["cosine_min"], figures["cosine_mean"]
    return Exported(name, out / name, bert.width, round(size / 1e6, 1), *agreement)


def _make(
    bert: Bert, tokenizer: Any, source: Path, name: str, folder: Path, models: Path, *, fp32: bool
) -> dict[str, float]:
    """Write the encoder's files and their manifest; the figures in it."""
    from gateway.workbench.encoders import quantise

    lines = quantise.lines_of(models)
    exact = _write(bert, tokenizer, lines, folder, fp32=fp32)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    _record(bert, source, name, folder, fp32=fp32)
    vectors = _vectors(ArtefactFolder(folder), lines)
    least, mean = quantise.agreement(vectors[quantise.CALIBRATE :], exact)
    if not least >= AGREE:  # NaN, too
        raise SettingsError(
            f"{source}: int8 and fp32 vectors agree by no more than {least}"
            f" (wanted {AGREE}): nothing written; --fp32 keeps the floats"
        )
    figures = {
        "cosine_min": least,
        "cosine_mean": mean,
        "cosine_strangers": round(unrelated_similarity(vectors), 4),
        SCALE_KEY: similarity_scale(vectors, _shipped_vectors(models)),
    }
    _record(bert, source, name, folder, fp32=fp32, **figures)
    return figures


def _check_name(name: str, out: Path, models: Path) -> None:
    if not is_encoder_name(name):
        raise SettingsError(
            f"models export: {name!r} cannot be a name: expected letters, digits, '.', '_', '-',"
            " 64 at most; --name gives another"
        )
    try:
        is_shipped = is_shipped_encoder(ArtefactFolder(models), name)
    except ArtefactError as error:
        raise SettingsError(f"{models}: {error}") from None
    if is_shipped:
        raise SettingsError(
            f"models export: {name!r} is the shipped encoder's name: --name another"
        )
    if (out / name).exists():
        raise SettingsError(
            f"{out / name}: exists; rows of history carry the name, so other weights need another"
        )


@contextmanager
def _aside(out: Path, name: str) -> Iterator[Path]:
    """A folder to write into; it gets its name at the end, or goes if something was raised."""
    out.mkdir(parents=True, exist_ok=True)
    folder = out / f".new-{os.getpid()}-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
        folder.rename(out / name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(bert: Bert, tokenizer: Any, lines: list[str], folder: Path, *, fp32: bool) -> Any:
    """Write encoder.onnx; the fp32 network's vectors of the lines that do not calibrate."""
    from gateway.workbench.encoders.bert_graph import Graph
    from gateway.workbench.encoders.quantise import CALIBRATE, TOKENS, Encode, quantise

    def graph(int8_words: bool) -> Any:
        return Graph(
            *(bert.weights, bert.heads),
            epsilon=bert.epsilon,
            int8_words=int8_words,
            pooling=bert.pooling,
        ).model()

    most = min(TOKENS, bert.positions)
    exact = graph(False).SerializeToString()
    vectors = Encode(exact, tokenizer, most)(lines[CALIBRATE:])
    if fp32:
        (folder / "encoder.onnx").write_bytes(exact)
        return vectors
    del exact
    data = quantise(graph(True), lines[:CALIBRATE], tokenizer, folder, most)
    for left in ("smooth.onnx", "int8.onnx"):
        (folder / left).unlink()
    (folder / "encoder.onnx").write_bytes(data)
    return vectors


def _vectors(files: ArtefactFolder, lines: list[str]) -> Any:
    """Vectors of these lines, as the gateway makes them."""
    from gateway.workbench.encoders.quantise import TOKENS

    encoder = load_encoder(files, TOKENS)
    return np.array([encoder.vector(line) for line in lines], np.float32)


@cache
def _shipped_vectors(models: Path) -> Any:
    """Vectors of the same lines by the shipped encoder."""
    from gateway.workbench.encoders.quantise import lines_of

    return _vectors(ArtefactFolder(models), lines_of(models))


def _record(
    bert: Bert,
    source: Path,
    name: str,
    folder: Path,
    *,
    fp32: bool,
    **figures: float,
) -> None:
    title = source.resolve().name.encode("utf-8", "replace").decode("utf-8")
    origin = f"{title}: model.safetensors of sha256 {bert.sha256}"
    licence = bert.licence or "not named in its folder"
    command = f"sagesched models export {title} --name {name}" + " --fp32" * fp32
    about: dict[str, Any] = {
        "name": name,
        "width": bert.width,
        "positions": bert.positions,
        "pooling": bert.pooling,
        "numbers": "fp32" if fp32 else "int8",
        **figures,
    }
    for table, file, more in (
        ("tokenizer", "tokenizer.json", {}),
        ("encoder", "encoder.onnx", about),
    ):
        record(folder, table, file, origin=origin, licence=licence, command=command, **more)
