"""The cheap features of a request: numbers for boosters.

`features` is stage 0's input and must stay within some tens of microseconds on the loop. So it
counts bytes with `bytes.translate` (2 µs for any class of characters in 2,000 bytes) and
intersects one set of words with word groups, instead of running regular expressions. The order
of the features is the one that the shipped models were trained with: new ones go to the end, and
`models/train_quantiles.py` records the names.
"""

from __future__ import annotations

import re
from math import log1p, nan

from gateway.predict.prompt_view import CJK_LEAD, WIDE, PromptView, cut

WORD_CHARS = 1000  # most characters of a text that are split into words

_DIGITS = b"0123456789"
_UPPER = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CODE = b"{}()[]<>=;_#\\/*&|"

WORD_GROUPS: tuple[tuple[str, frozenset[str]], ...] = tuple(
    (name, frozenset(words.split()))
    for name, words in (
        ("write", "write compose draft essay story poem article blog letter novel script speech"),
        ("create", "create generate design develop build make plan propose brainstorm suggest"),
        ("explain", "explain describe discuss elaborate analyze analyse compare why how detail"),
        ("list", "list enumerate name bullet bullets points ideas examples steps top ten"),
        ("code", "code function implement python java javascript c++ sql class program script api"),
        ("fix", "fix debug error bug refactor optimize improve correct rewrite edit revise"),
        ("brief", "brief briefly short concise shortly succinct one sentence only just simply"),
        ("long", "detailed comprehensive thorough long in-depth complete full extensive words"),
        ("pick", "classify choose which select option true false yes no sentiment label answer"),
        ("extract", "extract convert translate transform summarize summarise summary tl;dr parse"),
        ("math", "calculate compute solve sum equation probability number many much prove"),
        ("format", "json xml yaml csv table markdown html format schema latex"),
        ("think", "step-by-step reasoning think step reason carefully explain."),
        ("role", "you act as role assistant character pretend imagine expert"),
        ("question", "what who when where which is are does do can could should would will"),
        ("thanks", "thanks thank ok okay hi hello hey great good please yes continue"),
    )
)
_OPENINGS = """write create generate explain describe what how why who when where which is are can
could do does give list tell make please i you the a in if translate summarize convert find rewrite
given compare provide suggest identify classify calculate solve implement design act continue hi
hello imagine let my this there for from as def import #"""
FIRST_WORDS = {word: float(place) for place, word in enumerate(_OPENINGS.split())}
CHINESE = ("写", "翻译", "总结", "列", "代码", "解释", "介绍", "什么", "如何", "字", "法", "案")
_ASKED_SIZE = re.compile(
    r"(\d[\d,]{0,6})[- ]?(?:(word)|(sentence|line)|(paragraph)|(page)|(字|characters))"
)
_UNITS = ("word", "sentence", "line", "paragraph", "page", "字", "characters")
_PER_UNIT = (1.3, 25.0, 110.0, 500.0, 0.9)  # tokens a word, sentence, paragraph, page, character
_EFFORT = {"none": 0.0, "minimal": 1.0, "low": 2.0, "medium": 3.0, "high": 4.0, "xhigh": 5.0}

NAMES: tuple[str, ...] = (
    *("text", "text_bytes", "chars", "system", "prior_mean", "last_answer", "messages", "turns"),
    *("answers", "tool_results", "words", "word_length", "lines", "wide", "cjk", "digits"),
    *("upper", "code_signs", "questions", "stops", "commas", "fences", "bullets", "urls"),
    *("quotes", "dollars", "choices", "ends_question", "ends_colon", "asked_size", "first_word"),
    *(f"words_{name}" for name, _ in WORD_GROUPS),
    *(f"zh_{i}" for i in range(len(CHINESE))),
    *("system_json", "system_brief", "system_code", "tools", "json_format", "max_tokens"),
    *("temperature", "effort", "stop", "n", "model_mean", "task_mean"),
    # Added after the first models, which read only the names above.
    *("thinking", "thinking_budget", "tools_bytes", "cjk_share"),
    # Read by refits alone, which are worse without them (tests/bench/results/running-features.md).
    *("tenant_run_mean", "tenant_run_count", "model_run_mean", "model_run_count"),
    *("template_run_mean", "template_run_count"),
)
"""The names of the features, in their order."""

UNKNOWN_RUNNING: tuple[float, ...] = (nan, 0.0) * 3


