"""Demo history: the rows that `sagesched history seed` has the predictor learn.

The rows come from the same grammar as the demo provider's answers (language.py), with its seed, so
a seeded predictor knows the demo's topics and forms. Topics and forms have uneven shares, some
prompts repeat, some have a `max_tokens` that cuts their answer, and a few failed, as in real
traffic.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from gateway.demo import language, requests

Row = dict[str, Any]

MODEL = "gpt-5.4-mini"
REPEAT_SHARE = 0.1  # prompts that came before, word by word
LIMITED_SHARE = 0.2  # requests with max_tokens
FAILED_SHARE = 0.02
LIMITS = (16, 64, 128, 256, 512, 1024, 2048)
_MESSAGE_TOKENS = 4  # OpenAI's framing of one message, as the demo provider counts it
_REMEMBERED = 500

TEMPLATES: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("chat", 3, ("Hello!", "Good morning", "Thanks, that helped", "Hi there, are you awake?")),
    (
        "classification",
        4,
        (
            "Answer with yes or no: is {topic} worth the effort for {who}?",
            "Classify this note about {topic} as praise or complaint: it was {mood}.",
            "In one word, what does {topic} make {who} think of?",
        ),
    ),
    (
        "qa",
        5,
        (
            "Do {who} still care about {topic}?",
            "Which part of {topic} is the {mood} one for {who}?",
            "Briefly, what matters most about {topic}?",
            "Explain {topic} to {who} in one sentence.",
        ),
    ),
    (
        "explain",
        4,
        (
            "Explain how {topic} became so {mood} for {who}.",
            "Why does {topic} look {mood} to {who}?",
            "Describe the difference between {topic} and {other}.",
        ),
    ),
    (
        "list",
        3,
        (
            "List {count} ideas for {topic} that suit {who}.",
            "Give me {count} reasons to prefer {topic} over {other}.",
            "What are the steps to begin with {topic}?",
        ),
    ),
    (
        "code",
        3,
        (
            "Write a Python function that keeps records of {topic}.",
            "Implement a class that models {topic} and {other}.",
            "Write a SQL query that counts {topic} by month, with unit tests.",
        ),
    ),
    (
        "writing",
        5,
        (
            "Write an essay about {topic} for {who}.",
            "Tell a {mood} story in which {topic} meets {other}.",
            "Write {words} words about {topic}.",
            "Draft a blog post on {topic} and {other}.",
        ),
    ),
    ("translation", 2, ("Translate into French: the {topic} of {who} was {mood}, as always.",)),
    ("summary", 2, ("Summarise these notes on {topic}: {notes}",)),
)
"""Task type, its share of the traffic, and templates of its prompts."""

_TOPICS = (
    "lighthouses, sourdough, volcanoes, bicycles, photosynthesis, harbours, clockwork, glaciers, "
    "beekeeping, railways, mushrooms, calligraphy, earthquakes, bookbinding, riverbeds, "
    "compilers, marathons, honeycombs, satellites, orchards, violins, batteries, archives, "
    "puppetry, wetlands, elevators, ceramics, migration, thunderstorms, lacemaking, aqueducts"
)
# Shorter than every topic, as the grammar takes the longest uncommon word for the topic.
_PEOPLE = "novices, nurses, my aunt, my team, pilots, cooks, doctors"
_MOODS = "quiet, modest, slow, costly, odd, bright, unsure"
_NOTES = (
    "the first attempt took longer than planned; ",
    "nobody objected to the second draft; ",
    "costs stayed within the frame we had set; ",
    "a visitor asked for more pictures; ",
    "the weather decided the order of work; ",
    "two questions stay open until spring; ",
)


def rows(count: int, seed: int = 0, *, model: str = MODEL, demo_seed: int = 0) -> Iterator[Row]:
    """`count` rows of history, oldest first; the same for the same arguments.

    Args:
        demo_seed: `[demo] seed` of the provider that the history must fit.

    Yields:
        dicts with prompt, output_tokens, prompt_tokens, max_tokens (0: none; an answer of exactly
        so many tokens was cut), model, task_type and success.
    """
    chance = random.Random(f"history {seed}")
    earlier: list[tuple[str, str]] = []
    times: dict[str, int] = {}
    for _ in range(count):
        if earlier and chance.random() < REPEAT_SHARE:
            task, prompt = chance.choice(earlier)
        else:
            task, prompt = prompt_of(chance)
            earlier = [*earlier[-_REMEMBERED:], (task, prompt)]
        attempt = times.get(prompt, 0)
        times[prompt] = attempt + 1
        yield _row(chance, task, prompt, attempt, model, demo_seed)


def prompt_of(chance: random.Random) -> tuple[str, str]:
    """A task type and a prompt of it."""
    task, _, templates = chance.choices(TEMPLATES, weights=[share for _, share, _ in TEMPLATES])[0]
    topic, other = chance.sample(_TOPICS.split(", "), 2)
    notes = "".join(chance.choices(_NOTES, k=chance.randint(2, 40)))
    prompt = chance.choice(templates).format(
        topic=topic,
        other=other,
        who=chance.choice(_PEOPLE.split(", ")),
        mood=chance.choice(_MOODS.split(", ")),
        count=chance.randint(3, 15),
        words=chance.choice((80, 150, 300, 500)),
        notes=notes,
    )
    return task, prompt


def _row(
    chance: random.Random, task: str, prompt: str, attempt: int, model: str, demo_seed: int
) -> Row:
    limit = chance.choice(LIMITS) if chance.random() < LIMITED_SHARE else 0
    success = chance.random() >= FAILED_SHARE
    cut_at = limit or language.MAX_TOKENS
    number = attempt * requests.ATTEMPT_STEP  # as the provider numbers first choices
    tokens = language.answer(prompt, seed=demo_seed, attempt=number, limit=cut_at)
    return {
        "prompt": prompt,
        "output_tokens": min(len(tokens), cut_at) if success else 0,
        "prompt_tokens": language.count_tokens(prompt) + _MESSAGE_TOKENS,
        "max_tokens": limit,
        "model": model,
        "task_type": task,
        "success": success,
    }
