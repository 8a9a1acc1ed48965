"""Forms of the encoder, compared by τ of the forecasts and microseconds of CPU.

    python -m tests.bench.encoder_variants --data CONVERSATIONS.jsonl.gz [--weights FOLDER]

One network in several forms: the shipped int8 file (quantised as it runs), and with `--weights`
(the folder that models/finetune.py wrote; needs `onnx`) the same in fp32 and in int8 with ranges
fixed beforehand ("static", calibrated on fit-side rows). Each at token caps 16 to 128, at the four
levels of graph optimisation, and in batches of 16 as they come or sorted by length.

Every variant reads every text of a fixed slice of the test side, in turns of a few texts in an
order that rotates, and only the process's CPU time counts (tokens included, one thread); so other
work on the machine shifts all alike. Then the slice is replayed strictly with each variant's
vectors: `full` is the serving predictor, `knn` neighbours alone. ± is two standard errors (rows
drawn anew) of τ minus that of the shipped form at 64 tokens. The lower levels of graph
optimisation compute the same thing: they read the first texts only, and their τ is not computed
again. Nothing is fitted.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from msgspec import structs
from tokenizers import Tokenizer

from gateway.predict.artefacts import Artefacts
from gateway.predict.encoder import token_ids
from gateway.predict.prompt_view import cut
from gateway.settings.schema import Predict
from gateway.shipped import shipped
from gateway.workbench.evaluate.judged_rows import Case, choose, fit_keys, read
from gateway.workbench.evaluate.row_replay import replay
from gateway.workbench.evaluate.variants import forecaster
from gateway.workbench.evaluate.vectors import Prompt, PromptVector, RecordedEncoder, prompt_key
from gateway.workbench.figures import MEDIAN, kendall_tau
from gateway.workbench.split import last_user_text, row_keys

MODELS = shipped("models")
CAPS = (16, 32, 64, 128)
LEVELS = ("none", "basic", "extended", "all")
BATCH = 16
TURN = 64  # texts that one variant reads before the next one
CALIBRATE = 128  # fit-side texts
LEVEL_TURNS = 3  # turns in which a level below `all` takes part
DRAWN = 200  # times rows are drawn anew
OUTPUTS = ["vector", "code"]


class Variant(NamedTuple):
    """One way to run the encoder."""

    form: str  # of the weights: a key of `models_of`
    cap: int = 64
    level: str = "all"
    batch: str = ""  # "", "as they come", "by length"


SHIPPED = Variant("int8 dynamic")
STAGE0 = "stage 0"


def variants_of(forms: Sequence[str], *, crossed: bool) -> list[Variant]:
    """Variants of the shipped form, one change at a time; crossed, the same for each form."""
    found = [SHIPPED]
    for form in forms if crossed else [SHIPPED.form]:
        found += [Variant(form, cap) for cap in CAPS]
        found += [Variant(form, level=level) for level in LEVELS]
        found += [Variant(form, batch=batch) for batch in ("as they come", "by length")]
    return list(dict.fromkeys([*found, *map(Variant, forms)]))


class FormVectors:
    """A variant's vectors by `prompt_key`, and the CPU time they took."""

    def __init__(self) -> None:
        self.by_key: dict[bytes, PromptVector] = {}
        self.cpu_s: list[float] = []  # by turn

    def vectors(self, keys: Sequence[bytes]) -> np.ndarray:
        return np.array([self.by_key[key].vector for key in keys])


def models_of(weights: Path | None, texts: Sequence[str], build: Path) -> dict[str, Path]:
    """Files of the forms."""
    found = {SHIPPED.form: MODELS / "encoder.onnx"}
    if weights is None:
        return found
    sys.path.insert(0, str(MODELS))
    import onnx
    from build_encoder import HEADS  # type: ignore[import-not-found]
    from export_length import LengthGraph  # type: ignore[import-not-found]

    from gateway.workbench.encoders.quantise import CALIBRATE as LINES
    from gateway.workbench.encoders.quantise import lines_of, smoothed

    tokenizer = Tokenizer.from_file(str(MODELS / "tokenizer.json"))
    encoder = dict(np.load(weights / "encoder_weights.npz"))
    head = dict(np.load(weights / "head_weights.npz"))
    onnx.save(LengthGraph(encoder, HEADS, head, int8_words=False).model(), build / "fp32.onnx")
    rough = LengthGraph(encoder, HEADS, head).model()
    smoothed(rough, lines_of(MODELS)[:LINES], tokenizer)
    static(rough, texts, tokenizer, build)
    return {"fp32": build / "fp32.onnx", **found, "int8 static": build / "static.onnx"}