def features(
    view: PromptView,
    model_mean: float = nan,
    task_mean: float = nan,
    running: tuple[float, ...] = UNKNOWN_RUNNING,
) -> list[float]:
    """Cheap features of a request, in the order of `NAMES`; ≤ 60 µs.

    Args:
        model_mean: mean log1p(output tokens) of the model, NaN where it is not known.
        task_mean: the same of the task type.
        running: mean log1p length and count of answers learned from, of the tenant, of its
            model, of its template (`Calibration.running`).
    """
    raw = view.text.encode("utf-8", "replace")
    read = cut(view.text, WORD_CHARS)
    words = read.lower().split()
    return [
        *_of_conversation(view, raw),
        log1p(len(words) * len(view.text) / (len(read) or 1)),
        len(read) / (len(words) or 1),
        *_of_characters(raw),
        *_of_words(view, read, words),
        *_of_parameters(view),
        model_mean,
        task_mean,
        nan if view.thinking is None else view.thinking,
        nan if view.thinking_budget is None else log1p(max(view.thinking_budget, 0)),
        log1p(view.tools_bytes),
        view.cjk_bytes / view.bytes if view.bytes else 0.0,
        *running,
    ]


def _of_conversation(view: PromptView, raw: bytes) -> tuple[float, ...]:
    return (
        log1p(view.text_chars),
        log1p(len(raw) or 1),
        log1p(view.chars),
        log1p(view.system_chars),
        log1p(view.prior_chars / view.answers) if view.answers else nan,
        log1p(view.last_answer_chars) if view.answers else nan,
        view.messages,
        view.turns,
        view.answers,
        view.tool_results,
    )


def _of_characters(raw: bytes) -> tuple[float, ...]:
    """Features of the text's bytes."""
    size, ascii_only = len(raw) or 1, raw.isascii()
    return (
        log1p(raw.count(b"\n")),
        0.0 if ascii_only else _share(raw, WIDE, size),
        0.0 if ascii_only else _share(raw, CJK_LEAD, size),
        _share(raw, _DIGITS, size),
        _share(raw, _UPPER, size),
        _share(raw, _CODE, size),
        raw.count(b"?") + raw.count("？".encode()),
        log1p(raw.count(b".") + raw.count("。".encode())),
        log1p(raw.count(b",") + raw.count("，".encode())),
        raw.count(b"```"),
        raw.count(b"\n- ") + raw.count(b"\n* "),
        raw.count(b"http"),
        log1p(raw.count(b'"')),
        raw.count(b"$"),
        raw.count(b"\nA") + raw.count(b"(A)") + raw.count(b"\nB"),
        raw.endswith((b"?", "？".encode())),
        raw.endswith((b":", "：".encode())),
    )


def _of_words(view: PromptView, read: str, words: list[str]) -> list[float]:
    """Features of the words. `read`: the part of the text that they are of."""
    first = FIRST_WORDS.get(words[0].strip(",.:!?")) if words else None
    distinct = set(words)
    row = [_asked_size(read), nan if first is None else first]
    row += [len(distinct & group) for _, group in WORD_GROUPS]
    if view.wide_ratio > 0.1:
        row += [word in read for word in CHINESE]
    else:
        row += [0.0] * len(CHINESE)
    return row


def _of_parameters(view: PromptView) -> tuple[float, ...]:
    """Features of the system prompt's words and of the request's parameters."""
    system = view.system.lower()
    effort = _EFFORT.get(view.reasoning_effort, nan) if view.reasoning_effort else nan
    return (
        "json" in system,
        "brief" in system or "concise" in system or "short" in system,
        "code" in system or "function" in system,
        view.tools,
        view.json_format,
        log1p(view.max_tokens) if view.max_tokens else nan,
        nan if view.temperature is None else view.temperature,
        effort,
        view.stop,
        view.n,
    )


def _share(raw: bytes, what: bytes, size: int) -> float:
    return 1.0 - len(raw.translate(None, what)) / size if raw else 0.0


def _asked_size(text: str) -> float:
    """log1p of the tokens that "300 words", "three pages" and the like ask for; NaN if none."""
    if not any(unit in text for unit in _UNITS):  # a tenth of what the expression takes
        return nan
    match = _ASKED_SIZE.search(text)
    if match is None or match.lastindex is None:
        return nan
    count = int(match[1].replace(",", "") or 0)
    return log1p(count * _PER_UNIT[match.lastindex - 2])
