"""History rows whose lengths follow a rule that the shipped models do not know."""

from __future__ import annotations

import random
from math import nan

import numpy as np

from gateway.predict.artefacts import Artefacts
from gateway.predict.encoder import pack
from gateway.predict.forecast import pack_floats
from gateway.predict.prompt_view import PromptView, prompt_key
from gateway.predict.quantiles import NEIGHBOUR_NAMES
from gateway.types import HistoryRow

LINE = "tell me what stands in this part of the ledger and nothing else please"
WORDS = LINE.split(" ")


def ruled_rows(
    artefacts: Artefacts, count: int, *, seed: int = 1, noise: float = 0.3, shared: bool = True
) -> list[HistoryRow]:
    """Prompts of digits get 1,500 tokens, others 15: the opposite of what anybody would guess.

    No encoder is used: vectors are random, neighbours unknown. `noise`: of log length.
    """
    assert artefacts.tables is not None
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    rows = []
    for i in range(count):
        long = rng.random() < 0.5
        words = [rng.choice(WORDS) for _ in range(rng.randrange(5, 30))]
        text = " ".join([digits(rng) for _ in words] if long else words)
        seen = PromptView.of_prompt(text, tenant="a", model="m-1")
        vector = numbers.standard_normal(384).astype(np.float32)
        typical = 1500 if long else 15
        rows.append(
            HistoryRow(
                wall_s=1000.0 + i,
                tenant="a",
                model="m-1",
                task_type="",
                prompt_key=prompt_key(seen, b"key"),
                encoder=artefacts.encoder_name,
                vector=pack(vector / np.linalg.norm(vector)),
                prompt_tokens=seen.prompt_tokens,
                output_tokens=max(1, round(typical * rng.lognormvariate(0, noise))),
                max_tokens=0,
                censored=False,
                success=True,
                features=pack_floats(artefacts.tables.features_of(seen)),
                neighbours=pack_floats([nan] * len(NEIGHBOUR_NAMES)),
                shared=shared,
            )
        )
    return rows


def digits(rng: random.Random) -> str:
    """A number of one to nine digits."""
    return str(rng.randrange(10 ** rng.randrange(1, 10)))
