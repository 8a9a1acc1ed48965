"""Texts of the demo provider's answers, and above all their lengths.

A demo of a scheduler that predicts needs lengths like real ones: they depend partly on the form of
the request (one word, a list of seven, an essay, code), partly on its topic, which only a memory of
similar prompts can know, and partly on chance:

    tokens = median(kind, prompt) × topic factor × log-normal noise

Everything is a function of (seed, prompt, attempt), so an experiment can be repeated. The demo
history (history_rows.py) uses the same grammar. A token is a word with its leading space, half a
long word, or a mark; joined they are the text. All sentences are our own.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Callable, Iterator

MAX_TOKENS = 4096
CHARS_PER_TOKEN = (
    4.2  # prompts are not tokenised, so that a long one costs no more than a short one
)
TOPIC_SIGMA = 0.35
NOISE_SIGMA = 0.25
_READ_CHARS = 4000  # characters of a prompt that are read

Median = Callable[[re.Match[str], int], float]
"""Median output tokens from the matched form and the number of words of the prompt."""

KINDS: tuple[tuple[str, str, Median], ...] = (
    (
        "label",
        r"\b(one word|single word|yes or no|true or false|classify|only the (number|name|label))\b",
        lambda m, w: 3,
    ),
    ("length", r"\b(\d{2,4}) words\b", lambda m, w: 1.15 * int(m[1])),
    ("brief", r"\b(one sentence|briefly|in short|short answer|tl;dr)\b", lambda m, w: 26),
    ("translate", r"\btranslat(e|ion)\b", lambda m, w: 4 + 1.2 * w),
    ("summary", r"\b(summar(y|ise|ize)|key points)\b", lambda m, w: 45 + 4 * math.sqrt(w)),
    (
        "code",
        r"\b(function|script|class|implement|regex|sql|python|javascript|code|unit tests?)\b",
        lambda m, w: 190 + 3 * min(w, 60),
    ),
    (
        "essay",
        r"\b(essay|story|article|in detail|comprehensive|chapter|speech|blog post)\b",
        lambda m, w: 640,
    ),
    (
        "list",
        r"\b(?:(\d{1,2}) )?(?:\w+ )?(list|steps|ideas|ways|tips|reasons|examples)\b",
        lambda m, w: 17 * int(m[1] or 7),
    ),
    (
        "explain",
        r"\b(explain|why|how|compare|difference|describe)\b",
        lambda m, w: 150 + 2 * min(w, 80),
    ),
    ("greeting", r"^\W*(hi|hello|hey|good (morning|evening)|thanks|thank you)\b", lambda m, w: 11),
    ("chat", r"", lambda m, w: 70 + 1.5 * min(w, 100)),
)
"""Forms of a request: name, pattern, median length. The first that matches is used."""

_COMPILED = tuple((name, re.compile(p, re.IGNORECASE), median) for name, p, median in KINDS)


def _words(text: str) -> list[str]:
    return text.split()


_COMMON = frozenset(
    _words(
        "about above after again also answer because before being between briefly class "
        "classify code compare complaint could count describe detail difference does draft "
        "each effort essay every example examples explain first french from function give "
        "have hello help ideas implement into just know like list long make many matters "
        "month more most much must need notes only other part please point praise prefer "
        "python query reasons records script sentence short should some steps story such suit "
        "summarise summary tell than thank that their them then there these they thing this "
        "tips translate very want ways what when where which while will with word words would "
        "write your"
    )
)

_SENTENCES = (
    "The matter of {t} looks simple until somebody has to {v} it on a busy day.",
    "A good first move is to {v} the {n} and to write down what changed.",
    "Most people notice {t} only when the {n} is already {a}.",
    "If the {n} stays {a}, it is usually cheaper to {v} it twice than to guess once.",
    "There is a second reason: the {n} and {t} rarely move at the same pace.",
    "In practice you {v} what you can measure and leave the rest {a}.",
    "The {n} behind {t} is {a}, and that explains a good part of the trouble.",
    "Ask who has to {v} the {n} next week, and the answer becomes {a}.",
    "None of this makes {t} less {a}; it only tells you where to look.",
    "Early on a {a} {n} is an advantage, later it turns into a habit.",
    "Take a small {n}, {v} it with care, and compare it with {t} afterwards.",
    "It helps to keep {t} apart from the {n}, even when both are {a}.",
    "Over a longer time the {n} wins, because somebody can {v} it without asking.",
    "What remains is a matter of taste: a {a} {n}, or none at all.",
)
_NOUNS = _words(
    "plan border record habit season motor margin surface ledger signal workshop harbour "
    "budget rhythm detail neighbour draft measure garden bridge schedule archive"
)
_VERBS = _words("test repair observe simplify question rebuild share postpone compare sketch")
_ADJECTIVES = _words("quiet bumpy fragile patient visible costly familiar narrow robust late")
_SHORT = ("Yes", "No", "True", "Positive", "Neutral", "Blue", "Seven", "Probably", "Autumn")
_GREETINGS = (
    "Hello! What would you like to work on today?",
    "Good to hear from you. How can I be of help?",
    "You are welcome! Is there anything else?",
)
_CODE = (
    "def {v}_{n}({n2}, limit={k}):",
    "    {n2}_left = [item for item in {n2} if item is not None]",
    "    for position, {n} in enumerate({n2}_left[:limit]):",
    "        if {n}.{a} and position > {k}:",
    "            yield {v}({n}, position)",
    "    total = sum(len(str({n})) for {n} in {n2}_left)",
    "    return total // max(1, limit - {k})",
    "",
)

_TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])|\s+")


def count_tokens(text: str) -> int:
    """Number of prompt tokens, by length alone."""
    return math.ceil(len(text) / CHARS_PER_TOKEN)


def kind_of(prompt: str) -> str:
    """The form of the request: a name in `KINDS`."""
    return _form(prompt[:_READ_CHARS])[0]


def median_tokens(prompt: str, seed: int = 0) -> float:
    """The median of this prompt's length distribution, topic included."""
    read = prompt[:_READ_CHARS]
    _, match, median = _form(read)
    topic_noise = random.Random(_digest(seed, topic_of(read), 0)).gauss(0, TOPIC_SIGMA)
    words = len(read.split())
    return min(MAX_TOKENS, max(1.0, median(match, words) * math.exp(topic_noise)))


