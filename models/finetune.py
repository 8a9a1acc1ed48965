"""Fine-tunes the sentence encoder for answer length.

    nice -n 19 .venv-finetune/bin/python models/finetune.py CONVERSATIONS.jsonl.gz \\
        --weights model.safetensors --vectors VECTORS.npz --out FOLDER --leave-out 0

Fit-side rows of permitted licence only. With `--leave-out` some of five folds are not
trained on: three such runs (0; 1 2; 3 4) give every row a forecast of a network that has
not seen its prompt, and what stacks on them learns how far to trust the network.

A text is encoded once for all the rows that share it (a third do: one prompt, several
models). Half of the batches are cut at 64 tokens and half at 96, so that the served
network stands either cap.

The checkpoint in FOLDER is written every minute and at the end; the same command goes on
from it. Batches and their caps follow from the seed and the step alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from length_net import Bert, LengthNet, pinball, weights_of  # noqa: E402
from length_rows import (  # noqa: E402
    MAX_TOKENS,
    UNKNOWN_MODEL,
    Sides,
    censored,
    numbering,
    numbers,
    padded,
    recut,
    tokens,
    unknown_model,
    with_stage0,
)
from train_quantiles import FOLDS, LEVELS, STAGE0, fit  # noqa: E402
from training_rows import NAMES, PERMITTED, cheap, hide, means, read, view_of  # noqa: E402

from gateway.workbench.encoders.bert import read_safetensors  # noqa: E402
from gateway.workbench.split import groups, is_fit, row_keys  # noqa: E402

HEADS = 12
FROZEN = 2
TEXTS = 16  # a batch
CAPS = (64, MAX_TOKENS)
BUCKETS = 40  # batches sorted by length together
UNKNOWN_SHARE = 0.15
NO_STAGE0_SHARE = 0.25
NEAR_OLD = 0.2  # weight of staying near the old sentence vector (1 − cosine)
RATE, HEAD_RATE, WARM_UP = 5e-5, 1e-3, 0.08
SAVE_S = 60.0
SEED = 11


class Corpus(NamedTuple):
    """Training rows, and the distinct texts they share."""

    ids: list[list[int]]  # by text
    rows_of: list[list[int]]  # by text
    old: torch.Tensor  # unit vectors by text, of the encoder as it was
    y: torch.Tensor  # scaled
    censored: torch.Tensor
    model: torch.Tensor
    sides: torch.Tensor
    sides_unknown: torch.Tensor  # as if the model had never been seen
    stage0: bool  # whether the last two side columns are stage 0's


def folds_of(group: Sequence[bytes]) -> np.ndarray:
    return np.array([int.from_bytes(key[-2:], "big") % FOLDS for key in group])


def stage0(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stage 0's locations out of fold, with the model's mean and without it."""
    column = [NAMES.index("model_mean")]
    hidden, without = x.copy(), x.copy()
    hide(hidden, column, 0.10, 1)
    without[:, column] = np.nan
    out = np.empty((2, len(y)))
    for f in sorted(set(fold.tolist())):
        booster = fit(hidden[fold != f], y[fold != f], STAGE0)
        for place, matrix in enumerate((x, without)):
            out[place, fold == f] = booster.predict(matrix[fold == f])
    return out[0], out[1]


