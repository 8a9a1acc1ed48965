"""The cheap features of a request: numbers for boosters.

`features` is stage 0's input and runs on the event loop for each request. So it counts bytes
instead of running regular expressions, looks words up in one table of all groups, and leaves out
what cannot be there: wide characters in ASCII, bullets in one line, a size without a digit. The
order of the features is the one that the shipped models were trained with: new ones go to the
end, and `models/train_quantiles.py` records the names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import log1p, nan

from gateway.predict.prompt_view import CJK_LEAD, WIDE, PromptView, cut, words_of

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
_GROUPS_OF: dict[str, tuple[int, ...]] = {
    word: tuple(place for place, (_, group) in enumerate(WORD_GROUPS) if word in group)
    for word in sorted(frozenset().union(*(group for _, group in WORD_GROUPS)))
}
_GROUPED = frozenset(_GROUPS_OF)
_OPENINGS = """write create generate explain describe what how why who when where which is are can
could do does give list tell make please i you the a in if translate summarize convert find rewrite
given compare provide suggest identify classify calculate solve implement design act continue hi
hello imagine let my this there for from as def import #"""
FIRST_WORDS = {word: float(place) for place, word in enumerate(_OPENINGS.split())}
CHINESE = ("写", "翻译", "总结", "列", "代码", "解释", "介绍", "什么", "如何", "字", "法", "案")
_NO_CHINESE = (0.0,) * len(CHINESE)
_WIDE_QUESTION, _WIDE_STOP, _WIDE_COMMA, _WIDE_COLON = (sign.encode() for sign in "？。，：")
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
    words = words_of(read)
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
    count, size, lines = raw.count, len(raw) or 1, raw.count(b"\n")
    wide = not raw.isascii()
    return (
        log1p(lines),
        _share(raw, WIDE, size) if wide else 0.0,
        _share(raw, CJK_LEAD, size) if wide else 0.0,
        _share(raw, _DIGITS, size),
        _share(raw, _UPPER, size),
        _share(raw, _CODE, size),
        count(b"?") + (count(_WIDE_QUESTION) if wide else 0),
        log1p(count(b".") + (count(_WIDE_STOP) if wide else 0)),
        log1p(count(b",") + (count(_WIDE_COMMA) if wide else 0)),
        count(b"```"),
        count(b"\n- ") + count(b"\n* ") if lines else 0,
        count(b"http"),
        log1p(count(b'"')),
        count(b"$"),
        count(b"(A)") + (count(b"\nA") + count(b"\nB") if lines else 0),
        raw.endswith((b"?", _WIDE_QUESTION)),
        raw.endswith((b":", _WIDE_COLON)),
    )


def _of_words(view: PromptView, read: str, words: Sequence[str]) -> list[float]:
    """Features of the words. `read`: the part of the text that they are of."""
    first = FIRST_WORDS.get(words[0].strip(",.:!?"), nan) if words else nan
    counts = [0] * len(WORD_GROUPS)
    for word in _GROUPED.intersection(words):
        for place in _GROUPS_OF[word]:
            counts[place] += 1
    chinese = [word in read for word in CHINESE] if view.wide_ratio > 0.1 else _NO_CHINESE
    return [_asked_size(read), first, *counts, *chinese]


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
    for unit in _UNITS:  # a tenth of what the expression takes
        if unit in text:
            break
    else:
        return nan
    match = _ASKED_SIZE.search(text)
    if match is None or match.lastindex is None:
        return nan
    count = int(match[1].replace(",", "") or 0)
    return log1p(count * _PER_UNIT[match.lastindex - 2])