def static(model: Any, texts: Sequence[str], tokenizer: Any, build: Path) -> None:
    """Write an int8 form with ranges fixed by these texts.

    The tool has no such form of the fused attention: its product stays in floats.
    """
    import onnx
    from onnxruntime import quantization as q

    from gateway.workbench.encoders.bert_graph import products

    chosen = products(model)
    for node in chosen:  # the tool quantises only values of a declared type
        for name in (node.input[0], node.output[0]):
            kind = onnx.TensorProto.FLOAT
            model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, kind, None))
    onnx.save(model, str(build / "typed.onnx"))

    class Texts(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter([feed_of([token_ids(tokenizer, t, "", 64)]) for t in texts])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._left, None)

    q.quantize_static(
        *(build / "typed.onnx", build / "static.onnx", Texts()),
        quant_format=q.QuantFormat.QDQ,
        per_channel=True,
        activation_type=q.QuantType.QUInt8,
        weight_type=q.QuantType.QUInt8,
        nodes_to_quantize=[node.name for node in chosen],
        op_types_to_quantize=["MatMul", "Attention"],
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Attention"]},
    )


def session_of(path: Path, level: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    name = {"none": "DISABLE_ALL"}.get(level, f"ENABLE_{level.upper()}")
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{name}")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feed_of(rows: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Inputs of the model, padded to the longest row."""
    longest = max(map(len, rows))
    ids, mask = np.zeros((2, len(rows), longest), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def batches(variant: Variant, rows: list[list[int]]) -> Iterator[list[int]]:
    """Places of the rows that are read together."""
    size = BATCH if variant.batch else 1
    order = list(range(len(rows)))
    if variant.batch == "by length":
        order.sort(key=lambda i: len(rows[i]))
    for i in range(0, len(order), size):
        yield order[i : i + size]


def read_all(
    prompts: dict[bytes, Prompt], files: dict[str, Path], variants: Sequence[Variant]
) -> dict[Variant, FormVectors]:
    """Vectors of every prompt by every variant, read in turns."""
    tokenizer = Tokenizer.from_file(str(MODELS / "tokenizer.json"))
    sessions = {
        key: session_of(files[key[0]], key[1]) for key in {(v.form, v.level) for v in variants}
    }
    recorded = {variant: FormVectors() for variant in variants}
    keys = list(prompts)
    for turn, at in enumerate(range(0, len(keys), TURN)):
        some = keys[at : at + TURN]
        first = turn % len(variants)
        for variant in [*variants[first:], *variants[:first]]:
            if variant.level != "all" and turn >= LEVEL_TURNS:
                continue
            session, out = sessions[variant.form, variant.level], recorded[variant]
            began_s = time.process_time()
            rows = [token_ids(tokenizer, *prompts[key], variant.cap) for key in some]
            for places in batches(variant, rows):
                vectors, codes = session.run(OUTPUTS, feed_of([rows[i] for i in places]))
                for i, vector, code in zip(places, vectors, codes, strict=True):
                    out.by_key[some[i]] = PromptVector(vector, 0.0, code)
            out.cpu_s.append(time.process_time() - began_s)
        print(f"\r{at + len(some)} of {len(keys)} texts", end="", file=sys.stderr)
    print(file=sys.stderr)
    return recorded


def p50_of(cases: Sequence[Case], name: str, cap: int, recorded: FormVectors) -> np.ndarray:
    """Forecasts of a strict replay with this variant's vectors."""
    settings = structs.replace(Predict(), max_encoder_tokens=cap)
    artefacts = Artefacts(MODELS, settings.embedding_model_name, cap)
    assert artefacts.encoder is not None, artefacts.problems
    artefacts.encoder = RecordedEncoder(
        recorded.by_key, artefacts.encoder.width, cap, reader=artefacts.encoder
    )
    return replay(cases, forecaster(name, settings, artefacts, has_text=True)).grid[:, MEDIAN]


class Judge:
    """τ over some rows, and the uncertainty of a difference."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self._truth = np.array([float(case.output_tokens) for case in cases])
        exact = np.array([not case.censored for case in cases])
        first = np.array([case.first_seen for case in cases]) & exact
        chinese = np.array([case.lang == "zh" for case in cases])
        self.rows = {"all": exact, "first": first, "zh": first & chinese}

    def tau(self, p50: np.ndarray, rows: str) -> float:
        at = self.rows[rows]
        return kendall_tau(p50[at], self._truth[at]) or 0.0

    def spread(self, one: np.ndarray, other: np.ndarray) -> float:
        """Two standard errors of the difference, on first-seen rows."""
        at, draw = np.flatnonzero(self.rows["first"]), np.random.default_rng(0)
        differences = []
        for _ in range(DRAWN):
            some = draw.choice(at, len(at))
            a, b = (kendall_tau(p50[some], self._truth[some]) or 0.0 for p50 in (one, other))
            differences.append(a - b)
        return 2 * float(np.std(differences))


def compared(one: FormVectors, other: FormVectors | None) -> str:
    """Least and mean cosine between the vectors that both have."""
    if other is None:
        return ""
    keys = [key for key in one.by_key if key in other.by_key]
    cosine = (one.vectors(keys) * other.vectors(keys)).sum(axis=1)
    return f"{cosine.min():.4f} / {cosine.mean():.4f}"


HEAD = (
    "| weights | tokens | graph | batch | MB | cosine min / mean | µs a text | of shipped | τ all"
    " | τ first-seen | − shipped | τ zh | kNN τ | 10⁶ · (τ − stage 0) / µs | 10⁶ · τ / µs |"
)


def table(
    cases: Sequence[Case],
    recorded: dict[Variant, FormVectors],
    files: dict[str, Path],
    stage0: np.ndarray,
) -> list[str]:
    judge, keys = Judge(cases), list(recorded[SHIPPED].by_key)
    exact = Variant("fp32")
    forecasts: dict[tuple[int, bytes], tuple[np.ndarray, np.ndarray]] = {}

    def forecasts_of(variant: Variant) -> tuple[np.ndarray, np.ndarray]:
        own = recorded[variant]
        mark = (variant.cap, own.vectors(keys).tobytes())
        if mark not in forecasts:  # graph levels often make the same numbers
            full, knn = (p50_of(cases, name, variant.cap, own) for name in ("full", "knn"))
            forecasts[mark] = full, knn
        return forecasts[mark]

    base = forecasts_of(SHIPPED)[0]
    without = judge.tau(stage0, "first")
    lines = [HEAD, "|---" * HEAD.count(" | ") + "|---|"]
    for variant, own in recorded.items():
        print(f"\rreplay of {variant}", end="\033[K", file=sys.stderr)
        turns = len(own.cpu_s)
        us = sum(own.cpu_s) / len(own.by_key) * 1e6
        ratio = sum(own.cpu_s) / sum(recorded[SHIPPED].cpu_s[:turns])
        near = compared(own, recorded.get(exact._replace(cap=variant.cap)))
        start = (
            f"| {variant.form} | {variant.cap} | {variant.level} | {variant.batch or 'one'}"
            f" | {files[variant.form].stat().st_size / 1e6:.1f} | {near} | {us:.0f}"
            f" | {ratio:.2f} |"
        )
        if variant.level != "all":
            alike = compared(own, recorded[variant._replace(level="all")])
            lines.append(f"{start} (cosine with `all` {alike}) |" + " |" * 6)
            continue
        full, knn = forecasts_of(variant)
        tau = judge.tau(full, "first")
        change = tau - judge.tau(base, "first")
        lines.append(
            f"{start} {judge.tau(full, 'all'):.4f} | {tau:.4f}"
            f" | {change:+.4f} ± {judge.spread(full, base):.4f} | {judge.tau(full, 'zh'):.4f}"
            f" | {judge.tau(knn, 'first'):.4f} | {1e6 * (tau - without) / us:.2f}"
            f" | {1e6 * tau / us:.1f} |"
        )
    print(file=sys.stderr)
    counts = {name: int(rows.sum()) for name, rows in judge.rows.items()}
    return [
        f"{len(cases)} rows, {counts['first']} first-seen, {counts['zh']} of them Chinese;"
        f" {len(keys)} texts, read by each variant. Stage 0 alone: τ"
        f" {judge.tau(stage0, 'all'):.4f}, first-seen {without:.4f}.",
        "",
        *lines,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="encoder_weights.npz and head_weights.npz")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--crossed", action="store_true", help="caps, levels, batches of each form")
    parser.add_argument("--out", type=Path, help="Markdown to append to; default: print it")
    args = parser.parse_args()
    rows, fitted = read(args.data), fit_keys(MODELS)
    cases = choose(rows, fitted, "auto", args.rows).cases
    fit = [row for row, _ in rows if any(key in fitted for key in row_keys(row))]
    texts = [text for row in fit if (text := last_user_text(row)).strip()]
    texts = texts[:: max(1, len(texts) // CALIBRATE)][:CALIBRATE]
    chars = Predict().max_chars
    views = [case.view for case in cases if case.view.text.strip()]
    found = [Prompt(cut(view.text, chars), view.system) for view in views]
    with TemporaryDirectory() as build:
        files = models_of(args.weights, texts, Path(build))
        variants = variants_of(list(files), crossed=args.crossed)
        recorded = read_all({prompt_key(p): p for p in found}, files, variants)
        stage0 = p50_of(cases, "stage0", SHIPPED.cap, recorded[SHIPPED])
        lines = table(cases, recorded, files, stage0)
    day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    command = f"python -m tests.bench.encoder_variants --data {args.data.name}"
    command += " --weights FOLDER" * (args.weights is not None)
    command += f" --rows {args.rows}" + " --crossed" * args.crossed
    text = "\n".join([f"## Encoder variants, {day}", "", f"`{command}`", "", *lines, ""])
    if args.out is None:
        print(text)
    else:
        with args.out.open("a", encoding="utf-8") as file:
            file.write("\n" + text)


if __name__ == "__main__":
    main()