def corpus(args: argparse.Namespace, tokenizer: Tokenizer) -> tuple[Corpus, dict[str, Any]]:
    rows = read(args.conversations)
    group = groups(row_keys(row) for row in rows)
    chosen = [
        i for i, row in enumerate(rows) if is_fit(group[i]) and row["license"].startswith(PERMITTED)
    ]
    fold = folds_of([group[i] for i in chosen])
    chosen = [i for i, f in zip(chosen, fold, strict=True) if f not in args.leave_out]
    chosen = chosen[: args.rows]
    fold = folds_of([group[i] for i in chosen])
    rows = [rows[i] for i in chosen]
    views = [view_of(row) for row in rows]
    y = np.log1p([row["output_tokens"] for row in rows])
    x = np.empty((len(rows), 0))
    for f in sorted(set(fold.tolist())):  # a row's own length must not be in its model's mean
        others, own = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        mean = means([views[i].model for i in others], y[others])
        part = cheap([views[i] for i in own], mean, {})
        x = x if x.shape[1] else np.empty((len(rows), part.shape[1]))
        x[own] = part
    scale = Sides.of(x)
    unit = (float(y.mean()), float(y.std()))
    sides = scale(x)
    sides_unknown = unknown_model(sides)
    if args.stage0:
        known_model, no_model = stage0(x, y, fold)
        sides = with_stage0(sides, known_model, *unit)
        sides_unknown = with_stage0(sides_unknown, no_model, *unit)
    numbered = numbering(view.model for view in views)
    rows_of: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, view in enumerate(views):
        rows_of[tuple(tokens(view, tokenizer))].append(i)
    with np.load(args.vectors) as file:
        vectors_by_text = dict(zip(file["texts"].tolist(), file["vectors"], strict=True))
    old = np.array([vectors_by_text[views[own[0]].text] for own in rows_of.values()], np.float32)
    facts = {
        "models": numbered,
        "model_means": means([view.model for view in views], y),
        "side_mean": scale.mean.tolist(),
        "side_deviation": scale.deviation.tolist(),
        "y_mean": unit[0],
        "y_deviation": unit[1],
        "rows": len(rows),
        "texts": len(rows_of),
    }
    return Corpus(
        ids=[list(key) for key in rows_of],
        rows_of=list(rows_of.values()),
        old=torch.tensor(old),
        y=torch.tensor((y - unit[0]) / unit[1], dtype=torch.float32),
        censored=torch.tensor(censored(rows)),
        model=torch.tensor(numbers([view.model for view in views], numbered)),
        sides=torch.tensor(sides),
        sides_unknown=torch.tensor(sides_unknown),
        stage0=args.stage0,
    ), facts


def batches(lengths: Sequence[int], epoch: int) -> list[np.ndarray]:
    """Texts of like length together, in random order."""
    random = np.random.default_rng((SEED, epoch))
    order = random.permutation(len(lengths))
    span = TEXTS * BUCKETS
    out = []
    for start in range(0, len(order), span):
        part = order[start : start + span]
        part = part[np.argsort([lengths[i] for i in part], kind="stable")]
        out += [part[i : i + TEXTS] for i in range(0, len(part), TEXTS)]
    random.shuffle(out)
    return out


def plan(data: Corpus, epochs: int) -> Iterator[np.ndarray]:
    lengths = [len(ids) for ids in data.ids]
    for epoch in range(epochs):
        yield from batches(lengths, epoch)


def loss_of(net: LengthNet, data: Corpus, texts: np.ndarray, step: int) -> tuple[Any, Any]:
    """Pinball per row, and the distance from the old vectors."""
    random = np.random.default_rng((SEED, 1, step))
    cap = CAPS[int(random.random() < 0.5)]
    ids, mask = (torch.tensor(a) for a in padded([recut(data.ids[i], cap) for i in texts]))
    vector, code = net.encode(ids, mask)
    rows = [row for i in texts for row in data.rows_of[i]]
    place = [at for at, i in enumerate(texts) for _ in data.rows_of[i]]
    hidden = torch.tensor(random.random(len(rows)) < UNKNOWN_SHARE)
    sides = torch.where(hidden[:, None], data.sides_unknown[rows], data.sides[rows])
    if data.stage0:
        alone = torch.tensor(random.random(len(rows)) < NO_STAGE0_SHARE)
        sides[alone, -2:] = torch.tensor([0.0, 1.0])
    model = torch.where(hidden, UNKNOWN_MODEL, data.model[rows])
    q = net.quantiles(code[place], model, sides)
    levels = torch.tensor(LEVELS, dtype=torch.float32)
    near = (1 - (vector * data.old[texts]).sum(dim=1)).mean()
    return pinball(q, data.y[rows], data.censored[rows], levels), near


def network(data: Corpus, facts: dict[str, Any], weights: dict[str, np.ndarray]) -> LengthNet:
    torch.manual_seed(SEED)
    start = torch.quantile(data.y, torch.tensor(LEVELS, dtype=torch.float32))
    return LengthNet(Bert(weights, HEADS, FROZEN), len(facts["models"]), data.sides.shape[1], start)


def rate_share(step: int, steps: int) -> float:
    """Share of the full learning rate: a line up, then a line down to 0."""
    rise = max(1, int(WARM_UP * steps))
    return min((step + 1) / rise, (steps - step) / max(1, steps - rise))