def topic_of(prompt: str) -> str:
    """The longest word of a prompt that is not a common one."""
    words = re.findall(r"[^\W\d_]{4,}", prompt[:_READ_CHARS])
    telling = [w.lower() for w in words if w.lower() not in _COMMON]
    return max(telling, key=len, default="this question")


def answer(prompt: str, *, seed: int = 0, attempt: int = 0, limit: int = MAX_TOKENS) -> list[str]:
    """The tokens of an answer, at most `limit` + 1 of them.

    One token more than `limit` means that the answer was longer.
    """
    chance = random.Random(_digest(seed, prompt, attempt))
    target = median_tokens(prompt, seed) * math.exp(chance.gauss(0, NOISE_SIGMA))
    wanted = min(MAX_TOKENS, max(1, round(target)))
    out: list[str] = []
    kind = kind_of(prompt)
    for part in _parts(kind, topic_of(prompt), wanted, chance):
        out += tokenise(part)
        if len(out) >= wanted or len(out) > limit:
            break
    # The last sentence is cut so that the length is exact; set phrases stay whole.
    if len(out) > wanted and kind not in ("label", "greeting"):
        out = [*out[: wanted - 1], "."]
    return out[: limit + 1]


def phrase(chance: random.Random, topic: str = "this question") -> str:
    """One sentence, for the strings inside JSON answers."""
    return _fill(chance.choice(_SENTENCES), topic, chance)


def tokenise(text: str) -> list[str]:
    """Words with their leading space, long ones in two halves; joined they are `text`."""
    out = []
    for piece in _TOKEN.findall(text):
        if len(piece) > 9:
            out += [piece[: len(piece) // 2], piece[len(piece) // 2 :]]
        else:
            out.append(piece)
    return out


def _form(read: str) -> tuple[str, re.Match[str], Median]:
    for name, pattern, median in _COMPILED:
        match = pattern.search(read)
        if match is not None:
            return name, match, median
    raise AssertionError("the last kind matches everything")


def _parts(kind: str, topic: str, wanted: int, chance: random.Random) -> Iterator[str]:
    """Pieces of text without end; the caller stops when it has enough."""
    if kind == "label":
        yield chance.choice(_SHORT)
        yield "."
        return
    if kind == "greeting":
        yield chance.choice(_GREETINGS)
        return
    if kind == "code":
        yield "```python\n"
        for _ in range(max(1, wanted // 110)):
            yield _fill("\n".join(_CODE), topic, chance) + "\n"
        yield "```\n\n"
    yield from _list(topic, chance) if kind == "list" else _prose(topic, chance)


def _list(topic: str, chance: random.Random) -> Iterator[str]:
    number = 0
    while True:
        number += 1
        lead = "\n" if number > 1 else ""
        yield f"{lead}{number}. " + _fill(chance.choice(_SENTENCES), topic, chance)


def _prose(topic: str, chance: random.Random) -> Iterator[str]:
    in_paragraph, lead = 0, ""
    while True:
        yield lead + _fill(chance.choice(_SENTENCES), topic, chance)
        in_paragraph += 1
        lead = " "
        if in_paragraph >= chance.randint(4, 7):
            in_paragraph, lead = 0, "\n\n"


def _fill(template: str, topic: str, chance: random.Random) -> str:
    return template.format(
        t=topic,
        n=chance.choice(_NOUNS),
        n2=chance.choice(_NOUNS) + "s",
        v=chance.choice(_VERBS),
        a=chance.choice(_ADJECTIVES),
        k=chance.randint(1, 9),
    )


def _digest(*parts: object) -> bytes:
    """A seed that does not depend on the process, as `hash()` would."""
    return hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=16).digest()
