"""The int8 form of an encoder's fp32 graph, and how near the two are.

The weights of the matrix products become unsigned 8 bit by onnxruntime's own tool, the activations
are quantised as they come (dynamic), after smoothing: the head of bert_graph.py has the reason. The
first CALIBRATE lines of models/sentences.txt calibrate the smoothing; the others judge.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from gateway.predict.encoder import SpecialIds, special_ids_of, token_ids
from gateway.workbench.encoders.bert_graph import Model, products, smooth, with_taps

Floats = npt.NDArray[np.float32]

CALIBRATE = 32  # lines
TOKENS = 64  # read of a line


def lines_of(models: Path) -> list[str]:
    """The lines of models/sentences.txt, of many kinds and languages. Raises OSError."""
    text = (models / "sentences.txt").read_text(encoding="utf-8")
    return [line.replace("\\n", "\n") for line in text.splitlines()]


class Encode:
    """Computes vectors with an ONNX model, on one thread.

    Args:
        model: a file, or its bytes.
        most: tokens of a text, special ones included.
    """

    def __init__(self, model: bytes | str, tokenizer: Any, most: int = TOKENS) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        self.session: Any = onnxruntime.InferenceSession(model, options, providers=providers)
        self.tokenizer, self.most = tokenizer, most
        self._special_ids: SpecialIds = special_ids_of(tokenizer)

    def feed(self, text: str) -> dict[str, npt.NDArray[np.int64]]:
        """Inputs of the model for a text."""
        ids = np.array(
            [token_ids(self.tokenizer, text, "", self.most, self._special_ids)], np.int64
        )
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    def __call__(self, texts: Sequence[str]) -> Floats:
        """Unit vectors, a row each."""
        found = [self.session.run(["vector"], self.feed(text))[0][0] for text in texts]
        return np.array(found, np.float32)


def agreement(one: Floats, other: Floats) -> tuple[float, float]:
    """Least and mean cosine between rows of unit vectors."""
    cosine = (one * other).sum(axis=1)
    return round(float(cosine.min()), 4), round(float(cosine.mean()), 4)


def smoothed(model: Model, lines: Sequence[str], tokenizer: Any, most: int = TOKENS) -> None:
    """Even out the channels of the products' inputs, by their peaks on these lines, in place."""
    tapped, taps = with_taps(model)
    encode = Encode(tapped.SerializeToString(), tokenizer, most)
    peaks = {name: np.zeros(1, np.float32) for name in taps}
    for line in lines:
        for name, value in zip(taps, encode.session.run(taps, encode.feed(line)), strict=True):
            top = np.abs(value).reshape(-1, value.shape[-1]).max(axis=0)
            peaks[name] = np.maximum(peaks[name], top)
    smooth(model, peaks)


def quantise(
    model: Model, lines: Sequence[str], tokenizer: Any, build: Path, most: int = TOKENS
) -> bytes:
    """The int8 model; `lines` calibrate. Leaves smooth.onnx and int8.onnx in `build`."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    smoothed(model, lines, tokenizer, most)
    onnx.save(model, str(build / "smooth.onnx"))
    with _quiet():
        quantize_dynamic(
            build / "smooth.onnx",
            build / "int8.onnx",
            nodes_to_quantize=[node.name for node in products(model)],
            per_channel=True,
            weight_type=QuantType.QUInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
    return (build / "int8.onnx").read_bytes()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the tool, which advises a preprocessing that this graph does not need."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
