"""A BERT sentence encoder as an ONNX graph, built from its safetensors.

A graph exported by a framework has about 350 small nodes, and on one core without a dot-product
instruction its int8 form is no faster than fp32. Built from the runtime's fused operators
(Attention, SkipLayerNormalization, BiasGelu) the same network has about 60 nodes and, quantised,
takes half the time. Pooling and the L2 norm are inside, so the output is the sentence vector. Only
`onnx` is needed, no torch.

int8: weights and activations are unsigned 8 bit, weights with a scale per column, which needs no
reduced range on processors without VNNI. One scale per activation tensor would lose the small
channels beside a few huge ones, so every matrix product first divides its input channels by a
fixed factor and its weights take that factor in ("SmoothQuant", Xiao et al. 2022, arXiv
2211.10438; strength 0.8). The word table is int8 by row, one scale a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from gateway.workbench.encoders.bert import LAYER, WORDS, Pooling, Weights

Model = Any  # onnx.ModelProto; the library is an extra (`export`) of the package
Numbers = npt.NDArray[Any]
MS = "com.microsoft"
FAR = -1e9  # below any activation; stands for a masked token in a maximum


class Graph:
    """Nodes and constants of one encoder's graph."""

    def __init__(
        self,
        weights: Weights,
        heads: int,
        *,
        epsilon: float = 1e-12,
        int8_words: bool = True,
        pooling: Pooling = "mean",
    ) -> None:
        self.weights, self.heads, self.epsilon = weights, heads, epsilon
        self.pooling = pooling
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.layers = sum(name.endswith("output.dense.weight") for name in weights) // 2
        x = self._embed(int8_words)
        self._op("Cast", ["attention_mask"], "mask32", to=TensorProto.INT32)
        for i in range(self.layers):
            x = self._layer(i, x)
        self._pool(x)

    def model(self) -> Model:
        """The ONNX model."""
        ints = [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask")
        ]
        width = self.weights[WORDS].shape[1]
        vector = helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", width])
        graph = helper.make_graph(self.nodes, "sentence-encoder", ints, [vector], self.constants)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MS, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def _constant(self, name: str, value: Numbers) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def _op(self, kind: str, inputs: Sequence[str], out: str, **attributes: object) -> str:
        domain = MS if kind in ("Attention", "SkipLayerNormalization", "BiasGelu") else ""
        node = helper.make_node(kind, inputs, [out], name=out, domain=domain, **attributes)
        self.nodes.append(node)
        return out

    def _words(self, table: Numbers, int8: bool) -> str:
        if not int8:
            return self._op("Gather", [self._constant("words.table", table), "input_ids"], "words")
        scale = np.maximum(np.abs(table).max(axis=1, keepdims=True), 1e-12) / 127
        rows = self._constant("words.q", np.round(table / scale).astype(np.int8))
        found = self._op("Gather", [rows, "input_ids"], "words.found")
        cast = self._op("Cast", [found], "words.float", to=TensorProto.FLOAT)
        scales = self._constant("words.scale", scale.astype(np.float32))
        return self._op(
            "Mul", [cast, self._op("Gather", [scales, "input_ids"], "words.by")], "words"
        )

    def _embed(self, int8_words: bool) -> str:
        """Words + positions + the one token type, then LayerNorm."""
        w, e = self.weights, "embeddings."
        word = self._words(w[WORDS], int8_words)
        places = w[e + "position_embeddings.weight"] + w[e + "token_type_embeddings.weight"][0]
        self._constant("zero", np.array([0], np.int64))
        self._op("Shape", ["input_ids"], "length", start=1, end=2)
        place = self._op(
            "Slice", [self._constant("places", places), "zero", "length", "zero"], "at"
        )
        both = self._op("Add", [word, place], "embedded")
        norm = [self._constant(f"ln.{k}", w[f"{e}LayerNorm.{k}"]) for k in ("weight", "bias")]
        return self._op("LayerNormalization", [both, *norm], "x", axis=-1, epsilon=self.epsilon)

    def _dense(self, i: int, name: str, x: str) -> tuple[str, str]:
        """Names of the matrix product and of the bias, which the caller adds."""
        path = LAYER.format(i) + name
        weight = self._constant(f"{i}.{name}.w", self.weights[path + ".weight"].T)
        bias = self._constant(f"{i}.{name}.b", self.weights[path + ".bias"])
        return self._op("MatMul", [x, weight], f"{i}.{name}"), bias

    def _add_and_norm(self, i: int, name: str, x: str, skip: str) -> str:
        product, bias = self._dense(i, name + ".dense", x)
        path = LAYER.format(i) + name + ".LayerNorm."
        norm = [
            self._constant(f"{i}.{name}.{k}", self.weights[path + k]) for k in ("weight", "bias")
        ]
        inputs = [product, skip, *norm, bias]
        out = f"{i}.{name}.x"
        return self._op("SkipLayerNormalization", inputs, out, epsilon=self.epsilon)

    def _layer(self, i: int, x: str) -> str:
        path = LAYER.format(i) + "attention.self."
        parts = ("query", "key", "value")
        weight = np.concatenate([self.weights[f"{path}{k}.weight"].T for k in parts], axis=1)
        bias = np.concatenate([self.weights[f"{path}{k}.bias"] for k in parts])
        names = [self._constant(f"{i}.qkv.w", weight), self._constant(f"{i}.qkv.b", bias)]
        seen = self._op("Attention", [x, *names, "mask32"], f"{i}.seen", num_heads=self.heads)
        x = self._add_and_norm(i, "attention.output", seen, x)
        wide = self._op("BiasGelu", list(self._dense(i, "intermediate.dense", x)), f"{i}.wide")
        return self._add_and_norm(i, "output", wide, x)

    def _pool(self, x: str) -> None:
        """Make one vector of length 1 of the unmasked tokens' vectors."""
        self._constant("one", np.array([1], np.int64))
        self._op("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
        pooled = {"mean": self._sum, "cls": self._first, "max": self._largest}[self.pooling](x)
        self._op("LpNormalization", [pooled], "vector", axis=-1, p=2)

    def _sum(self, x: str) -> str:
        """The sum, which has the direction of the mean."""
        row = self._op("Unsqueeze", ["mask", "one"], "mask.row")
        return self._op("Squeeze", [self._op("MatMul", [row, x], "total.row"), "one"], "total")

    def _first(self, x: str) -> str:
        return self._op("Squeeze", [self._op("Gather", [x, "zero"], "first", axis=1), "one"], "cls")

    def _largest(self, x: str) -> str:
        far = self._constant("far", np.array([FAR], np.float32))
        last = self._constant("last", np.array([2], np.int64))
        absent = self._op("Equal", ["attention_mask", "zero"], "absent")
        column = self._op("Unsqueeze", [absent, last], "absent.column")
        seen = self._op("Where", [column, far, x], "seen")
        return self._op("ReduceMax", [seen], "largest", axes=[1], keepdims=0)


def products(model: Model) -> list[Any]:
    """Nodes that multiply by a weight matrix, which are worth quantising."""
    return [n for n in model.graph.node if len(n.input) > 1 and n.input[1].endswith(".w")]


def with_taps(model: Model) -> tuple[Model, list[str]]:
    """A copy that also outputs the inputs of every product, and the names of these."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    taps = sorted({node.input[0] for node in products(copy)})
    for name in taps:
        copy.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return copy, taps


def smooth(model: Model, peaks: Mapping[str, Numbers], strength: float = 0.8) -> None:
    """Move the products' peaky input channels into their weights, in place.

    Args:
        peaks: largest |activation| per channel, by tensor name (`with_taps`).
        strength: 0 leaves the activations, 1 makes all their channels equally large.
    """
    constants = {c.name: c for c in model.graph.initializer}
    nodes = []
    chosen = {node.name for node in products(model)}
    for node in model.graph.node:
        if node.name in chosen:
            weight = numpy_helper.to_array(constants[node.input[1]])
            largest = np.maximum(np.abs(weight).max(axis=1), 1e-5)
            factor = np.maximum(peaks[node.input[0]], 1e-5) ** strength / largest ** (1 - strength)
            factor = np.maximum(factor / np.exp(np.log(factor).mean()), 1e-3).astype(np.float32)
            scaled = numpy_helper.from_array(weight * factor[:, None], node.input[1])
            constants[node.input[1]].CopyFrom(scaled)
            name = node.name + ".even"
            model.graph.initializer.append(numpy_helper.from_array(1 / factor, name + ".by"))
            nodes.append(helper.make_node("Mul", [node.input[0], name + ".by"], [name], name=name))
            node.input[0] = name
        nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
