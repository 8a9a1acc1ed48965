"""Stage 0's numbers by their formulas, one after the other and without haste, as an oracle.

Nothing here is shared with the code under test but the shipped tables of words and numbers.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from hashlib import blake2b
from math import exp, expm1, isnan, log1p, nan
from statistics import NormalDist

import numpy as np

from gateway.predict.artefacts import Tables
from gateway.predict.calibrate import Calibration
from gateway.predict.features import CHINESE, FIRST_WORDS, WORD_GROUPS
from gateway.predict.lengths import ResidualTable
from gateway.predict.prompt_view import PromptView
from gateway.types import QUANTILE_LEVELS

TOP = log1p(1_000_000)
SCORES = (-1.6449, -1.2816, -0.6745, 0.0, 0.6745, 1.2816, 1.6449)
EFFORT = {"none": 0, "minimal": 1, "low": 2, "medium": 3, "high": 4, "xhigh": 5}
SIZES = {"word": 1.3, "sentence": 25, "line": 25, "paragraph": 110, "page": 500}
SIZE = re.compile(r"(\d[\d,]{0,6})[- ]?(word|sentence|line|paragraph|page|字|characters)")


def prompt_key(view: PromptView, key: bytes) -> bytes:
    """The hash of a prompt."""
    shape = ""
    if view.text_chars > 2000 or view.messages > 1:
        shape = f"{view.text_chars},{view.system_chars},{view.chars},{view.messages},"
    shape += f"{view.tools},{view.json_format},{view.reasoning_effort}"
    if view.shape or view.verbosity:
        shape += f"\x00{view.shape}\x00{view.verbosity}"
    if (view.thinking, view.thinking_budget) != (None, None):
        shape += f",{view.thinking},{view.thinking_budget}"
    if view.prompts > 1 or view.batch_bytes or view.prompt_ids or view.best_of > 1:
        shape += f",{view.prompts},{view.batch_bytes},{view.prompt_ids},{view.best_of}"
    texts = (re.sub(r"\s+", " ", part.lower()).strip() for part in (view.text, view.system))
    data = "\x00".join([*texts, shape]).encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=16, key=key).digest()


def template_key(view: PromptView, key: bytes) -> str:
    """The hash of an application's template."""
    held = f"\x00{view.form}\x00{view.verbosity}" if view.form or view.verbosity else ""
    if not (view.system_chars or view.tool_names or view.tools or held):
        return ""
    size = view.system_chars // 64 if view.system_chars > 500 else 0
    names = ",".join(view.tool_names) or str(view.tools)
    text = re.sub("[1-9]", "0", f"{view.system}\x00{size}\x00{names}\x00{view.json_format}")
    data = f"{text}{held}".encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=8, key=key).hexdigest()


def features(view: PromptView, model: float, task: float, running: Sequence[float]) -> list[float]:
    """All features, in their order."""
    text, raw = view.text, view.text.encode("utf-8", "replace")
    read = text if len(text) <= 1000 else text[:750] + text[-250:]
    words, system = read.lower().split(), view.system.lower()

    def share(low: str, high: str) -> float:
        return sum(ord(low) <= byte <= ord(high) for byte in raw) / max(len(raw), 1)

    def number(*signs: str) -> int:
        return sum(raw.count(sign.encode()) for sign in signs)

    signs = sum(chr(byte) in "{}()[]<>=;_#\\/*&|" for byte in raw) / max(len(raw), 1)
    return [
        log1p(view.text_chars),
        log1p(max(len(raw), 1)),
        log1p(view.chars),
        log1p(view.system_chars),
        log1p(view.prior_chars / view.answers) if view.answers else nan,
        log1p(view.last_answer_chars) if view.answers else nan,
        *(view.messages, view.turns, view.answers, view.tool_results),
        log1p(len(words) * len(text) / max(len(read), 1)),
        len(read) / max(len(words), 1),
        log1p(number("\n")),
        *(share("\x80", "\xff"), share("\xe4", "\xe9"), share("0", "9"), share("A", "Z"), signs),
        *(number("?", "？"), log1p(number(".", "。")), log1p(number(",", "，")), number("```")),
        *(number("\n- ", "\n* "), number("http"), log1p(number('"')), number("$")),
        number("\nA", "(A)", "\nB"),
        *(raw.decode().endswith(("?", "？")), raw.decode().endswith((":", "："))),
        asked_size(read),
        FIRST_WORDS.get(words[0].strip(",.:!?"), nan) if words else nan,
        *(sum(word in group for word in set(words)) for _, group in WORD_GROUPS),
        *(view.wide_ratio > 0.1 and sign in read for sign in CHINESE),
        "json" in system,
        any(word in system for word in ("brief", "concise", "short")),
        any(word in system for word in ("code", "function")),
        *(view.tools, view.json_format, log1p(view.max_tokens) if view.max_tokens else nan),
        nan if view.temperature is None else view.temperature,
        EFFORT.get(view.reasoning_effort or "", nan),
        *(view.stop, view.n, model, task),
        nan if view.thinking is None else view.thinking,
        nan if view.thinking_budget is None else log1p(view.thinking_budget),
        log1p(view.tools_bytes),
        view.cjk_bytes / view.bytes if view.bytes else 0,
        *running,
    ]


