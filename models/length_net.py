"""The length network in torch: a BERT from its safetensors, and a head of quantiles.

One forward pass must serve two readers. Retrieval wants the sentence vector it had before
(the mean over the tokens); length wants something the sentence vector lacks: it knows
topic, not length. So the same last layer is pooled twice: the mean is held near the old
sentence vector while training, and the first token together with the mean feeds a code of
64 numbers from which the head, with side features and the model, makes seven quantiles.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Weights = dict[str, np.ndarray]
CODE = 64
MODEL = 16
HIDDEN = 96
DROPOUT = 0.1


class Layer(nn.Module):
    def __init__(self, width: int, wide: int, heads: int, epsilon: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.out_norm = nn.LayerNorm(width, eps=epsilon)
        self.up, self.down = nn.Linear(width, wide), nn.Linear(wide, width)
        self.down_norm = nn.LayerNorm(width, eps=epsilon)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = self.out_norm(x + self.out(seen.transpose(1, 2).reshape(batch, length, width)))
        return self.down_norm(x + self.down(functional.gelu(self.up(x))))


class Bert(nn.Module):
    """The encoder. The words and the lowest `frozen` layers stay as they are."""

    def __init__(self, weights: Weights, heads: int, frozen: int, epsilon: float = 1e-12) -> None:
        super().__init__()
        self.frozen = frozen
        words = weights["embeddings.word_embeddings.weight"]
        width = words.shape[1]
        self.words = nn.Embedding.from_pretrained(torch.tensor(words))
        places = weights["embeddings.position_embeddings.weight"]
        types = weights["embeddings.token_type_embeddings.weight"]
        self.register_buffer("places", torch.tensor(places + types[0]))
        self.norm = nn.LayerNorm(width, eps=epsilon)
        wide = weights["encoder.layer.0.intermediate.dense.bias"].shape[0]
        count = sum(name.endswith("intermediate.dense.bias") for name in weights)
        self.layers = nn.ModuleList(Layer(width, wide, heads, epsilon) for _ in range(count))
        self.load_state_dict(state_of(weights), strict=False)
        for module in (self.words, self.norm, *self.layers[:frozen]):
            module.requires_grad_(False)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        bias = torch.zeros(mask.shape).masked_fill(mask == 0, -math.inf)[:, None, None, :]
        with torch.no_grad():
            x = self.norm(self.words(ids) + self.places[: ids.shape[1]])
            for layer in self.layers[: self.frozen]:
                x = layer(x, bias)
        for layer in self.layers[self.frozen :]:
            x = layer(x, bias)
        return x


NAMES = (
    ("attention.output.dense", "out"),
    ("attention.output.LayerNorm", "out_norm"),
    ("intermediate.dense", "up"),
    ("output.dense", "down"),
    ("output.LayerNorm", "down_norm"),
)
PARTS = ("query", "key", "value")


def state_of(weights: Weights) -> dict[str, Tensor]:
    """`Bert`'s parameters by their torch names."""
    state = {f"norm.{k}": weights[f"embeddings.LayerNorm.{k}"] for k in ("weight", "bias")}
    count = sum(name.endswith("intermediate.dense.bias") for name in weights)
    for i in range(count):
        path = f"encoder.layer.{i}."
        for kind in ("weight", "bias"):
            parts = [weights[f"{path}attention.self.{part}.{kind}"] for part in PARTS]
            state[f"layers.{i}.qkv.{kind}"] = np.concatenate(parts)
            for theirs, ours in NAMES:
                state[f"layers.{i}.{ours}.{kind}"] = weights[f"{path}{theirs}.{kind}"]
    return {name: torch.tensor(value) for name, value in state.items()}


def weights_of(bert: Bert, original: Weights) -> Weights:
    """The trained parameters under the names of the safetensors file."""
    state = {name: value.numpy() for name, value in bert.state_dict().items()}
    weights = dict(original)
    for i in range(len(bert.layers)):
        path = f"encoder.layer.{i}."
        for kind in ("weight", "bias"):
            thirds = np.split(state[f"layers.{i}.qkv.{kind}"], 3)
            for part, value in zip(PARTS, thirds, strict=True):
                weights[f"{path}attention.self.{part}.{kind}"] = value
            for theirs, ours in NAMES:
                weights[f"{path}{theirs}.{kind}"] = state[f"layers.{i}.{ours}.{kind}"]
    return weights


class LengthNet(nn.Module):
    """Encoder and head. Quantiles are in units of the target's deviation from its mean."""

    def __init__(self, bert: Bert, models: int, sides: int, start: Tensor) -> None:
        super().__init__()
        self.bert = bert
        width = bert.words.embedding_dim
        self.code = nn.Linear(2 * width, CODE)
        self.model = nn.Embedding(models + 1, MODEL)
        nn.init.normal_(self.model.weight, std=0.1)
        self.first = nn.Linear(CODE + MODEL + sides, HIDDEN)
        self.last = nn.Linear(HIDDEN, len(start))
        nn.init.normal_(self.last.weight, std=0.02)
        with torch.no_grad():
            self.last.bias.copy_(start)

    def encode(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Unit sentence vectors, and codes."""
        x = self.bert(ids, mask)
        seen = mask.to(x.dtype)[:, :, None]
        mean = (x * seen).sum(1) / seen.sum(1)
        pooled = torch.cat([x[:, 0], mean], dim=1)
        pooled = functional.dropout(pooled, DROPOUT, self.training)
        return functional.normalize(mean, dim=1), self.code(pooled)

    def quantiles(self, code: Tensor, model: Tensor, sides: Tensor) -> Tensor:
        both = torch.cat([functional.gelu(code), self.model(model), sides], dim=1)
        hidden = functional.gelu(self.first(both))
        return self.last(functional.dropout(hidden, DROPOUT, self.training))


def pinball(quantiles: Tensor, y: Tensor, censored: Tensor, levels: Tensor) -> Tensor:
    """Mean over levels, one value a row; a censored length only says "not below this"."""
    error = y[:, None] - quantiles
    loss = torch.maximum(levels * error, (levels - 1) * error)
    known_wrong = (error > 0) | ~censored[:, None]
    return (loss * known_wrong).mean(dim=1)