def train(
    net: LengthNet, data: Corpus, epochs: int, checkpoint: Path, near_old: float = NEAR_OLD
) -> None:
    encoder = [p for p in net.bert.parameters() if p.requires_grad]
    head = [p for name, p in net.named_parameters() if not name.startswith("bert.")]
    rates = [{"params": encoder, "lr": RATE}, {"params": head, "lr": HEAD_RATE}]
    optimiser = torch.optim.AdamW(rates, weight_decay=0.01)
    every = list(plan(data, epochs))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: rate_share(s, len(every)))
    done = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        net.load_state_dict(saved["net"])
        optimiser.load_state_dict(saved["optimiser"])
        schedule.load_state_dict(saved["schedule"])
        done = saved["step"]
    usual = len(data.y) / len(data.ids) * TEXTS  # rows a batch, so that each row counts the same
    recent: list[tuple[float, float]] = []
    saved_at = began = time.monotonic()
    for step in range(done, len(every)):
        net.train()
        torch.manual_seed(SEED * 1000 + step)
        loss, near = loss_of(net, data, every[step], step)
        optimiser.zero_grad()
        (loss.sum() / usual + near_old * near).backward()
        torch.nn.utils.clip_grad_norm_(encoder + head, 1.0)
        optimiser.step()
        schedule.step()
        recent.append((float(loss.detach().mean()), float(near.detach())))
        last = step + 1 == len(every)
        if step % 20 == 0 or last:
            pin, far = np.mean(recent[-20:], axis=0)
            pace = (time.monotonic() - began) / (step + 1 - done)
            print(
                f"step {step + 1}/{len(every)} pinball {pin:.4f} from old {far:.4f} "
                f"{pace:.2f} s a step, {pace * (len(every) - step - 1) / 60:.1f} min left",
                flush=True,
            )
        if last or time.monotonic() - saved_at > SAVE_S:
            save(net, optimiser, schedule, step + 1, checkpoint)
            saved_at = time.monotonic()


def start_from(net: LengthNet, checkpoint: Path) -> None:
    """Take over a trained network; side features that it lacks count nothing at first."""
    state = torch.load(checkpoint)["net"]
    first = state["first.weight"]
    missing = net.first.in_features - first.shape[1]
    state["first.weight"] = torch.cat([first, first.new_zeros(len(first), missing)], dim=1)
    net.load_state_dict(state)


def save(net: LengthNet, optimiser: Any, schedule: Any, step: int, checkpoint: Path) -> None:
    state = {"net": net.state_dict(), "optimiser": optimiser.state_dict()}
    fresh = checkpoint.with_suffix(".new")
    torch.save(state | {"schedule": schedule.state_dict(), "step": step}, fresh)
    fresh.replace(checkpoint)


HEAD_PARTS = ("code", "model", "first", "last")


def write(net: LengthNet, facts: dict[str, Any], weights: Any, out: Path) -> None:
    """The encoder's weights by their safetensors names, the head's by ours, and the facts."""
    np.savez(out / "encoder_weights.npz", **weights_of(net.bert, weights))
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    head = {name: a for name, a in state.items() if name.split(".")[0] in HEAD_PARTS}
    np.savez(out / "head_weights.npz", **head)
    (out / "head.json").write_text(json.dumps(facts, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("conversations", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="model.safetensors")
    parser.add_argument("--vectors", type=Path, required=True, help="of train_quantiles.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--leave-out", type=int, nargs="*", default=[], help="folds of 0 to 4")
    parser.add_argument("--start", type=Path, help="checkpoint.pt to begin from")
    parser.add_argument("--stage0", action="store_true", help="its location as a side feature")
    parser.add_argument("--near-old", type=float, default=NEAR_OLD)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rows", type=int, help="only the first so many, for a trial")
    args = parser.parse_args()
    torch.set_num_threads(2)
    args.out.mkdir(parents=True, exist_ok=True)
    data, facts = corpus(args, Tokenizer.from_file(str(HERE / "tokenizer.json")))
    weights = read_safetensors(args.weights)
    net = network(data, facts, weights)
    if args.start:
        start_from(net, args.start)
    facts |= {"left_out": args.leave_out, "epochs": args.epochs, "levels": LEVELS.tolist()}
    print(json.dumps({key: facts[key] for key in ("rows", "texts", "left_out")}), flush=True)
    train(net, data, args.epochs, args.out / "checkpoint.pt", args.near_old)
    write(net, facts, weights, args.out)


if __name__ == "__main__":
    main()