def asked_size(text: str) -> float:
    """log1p of the tokens of the first size that the text asks for; NaN without one."""
    found = SIZE.search(text)
    if found is None:
        return nan
    return log1p(int(found[1].replace(",", "")) * SIZES.get(found[2], 0.9))


def model_mean(model: str, tables: Tables) -> float:
    """Mean log length of a model, else of the shipped models of its family, else NaN."""
    family = re.split(r"[-_:. ]?\d", model.rsplit("/", 1)[-1].lower())[0]
    near = [
        mean
        for name, mean in tables.models.items()
        if re.split(r"[-_:. ]?\d", name.rsplit("/", 1)[-1].lower())[0] == family
    ]
    return tables.models.get(model, float(np.mean(near)) if near else nan)


def grid(centre: float, scale: float, table: ResidualTable) -> list[float]:
    """The grid around a location."""
    columns = np.array(table.residuals).T
    return rising([centre + exp(scale) * np.interp(centre, table.at, own) for own in columns])


def rising(values: Sequence[float]) -> list[float]:
    """The values sorted and held within bounds."""
    return sorted(min(max(float(value), 0.0), TOP) for value in values)


def groups(view: PromptView, template: str) -> list[tuple[str, ...]]:
    """A request's groups, the widest first, as the calibration keeps them."""
    family = re.split(r"[-_:. ]?\d", view.model.rsplit("/", 1)[-1].lower())[0]
    found = [
        ("t", view.tenant),
        ("f", view.tenant, family),
        ("m", view.tenant, view.model),
        ("p", view.tenant, view.model, template),
    ]
    return found if template else found[:3]


def mean(table: Calibration, keys: Sequence[tuple[str, ...]], place: int) -> float:
    """The running mean of the narrowest group, each shrunk to the wider one by 12 answers."""
    found = 0.0
    for key in keys:
        of = table.templates if key[0] == "p" else table.models
        entry = of.get("\x1f".join(key))
        if entry is not None:
            found = (entry[place] + 12 * found) / (entry[place + 1] + 12)
    return found


def running(table: Calibration, keys: Sequence[tuple[str, ...]]) -> list[float]:
    """Mean and count of the lengths of tenant, model and template."""
    found: list[float] = []
    for kind in "tmp":
        own = [key for key in keys if key[0] == kind]
        of = table.templates if kind == "p" else table.models
        total, count = (of.get("\x1f".join(own[0]), (0.0,) * 10) if own else (0.0,) * 10)[4:6]
        found += [total / count if count else nan, count]
    return found


def at_most(values: Sequence[float], value: float) -> float:
    """P(X ≤ value), with the last slopes going on beyond the grid."""
    levels = QUANTILE_LEVELS
    if values[0] <= value < values[-1]:
        i = bisect_right(values, value) - 1
        part = (value - values[i]) / (values[i + 1] - values[i])
        return levels[i] + part * (levels[i + 1] - levels[i])
    i, j = (-1, -2) if value >= values[-1] else (0, 1)
    if values[i] == values[j]:
        return float(i == -1)
    slope = (levels[i] - levels[j]) / (values[i] - values[j])
    return min(max(levels[i] + (value - values[i]) * slope, 0.0), 1.0)


def levelled(values: Sequence[float], median: float, high: float) -> list[float]:
    """The grid read at other scores: those of two shares of misses, and what lies between."""
    low, top = score(median), score(high) - SCORES[5]
    if abs(low) < 1e-3 and abs(top) < 1e-3:
        return list(values)
    middle = low + (top - low) * SCORES[4] / SCORES[5]
    return rising(
        [
            linear(values, z + by)
            for z, by in zip(SCORES, (low, low, low, low, middle, top, top), strict=True)
        ]
    )


def score(share: float) -> float:
    """The normal score that a share lies above; in a straight line below 2 %."""
    normal, least = NormalDist(), max(share, 0.02)
    return normal.inv_cdf(1 - least) + (least - share) / normal.pdf(normal.inv_cdf(1 - least))


def linear(values: Sequence[float], z: float) -> float:
    """The grid at a score, the outer slopes going on."""
    i = sum(z >= border for border in SCORES[1:6])
    slope = (values[i + 1] - values[i]) / (SCORES[i + 1] - SCORES[i])
    return values[i] + (z - SCORES[i]) * slope


def tokens(values: Sequence[float], most: int | None) -> list[float]:
    """The grid in tokens, cut at the limit."""
    top = TOP if most is None else log1p(most)
    return [expm1(min(value, top)) for value in values]


def alike(found: Sequence[float], wanted: Sequence[float]) -> bool:
    """True where two rows are the same to nine digits, NaN for NaN."""
    return len(found) == len(wanted) and all(
        (isnan(a) and isnan(b)) or abs(a - b) <= 1e-9 * max(abs(b), 1.0)
        for a, b in zip(found, wanted, strict=True)
    )
