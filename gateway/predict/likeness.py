"""One scale of similarity for all encoders.

The settings' `similarity_threshold`, and what a neighbour counts below a repeat, are meant for
the shipped encoder, where two prompts that have nothing in common lie near cosine 0. Others
spread less: of e5 every pair lies in 0.7 to 1.0 (its temperature is 0.01), so that by its cosine
each row of history would be a neighbour of each prompt.

So an exported encoder is measured on our own lines, every pair of which is of different prompts.
Its distances 1 − cosine are stretched by one factor, with which as many of these pairs lie as near
as of the shipped encoder's: a repeat stays at 1, strangers come to lie where they do for ours, and
the threshold means the same. The factor belongs to the encoder and stands in its manifest.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

QUANTILE = 0.9
"""Of the pairs' similarities, where the two scales are made to meet: with some 1,500 pairs the
highest that chance does not move much."""
LEAST, MOST = 0.2, 20.0
"""Factors beyond are of an encoder that does not tell texts apart."""
KEY = "similarity_scale"

Floats = npt.NDArray[np.float32]


def strangers(vectors: Floats) -> float:
    """The similarity at `QUANTILE` of all pairs of unit vectors, a row each."""
    above = np.triu_indices(len(vectors), 1)
    return float(np.quantile((vectors @ vectors.T)[above], QUANTILE))


def scale_of(own: Floats, shipped: Floats) -> float:
    """The factor for an encoder with vectors `own`, where the shipped one has `shipped` for the
    same lines."""
    far = max(1.0 - strangers(own), 1e-6)
    return round(min(max((1.0 - strangers(shipped)) / far, LEAST), MOST), 4)
